"""NF4 against the published levels, brute force and its error on Gaussian weights."""

import pytest
import torch

from pvq import PVQConfig, quantize_tensor
from pvq.codes.nf4 import HEADROOM, NESTED_BLOCK, NF4Code, levels

# QLoRA, arXiv 2305.14314, appendix E.
PUBLISHED = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_levels_are_the_published_ones():
    torch.testing.assert_close(levels(), torch.tensor(PUBLISHED), rtol=0, atol=2e-7)


@pytest.mark.parametrize("double", [False, True])
def test_every_weight_gets_the_nearest_level(double):
    code = NF4Code(32, double)
    w = gaussian(5, 96)
    stored = code.quantize(w)
    absmax = code.absmax(stored)
    every = (levels() * absmax[..., None, None] - w.view(5, 3, 32, 1)).abs().amin(-1)
    got = (code.decode(stored, 96) - w).abs().view(5, 3, 32)
    assert (got <= every + 1e-6).all()
    number = torch.stack([stored["code"] & 15, stored["code"] >> 4], -1).view(5, 96).long()
    by_hand = torch.tensor(PUBLISHED)[number].view(5, 3, 32) * absmax[..., None]
    torch.testing.assert_close(code.decode(stored, 96), by_hand.view(5, 96))


def test_the_magnitude_is_exact_or_to_an_eighth_bit():
    w = gaussian(4, 64 * 300)
    largest = w.view(4, 300, 64).abs().amax(2)
    exact = NF4Code(double=False).quantize(w)
    assert torch.equal(exact["absmax"], largest)
    code = NF4Code()
    stored = code.quantize(w)
    assert stored["absmax_max"].shape == (4, 2)
    for part, begin in enumerate((0, NESTED_BLOCK)):
        top = largest[:, begin : begin + NESTED_BLOCK].amax(1) * HEADROOM
        unit = stored["absmax_max"][:, part].float()
        torch.testing.assert_close(unit, top, rtol=2**-8, atol=0)
    error = (code.absmax(stored) - largest).abs()
    assert (error <= 0.51 * stored["absmax_max"].float().amax(1, True) / 255).all()


@pytest.mark.parametrize(
    ("choices", "cols", "bits"),
    [
        ({"double": False}, 4096, 4.5),
        ({}, 16384, 4 + 8 / 64 + 16 / (64 * 256)),
        ({}, 4096, 4 + 8 / 64 + 16 / 4096),
        ({"block_size": 128, "double": False}, 4096, 4.25),
    ],
)
def test_the_rate_is_that_of_the_bytes(choices, cols, bits):
    tensor = quantize_tensor(gaussian(3, cols), PVQConfig(code="nf4", **choices))
    assert tensor.bits_per_weight == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("double", [False, True])
def test_error_on_a_gaussian_source(double):
    w = gaussian(256, 4096)
    tensor = quantize_tensor(w, PVQConfig(code="nf4", double=double))
    # 0.00845 by 20 M samples of blocks of 64.
    assert tensor.relative_error(w) == pytest.approx(0.00845, rel=0.02)


def test_blocks_may_grow_on_the_way():
    code = NF4Code(32)
    w = gaussian(4, 64)
    rounder = code.rounder(w)
    grown = 1.2 * w[:, :32]
    error = (rounder.round(grown, 0) - grown).norm() / grown.norm()
    assert error < 0.12


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ({"bits": 3}, ValueError, "bits=3 is out of reach with code='nf4'"),
        ({"bits": "4"}, TypeError, "bits is '4'"),
        ({"block_size": 0}, ValueError, "block_size is 0"),
        ({"double": "yes"}, TypeError, "double is 'yes', expected True or False"),
        ({"pulses": 3}, ValueError, "unknown choice 'pulses'"),
    ],
)
def test_choices_are_checked(choices, error, text):
    with pytest.raises(error, match=text):
        PVQConfig(code="nf4", **choices)


def test_columns_that_no_block_divides_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"100 columns .* block_size=64, .* pass block_size=50 or"):
        quantize_tensor(gaussian(2, 100), PVQConfig(code="nf4"))


def test_the_ladder_has_two_settings():
    assert [code.double for code in NF4Code.ladder(4, 5)] == [True, False]
    assert [code.double for code in NF4Code.ladder(4, 4.25)] == [True]
    assert NF4Code.ladder(2, 3) == []
    assert [code.double for code in NF4Code.ladder(4, 5, double=False)] == [False]
