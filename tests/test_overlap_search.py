"""The search for the symbols of an overlapping-pyramid code, against brute force and float64."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ops = torch.ops.pvq
# step bits, window bits, lag, weights of a group
SMALL = [(2, 3, 1, 2), (2, 2, 2, 1), (3, 3, 1, 2), (2, 4, 1, 3), (2, 3, 2, 1), (3, 4, 1, 2)]
FAMILY = [(8, 9, 1, 4), (5, 8, 2, 2), (7, 9, 1, 2), (8, 9, 1, 2)]
# And with a spread, its last number.
SPREADS = [(8, 8, 1, 4, 20.0), (3, 3, 2, 4, 9.0)]


def without_spread(shapes: list[tuple[int, ...]]) -> list[tuple[float, ...]]:
    return [(*shape, 0.0) for shape in shapes]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_bits(step: int, window: int, lag: int) -> int:
    return window + (lag - 1) * step


def word_points(table: np.ndarray, step: int, lag: int) -> np.ndarray:
    """What each word of a group decodes to, [words, dim]: the definition of core/overlap.h."""
    window = len(table).bit_length() - 1
    word = np.arange(1 << (window + lag * step))
    return table[word >> (lag * step), 0] + table[word & (len(table) - 1), 1]


def errors(target, points, spread) -> np.ndarray:
    """Of a group and each of points: what is left once a weight may be above or below by a step."""
    rest = target - points
    return np.minimum((rest - spread) ** 2, (rest + spread) ** 2)


def viterbi(x, table, step, lag, weight, start=None, end=None, spread=0.0) -> float:
    """The least cost of a sequence [cols] in float64, from and to a state or any."""
    table = table.double().numpy()
    bits = state_bits(step, len(table).bit_length() - 1, lag)
    points = word_points(table, step, lag)
    cost = np.zeros(1 << bits) if start is None else np.full(1 << bits, np.inf)
    if start is not None:
        cost[start] = 0
    word = np.arange(len(points))
    for target, factor in zip(
        x.double().numpy().reshape(-1, table.shape[2]),
        weight.double().numpy().reshape(-1, table.shape[2]),
        strict=True,
    ):
        total = cost[word & ((1 << bits) - 1)] + (errors(target, points, spread) * factor).sum(1)
        cost = total.reshape(-1, 1 << step).min(1)  # the symbol that leaves is the lowest bits
    return cost.min() if end is None else cost[end]


def path_cost(x, table, step, lag, weight, symbols, state, spread=0.0) -> tuple[float, int]:
    """What symbols from a state on cost, and the state behind them."""
    table = table.double().numpy()
    points = word_points(table, step, lag)
    bits = state_bits(step, len(table).bit_length() - 1, lag)
    cost, dim = 0.0, table.shape[2]
    for i, symbol in enumerate(symbols):
        word = int(symbol) << bits | int(state)
        part = slice(i * dim, (i + 1) * dim)
        left = errors(x[part].double().numpy(), points[word], spread)
        cost += float((left * weight[part].double().numpy()).sum())
        state = word >> step
    return cost, state


@pytest.mark.parametrize(("step", "window", "lag", "dim"), SMALL)
def test_no_sequence_is_better(step, window, lag, dim):
    groups, rows = 4 if step == 2 else 3, 2
    table = normal(1 << window, 2, dim)
    x, weight = normal(rows, groups * dim, seed=1), torch.rand(groups * dim) + 0.1
    symbol, start, cost = ops.overlap_search(x, table, step, lag, weight)
    assert symbol.dtype == torch.uint8
    assert symbol.shape == (rows, groups)
    for r in range(rows):
        best = min(
            path_cost(x[r], table, step, lag, weight, every, state)[0]
            for state in range(1 << state_bits(step, window, lag))
            for every in itertools.product(range(1 << step), repeat=groups)
        )
        assert viterbi(x[r], table, step, lag, weight) == pytest.approx(best)
        found = path_cost(x[r], table, step, lag, weight, symbol[r], start[r])[0]
        assert found == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert float(cost[r]) == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("step", "window", "lag", "dim"), SMALL[:3] + FAMILY)
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_the_library_s_shapes_agree_with_float64(step, window, lag, dim, rows):
    if rows > 1 and window + lag * step > 16:
        rows = 2
    groups = 9
    table = torch.round(20 * normal(1 << window, 2, dim))
    x, weight = 28 * normal(rows, groups * dim, seed=1), torch.rand(groups * dim) + 0.5
    states = 1 << state_bits(step, window, lag)
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.integers(0, states, rows).astype(np.int32))
    end = torch.from_numpy(rng.integers(0, states, rows).astype(np.int32))
    for begins, ends in ((None, None), (start, None), (None, end), (start, end)):
        symbol, began, cost = ops.overlap_search(x, table, step, lag, weight, begins, ends)
        for r in {0, rows // 2, rows - 1}:
            first = None if begins is None else int(begins[r])
            last = None if ends is None else int(ends[r])
            best = viterbi(x[r], table, step, lag, weight, first, last)
            found, behind = path_cost(x[r], table, step, lag, weight, symbol[r], began[r])
            assert found == pytest.approx(best, rel=1e-4, abs=1e-2)
            assert float(cost[r]) == pytest.approx(best, rel=1e-4, abs=1e-2)
            assert first in (None, int(began[r]))
            assert last in (None, behind)


@pytest.mark.parametrize(("step", "groups"), [(2, 3), (3, 3), (2, 4)])
def test_no_sequence_is_better_with_a_spread(step, groups):
    table, rows, spread = normal(1 << step, 2, 4), 2, 0.7
    x, weight = 1.5 * normal(rows, groups * 4, seed=1), torch.rand(groups * 4) + 0.1
    settings = {"spread": spread}
    symbol, start, cost = ops.overlap_search(x, table, step, 1, weight, **settings)
    for r in range(rows):
        best = min(
            path_cost(x[r], table, step, 1, weight, every, state, spread)[0]
            for state in range(1 << step)
            for every in itertools.product(range(1 << step), repeat=groups)
        )
        found = path_cost(x[r], table, step, 1, weight, symbol[r], start[r], spread)[0]
        assert found == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert float(cost[r]) == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_spread_agrees_with_float64(weighted, lag):
    step = 8 if lag == 1 else 3
    groups, rows, spread = 7, 17, 20.0
    table = torch.round(20 * normal(1 << step, 2, 4))
    x, weight = 30 * normal(rows, groups * 4, seed=1), torch.rand(groups * 4) + 0.5
    if not weighted:
        weight = torch.ones(groups * 4)
    given = weight if weighted else None
    states = 1 << state_bits(step, step, lag)
    start = torch.arange(rows, dtype=torch.int32) * 5 % states
    for begins, ends in ((None, None), (start, None), (None, start), (start, start)):
        symbol, began, cost = ops.overlap_search(
            x, table, step, lag, given, begins, ends, spread=spread
        )
        for r in (0, rows - 1):
            first = None if begins is None else int(begins[r])
            last = None if ends is None else int(ends[r])
            best = viterbi(x[r], table, step, lag, weight, first, last, spread)
            found, behind = path_cost(x[r], table, step, lag, weight, symbol[r], began[r], spread)
            assert found == pytest.approx(best, rel=1e-4, abs=1e-2)
            assert float(cost[r]) == pytest.approx(best, rel=1e-4, abs=1e-2)
            assert first in (None, int(began[r]))
            assert last in (None, behind)


def test_bad_spreads_are_named():
    table, x = normal(16, 2, 4), normal(2, 8)
    for spread, changed, message in (
        (-1.0, {}, "spread is -1"),
        (float("nan"), {}, "spread is nan"),
        (1e300, {}, "spread is 1000"),
        (1.0, {"beam": 4}, "beam is 4 with a spread"),
        (1.0, {"table": normal(32, 2, 4)}, r"spread with a table of shape \[32, 2, 4\]"),
        (1.0, {"table": normal(16, 2, 2)}, "expected groups .* of 4 weights with a spread"),
    ):
        arguments = {"x": x, "table": table, "step_bits": 4, "lag": 1, "spread": spread, **changed}
        with pytest.raises(RuntimeError, match=message):
            ops.overlap_search(**arguments)


def test_states_may_be_free_in_some_rows():
    table, x = normal(8, 2, 2), normal(2, 10, seed=1)
    ones = torch.ones(10)
    start = torch.tensor([3, -1], dtype=torch.int32)
    _, began, cost = ops.overlap_search(x, table, 2, 1, None, start)
    assert int(began[0]) == 3
    assert float(cost[0]) == pytest.approx(viterbi(x[0], table, 2, 1, ones, 3), rel=1e-5)
    assert float(cost[1]) == pytest.approx(viterbi(x[1], table, 2, 1, ones), rel=1e-5)


@pytest.mark.parametrize(("step", "window", "lag", "dim"), SMALL)
@pytest.mark.parametrize("groups", [8, 30, 64])
def test_rings_close_and_are_nearly_the_best(step, window, lag, dim, groups):
    rows = 24
    table, x = normal(1 << window, 2, dim), normal(rows, groups * dim, seed=1)
    ones = torch.ones(groups * dim)
    symbol, start, cost = ops.overlap_search(x, table, step, lag, ring=True)
    total = best_total = 0.0
    for r in range(rows):
        found, end = path_cost(x[r], table, step, lag, ones, symbol[r], start[r])
        assert end == int(start[r]), "the end is the beginning"
        assert float(cost[r]) == pytest.approx(found, rel=1e-4, abs=1e-5)
        best = min(
            viterbi(x[r], table, step, lag, ones, state, state)
            for state in range(1 << state_bits(step, window, lag))
        )
        assert found >= best * (1 - 1e-5)
        total, best_total = total + found, best_total + best
    assert total <= best_total * {8: 1.15, 30: 1.005, 64: 1.001}[groups]


def test_every_instruction_set_gives_the_same_symbols():
    script = f"""
