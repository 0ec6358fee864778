"""Rounding block by block into each code: against the codes' own search and brute force."""

import itertools

import numpy as np
import pytest
import reference
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pvq import _core
from pvq.codes import pyramid_rounder
from pvq.codes.bands import BandsCode
from pvq.codes.bits import pack
from pvq.codes.overlap import OverlapCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode

CODES = [
    PyramidCode(16, 27, 4),
    PyramidCode(16, 14, 1),
    PyramidCode(8, 5, 0),
    PyramidCode(24, 40, 3, gain_law="beta", quality=2),
    TableCode(2),
    TableCode(3),
    TableCode(4),
    OverlapCode(2),
    OverlapCode(2.5),
    OverlapCode(3.5),
    BandsCode(2, 16, (12, 27), (2, 3)),
]


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def metric(dim: int, condition: float, seed: int = 0) -> torch.Tensor:
    """A random symmetric positive definite matrix with eigenvalues from 1 / condition to 1."""
    q = torch.linalg.qr(gaussian(dim, dim, seed).double()).Q
    return (q * torch.logspace(0, -np.log10(condition), dim, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_without_a_metric_blocks_get_the_nearest_points(code):
    w = gaussian(9, 96) * torch.logspace(-3, 3, 9)[:, None]
    w[4] = 0
    w[5, :48] = 0
    rounder = code.rounder(w)
    first = list(range(0, 96, rounder.step))
    decoded = {f: rounder.round(w[:, f : f + rounder.step], f) for f in reversed(first)}
    stored, expected = rounder.stored(), code.quantize(w)
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor), name
    whole = torch.cat([decoded[f] for f in first], 1)
    assert torch.allclose(whole, code.dequantize(expected, 96), rtol=1e-6, atol=0)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_the_last_rounding_of_a_block_counts(code):
    w, other = gaussian(5, 48), gaussian(5, 48, 1)
    rounder = code.rounder(w)
    for f in range(0, 48, rounder.step):
        rounder.round(other[:, f : f + rounder.step], f)
    for f in range(0, 48, rounder.step):
        rounder.round(w[:, f : f + rounder.step], f)
    for name, tensor in code.quantize(w).items():
        assert torch.equal(rounder.stored()[name], tensor)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_rescaling_changes_scales_and_nothing_else(code):
    w = gaussian(6, 48)
    rounder = code.rounder(w)
    decoded = torch.cat(
        [rounder.round(w[:, f : f + rounder.step], f) for f in range(0, 48, rounder.step)], 1
    )
    before = rounder.stored()
    factor = torch.tensor([1.0, 2.0, 0.5, 1.25, 0.9, 3.0])
    after = rounder.rescale(factor)
    stored = rounder.stored()
    assert torch.equal(
        stored["row_scale"], (before["row_scale"].float() * factor).to(torch.bfloat16)
    )
    for name in before.keys() - {"row_scale"}:
        assert torch.equal(stored[name], before[name])
    assert torch.allclose(after, decoded * factor[:, None], rtol=2**-8)
    assert torch.allclose(after, code.dequantize(stored, 48), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1000.0])
def test_a_table_block_gets_the_point_of_least_cost(bits, condition):
    code = TableCode(bits)
    w = gaussian(60, 8)
    rounder = code.rounder(w)
    s = metric(rounder.step, condition)
    block = w[:, : rounder.step]
    rounder.round(block, 0, s.float())
    stored = rounder.stored()
    points = torch.from_numpy(_core.code_table(bits)).double()
    residual = block.double()[:, None] - stored["row_scale"].double()[:, None, None] * points
    cost = torch.einsum("rpi,ij,rpj->rp", residual, s, residual)
    chosen = cost.gather(1, stored["code"][:, :1].long())[:, 0]
    assert torch.allclose(chosen, cost.min(1).values, rtol=1e-4, atol=1e-7)


