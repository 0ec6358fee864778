"""Block feedback against the textbook form with an inverse Hessian, in float64."""

import numpy as np
import pytest
import torch

from pvq import PVQConfig, _core, quantize_tensor
from pvq.codes.overlap import OverlapCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase


def inputs(tokens: int, cols: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs of unequal size."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols, cols)) / np.sqrt(cols) + np.eye(cols)
    return rng.standard_normal((tokens, cols)) * np.geomspace(0.2, 3, cols) @ mixing


def textbook(w, h, damping, points, scale, blocks):
    """Block feedback with U, H^-1 = U^T U, updating all later columns; returns point numbers.

    Of all `points` the one of least cost e (U_QQ^T U_QQ)^-1 e is taken, by trying each.
    """
    step = points.shape[1]
    columns = np.concatenate([np.arange(b * step, (b + 1) * step) for b in blocks])
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(columns, columns)])).T
    w = w[:, columns].astype(np.float64).copy()
    chosen = np.zeros((len(w), len(blocks)), dtype=np.int64)
    for i, block in enumerate(blocks):
        here, later = slice(i * step, (i + 1) * step), slice((i + 1) * step, None)
        inverse = np.linalg.inv(upper[here, here])
        residual = w[:, None, here] - scale[:, None, None] * points
        cost = ((residual @ inverse) ** 2).sum(-1)
        chosen[:, block] = cost.argmin(1)
        error = w[:, here] - scale[:, None] * points[chosen[:, block]]
        w[:, later] -= error @ inverse @ upper[here, later]
    return chosen


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("cols", [8, 96, 296])
def test_codes_are_those_of_the_textbook(bits, order, cols):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((11, cols)).astype(np.float32)
    x = inputs(2 * cols, cols)
    h = x.T @ x
    code = TableCode(bits)
    stored = GPTQ(damping=0.02, order=order, passes=1)(
        torch.from_numpy(w), code, Hessian(torch.from_numpy(h))
    )
    scale = stored["row_scale"].double().numpy()
    assert np.array_equal(scale, code.quantize(torch.from_numpy(w))["row_scale"].double().numpy())
    points = _core.code_table(bits).astype(np.float64)
    blocks = list(range(cols // points.shape[1]))
    if order == "activation":
        energy = np.diag(h).reshape(len(blocks), -1).sum(1)
        blocks.sort(key=lambda b: -energy[b])
    assert np.array_equal(stored["code"].numpy(), textbook(w, h, 0.02, points, scale, blocks))


def loss(w, codes, x):
    error = (w - codes).double().numpy() @ x.T
    return (error**2).sum()


@pytest.mark.parametrize(
    "code",
    [PyramidCode(16, 27, 4), PyramidCode(16, 14, 1), TableCode(2), TableCode(3), OverlapCode(3)],
)
@pytest.mark.parametrize("passes", [1, 3])
def test_outputs_are_nearer_than_with_the_nearest_points(code, passes):
    w = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    x = inputs(800, 192)
    h = Hessian(torch.from_numpy(x.T @ x))
    after = loss(w, code.dequantize(GPTQ(passes=passes)(w, code, h), 192), x)
    before = loss(w, code.dequantize(code.quantize(w), 192), x)
    assert after < 0.65 * before


def test_without_correlation_there_is_no_feedback():
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    h = Hessian(torch.diag(torch.linspace(1, 9, 64)))
    code = TableCode(2)
    for name, tensor in GPTQ(passes=1)(w, code, Hessian(torch.eye(64))).items():
        assert torch.equal(tensor, code.quantize(w)[name])
    points = torch.from_numpy(_core.code_table(2)).double()
    stored = GPTQ(passes=1, damping=0.0)(w, code, h)
    scale = stored["row_scale"].double()[:, None, None]
    residual = (w.view(20, 16, 1, 4).double() - scale[:, None] * points).square()
    weighted = (residual * torch.linspace(1, 9, 64).view(16, 1, 4)).sum(-1)
    assert torch.equal(weighted.argmin(-1).to(torch.uint8), stored["code"])


def test_quantize_tensor_rotates_the_hessian_with_the_weights():
    w = torch.randn(12, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = inputs(400, 96)
    config = PVQConfig(3.25, block=12, seed=5)
    tensor = quantize_tensor(w, config, rounding=GPTQ(), hessian=torch.from_numpy(x.T @ x))
    # the rotation, column by column, on what the layer would multiply
    rotated_w = torch.ops.pvq.hadamard(w.float(), 12, 5)
    rotated_x = torch.ops.pvq.hadamard(torch.from_numpy(x), 12, 5).numpy()
    stored = GPTQ()(rotated_w, config.code, Hessian(torch.from_numpy(rotated_x.T @ rotated_x)))
    decoded = config.code.dequantize(stored, 96)
    expected = torch.ops.pvq.hadamard(decoded, 12, 5, True)
    assert loss(w.float(), tensor.dequantize(), x) == pytest.approx(
        loss(w.float(), expected, x), rel=0.02
    )
    assert loss(w.float(), tensor.dequantize(), x) < 0.6 * loss(
        w.float(), quantize_tensor(w, config, rounding=Nearest()).dequantize(), x
    )


@pytest.mark.parametrize("rounding", [GPTQ(), QuantEase(sweeps=2), AWQ()], ids=lambda r: r.name)
@pytest.mark.parametrize(
    "choices",
    [
        {"bits": 3.25},
        {"bits": 2.25, "dim": 64},
        {"code": "bands", "bits": 2.25, "bands": 4},
        {"code": "table", "bits": 3},
        {"code": "overlap", "bits": 2},
        {"code": "uniform", "bits": 3, "group": 32},
        {"code": "outliers", "bits": 3.25},
    ],
    ids=str,
)
def test_a_common_factor_of_the_hessian_does_not_matter(rounding, choices):
    """A power of four, so that its root is exact too: about 1e20."""
    w = torch.randn(12, 192, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(inputs(600, 192))
    h = (x.T @ x).float()
    config = PVQConfig(**choices)
    expected = quantize_tensor(w, config, rounding=rounding, hessian=h)
    for factor in (4.0**33, 4.0**-33):
        tensor = quantize_tensor(w, config, rounding=rounding, hessian=factor * h)
        assert all(torch.equal(tensor.stored[n], expected.stored[n]) for n in expected.stored)


def test_rows_in_slabs_are_rounded_alike(monkeypatch):
    w = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(inputs(200, 64)).float()
    one = quantize_tensor(w, PVQConfig(2.25), rounding=GPTQ(), hessian=x.T @ x)
    monkeypatch.setattr("pvq.tensor.SLAB_WEIGHTS", 64 * 7)
    several = quantize_tensor(w, PVQConfig(2.25), rounding=GPTQ(), hessian=x.T @ x)
    assert all(torch.equal(one.stored[name], several.stored[name]) for name in one.stored)


def test_matrices_without_rows_or_with_zeros():
    h = torch.eye(64)
    for w in (torch.zeros(0, 64), torch.zeros(3, 64)):
        tensor = quantize_tensor(w, PVQConfig(3.25), rounding=GPTQ(), hessian=h)
        assert torch.equal(tensor.dequantize(), w)


def test_an_input_that_is_always_zero_is_no_obstacle():
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(inputs(200, 64)).float()
    x[:, 10:30] = 0
    config = PVQConfig(3.25, rotation="none")
    tensor = quantize_tensor(w, config, rounding=GPTQ(), hessian=x.T @ x)
    assert torch.isfinite(tensor.dequantize()).all()
    assert tensor.relative_error(w) < 0.2


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (None, "needs calibration"),
        (torch.eye(32), "Hessian is of 32 columns, the weight has 64"),
        (torch.ones(64, 3), r"Hessian has shape \[64, 3\]"),
        (torch.full((64, 64), float("nan")), "NaN or infinite"),
        (torch.diag(torch.tensor([float("inf")] + [1.0] * 63)), "NaN or infinite"),
        (torch.zeros(64, 64), "Hessian is zero"),
        (torch.ones(64, 64), r"singular with damping=0\b.*pass a larger damping"),
    ],
)
def test_a_bad_hessian_is_refused(hessian, message):
    with pytest.raises(ValueError, match=message):
        quantize_tensor(
            torch.randn(2, 64), PVQConfig(3.25), rounding=GPTQ(damping=0), hessian=hessian
        )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"damping": -0.1}, ValueError, "damping is -0.1, expected 0 to 1"),
        ({"damping": "x"}, TypeError, "damping is 'x', expected a number"),
        ({"order": "random"}, ValueError, "order is 'random', expected one of 'natural'"),
        ({"passes": 0}, ValueError, "passes is 0"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        GPTQ(**settings)
