"""Indices of pyramid points: the order, the round trip, the packing, and what is refused."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvq import _core

ops = torch.ops.pvq


def small_pyramids(dim: int, largest: int = 2**18):
    """Every number of pulses for which P(dim, pulses) has at most `largest` points.

    The closed forms of one and two coordinates are thinned out beyond 64 pulses.
    """
    pulses = 1
    while pulses <= 4096 and _core.count(dim, pulses) <= largest:
        yield pulses
        pulses += 1 if dim > 2 or pulses < 64 else pulses // 8


def stream_to_ints(index: torch.Tensor) -> list[int]:
    return [int.from_bytes(bytes(row), "little") for row in index.numpy()]


def random_points(rng: np.random.Generator, count: int, dim: int, pulses: int) -> np.ndarray:
    """Random points of many shapes: spread evenly, concentrated, and all pulses in one place."""
    y = np.zeros((count, dim), dtype=np.int64)
    for row in y:
        spread = rng.integers(1, dim + 1)
        where = rng.choice(dim, size=spread, replace=False)
        weights = rng.dirichlet(np.full(spread, rng.choice([0.05, 1.0, 20.0])))
        row[where] = rng.multinomial(pulses, weights)
        row *= rng.choice([-1, 1], size=dim)
    return y.astype(np.int16)


@pytest.mark.parametrize("dim", range(1, 257))
def test_every_small_pyramid_round_trips(dim):
    """All indices decode to legal points, and encoding them gives 0, 1, 2, ... back.

    A decoder with an inverse on all of 0 ... N - 1 cannot name a point twice.
    """
    for pulses in small_pyramids(dim):
        total = _core.count(dim, pulses)
        width = (_core.index_bits(dim, pulses) + 7) // 8
        every = np.arange(total, dtype=np.uint64)
        index = torch.from_numpy(every.view(np.uint8).reshape(-1, 8)[:, :width].copy())
        y = ops.decode(index, dim, pulses, 1)
        assert (y.abs().sum(-1, dtype=torch.int64) == pulses).all()
        assert torch.equal(ops.encode(y, pulses), index)


@pytest.mark.parametrize(
    ("dim", "pulses"),
    [(1, 3), (2, 5), (3, 4), (4, 6), (5, 4), (6, 3), (7, 3), (8, 3), (9, 2), (12, 2), (16, 2)],
)
def test_order_is_the_tree_of_halves(dim, pulses):
    expected = reference.points(dim, pulses)
    width = (_core.index_bits(dim, pulses) + 7) // 8
    index = torch.tensor(
        [list(i.to_bytes(width, "little")) for i in range(len(expected))], dtype=torch.uint8
    )
    assert np.array_equal(ops.decode(index, dim, pulses, 1)[:, 0].numpy(), expected)


@pytest.mark.parametrize(
    ("dim", "pulses"),
    [
        (4, 33), (4, 4096), (3, 4096), (5, 4096), (6, 700), (8, 6), (8, 36), (8, 300), (8, 865),
        (8, 866), (11, 90), (16, 12), (16, 27), (16, 58), (16, 59), (16, 1136), (24, 38), (32, 22),
        (32, 23), (32, 105), (47, 60), (64, 14), (64, 96), (127, 11), (128, 187), (255, 40),
        (256, 369), (256, 760),
    ],
)  # fmt: skip
def test_large_pyramids_agree_with_exact_ranks(dim, pulses):
    rng = np.random.default_rng(dim * 10_000 + pulses)
    y = random_points(rng, 24, dim, pulses)
    y[0] = 0
    y[0, 0] = pulses  # the ends: all pulses in the first or last place, either sign
    y[1] = 0
    y[1, -1] = -pulses
    index = ops.encode(torch.from_numpy(y).unsqueeze(1), pulses)
    for row, value in zip(y, stream_to_ints(index), strict=True):
        assert value == reference.rank(row)
    assert np.array_equal(ops.decode(index, dim, pulses, 1)[:, 0].numpy(), y)


def test_largest_pyramid_round_trips():
    rng = np.random.default_rng(1)
    y = torch.from_numpy(random_points(rng, 3, 256, 4096)).unsqueeze(1)
    assert torch.equal(ops.decode(ops.encode(y, 4096), 256, 4096, 1), y)


@pytest.mark.parametrize(
    ("dim", "pulses"), [(2, 3), (4, 9), (7, 5), (8, 16), (16, 27), (16, 58), (32, 50), (64, 96)]
)
def test_first_and_last_index_and_the_zero_group(dim, pulses):
    total, bits = reference.count(dim, pulses), _core.index_bits(dim, pulses)
    stream = reference.pack([0, total - 1, total], bits)
    y = ops.decode(torch.from_numpy(stream.copy())[None], dim, pulses, 3)
    assert (y[0, :2].abs().sum(-1) == pulses).all()
    assert (y[0, 2] == 0).all()
    assert reference.rank(y[0, 0].numpy()) == 0
    assert reference.rank(y[0, 1].numpy()) == total - 1
    assert np.array_equal(ops.encode(y, pulses)[0].numpy(), stream)


@pytest.mark.parametrize(("dim", "pulses"), [(2, 3), (8, 6), (12, 7), (16, 27), (32, 50), (64, 96)])
def test_illegal_indices_are_refused(dim, pulses):
    total, bits = reference.count(dim, pulses), _core.index_bits(dim, pulses)
    for illegal in {total + 1, 2**bits - 1}:
        if not total < illegal < 2**bits:
            continue
        good = reference.pack([0, 1, 2], bits)
        bad = reference.pack([0, illegal, 2], bits)
        index = torch.from_numpy(np.stack([good, bad]))
        with pytest.raises(RuntimeError, match=r"index of row 1 names no point"):
            ops.decode(index, dim, pulses, 3)


@pytest.mark.parametrize(("dim", "pulses"), [(2, 3), (8, 6), (12, 7), (16, 27), (32, 50), (64, 96)])
def test_check_codes_refuses_what_decode_refuses(dim, pulses):
    total, bits = reference.count(dim, pulses), _core.index_bits(dim, pulses)
    good = torch.from_numpy(reference.pack([0, total - 1, total], bits).copy())
    ops.check_codes(torch.stack([good, good]), dim, pulses, 3)
    ops.check_codes(torch.stack([good, good])[:0], dim, pulses, 3)
    for illegal in {total + 1, 2**bits - 1}:
        if not total < illegal < 2**bits:
            continue
        bad = torch.from_numpy(reference.pack([0, 1, illegal], bits).copy())
        with pytest.raises(RuntimeError, match="check_codes: index of row 1 names no point"):
            ops.check_codes(torch.stack([good, bad, good, bad]), dim, pulses, 3)


@pytest.mark.parametrize(
    ("dim", "pulses", "groups"), [(8, 6, 5), (16, 28, 3), (3, 2, 11), (32, 50, 7)]
)
def test_streams_are_packed_without_gaps(dim, pulses, groups):
    rng = np.random.default_rng(5)
    y = random_points(rng, 4 * groups, dim, pulses).reshape(4, groups, dim)
    index = ops.encode(torch.from_numpy(y), pulses).numpy()
    bits = _core.index_bits(dim, pulses)
    assert index.shape == (4, (groups * bits + 7) // 8)
    for row in range(4):
        assert np.array_equal(index[row], reference.pack([reference.rank(v) for v in y[row]], bits))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_point_round_trips(data):
    dim = data.draw(st.integers(1, 256))
    y = np.array(data.draw(st.lists(st.integers(-16, 16), min_size=dim, max_size=dim)), np.int16)
    pulses = int(np.abs(y).sum())
    if pulses == 0:
        y[0] = pulses = 1
    index = ops.encode(torch.from_numpy(y).view(1, 1, dim), pulses)
    assert stream_to_ints(index)[0] == reference.rank(y)
    assert np.array_equal(ops.decode(index, dim, pulses, 1).numpy().ravel(), y)


def test_encode_refuses_vectors_off_the_pyramid():
    y = torch.zeros(2, 3, 8, dtype=torch.int16)
    y[..., 0] = 5
    y[1, 2, 1] = 1
    with pytest.raises(
        RuntimeError, match=r"y\[1, 2\] is no point of the pyramid.*magnitudes of 5"
    ):
        ops.encode(y, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, i: ops.encode(y.int(), 3), "y has dtype int32, expected int16"),
        (lambda y, i: ops.encode(y[0], 3), "y has shape .*, expected 3 dimensions"),
        (lambda y, i: ops.encode(y, 0), "pulses is 0, expected 1 to 4096"),
        (lambda y, i: ops.encode(y, 4097), "pulses is 4097"),
        (lambda y, i: ops.encode(torch.zeros(1, 1, 257, dtype=torch.int16), 3), "dim is 257"),
        (lambda y, i: ops.decode(i.short(), 4, 3, 2), "index has dtype int16, expected uint8"),
        (
            lambda y, i: ops.decode(i[:, :-1], 4, 3, 2),
            r"index has shape \[3, 1\], expected \[3, 2\]",
        ),
        (lambda y, i: ops.decode(i, 4, 3, -1), "groups is -1"),
        (lambda y, i: ops.decode(i, 0, 3, 2), "dim is 0"),
        (lambda y, i: ops.check_codes(i.short(), 4, 3, 2), "check_codes: index has dtype int16"),
        (lambda y, i: ops.check_codes(i, 4, 3, 5), r"index has shape .*, expected \[3, 5\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    y = torch.zeros(3, 2, 4, dtype=torch.int16)
    y[..., 1] = -3
    with pytest.raises(RuntimeError, match=message):
        call(y, ops.encode(y, 3))


@pytest.mark.parametrize(("rows", "groups"), [(0, 4), (3, 0), (0, 0)])
def test_empty_tensors(rows, groups):
    y = torch.zeros(rows, groups, 16, dtype=torch.int16)
    index = ops.encode(y, 27)
    assert index.shape == (rows, (groups * 48 + 7) // 8)
    assert torch.equal(ops.decode(index, 16, 27, groups), y)


def test_strided_arguments_are_accepted():
    rng = np.random.default_rng(2)
    y = torch.from_numpy(random_points(rng, 12, 16, 27)).view(4, 3, 16)
    index = ops.encode(y, 27)
    assert torch.equal(ops.encode(y.transpose(0, 1).contiguous().transpose(0, 1), 27), index)
    wide = torch.zeros(4, 2 * index.shape[1], dtype=torch.uint8)
    wide[:, ::2] = index
    assert torch.equal(ops.decode(wide[:, ::2], 16, 27, 3), y)
