"""Coordinate descent: monotone, and with the points that trying all of them gives."""

import itertools

import numpy as np
import pytest
import torch

from pvq import PVQConfig, _core, quantize_tensor
from pvq.codes.nf4 import NF4Code
from pvq.codes.outliers import OutlierCode
from pvq.codes.overlap import OverlapCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode
from pvq.codes.uniform import UniformCode
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase
from pvq.rounding.registry import make_rounding
from pvq.rounding.tesseraq import TesseraQ


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
@pytest.mark.parametrize("start", [GPTQ(damping=0.03), Nearest(), AWQ()], ids=lambda s: s.name)
def test_sweeps_are_those_of_the_definition(bits, start):
    """Every block in turn: of all points, the one with the least loss of the whole row."""
    cols = 24
    code, w, h = TableCode(bits), matrix(7, cols), hessian(cols)
    damped = h + 0.03 * h.diagonal().mean() * torch.eye(cols)
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


@pytest.mark.parametrize("start", ["gptq", "nearest", "awq"])
@pytest.mark.parametrize(
    "code",
    [PyramidCode(16, 27, 4), UniformCode(3, 32), NF4Code(32), OutlierCode(TableCode(3), 0.02)],
    ids=lambda code: code.describe(),
)
def test_no_sweep_is_what_it_starts_from(start, code):
    w, h = matrix(9, 96), hessian(96)
    expected = make_rounding(start)(w, code, Hessian(h))
    none = make_rounding("quantease", start=start, sweeps=0)
    for name, tensor in none(w, code, Hessian(h)).items():
        assert torch.equal(tensor, expected[name])
    swept = make_rounding("quantease", start=start, sweeps=2)(w, code, Hessian(h))
    after, before = (loss(w, code.dequantize(s, 96), h).sum() for s in (swept, expected))
    assert after < 0.98 * before


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
    for wrong in ("gptq", GPTQ, None):
        with pytest.raises(TypeError, match=r"start is .*, expected a rounding method such as"):
            QuantEase(start=wrong)
    expected = "start is 'tesseraq', .* turn it around, 'tesseraq' with start='quantease'"
    with pytest.raises(ValueError, match=expected):
        QuantEase(start=TesseraQ())
    with pytest.raises(ValueError, match=expected):
        make_rounding("quantease", start="tesseraq")


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
