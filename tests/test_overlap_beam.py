"""Beam search for overlapping-pyramid codes of two and three terms, against its definition."""

import itertools

import numpy as np
import pytest
import torch

ops = torch.ops.pvq
# step bits, window bits, lag, weights of a group, terms
SMALL = [(2, 2, 1, 1, 3), (2, 3, 1, 2, 3), (3, 3, 1, 2, 3), (2, 2, 2, 1, 2), (2, 4, 1, 3, 3),
         (3, 4, 1, 4, 2)]  # fmt: skip
SEAM = 24  # groups on either side of a ring's seam


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Code:
    """The numbers of core/overlap.h."""

    def __init__(self, step: int, window: int, lag: int, terms: int) -> None:
        self.step, self.window, self.reach, self.terms = step, window, lag * step, terms
        self.word_bits = window + (terms - 1) * self.reach
        self.state_bits = self.word_bits - step

    def points(self, table: np.ndarray, word: int) -> list[np.ndarray]:
        rows = (1 << self.window) - 1
        return [
            table[word >> (self.terms - 1 - term) * self.reach & rows, term]
            for term in range(self.terms)
        ]


def path_cost(x, table, code, weight, symbols, state) -> tuple[float, int]:
    """What symbols from a state on cost in float64, and the state behind them."""
    dim, cost = table.shape[2], 0.0
    for i, symbol in enumerate(symbols):
        word = int(symbol) << code.state_bits | int(state)
        part = slice(i * dim, (i + 1) * dim)
        error = x[part] - sum(code.points(table, word))
        cost += float((error**2 * weight[part]).sum())
        state = word >> code.step
    return cost, state


def beam_search(x, table, code, weight, beam, start=-1, end=-1):
    """core/overlap_beam.h in float32, a candidate at a time: symbols, the first state, the cost."""
    dim, groups = table.shape[2], len(x) // table.shape[2]
    one = np.float32
    count = min(beam, 1 << code.state_bits)
    stride = (1 << code.state_bits) // count
    spread = [i * stride + ((i * 2654435761 & 0xFFFFFFFF) >> 16) % stride for i in range(count)]
    paths = {state: (one(0), (state,)) for state in (spread if start < 0 else [start])}
    for i in range(groups):
        target, factor = x[i * dim :][:dim], weight[i * dim :][:dim]
        fixed = code.state_bits - code.step * (groups - i)  # where this symbol is at the end
        found = {}
        for symbol in range(1 << code.step):
            bits = symbol << fixed if fixed >= 0 else symbol >> -fixed
            mask = (
                ((1 << code.step) - 1) << fixed if fixed >= 0 else ((1 << code.step) - 1) >> -fixed
            )
            if end >= 0 and bits != end & mask:
                continue
            for state, (cost, past) in sorted(paths.items()):
                own, *others = code.points(table, symbol << code.state_bits | state)
                total = one(0)
                for d in range(dim):
                    left = target[d]
                    for other in others:
                        left = one(left - other[d])
                    error = one(left - own[d])
                    total = one(total + one(factor[d] * one(error * error)))
                behind = (symbol << code.state_bits | state) >> code.step
                if behind not in found or one(cost + total) < found[behind][0]:
                    found[behind] = (one(cost + total), (*past, symbol))
        best = sorted(found, key=lambda state: (found[state][0], state))[:beam]
        paths = {state: found[state] for state in best}
    if end >= 0:
        cost, past = paths[end]
    else:
        cost, past = paths[min(paths, key=lambda state: (paths[state][0], state))]
    return list(past[1:]), past[0], cost


def case(step, window, lag, dim, terms, rows, groups, whole=False):
    code = Code(step, window, lag, terms)
    table, x = normal(1 << window, terms, dim), normal(rows, groups * dim, seed=1)
    weight = torch.rand(groups * dim, generator=torch.Generator().manual_seed(2)) + 0.1
    if whole:  # equal costs
        table, x, weight = (2 * table).round(), (2 * x).round(), torch.ones(groups * dim)
    return code, table, x, weight