import hashlib, torch, pvq
ops = torch.ops.pvq
g = torch.Generator().manual_seed(0)
for step, window, lag, dim, spread in {without_spread(SMALL + FAMILY) + SPREADS}:
    table = torch.randn(1 << window, 2, dim, generator=g) * 20
    x = torch.randn(18, 12 * dim, generator=g) * 30
    weight = torch.rand(12 * dim, generator=g)
    digest = hashlib.sha256()
    for found in (ops.overlap_search(x, table, step, lag, weight, spread=spread),
                  ops.overlap_search(x, table, step, lag, ring=True, spread=spread)):
        for tensor in found:
            digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest())
"""
    results = set()
    for isa in __import__("pvq").build_info()["cpu_instruction_sets"]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PVQ_CPU": isa},
            cwd=Path(__file__).parent,
        )
        assert done.returncode == 0, done.stderr
        results.add(done.stdout)
    assert len(results) == 1


def test_strides_threads_and_neighbours_do_not_change_the_symbols():
    table, x = normal(256, 2, 2) * 20, normal(40, 32) * 30
    strided = x.T.contiguous().T
    whole = ops.overlap_search(x, table, 4, 2, ring=True)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for form in (x, strided):
                for a, b in zip(
                    ops.overlap_search(form, table, 4, 2, ring=True), whole, strict=True
                ):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    part = ops.overlap_search(x[17:20].contiguous(), table, 4, 2, ring=True)
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a, b[17:20])


@pytest.mark.parametrize(("rows", "cols"), [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("ring", [False, True])
def test_empty_sequences(rows, cols, ring):
    symbol, start, cost = ops.overlap_search(
        torch.zeros(rows, cols), normal(8, 2, 2), 2, 1, ring=ring
    )
    assert symbol.shape == (rows, cols // 2)
    assert start.shape == cost.shape == (rows,)
    assert not cost.any()


def test_bad_arguments_are_named():
    x, table = normal(3, 8), normal(8, 2, 2)
    states = torch.zeros(3, dtype=torch.int32)
    cases = [
        (lambda: ops.overlap_search(x.double(), table, 2, 1), "x has dtype float64"),
        (lambda: ops.overlap_search(x[0], table, 2, 1), "x has shape .*expected 2 dimensions"),
        (lambda: ops.overlap_search(x[:, :7], table, 2, 1), "x has 7 columns, .*multiple of dim"),
        (lambda: ops.overlap_search(x, table.char(), 2, 1), "table has dtype int8"),
        (lambda: ops.overlap_search(x, table[:7], 2, 1), r"table has shape \[7, 2, 2\], expected"),
        (lambda: ops.overlap_search(x, table[:, :1], 2, 1), r"table has shape \[8, 1, 2\]"),
        (lambda: ops.overlap_search(x, table[:, 0], 2, 1), "table has shape .*3 dimensions"),
        (
            lambda: ops.overlap_search(x, table, 4, 1),
            r"\[2\^n, 2 or 3, dim\] with n from step_bits = 4",
        ),
        (lambda: ops.overlap_search(x, table, 1, 1), "step_bits is 1, expected 2 to 8"),
        (lambda: ops.overlap_search(x, table, 9, 1), "step_bits is 9, expected 2 to 8"),
        (lambda: ops.overlap_search(x, table, 2, 0), "lag is 0, expected 1 to 8"),
        (lambda: ops.overlap_search(x, table, 3, 8), "a state has 24 bits .*expected 16 at most"),
        (lambda: ops.overlap_search(x, table, 2, 1, x[0, :6]), r"weight has shape \[6\]"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, states.long()), "start has dtype int64"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, states[:2]), r"start has shape \[2\]"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, None, states + 8), "end has 8 at 0"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, states - 2), "start has -2 at 0"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, states, None, True), "ring with start"),
        (lambda: ops.overlap_search(x[:, :2], table, 2, 1, ring=True), "a ring of 1 groups has 2"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("rows", [0, 5])
def test_search_passes_opcheck(rows):
    x, table = normal(rows, 8), normal(8, 2, 2)
    states = torch.zeros(rows, dtype=torch.int32)
    torch.library.opcheck(ops.overlap_search.default, (x, table, 2, 1, x.new_ones(8), states))
    torch.library.opcheck(ops.overlap_search.default, (x, table, 2, 1), {"ring": True})
    settings = {"ring": True, "spread": 0.5}
    torch.library.opcheck(ops.overlap_search.default, (x, normal(4, 2, 4), 2, 1), settings)


# --- the GPU --------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Columns of one weight and of many in a group, and every kind of word; see test_emulated_search.py.
OTHERS = [(2, 2, 1, 2), (2, 4, 3, 1), (3, 5, 1, 3), (4, 7, 1, 4), (2, 6, 1, 8), (4, 4, 2, 1),
          (4, 8, 2, 2), (6, 9, 1, 2)]  # fmt: skip


def on_gpu(*tensors):
    return [t.cuda() if isinstance(t, torch.Tensor) else t for t in tensors]


def assert_same_on_gpu(*arguments, **settings):
    expected = ops.overlap_search(*arguments, **settings)
    found = ops.overlap_search(*on_gpu(*arguments), **settings)
    for name, a, b in zip(("symbol", "start", "cost"), found, expected, strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu(), b), name


@needs_gpu
@pytest.mark.parametrize(
    ("step", "window", "lag", "dim", "spread"), without_spread(FAMILY + OTHERS) + SPREADS
)
@pytest.mark.parametrize(("rows", "groups"), [(1, 8), (5, 13), (67, 64), (131, 9)])
def test_the_gpu_finds_the_same_bits(step, window, lag, dim, spread, rows, groups):
    if window + lag * step > 16:
        rows = min(rows, 21)
    table, x = normal(1 << window, 2, dim) * 20, normal(rows, groups * dim, seed=1) * 30
    weight = torch.rand(groups * dim, generator=torch.Generator().manual_seed(2)) + 0.1
    states = 1 << state_bits(step, window, lag)
    start, end = (
        torch.from_numpy(np.random.default_rng(n).integers(-1, states, rows).astype(np.int32))
        for n in (3, 4)
    )
    for given in ((), (weight,), (None, start), (weight, None, end), (weight, start, end)):
        assert_same_on_gpu(x, table, step, lag, *given, spread=spread)
    for given in ((), (weight,)):
        assert_same_on_gpu(x, table, step, lag, *given, ring=True, spread=spread)
    whole = (torch.round(table / 20), torch.round(x / 20))  # many equal costs
    assert_same_on_gpu(whole[1], whole[0], step, lag, ring=True, spread=round(spread / 10))
    assert_same_on_gpu(x.T.contiguous().T, table.transpose(1, 2).contiguous().transpose(1, 2), step,
                       lag, ring=True, spread=spread)  # fmt: skip


@needs_gpu
@pytest.mark.parametrize(
    ("step", "window", "lag", "dim", "spread"), without_spread(FAMILY) + SPREADS[:1]
)
def test_more_sequences_than_the_gpu_holds_at_once(step, window, lag, dim, spread):
    """On the CPU only some are searched: sequences do not depend on each other."""
    table, x = normal(1 << window, 2, dim) * 20, normal(9001, 24 * dim, seed=1) * 30
    found = ops.overlap_search(*on_gpu(x, table, step, lag), ring=True, spread=spread)
    some = torch.tensor([0, 1, 2047, 4224, 9000])
    expected = ops.overlap_search(x[some], table, step, lag, ring=True, spread=spread)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu()[some], b)


@needs_gpu
def test_long_sequences_on_the_gpu():
    table, x = normal(256, 2, 2) * 20, normal(9, 6002, seed=1) * 30
    assert_same_on_gpu(x, table, 4, 2)
    assert_same_on_gpu(x, table, 4, 2, ring=True)


@needs_gpu
@pytest.mark.parametrize(("rows", "cols"), [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("ring", [False, True])
def test_empty_sequences_on_the_gpu(rows, cols, ring):
    assert_same_on_gpu(torch.zeros(rows, cols), normal(8, 2, 2), 2, 1, ring=ring)


@needs_gpu
def test_bad_arguments_are_named_on_the_gpu():
    x, table = normal(3, 8).cuda(), normal(8, 2, 2).cuda()
    states = torch.zeros(3, dtype=torch.int32)
    cases = [
        (lambda: ops.overlap_search(x.double(), table, 2, 1), "x has dtype float64"),
        (lambda: ops.overlap_search(x, table.cpu(), 2, 1), "table and x are on different devices"),
        (lambda: ops.overlap_search(x, table[:7], 2, 1), r"table has shape \[7, 2, 2\], expected"),
        (lambda: ops.overlap_search(x, table, 2, 1, x[0, :6]), r"weight has shape \[6\]"),
        (lambda: ops.overlap_search(x, table, 2, 1, None, states), "start and x are on different"),
        (lambda: ops.overlap_search(x, normal(4096, 2, 2).cuda(), 4, 2), "65536 states of groups"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@needs_gpu
def test_states_that_are_none_do_not_stop_the_gpu():
    """Checking them would wait for the GPU: they count modulo the number of states."""
    x, table = normal(4, 20).cuda(), normal(8, 2, 2).cuda()
    states = torch.tensor([9, 15, -7, 8], dtype=torch.int32).cuda()
    inside = torch.tensor([1, 7, -1, 0], dtype=torch.int32).cuda()
    for a, b in zip(
        ops.overlap_search(x, table, 2, 1, None, states, states),
        ops.overlap_search(x, table, 2, 1, None, inside, inside),
        strict=True,
    ):
        assert torch.equal(a, b)


@needs_gpu
def test_search_in_a_graph_and_on_another_stream():
    table, x = (normal(256, 2, 2) * 20).cuda(), (normal(300, 128, seed=1) * 30).cuda()
    other = (normal(300, 128, seed=2) * 30).cuda()
    expected = [ops.overlap_search(t, table, 4, 2, ring=True) for t in (x, other)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = ops.overlap_search(x * 1.0, table, 4, 2, ring=True)
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(found, expected[0], strict=True):
        assert torch.equal(a, b)
    graph, given = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        found = ops.overlap_search(given, table, 4, 2, ring=True)
    for source, results in zip((x, other), expected, strict=True):
        given.copy_(source)
        graph.replay()
        for a, b in zip(found, results, strict=True):
            assert torch.equal(a, b)


@needs_gpu
def test_the_search_of_one_call_does_not_disturb_the_next():
    """Calls follow each other without a wait, and share no memory that they should not."""
    table = (normal(512, 2, 2) * 20).cuda()
    inputs = [(normal(64, 128, seed=seed) * 30).cuda() for seed in range(8)]
    found = [ops.overlap_search(x, table, 6, 1, ring=True)[0] for x in inputs]
    for x, symbols in zip(inputs, found, strict=True):
        torch.cuda.synchronize()
        assert torch.equal(ops.overlap_search(x, table, 6, 1, ring=True)[0], symbols)


@needs_gpu
def test_search_passes_opcheck_on_the_gpu():
    x, table = normal(5, 8).cuda(), normal(8, 2, 2).cuda()
    torch.library.opcheck(ops.overlap_search.default, (x, table, 2, 1), {"ring": True})