def test_a_table_block_with_signs_apart_is_next_to_the_best():
    code = TableCode(3)
    w = gaussian(60, 8)
    rounder = code.rounder(w)
    magnitudes = 2 * torch.from_numpy(_core.code_table(3)).double() + 1
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=4)), dtype=torch.float64)
    points = (signs[:, None] * magnitudes).flatten(0, 1)
    scale = code.quantize(w)["row_scale"].double()
    for condition, excess in ((1.0, 1e-6), (3.0, 0.01), (30.0, 0.1)):
        s = metric(4, condition)
        block = w[:, :4].double()
        error = block - rounder.round(w[:, :4], 0, s.float()).double()
        chosen = ((error @ s) * error).sum(1)
        residual = block[:, None] - scale[:, None, None] * points
        best = torch.einsum("rpi,ij,rpj->rp", residual, s, residual).min(1).values
        assert (chosen > best * (1 - 1e-4) - 1e-9).all()
        assert chosen.sum() <= best.sum() * (1 + excess)


@pytest.mark.parametrize(("dim", "pulses"), [(4, 4), (4, 7), (6, 4)])
@pytest.mark.parametrize(("condition", "excess"), [(1.0, 0.005), (10.0, 0.05), (100.0, 0.3)])
def test_a_pyramid_block_is_next_to_the_best(dim, pulses, condition, excess):
    code = PyramidCode(dim, pulses, 3, quality=2)
    w = gaussian(200, 4 * dim)
    s = metric(dim, condition)
    rounder = code.rounder(w)
    block = w[:, :dim].double()
    error = block - rounder.round(w[:, :dim], 0, s.float()).double()
    chosen = ((error @ s) * error).sum(1)
    y = torch.from_numpy(reference.points(dim, pulses)).double()
    unit = y / y.norm(dim=1, keepdim=True)
    levels = torch.from_numpy(_core.gain_levels(dim, 4 * dim, 3, "lloyd")).double()
    amplitude = code.quantize(w)["row_scale"].double()[:, None] * levels
    product, square = block @ s @ unit.T, ((unit @ s) * unit).sum(1)
    cost = (
        ((block @ s) * block).sum(1)[:, None, None]
        - 2 * amplitude[:, :, None] * product[:, None, :]
        + amplitude[:, :, None].square() * square
    )
    zero = ((block @ s) * block).sum(1)
    best = torch.minimum(cost.flatten(1).min(1).values, zero)
    plain = block - code.rounder(w).round(w[:, :dim], 0).double()
    assert (chosen > best * (1 - 1e-4) - 1e-7).all()
    assert chosen.sum() <= best.sum() * (1 + excess)
    if condition > 1:
        assert chosen.sum() < ((plain @ s) * plain).sum()


class Largest(TorchDispatchMode):
    """Sees how many numbers the largest result of an operation has."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize(("dim", "pulses", "rows"), [(16, 27, 50), (256, 300, 21)])
@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_a_pyramid_block_is_searched_a_few_rows_at_a_time(monkeypatch, dim, pulses, rows, chunk):
    code, w, s = PyramidCode(dim, pulses, 3), gaussian(rows, dim), metric(dim, 100.0).float()
    stored = []
    for pairs in (rows * dim**2, chunk * dim**2):
        monkeypatch.setattr(pyramid_rounder, "_PAIRS", pairs)
        rounder = code.rounder(w)
        with Largest() as largest:
            rounder.round(w, 0, s)
        assert largest.numel == max(pairs, rows * dim, dim**2)
        stored.append(rounder.stored())
    assert all(torch.equal(stored[1][name], stored[0][name]) for name in stored[0])
    plain = code.quantize(w)
    assert not torch.equal(stored[0]["index"], plain["index"]), "the metric moves some pulses"


def test_wide_pyramid_blocks_take_little_memory():
    code, w, s = PyramidCode(256, 60, 3), gaussian(100, 256), metric(256, 10.0).float()
    rounder = code.rounder(w)
    with Largest() as largest:
        rounder.round(w, 0, s)
    assert 4 * largest.numel <= 1 << 24, "bytes"


def test_packed_bits_are_a_little_endian_stream():
    rng = np.random.default_rng(0)
    for width in range(9):
        for count in (0, 1, 7, 8, 13):
            fields = rng.integers(0, 1 << width, (3, count)).astype(np.uint8)
            packed = pack(torch.from_numpy(fields), width)
            assert packed.shape == (3, (count * width + 7) // 8)
            for row, expected in zip(packed.numpy(), fields.tolist(), strict=True):
                assert np.array_equal(row, reference.pack(expected, width) if width else row)