@pytest.mark.parametrize(("step", "window", "lag", "dim", "terms"), SMALL)
@pytest.mark.parametrize("beam", [1, 3, 7, 40])
@pytest.mark.parametrize("whole", [False, True])
def test_paths_are_kept_as_defined(step, window, lag, dim, terms, beam, whole):
    code, table, x, weight = case(step, window, lag, dim, terms, 3, 7, whole)
    states = np.random.default_rng(0).integers(0, 1 << code.state_bits, (2, 3)).astype(np.int32)
    for start, end in ((None, None), (states[0], None), (None, states[1]), (*states,)):
        given = [t if t is None else torch.from_numpy(t) for t in (start, end)]
        symbol, began, cost = ops.overlap_search(x, table, step, lag, weight, *given, beam=beam)
        for r in range(3):
            expected = beam_search(
                x[r].numpy(), table.numpy(), code, weight.numpy(), beam,
                -1 if start is None else start[r], -1 if end is None else end[r],
            )  # fmt: skip
            assert (symbol[r].tolist(), int(began[r]), float(cost[r])) == expected


@pytest.mark.parametrize(("step", "window", "lag", "dim", "terms"), SMALL)
@pytest.mark.parametrize("exact", [False, True])
def test_no_sequence_is_better_than_the_widest_beam_s(step, window, lag, dim, terms, exact):
    groups = 3 if step == 2 else 2
    code, table, x, weight = case(step, window, lag, dim, terms, 2, groups)
    states = 1 << code.state_bits
    beam = 0 if exact else states
    symbol, start, cost = ops.overlap_search(x, table, step, lag, weight, beam=beam)
    for r in range(2):
        operands = x[r].double().numpy(), table.double().numpy(), code, weight.double().numpy()
        best = min(
            path_cost(*operands, every, state)[0]
            for state in range(states)
            for every in itertools.product(range(1 << step), repeat=groups)
        )
        assert float(cost[r]) == pytest.approx(best, rel=1e-4, abs=1e-6)
        found = path_cost(*operands, symbol[r], start[r])[0]
        assert found == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "window", "lag", "dim"), [(4, 8, 1, 2), (3, 4, 2, 2), (4, 4, 2, 1)]
)
@pytest.mark.parametrize("ring", [False, True])
def test_a_beam_of_all_states_is_the_exact_search(step, window, lag, dim, ring):
    """With whole numbers both have the same costs, not rounded."""
    table, x = (4 * normal(1 << window, 2, dim)).round(), (5 * normal(9, 40 * dim)).round()
    states = 1 << (window + (lag - 1) * step)
    exact = ops.overlap_search(x, table, step, lag, ring=ring)
    for beam in (states, 2 * states):
        wide = ops.overlap_search(x, table, step, lag, ring=ring, beam=beam)
        if not ring:
            assert torch.equal(wide[2], exact[2])
        else:  # equal costs at the seam may be decided otherwise, and lead to another ring
            assert float(wide[2].sum()) == pytest.approx(float(exact[2].sum()), rel=1e-2)


def test_wider_beams_find_better_paths():
    table, x = normal(256, 3, 4) / 2, normal(6, 160, seed=1)
    costs = [float(ops.overlap_search(x, table, 8, 1, beam=beam)[2].sum()) for beam in (1, 16, 256)]
    assert costs[0] > 1.2 * costs[1] > 1.2 * costs[2]


@pytest.mark.parametrize(("step", "window", "lag", "dim", "terms"), SMALL)
@pytest.mark.parametrize("beam", [4, 64])
@pytest.mark.parametrize("groups", [6, 30])
def test_rings_close(step, window, lag, dim, terms, beam, groups):
    code, table, x, weight = case(step, window, lag, dim, terms, 5, groups)
    symbol, start, cost = ops.overlap_search(x, table, step, lag, weight, ring=True, beam=beam)
    for r in range(5):
        operands = x[r].double().numpy(), table.double().numpy(), code, weight.double().numpy()
        found, end = path_cost(*operands, symbol[r], start[r])
        assert end == int(start[r])
        assert found == pytest.approx(float(cost[r]), rel=1e-4)
        # The seam's state is the one of the same search around it.
        around = torch.arange(-SEAM, SEAM) % groups
        columns = (around[:, None] * dim + torch.arange(dim)).flatten()
        first, state, _ = ops.overlap_search(
            x[r : r + 1, columns].contiguous(), table, step, lag, weight[columns], beam=beam
        )
        nothing = np.zeros(SEAM * dim)
        _, middle = path_cost(nothing, *operands[1:3], nothing, first[0, :SEAM], state[0])
        assert middle == int(start[r])


