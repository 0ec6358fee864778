"""The scripts that made the tables of the overlapping-pyramid codes mean what the library does."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pvq.codes.overlap import WIDTHS, trellis

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import overlap_tables
    finally:
        sys.path.pop(0)
    return overlap_tables


@pytest.mark.parametrize("bits", WIDTHS)
def test_both_mean_the_same_code(tables, bits):
    numbers, shape = trellis(bits), tables.FAMILY[bits]
    assert (shape.dim, shape.step_bits) == (numbers.dim, numbers.step_bits)
    assert (shape.window_bits, shape.lag) == (numbers.window_bits, numbers.lag)
    groups = tables.BLOCK // shape.dim
    rng = np.random.default_rng(0)
    symbol = torch.from_numpy(rng.integers(0, 1 << numbers.stored_bits, (6, groups)))
    coded = symbol & ((1 << shape.step_bits) - 1)
    y = tables.decode(tables.windows(coded, shape), numbers.table.double(), shape)
    if shape.spread:
        above = symbol[..., None] >> (shape.step_bits + torch.arange(shape.dim)) & 1
        y = y + numbers.spread * (2.0 * above - 1)
    assert bool(numbers.spread) == shape.spread
    assert torch.equal(y.flatten(1).float(), numbers.integers(symbol.to(numbers.symbol_dtype)))
    with np.load(tables.OUT) as file:
        assert np.array_equal(file[f"{bits:g}"], numbers.table.numpy())


def test_training_lowers_the_error_and_is_repeatable(tables):
    shape = tables.Trellis(2, 4, 6, 1)
    phases = ((1 << 12, 4), (1 << 14, 6))
    table = tables.train(shape, phases)
    assert torch.equal(table, tables.train(shape, phases))
    if torch.cuda.is_available():
        assert torch.equal(table, tables.train(shape, phases, device="cuda"))
    untrained = tables.error(tables.train(shape, ()), shape, 1 << 14)
    trained = tables.error(table, shape, 1 << 14)
    assert trained < 0.97 * untrained
    assert trained * 4**2 < 1.36
    for largest in (127, 15):
        whole, unit = tables.round_points(table, largest)
        assert torch.equal(whole, whole.round())
        assert whole[:, 0].abs().max() + whole[:, 1].abs().max() <= largest
        assert tables.error(whole * unit, shape, 1 << 14) < 1.03 * trained


def tied(words):
    """Both points of a row whose first point has the bytes `words` [4], less 64."""
    word = sum(int(byte) << (8 * k) for k, byte in enumerate(words))
    other = 16 * word % (1 << 32)
    return [[int(byte) - 64 for byte in words], [(other >> (8 * k) & 255) - 64 for k in range(4)]]


def test_tied_points_are_the_nearest(tables):
    """Among all with levels up to 7, of which two components here are fixed to have few."""
    random = torch.Generator().manual_seed(3)
    target = 30 * torch.randn(5, 2, 4, generator=random, dtype=torch.float64)
    weight = torch.rand(5, 2, generator=random, dtype=torch.float64)
    found = tables.tied_points(target, weight)
    levels = [16 * h + low for h in range(8) for low in range(8)]
    for row in range(5):
        assert found[row].tolist() == tied(found[row, 0] + 64)
        assert all(int(byte) + 64 in levels for byte in found[row, 0])

        def cost(points, row=row):
            e = (torch.tensor(points, dtype=torch.float64) - target[row]).square().sum(1)
            return float((e * weight[row]).sum())

        least = cost(found[row].tolist())
        # Two neighbouring components at a time, which share a level, over all their bytes.
        for k in range(3):
            for pair in itertools.product(levels, repeat=2):
                words = found[row, 0] + 64
                words[k : k + 2] = torch.tensor(pair)
                assert cost(tied(words)) >= least - 1e-9


def test_tying_takes_the_unit_of_least_error(tables):
    shape = tables.Trellis(4, 4, 6, 1)
    table = tables.train(shape, ((1 << 12, 4), (1 << 14, 6)))
    units, phases = (0.01, 0.03, 0.2), ((1 << 14, 4),)
    points, unit = tables.tie(table, shape, units, phases)
    assert unit == 0.03
    assert all(row.tolist() == tied(row[0] + 64) for row in points)
    real = tables.error(table, shape, 1 << 16)
    assert tables.error(points * unit, shape, 1 << 16) < 1.04 * real
    assert int(points[:, 0].max() + points[:, 1].max()) <= 127
    if torch.cuda.is_available():
        assert torch.equal(points, tables.tie(table, shape, units, phases, "cuda")[0])


@pytest.fixture(scope="module")
def spreads(tables):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import overlap_spread
    finally:
        sys.path.pop(0)
    return overlap_spread


def test_training_with_a_spread_lowers_the_error(tables, spreads):
    shape = tables.Trellis(4, 4, 4, 1, spread=True)
    table, step = spreads.train(shape, ((1 << 12, 8), (1 << 14, 12)))
    again = spreads.train(shape, ((1 << 12, 8), (1 << 14, 12)))
    assert torch.equal(table, again[0])
    assert step == again[1]
    if torch.cuda.is_available():
        there = spreads.train(shape, ((1 << 12, 8), (1 << 14, 12)), device="cuda")
        assert torch.equal(table, there[0])
        assert step == there[1]
    untrained = spreads.error(spreads.train(shape, ())[0], shape, 0.65, 1 << 14)
    trained = spreads.error(table, shape, step, 1 << 14)
    assert trained < 0.87 * untrained
    assert trained * 4**2 < 1.42
    points, unit = spreads.tie(table, shape, (0.2, step), ((1 << 14, 10),))
    assert unit == step / spreads.LIBRARY.spread
    assert spreads.error(points * unit, shape, step, 1 << 14) < 1.1 * trained
    byte = points[:, 0] + 60
    assert torch.equal(byte, byte.clamp(0, 119).round())
    assert torch.equal(points[:, 1], 12 * (byte % 8) - 44)


def test_points_tied_for_a_spread_are_the_nearest(spreads):
    random = torch.Generator().manual_seed(3)
    target = 30 * torch.randn(4, 2, 4, generator=random, dtype=torch.float64)
    weight = torch.rand(4, 2, generator=random, dtype=torch.float64)
    found = spreads.tied_points(target, weight)
    for row, k in itertools.product(range(4), range(4)):
        costs = {
            byte: float(weight[row, 0] * (byte - 60 - target[row, 0, k]) ** 2
                        + weight[row, 1] * (12 * (byte % 8) - 44 - target[row, 1, k]) ** 2)
            for byte in range(120)
        }  # fmt: skip
        assert int(found[row, 0, k]) + 60 == min(costs, key=costs.get)


def training_samples(tables, shape, seed):
    """Weights, an untrained table, and the windows of the best symbols."""
    x = tables.gaussian(1 << 13, torch.Generator().manual_seed(seed))
    table = tables.train(shape, ())
    return x, table, tables.windows(tables.search(x, table, shape), shape)


@pytest.mark.parametrize("numbers", [(2, 2, 3, 1, 2), (4, 4, 4, 1, 2), (2, 2, 3, 2, 3)])
def test_one_step_of_training_is_least_squares(tables, numbers):
    """Sweeps lead to the points that fit the samples best, given the windows."""
    shape = tables.Trellis(*numbers)
    x, table, window = training_samples(tables, shape, 0)
    rows = len(table)
    design = torch.zeros(window.numel(), shape.terms * rows, dtype=torch.float64)
    place = torch.arange(window.numel())
    for term in range(shape.terms):
        design[place, term * rows + torch.roll(window, term * shape.lag, 1).flatten()] += 1
    target = x.view(-1, shape.dim).double()
    points = torch.linalg.lstsq(design, target, driver="gelsd")[0]
    least = float((target - design @ points).square().sum())
    for _ in range(40):
        tables.improve(x, window, table, shape)
    left = (x.view(*window.shape, shape.dim) - tables.decode(window, table, shape)).square().sum()
    assert float(left) == pytest.approx(least, rel=1e-6)


def test_points_of_one_term_are_means(tables):
    """Those of the other term stay zero, and a row without samples keeps its point."""
    shape = tables.Trellis(2, 2, 3, 1)
    x, table, window = training_samples(tables, shape, 1)
    table[:, 1] = 0
    before = table.clone()
    window[window == 5] = 4
    tables.improve(x, window, table, shape, moving=1)
    target = x.view(*window.shape, 2).double()
    for row in (0, 1, 2, 3, 4, 6, 7):
        assert torch.allclose(table[row, 0], target[window == row].mean(0), rtol=0, atol=1e-6)
    assert torch.equal(table[5], before[5])
    assert not table[:, 1].any()


def test_the_comparison_of_designs_in_small(tmp_path):
    file = tmp_path / "design.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "overlap_design.py", "--quick", "--json", file],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert done.stdout.count("\n| ") == 6 + len(rows)
    parts = {row["part"] for row in rows}
    assert parts == {"shapes", "terms", "points", "rings", "spreads", "scales"}
    assert all(1.1 < row["ratio"] < 3 for row in rows)
    library = [row for row in rows if "the library's" in str(row.get("points"))]
    rates = [row["step_bits"] / row["dim"] + row["spread"] for row in library]
    assert sorted(rates) == [2, 2.5, 3, 3.5, 4]
    assert all(row["ratio"] < 1.25 for row in library)
    shapes = [row for row in rows if row["part"] == "shapes" and row["points"] == 2]
    cost = {(row["dim"], row["step_bits"], row["window_bits"], row["lag"]): row for row in shapes}
    four, two = cost[4, 8, 9, 1], cost[2, 6, 9, 1]
    assert (four["kib"], four["instructions"], four["transitions"]) == (64, 3.75 / 4, 1 << 15)
    assert (two["kib"], two["instructions"], two["transitions"]) == (64, 2, 1 << 14)
