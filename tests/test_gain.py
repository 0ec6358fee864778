"""Gain codebooks against numerical integration of the law that they are made for."""

import numpy as np
import pytest
import reference

from pvq import _core

SIZES = [(8, 256), (16, 256), (16, 4096), (16, 28672), (64, 1024), (128, 4096), (8, 24)]


@pytest.mark.parametrize(("dim", "cols"), SIZES)
@pytest.mark.parametrize("gain_bits", [1, 3, 4])
def test_beta_levels_are_quantiles(dim, cols, gain_bits):
    levels = _core.gain_levels(dim, cols, gain_bits, "beta")
    g, cdf = reference.beta_cdf(dim, cols)
    wanted = (np.arange(2**gain_bits) + 0.5) / 2**gain_bits
    assert np.allclose(levels, np.interp(wanted, cdf, g), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dim", "cols"), SIZES)
@pytest.mark.parametrize("gain_bits", [1, 3, 4])
def test_lloyd_levels_are_centroids_of_their_cells(dim, cols, gain_bits):
    levels = _core.gain_levels(dim, cols, gain_bits, "lloyd").astype(np.float64)
    g, cdf = reference.beta_cdf(dim, cols)
    mass = np.diff(cdf)
    middle = (g[1:] + g[:-1]) / 2
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, middle)
    centroid = np.bincount(cell, middle * mass) / np.bincount(cell, mass)
    assert np.allclose(levels, centroid, rtol=0, atol=1e-4)


@pytest.mark.parametrize("law", ["beta", "lloyd"])
def test_levels_ascend_and_have_mean_square_near_dim(law):
    levels = _core.gain_levels(16, 4096, 6, law).astype(np.float64)
    assert levels.dtype == np.float64
    assert (np.diff(levels) > 0).all()
    if law == "beta":  # equally likely levels
        assert abs((levels**2).mean() - 16) < 0.05


def test_lloyd_has_less_error_than_beta():
    g, cdf = reference.beta_cdf(16, 4096)
    mass = np.diff(cdf)
    middle = (g[1:] + g[:-1]) / 2

    def error(levels):
        return (np.abs(middle[:, None] - levels).min(1) ** 2 * mass).sum()

    lloyd, beta = (error(_core.gain_levels(16, 4096, 4, law)) for law in ("lloyd", "beta"))
    assert lloyd < 0.9 * beta


def test_zero_bits_give_one_level_and_a_single_group_its_own_norm():
    (level,) = _core.gain_levels(16, 4096, 0, "lloyd")
    g, cdf = reference.beta_cdf(16, 4096)
    assert abs(level - ((g[1:] + g[:-1]) / 2 * np.diff(cdf)).sum()) < 1e-4
    assert np.array_equal(_core.gain_levels(16, 16, 2, "beta"), np.full(4, 4.0, np.float32))


def test_levels_sit_on_the_grid_that_makes_them_reproducible():
    levels = _core.gain_levels(16, 4096, 4, "lloyd").astype(np.float64) * 2**16
    assert np.array_equal(levels, np.round(levels))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((16, 8, 4, "lloyd"), "cols"),
        ((0, 8, 4, "lloyd"), "cols|dim"),
        ((16, 64, 9, "lloyd"), "gain_bits"),
        ((16, 64, -1, "lloyd"), "gain_bits"),
        ((16, 64, 4, "gauss"), "gain_law"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        _core.gain_levels(*arguments)
