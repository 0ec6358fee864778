"""The uniform code against its definition, brute force and the theory of uniform quantizers."""

import numpy as np
import pytest
import torch

from pvq import PVQConfig, quantize_tensor
from pvq.codes.uniform import UniformCode


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * width]
    return (bits.reshape(len(packed), count, width) << np.arange(width)).sum(2)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_decoding_follows_the_definition(bits, symmetric):
    code = UniformCode(bits, group=24, symmetric=symmetric)
    w = gaussian(5, 72) + 0.3
    stored = code.quantize(w)
    q = integers(stored["code"].numpy(), bits, 72).reshape(5, 3, 24)
    zero = np.full((5, 3), 1 << (bits - 1))
    if not symmetric:
        zero = integers(stored["zero"].numpy(), bits, 3)
    expected = (q - zero[..., None]) * stored["scale"].double().numpy()[..., None]
    got = code.decode(stored, 72).double().numpy()
    np.testing.assert_allclose(got, expected.reshape(5, 72), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("fit", ["mse", "minmax"])
def test_every_weight_gets_the_nearest_step(bits, symmetric, fit):
    code = UniformCode(bits, group=32, symmetric=symmetric, fit=fit)
    w = gaussian(6, 64) - 0.2
    stored = code.quantize(w)
    got = (code.decode(stored, 64) - w).abs().view(6, 2, 32, 1)
    zero = torch.full((6, 2), 1 << (bits - 1))
    if not symmetric:
        zero = torch.from_numpy(integers(stored["zero"].numpy(), bits, 2))
    levels = (torch.arange(1 << bits) - zero[..., None]) * stored["scale"].float()[..., None]
    every = (levels[:, :, None, :] - w.view(6, 2, 32, 1)).abs()
    assert (got[..., 0] <= every.amin(-1) + 1e-6).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax_reaches_both_ends(symmetric):
    w = gaussian(4, 128) + 0.5
    code = UniformCode(4, symmetric=symmetric, fit="minmax")
    step = code.quantize(w)["scale"].float()
    error = (code.decode(code.quantize(w), 128) - w).abs()
    # Half a step, half a step for the zero point, and the 2^-9 of a rounded scale at 15 steps.
    assert (error <= 1.05 * step).all()
    spread = w.abs().amax(1) * 2 if symmetric else w.amax(1) - w.amin(1).clamp(max=0)
    torch.testing.assert_close(step[:, 0], spread / 15, rtol=2**-8, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_search_finds_the_best_share_of_the_range(bits, symmetric):
    w = gaussian(16, 128)
    code = UniformCode(bits, symmetric=symmetric)
    error = (code.decode(code.quantize(w), 128) - w).square().sum(1)
    low, high = w.amin(1, True), w.amax(1, True)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best = torch.full((16,), torch.inf)
    top = (1 << bits) - 1
    for share in np.linspace(0.2, 1, 400):
        step = (high - low) * share / top
        zero = (-low * share / step).round() if not symmetric else torch.tensor(1 << (bits - 1))
        q = ((w / step).round() + zero).clamp(0, top)
        best = torch.minimum(best, ((q - zero) * step - w).square().sum(1))
    assert (error <= 1.06 * best).all()
    assert error.sum() <= 1.02 * best.sum()
    plain = UniformCode(bits, symmetric=symmetric, fit="minmax")
    assert error.sum() < (plain.decode(plain.quantize(w), 128) - w).square().sum()


# Error of integers with groups of 128 on a unit Gaussian, to 2 %: simulated independently with 20 M
# samples, the whole range and the best share of it, scale and zero point unrounded.
@pytest.mark.parametrize(
    ("bits", "fit", "expected", "rate"),
    [
        (2, "minmax", 0.253, 2.1406),
        (3, "minmax", 0.0464, 3.1484),
        (4, "minmax", 0.0101, 4.1563),
        (2, "mse", 0.1395, 2.1406),
        (3, "mse", 0.0360, 3.1484),
        (4, "mse", 0.0094, 4.1563),
    ],
)
def test_error_on_a_gaussian_source(bits, fit, expected, rate):
    w = gaussian(256, 4096)
    tensor = quantize_tensor(w, PVQConfig(bits, code="uniform", fit=fit))
    assert tensor.bits_per_weight == pytest.approx(rate, abs=2e-4)
    assert tensor.config.code.rate == pytest.approx(rate, abs=1e-4)
    # A zero point that is a whole step costs a little that the simulation does not have.
    assert expected * 0.95 < tensor.relative_error(w) < expected * 1.05


def test_at_eight_bits_the_error_is_a_twelfth_of_a_squared_step():
    w = gaussian(16, 128)
    code = UniformCode(8, fit="minmax")
    stored = code.quantize(w)
    expected = stored["scale"].double().square().mean() / 12
    error = (code.decode(stored, 128) - w).double().square().mean()
    assert float(error) == pytest.approx(float(expected), rel=0.1)


def test_a_group_takes_its_scale_from_the_values_at_its_first_rounding():
    code = UniformCode(4, group=32)
    w = gaussian(4, 64)
    rounder = code.rounder(w)
    rounder.round(w[:, :32], 0)
    rounder.round(3 * w[:, 32:], 32)
    first = rounder.stored()["scale"].clone()
    assert torch.equal(first[:, 0], code.quantize(w)["scale"][:, 0])
    assert torch.equal(first[:, 1], code.quantize(3 * w)["scale"][:, 1])
    rounder.round(9 * w[:, 32:], 32)
    assert torch.equal(rounder.stored()["scale"], first), "and keeps it"


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ({}, ValueError, "needs bits: choose 2 to 8"),
        ({"bits": 3.25}, ValueError, r"bits=3\.25 is out of reach .* integers: choose 2 to 8"),
        ({"bits": 1}, ValueError, "out of reach"),
        ({"bits": 9}, ValueError, "out of reach"),
        ({"bits": "4"}, TypeError, "bits is '4'"),
        ({"bits": 4, "group": 0}, ValueError, "group is 0, expected 1 to"),
        ({"bits": 4, "group": 64.0}, TypeError, "group is 64.0"),
        ({"bits": 4, "symmetric": 1}, TypeError, "symmetric is 1, expected True or False"),
        ({"bits": 4, "fit": "best"}, ValueError, "fit is 'best', expected one of 'mse', 'minmax'"),
        ({"bits": 4, "dim": 8}, ValueError, "unknown choice 'dim'"),
    ],
)
def test_choices_are_checked(choices, error, text):
    with pytest.raises(error, match=text):
        PVQConfig(code="uniform", **choices)


def test_columns_that_no_group_divides_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"200 columns .* group=128, .* pass group=100 or leave"):
        quantize_tensor(gaussian(2, 200), PVQConfig(4, code="uniform"))
    assert quantize_tensor(gaussian(2, 200), PVQConfig(4, code="uniform", group=100)).nbytes


def test_the_ladder_counts_scales():
    assert [code.bits for code in UniformCode.ladder(0, 99)] == [2, 3, 4, 5, 6, 7, 8]
    assert [code.bits for code in UniformCode.ladder(3, 4.15)] == [3]
    assert [code.bits for code in UniformCode.ladder(3, 4.15, symmetric=True)] == [3, 4]
