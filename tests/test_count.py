"""Exact pyramid counts against the recurrence in Python's integers."""

import pytest
import reference

from pvq import _core

KNOWN = {(4, 4): 192, (8, 3): 688, (9, 9): 864146, (1, 7): 2, (3, 0): 1}


@pytest.mark.parametrize(("dim", "pulses"), KNOWN)
def test_count_matches_published_values(dim, pulses):
    assert _core.count(dim, pulses) == KNOWN[dim, pulses]


def test_count_matches_recurrence_for_small_pyramids():
    for dim in range(1, 24):
        for pulses in range(40):
            assert _core.count(dim, pulses) == reference.count(dim, pulses)


@pytest.mark.parametrize(
    ("dim", "pulses"),
    [(8, 865), (16, 58), (16, 59), (32, 105), (64, 199), (128, 386), (255, 301), (256, 760)],
)
def test_count_matches_recurrence_for_wide_pyramids(dim, pulses):
    assert _core.count(dim, pulses) == reference.count(dim, pulses)


def test_count_at_both_limits():
    # The closed form, sum_j 2^j C(D, j) C(K-1, j-1): another road to the same number.
    from math import comb

    expected = sum(2**j * comb(256, j) * comb(4095, j - 1) for j in range(1, 257))
    assert _core.count(256, 4096) == expected


@pytest.mark.parametrize(
    ("dim", "pulses", "bits"),
    [(16, 12, 32), (16, 18, 40), (16, 27, 48), (16, 40, 56), (16, 58, 64), (8, 6, 15), (8, 36, 32)],
)
def test_index_bits_of_production_sizes(dim, pulses, bits):
    assert _core.index_bits(dim, pulses) == bits


def test_index_bits_hold_every_point_and_the_zero_group():
    for dim in range(1, 20):
        for pulses in range(1, 30):
            assert _core.index_bits(dim, pulses) == _core.count(dim, pulses).bit_length()


@pytest.mark.parametrize(
    ("dim", "pulses", "word"),
    [(0, 3, "dim"), (257, 3, "dim"), (4, -1, "pulses"), (4, 4097, "pulses")],
)
def test_count_refuses_sizes_outside_the_limits(dim, pulses, word):
    with pytest.raises(ValueError, match=word):
        _core.count(dim, pulses)
