"""The search for the nearest direction: legal results, quality against brute force, any input."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.pvq

BRUTE_FORCE = [(2, 7), (3, 5), (4, 4), (4, 10), (5, 6), (6, 6), (8, 4), (8, 6), (10, 4), (16, 3)]


@pytest.mark.parametrize(("dim", "pulses"), BRUTE_FORCE)
def test_quality_against_the_true_optimum(dim, pulses):
    rng = np.random.default_rng(dim * 100 + pulses)
    x = rng.standard_normal((600, dim))
    # Signs follow x, so magnitudes suffice.
    best = np.unique(np.abs(reference.points(dim, pulses)), axis=0).astype(np.float64)
    optimum = reference.best_direction_error(np.abs(x), best).sum()
    errors = [
        reference.direction_error(x, ops.nearest(torch.from_numpy(x), pulses, q).numpy()).sum()
        for q in (0, 1, 2)
    ]
    assert errors[0] >= errors[1] * 0.9999 >= errors[2] * 0.9998
    assert errors[0] <= 1.05 * optimum
    assert errors[1] <= 1.015 * optimum
    assert errors[2] <= 1.001 * optimum


@pytest.mark.parametrize("quality", [0, 1, 2])
@pytest.mark.parametrize(
    ("dim", "pulses"), [(1, 5), (2, 1), (8, 36), (16, 27), (17, 300), (64, 96), (256, 4096)]
)
def test_result_lies_on_the_pyramid_with_the_signs_of_x(dim, pulses, quality):
    x = torch.from_numpy(np.random.default_rng(0).standard_cauchy((40, dim)))
    y = ops.nearest(x, pulses, quality)
    assert y.dtype == torch.int16
    assert (y.abs().sum(-1, dtype=torch.int64) == pulses).all()
    assert (y * torch.sign(x) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(0, 2),
)
def test_any_finite_vector_gives_a_legal_point(values, pulses, quality):
    x = torch.tensor(values, dtype=torch.float32)
    y = ops.nearest(x, pulses, quality)
    expected = pulses if x.abs().max() > 0 else 0
    assert int(y.abs().sum(dtype=torch.int64)) == expected


@pytest.mark.parametrize("factor", [1e-45, 1e-38, 1e-30, 1.0, 65504.0, 1e30, 2.9e38])
def test_scale_does_not_matter(factor):
    x = torch.tensor([[3.0, -1.0, 0.0, 2.0, 0.5, -0.25, 1.0, -1.0]], dtype=torch.float64) / 3
    scaled = (x * factor).float()
    y = ops.nearest(scaled, 10)
    assert int(y.abs().sum()) == 10
    if factor != 1e-45:  # there float32 keeps one bit of each coordinate
        assert torch.equal(y, ops.nearest(x.float(), 10))


def test_points_of_the_pyramid_are_their_own_nearest():
    for dim, pulses in [(4, 5), (8, 3), (6, 4)]:
        y = torch.from_numpy(reference.points(dim, pulses))
        assert torch.equal(ops.nearest(y.float() * 0.37, pulses), y)


def test_zero_gives_the_zero_group():
    assert (ops.nearest(torch.zeros(3, 16), 27) == 0).all()
    assert (ops.nearest(-torch.zeros(16), 27) == 0).all()


def test_dtypes_shapes_and_strides():
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    y = ops.nearest(x, 12)
    assert y.shape == x.shape
    assert torch.equal(ops.nearest(x.double(), 12), y)
    assert torch.equal(ops.nearest(x.half(), 12), ops.nearest(x.half().float(), 12))
    assert torch.equal(ops.nearest(x.transpose(0, 1), 12), y.transpose(0, 1))
    assert ops.nearest(x[:0], 12).shape == (0, 5, 16)


@pytest.mark.parametrize(
    ("x", "pulses", "quality", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int32), 3, 1, "x has dtype int32"),
        (torch.tensor(1.0), 3, 1, "x is a scalar"),
        (torch.zeros(2, 300), 3, 1, "dim .* is 300"),
        (torch.zeros(2, 0), 3, 1, "dim .* is 0"),
        (torch.zeros(2, 4), 0, 1, "pulses is 0"),
        (torch.zeros(2, 4), 3, 3, "quality is 3"),
        (torch.tensor([1.0, float("nan")]), 3, 1, "NaN or infinity"),
        (torch.tensor([1.0, float("inf")]), 3, 1, "NaN or infinity"),
    ],
)
def test_bad_arguments_are_named(x, pulses, quality, message):
    with pytest.raises(RuntimeError, match=message):
        ops.nearest(x, pulses, quality)
