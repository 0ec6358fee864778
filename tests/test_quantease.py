"""Coordinate descent: monotone, and with the points that trying all of them gives."""

import itertools

import numpy as np
import pytest
import torch

from pvq import PVQConfig, _core, quantize_tensor
from pvq.codes.overlap import OverlapCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian
from pvq.rounding.quantease import QuantEase


def hessian(cols: int, tokens: int = 800) -> torch.Tensor:
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((cols, cols)) / np.sqrt(cols) + np.eye(cols)
    x = rng.standard_normal((tokens, cols)) * np.geomspace(0.3, 3, cols) @ mixing
    return torch.from_numpy(x.T @ x)


def matrix(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))


def loss(w, decoded, h):
    error = (w - decoded).double()
    return ((error @ h) * error).sum(1)


@pytest.mark.parametrize("bits", [2, 4])
def test_sweeps_are_those_of_the_definition(bits):
    """Every block in turn: of all points, the one with the least loss of the whole row."""
    cols = 24
    code, w, h = TableCode(bits), matrix(7, cols), hessian(cols)
    damped = h + 0.03 * h.diagonal().mean() * torch.eye(cols)
    start = GPTQ(damping=0.03, passes=1)
    stored = start(w, code, Hessian(h))
    points = torch.from_numpy(_core.code_table(bits)).double()
    dim = points.shape[1]
    scale = stored["row_scale"].double()
    chosen = stored["code"].long()
    for _ in range(2):
        for g in range(cols // dim):
            trials = chosen[:, None].repeat(1, 256, 1)
            trials[:, :, g] = torch.arange(256)
            decoded = scale[:, None, None] * points[trials].flatten(2)
            error = w.double()[:, None] - decoded
            chosen[:, g] = ((error @ damped) * error).sum(-1).argmin(1)
    after = QuantEase(sweeps=2, damping=0.03, start=start)(w, code, Hessian(h))
    assert torch.equal(after["code"].long(), chosen)
    assert torch.equal(after["row_scale"], stored["row_scale"])


@pytest.mark.parametrize(
    "code", [PyramidCode(16, 27, 4), PyramidCode(8, 7, 1), PyramidCode(16, 14, 0), TableCode(3)]
)
def test_every_sweep_lowers_the_loss_of_every_row(code):
    w, h = matrix(30, 288), hessian(288)
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(288)
    losses = [
        loss(w, code.dequantize(QuantEase(sweeps=n)(w, code, Hessian(h)), 288), damped)
        for n in range(4)
    ]
    for before, after in itertools.pairwise(losses):
        assert (after <= before * (1 + 1e-4)).all()
    assert losses[3].sum() < 0.93 * losses[0].sum()


def test_no_sweep_is_what_it_starts_from():
    w, h = matrix(9, 96), hessian(96)
    code = PyramidCode(16, 27, 4)
    expected = GPTQ()(w, code, Hessian(h))
    for name, tensor in QuantEase(sweeps=0)(w, code, Hessian(h)).items():
        assert torch.equal(tensor, expected[name])


def test_empty_and_zero_matrices():
    for w in (torch.zeros(0, 64), torch.zeros(2, 64)):
        tensor = quantize_tensor(w, PVQConfig(2.25), rounding=QuantEase(), hessian=torch.eye(64))
        assert torch.equal(tensor.dequantize(), w)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="sweeps is -1"):
        QuantEase(sweeps=-1)
    with pytest.raises(ValueError, match="damping is 2"):
        QuantEase(damping=2)
    with pytest.raises(ValueError, match="needs calibration"):
        QuantEase()(torch.zeros(1, 16), PyramidCode(16, 5, 1))


def test_sweeps_over_blocks_that_are_rounded_with_feedback_inside():
    """Rounding such a block again finds no least cost, but what costs more is not taken."""
    w, h, code = matrix(12, 384), hessian(384), OverlapCode(3)
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(384)
    losses = [
        loss(w, code.dequantize(QuantEase(sweeps=n)(w, code, Hessian(h)), 384), damped)
        for n in range(3)
    ]
    for before, after in itertools.pairwise(losses):
        assert (after <= before * (1 + 1e-4)).all()
    assert losses[2].sum() < 0.995 * losses[0].sum()