def test_an_end_out_of_reach_costs_infinity():
    table, x = normal(16, 3, 1), normal(2, 1, seed=1)
    state = torch.tensor([0, 0], dtype=torch.int32)
    end = torch.tensor([0, 1], dtype=torch.int32)  # one symbol of two bits: state 1 is 4 before
    _, _, cost = ops.overlap_search(x, table, 2, 1, None, state, end, beam=8)
    assert cost.isfinite().tolist() == [True, False]


def test_threads_strides_and_neighbours_do_not_change_the_paths():
    table, x = normal(64, 3, 2) * 20, normal(40, 32) * 30
    whole = ops.overlap_search(x, table, 4, 1, ring=True, beam=50)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for form in (x, x.T.contiguous().T):
                found = ops.overlap_search(form, table, 4, 1, ring=True, beam=50)
                for a, b in zip(found, whole, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    part = ops.overlap_search(x[17:20], table, 4, 1, ring=True, beam=50)
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a, b[17:20])


@pytest.mark.parametrize(("rows", "cols"), [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("ring", [False, True])
def test_empty_sequences(rows, cols, ring):
    x = torch.zeros(rows, cols)
    symbol, start, cost = ops.overlap_search(x, normal(8, 3, 2), 2, 1, ring=ring, beam=5)
    assert symbol.shape == (rows, cols // 2)
    assert not start.any()
    assert not cost.any()


def test_bad_arguments_are_named():
    x, table = normal(3, 8), normal(8, 3, 2)
    cases = [
        (lambda: ops.overlap_search(x, table, 2, 1, beam=-1), "beam is -1, expected 0 to 65536"),
        (lambda: ops.overlap_search(x, table, 2, 1, beam=1 << 17), "beam is 131072"),
        (lambda: ops.overlap_search(x, normal(256, 3, 2), 8, 1), "beam is 0 .exact., but 65536 st"),
        (lambda: ops.overlap_search(x, normal(8, 4, 2), 2, 1, beam=4), r"\[2\^n, 2 or 3, dim\]"),
        (lambda: ops.overlap_search(x, normal(8, 1, 2), 2, 1, beam=4), r"\[2\^n, 2 or 3, dim\]"),
        (lambda: ops.overlap_search(x, normal(512, 3, 2), 8, 1, beam=4), "a state has 17 bits"),
        (lambda: ops.overlap_search(x, table, 2, 1, x[0, :6], beam=4), r"weight has shape \[6\]"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    three = normal(8, 3, 2).char()
    code, scale = torch.zeros(1, 4, dtype=torch.uint8), torch.ones(1).bfloat16()
    with pytest.raises(RuntimeError, match=r"expected \[2\^n, 2, dim\]"):
        ops.overlap_dequantize(code, scale, three, 2, 1, 0, 16, torch.float32)


@pytest.mark.parametrize("rows", [0, 5])
def test_search_passes_opcheck(rows):
    x, table = normal(rows, 8), normal(8, 3, 2)
    torch.library.opcheck(ops.overlap_search.default, (x, table, 2, 1), {"ring": True, "beam": 6})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("step", "window", "lag", "dim", "terms"), [*SMALL, (8, 8, 1, 4, 3), (4, 8, 2, 2, 2)]
)
@pytest.mark.parametrize("beam", [1, 37, 1024])
@pytest.mark.parametrize("whole", [False, True])
def test_the_gpu_keeps_the_same_paths(step, window, lag, dim, terms, beam, whole):
    code, table, x, weight = case(step, window, lag, dim, terms, 11, 32, whole)
    states = np.random.default_rng(0).integers(-1, 1 << code.state_bits, (2, 11))
    start, end = (torch.from_numpy(row.astype(np.int32)) for row in states)
    there = [t.cuda() for t in (x, table)]
    for given in ((), (weight,), (weight, start), (None, None, end), (weight, start, end)):
        expected = ops.overlap_search(x, table, step, lag, *given, beam=beam)
        on_gpu = [t if t is None else t.cuda() for t in given]
        found = ops.overlap_search(*there, step, lag, *on_gpu, beam=beam)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.cpu(), b)
    expected = ops.overlap_search(x, table, step, lag, weight, ring=True, beam=beam)
    found = ops.overlap_search(*there, step, lag, weight.cuda(), ring=True, beam=beam)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b)
