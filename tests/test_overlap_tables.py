"""The scripts that made the tables of the overlapping-pyramid codes mean what the library does."""

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
    assert (shape.dim, shape.step_bits) == (2, numbers.step_bits)
    assert (shape.window_bits, shape.lag) == (numbers.window_bits, numbers.lag)
    symbol = torch.from_numpy(np.random.default_rng(0).integers(0, 1 << shape.step_bits, (6, 64)))
    y = tables.decode(tables.windows(symbol, shape), numbers.table.double(), shape)
    assert torch.equal(y.flatten(1).float(), numbers.integers(symbol.to(torch.uint8)))
    with np.load(tables.OUT) as file:
        assert np.array_equal(file[f"{bits:g}"], numbers.table.numpy())


def test_training_lowers_the_error_and_is_repeatable(tables):
    shape = tables.Trellis(2, 4, 6, 1)
    phases = ((1 << 12, 4), (1 << 14, 6))
    table = tables.train(shape, phases)
    assert torch.equal(table, tables.train(shape, phases))
    untrained = tables.error(tables.train(shape, ()), shape, 1 << 14)
    trained = tables.error(table, shape, 1 << 14)
    assert trained < 0.97 * untrained
    assert trained * 4**2 < 1.36
    for largest in (127, 15):
        whole, unit = tables.round_points(table, largest)
        assert torch.equal(whole, whole.round())
        assert whole[:, 0].abs().max() + whole[:, 1].abs().max() <= largest
        assert tables.error(whole * unit, shape, 1 << 14) < 1.03 * trained


def test_one_step_of_training_is_least_squares(tables):
    """Sweeps lead to the points that fit the samples best, given the windows."""
    shape = tables.Trellis(2, 2, 3, 1)
    x = tables.gaussian(1 << 13, torch.Generator().manual_seed(0))
    table = tables.train(shape, ())
    window = tables.windows(tables.search(x, table, shape), shape)
    rows = len(table)
    design = torch.zeros(window.numel(), 2 * rows, dtype=torch.float64)
    place = torch.arange(window.numel())
    design[place, window.flatten()] = 1
    design[place, rows + torch.roll(window, 1, 1).flatten()] += 1
    target = x.view(-1, 2).double()
    least = (target - design @ torch.linalg.lstsq(design, target, driver="gelsd")[0]).square().sum()
    for _ in range(20):
        tables.improve(x, window, table, shape)
    left = (x.view(*window.shape, 2) - tables.decode(window, table, shape)).square().sum()
    assert float(left) == pytest.approx(float(least), rel=1e-6)
