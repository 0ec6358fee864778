"""Rates by column: against brute force, the prices against Schur complements, bad input."""

import itertools
import math

import numpy as np
import pytest
import reference
import torch
from torch import nn

from pvq import PVQConfig, quantize_tensor
from pvq.calibration import InputStatistics
from pvq.codes import stored_nbytes
from pvq.codes.pyramid import PyramidCode, expected_error
from pvq.finished import quantize_layer
from pvq.plan import Target
from pvq.rates import columns, fill_columns
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(cols: int, seed: int = 0) -> torch.Tensor:
    """X^T X of inputs with some large and many dependent columns, float64 [cols, cols]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * cols, cols)) * np.geomspace(0.1, 3, cols)
    x = x @ (np.eye(cols) + rng.standard_normal((cols, cols)) / 9)
    return torch.from_numpy(x.T @ x)


def row_bytes(settings, widths) -> int:
    """What the codes of a row take, counted from the bits."""
    total = 0
    for code, width in zip(settings, widths, strict=True):
        groups, index_bits = width // code.dim, reference.count(code.dim, code.pulses).bit_length()
        total += -(-groups * index_bits // 8) + -(-groups * code.gain_bits // 8)
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("cols", "bands"), [(512, 4), (96, 4), (80, 3), (48, 3)])
def test_no_other_rates_on_the_ladder_are_better(seed, cols, bands, monkeypatch):
    monkeypatch.setattr(columns, "_BELOW", 0.25)
    monkeypatch.setattr(columns, "_ABOVE", 0.25)
    rng = np.random.default_rng(seed)
    config = PVQConfig(rng.choice([2.25, 3.0, 3.3125]), code="bands", bands=bands)
    widths, uniform = config.code.widths(cols), config.code.settings
    prices = np.exp(rng.normal(0, 0.5, bands))
    stake = torch.cat([torch.full((w,), p) for w, p in zip(widths, prices, strict=True)])
    filled = fill_columns(config, stake)
    allowed = row_bytes(uniform, widths)
    assert row_bytes(filled.code.settings, widths) <= allowed
    assert stored_nbytes(filled.code, 7, cols) <= stored_nbytes(config.code, 7, cols)

    def loss(settings) -> float:
        errors = [expected_error(c.dim, c.pulses, c.gain_bits) for c in settings]
        return float(sum(p * w * e for p, w, e in zip(prices, widths, errors, strict=True)))

    ladder = [PyramidCode.make(uniform[0].bits + i / 16) for i in range(-4, 5)]
    every = itertools.product(ladder, repeat=bands)
    best = min(loss(s) for s in every if row_bytes(s, widths) <= allowed)
    assert loss(filled.code.settings) == pytest.approx(best, rel=1e-6)
    assert best < loss(uniform) or bands == 1


def test_rates_follow_the_logarithm_of_the_stakes():
    spread = torch.tensor([0.25, 0.5, 2.0, 4.0])
    config = PVQConfig(3.25, code="bands", bands=4)
    filled = fill_columns(config, spread.repeat_interleave(1024).to(torch.float64))
    rates = [code.bits for code in filled.code.settings]
    ideal = [3.25 + 0.5 * math.log2(s) for s in spread.tolist()]
    assert np.allclose(rates, ideal, atol=0.13), "two steps of the ladder"
    assert sum(rates) / 4 <= 3.25
    again = fill_columns(filled, torch.ones(4096))
    assert again == filled.for_cols(4096), "bands with settings of their own keep them"
    plain = PVQConfig(3.25)
    assert fill_columns(plain, torch.ones(512)) == plain.for_cols(512)


def test_no_band_falls_below_the_least_rate():
    stake = torch.tensor([1e-12, 1e-12, 1e-12, 1e12]).repeat_interleave(256)
    filled = fill_columns(PVQConfig(1.5, code="bands", bands=4), stake)
    rates = [code.bits for code in filled.code.settings]
    assert rates[:3] == [1.0] * 3
    assert 2.5 < rates[3] <= 3.0
    none = fill_columns(PVQConfig(2.25, code="bands", bands=4), torch.zeros(1024))
    assert stored_nbytes(none.code, 1, 1024) <= stored_nbytes(PVQConfig(2.25).code, 1, 1024)
    low = fill_columns(PVQConfig(0.75, code="bands", bands=4), stake)
    assert all(code.bits >= 0.75 for code in low.code.settings), "unless less was asked for"


@pytest.mark.parametrize("order", ["natural", "activation"])
def test_prices_are_the_schur_complements(order):
    cols, step, damping = 48, 8, 0.05
    sums = correlated(cols)
    price = GPTQ(damping=damping, order=order).prices(Hessian(sums), step).double().numpy()
    h = sums.numpy() + damping * np.trace(sums.numpy()) / cols * np.eye(cols)
    blocks = list(range(cols // step))
    if order == "activation":
        blocks.sort(key=lambda b: -np.trace(sums.numpy()[b * step :][:step, b * step :][:, :step]))
        assert blocks != sorted(blocks)
    for place, b in enumerate(blocks):
        own = np.arange(b * step, (b + 1) * step)
        later = np.array([c for i in blocks[place + 1 :] for c in range(i * step, (i + 1) * step)])
        schur = h[np.ix_(own, own)]
        if len(later):
            cross = h[np.ix_(own, later)]
            schur = schur - cross @ np.linalg.solve(h[np.ix_(later, later)], cross.T)
        assert np.allclose(price[own], np.diag(schur), rtol=1e-4)


def test_methods_price_errors_by_what_they_do():
    loss = Hessian(correlated(64))
    gptq = GPTQ().prices(loss, 16)
    assert torch.equal(QuantEase().prices(loss, 16), gptq)
    assert torch.equal(AWQ(then=GPTQ()).prices(loss, 16), gptq)
    assert torch.allclose(AWQ().prices(loss, 16).double(), correlated(64).diagonal())
    assert torch.equal(AWQ(then=Nearest()).prices(loss, 16), AWQ().prices(loss, 16))


def test_filled_bands_lower_the_loss_of_feedback_at_the_same_bytes():
    w, sums = gaussian(128, 512), correlated(512)
    config = PVQConfig(2.25, code="bands", bands=4).for_cols(512)
    loss = Hessian(sums, config.hadamard_block, config.seed)
    energy = torch.ops.pvq.hadamard(w, config.hadamard_block, 0).square().sum(0)
    filled = fill_columns(config, energy * GPTQ().prices(loss, 16))
    assert not filled.code.is_uniform

    def result(config) -> tuple[float, int]:
        codes = quantize_tensor(w, config, rounding=GPTQ(), hessian=sums)
        error = (w - codes.dequantize()).double()
        return ((error @ sums) * error).sum().item(), codes.nbytes

    (ours, ours_bytes), (plain, plain_bytes) = result(filled), result(PVQConfig(2.25))
    assert ours_bytes <= plain_bytes
    assert ours < 0.93 * plain


def test_a_layer_is_filled_by_its_inputs_and_its_weights():
    cols = 256
    layer = nn.Linear(cols, 40, bias=False)
    layer.weight.data = gaussian(40, cols) * torch.logspace(0, 1.5, cols).flip(0)
    sums = correlated(cols)
    config = PVQConfig(2.25, code="bands", bands=4, block=128, seed=5).for_cols(cols)
    q = torch.ops.pvq.hadamard(torch.eye(cols), 128, 5).double()  # v Q is v rotated
    energy = (layer.weight.data.double() @ q).square().sum(0)
    turned = q.T @ sums @ q
    target, statistics = Target("layer", layer, config), InputStatistics(cols, "cpu")
    statistics.hessian += sums

    def chosen(rounding) -> PVQConfig:
        return quantize_layer(target, rounding, statistics, torch.device("cpu")).codes.config

    for rounding in (GPTQ(), AWQ()):
        expected = fill_columns(config, energy * rounding.prices(Hessian(turned), 16))
        assert chosen(rounding) == expected
        assert not expected.code.is_uniform
    assert chosen(GPTQ()) != chosen(AWQ())
    assert chosen(GPTQ()) != fill_columns(config, GPTQ().prices(Hessian(turned), 16))
    plain = layer.weight.data.double().square().sum(0)
    assert chosen(GPTQ()) != fill_columns(config, plain * GPTQ().prices(Hessian(turned), 16))
    assert chosen(Nearest()) == config, "which knows nothing of prices"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_bad_stakes_and_hessians_are_named(bad):
    config, stake = PVQConfig(3.25, code="bands"), torch.ones(128)
    stake[77] = bad
    with pytest.raises(ValueError, match="stake has NaN, infinite or negative values"):
        fill_columns(config, stake)
    with pytest.raises(ValueError, match=r"stake has shape \[2, 64\], expected \[cols\]"):
        fill_columns(config, torch.ones(2, 64))
    with pytest.raises(ValueError, match="100 columns are not a multiple"):
        fill_columns(config, torch.ones(100))
    if bad > 0 or math.isnan(bad):
        with pytest.raises(ValueError, match="Hessian has NaN or infinite values"):
            GPTQ().prices(Hessian(torch.full((16, 16), bad)), 16)
    with pytest.raises(ValueError, match="Hessian is singular"):
        GPTQ(damping=0).prices(Hessian(torch.ones(32, 32)), 16)
