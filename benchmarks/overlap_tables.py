"""Computes the tables of python/pvq/codes/overlap_tables.npz, for weights like Gaussian ones.

    python benchmarks/overlap_tables.py --device cuda      # the library's: minutes on one H200
    python benchmarks/overlap_tables.py [--device DEVICE] [--quick] [--only BITS] [--out FILE]
    python benchmarks/overlap_tables.py --check FILE

A table of an overlapping-pyramid code (csrc/core/overlap.h) has two points in each row; group i is
the sum of the first one of its own window's row and the second one of the row `lag` groups before.
Training takes turns, as for trellis quantizers (Ayanoglu and Gray, IEEE Trans. Inf. Theory 32,
1986): Viterbi's algorithm finds the best symbols for Gaussian samples, and then every point moves
to the mean of what it should have been, given the other point of its sums (Gauss-Seidel sweeps of
the least squares problem). Fresh samples in every turn: few in many early ones, whose noise leads
out of poor optima, then more and more, so that nothing is fitted to noise in the end.

Points of two weights are rounded to multiples of one unit, the smallest one with which no sum of
two leaves the range of int8: at that resolution rounding costs less than 0.1 %. Points of four
become tied ones (overlap_tied.py, and overlap_spread.py with a spread), in more turns: what the
least squares problem would change of the tied points leads real ones, which are tied again. That
costs 1 % of error.

Everything is seeded. Samples are drawn, and the least squares problems solved, on the CPU; on the
device are the search, which gives the same bits everywhere, and sums of integers. So the tables do
not depend on it. `--check` measures a file's tables on other samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from overlap_tied import tied_points

import pvq  # noqa: F401  registers the operators

OUT = Path(__file__).parents[1] / "python/pvq/codes/overlap_tables.npz"
Phases = tuple[tuple[int, int], ...]

BLOCK = 128  # weights of a ring
LARGEST = 127  # magnitude of a sum
UNITS = (0.027, 0.028, 0.029, 0.03, 0.031)  # that are tried for groups of four
# Samples of a turn, and how many turns.
PHASES = (
    (1 << 13, 60),
    (1 << 14, 100),
    (1 << 15, 100),
    (1 << 16, 100),
    (1 << 18, 80),
    (1 << 20, 60),
    (1 << 22, 12),
)
# More turns: 0.5 % less error above 3 bits, nothing below.
LONG_PHASES = tuple(
    (samples, turns * (10 if samples <= 1 << 16 else 2)) for samples, turns in PHASES
)
# Of tying, and the share of a change that leads.
TYING = ((1 << 16, 60), (1 << 17, 60), (1 << 18, 60), (1 << 20, 20))
LEAD = 0.1
QUICK = ((1 << 14, 15), (1 << 16, 25), (1 << 18, 8), (1 << 20, 3))
SWEEPS = 6
FINE = 2.0**24  # samples are rounded to multiples of 1 / FINE where they are added up


@dataclass(frozen=True)
class Trellis:
    """A code's numbers; csrc/core/overlap.h says what they mean."""

    dim: int
    step_bits: int
    window_bits: int
    lag: int
    terms: int = 2  # points in a row of the table
    beam: int = 0  # paths that the search keeps; 0: all
    spread: bool = False  # whether weights are above or below the sums of their points

    @property
    def bits(self) -> float:
        return self.step_bits / self.dim + self.spread

    @property
    def word_bits(self) -> int:
        return self.window_bits + (self.terms - 1) * self.lag * self.step_bits


# By bits a weight; benchmarks/overlap_design.py says why these.
FAMILY = {
    2.0: Trellis(4, 8, 9, 1),
    2.5: Trellis(2, 5, 8, 2),
    3.0: Trellis(4, 8, 8, 1, spread=True),
    3.5: Trellis(2, 7, 9, 1),
    4.0: Trellis(2, 8, 9, 1),
}


def gaussian(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count // BLOCK, BLOCK, generator=generator)


def search(
    x: torch.Tensor,
    table: torch.Tensor,
    trellis: Trellis,
    block: int = BLOCK,
    spread: float = 0.0,
) -> torch.Tensor:
    """The best symbols [rings, groups] for the weights `x`, cut into rings of `block`."""
    return torch.ops.pvq.overlap_search(
        *(x.reshape(-1, block), table.float().to(x.device), trellis.step_bits, trellis.lag),
        ring=True,
        beam=trellis.beam,
        spread=spread,
    )[0]


def windows(symbol: torch.Tensor, trellis: Trellis) -> torch.Tensor:
    """Window of each group, [rings, groups]: the newest bits of the symbols up to it."""
    window = torch.zeros_like(symbol, dtype=torch.int64)
    for back in range(-(-trellis.window_bits // trellis.step_bits)):
        older = torch.roll(symbol.long(), back, 1)
        shift = trellis.window_bits - (back + 1) * trellis.step_bits
        window |= older << shift if shift >= 0 else older >> -shift
    return window


def decode(window: torch.Tensor, table: torch.Tensor, trellis: Trellis) -> torch.Tensor:
    """The weights [rings, groups, dim] of windows."""
    return sum(
        table[torch.roll(window, term * trellis.lag, 1), term] for term in range(trellis.terms)
    )


def improve(
    x: torch.Tensor,
    window: torch.Tensor,
    table: torch.Tensor,
    trellis: Trellis,
    moving: int | None = None,
) -> None:
    """Moves the points of `table` [rows, terms, dim] to fit `x`, given the windows.

    With sums b_t of the samples that each row stands for in term t, counts n_t of them, and counts
    C_tu of a row in term t together with one in term u, the best points of t, given the others, are
    (b_t - sum over u of C_tu T_u) / n_t, where a row without samples keeps its own. All of these
    are integers but T, b in units of 1 / FINE. Only the points of the first `moving` terms move,
    of all if None; the others must be zero.
    """
    rows, terms = len(table), trellis.terms if moving is None else moving
    target = (x.view(-1, trellis.dim).double() * FINE).round().long()
    used = [torch.roll(window, term * trellis.lag, 1).flatten() for term in range(terms)]
    sums = [
        target.new_zeros(rows, trellis.dim).index_add_(0, u, target).cpu().double() / FINE
        for u in used
    ]
    counts = [torch.bincount(u, minlength=rows).cpu().double()[:, None] for u in used]
    pairs = {}
    for t in range(terms):
        for u in range(t):
            both = torch.bincount(used[t] * rows + used[u], minlength=rows**2).view(rows, rows)
            pairs[t, u] = both.cpu().double()
            pairs[u, t] = pairs[t, u].T
    for _ in range(SWEEPS):
        for t in range(terms):
            rest = sum((pairs[t, u] @ table[:, u] for u in range(terms) if u != t), 0.0)
            best = (sums[t] - rest) / counts[t].clamp(min=1)
            table[:, t] = torch.where(counts[t] > 0, best, table[:, t])


def train(
    trellis: Trellis,
    phases: Phases = PHASES,
    seed: int = 0,
    device: str = "cpu",
    one_point: bool = False,
) -> torch.Tensor:
    """Real points [rows, terms, dim], float64, for weights of variance 1.

    With `one_point` all points but the first of each row are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1 << trellis.window_bits, trellis.terms, trellis.dim)
    table = torch.randn(shape, generator=generator, dtype=torch.float64) / trellis.terms**0.5
    if one_point:
        table[:, 0] *= trellis.terms**0.5
        table[:, 1:] = 0
    for samples, turns in phases:
        for _ in range(turns):
            x = gaussian(samples, generator).to(device)
            window = windows(search(x, table, trellis), trellis)
            improve(x, window, table, trellis, 1 if one_point else None)
    return table


def round_points(table: torch.Tensor, largest: int = LARGEST) -> tuple[torch.Tensor, float]:
    """The points as integers of which no sum of two is above `largest`, and their unit."""
    reach = [float(table[:, term].abs().max()) for term in (0, 1)]
    unit = sum(reach) / largest
    whole = (table / unit).round()
    if float(whole[:, 0].abs().max() + whole[:, 1].abs().max()) > largest:  # both rounded up
        unit = sum(reach) / (largest - 1)
        whole = (table / unit).round()
    return whole, unit


def led(
    table: torch.Tensor,
    unit: float,
    phases: Phases,
    device: str,
    tied: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    turn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Tied points in units of `unit`, led from `table` by what training would change of them.

    `tied` says which are next to real points, by weights of these; `turn` moves real points to fit
    samples and says which windows they were for.
    """
    generator = torch.Generator().manual_seed(1)
    leading = table / unit
    points = tied(leading, torch.ones(len(table), 2, dtype=torch.float64))
    for samples, turns in phases:
        for _ in range(turns):
            better = points * unit
            window = turn(gaussian(samples, generator).to(device), better)
            leading += LEAD * (better / unit - points)
            count = torch.bincount(window.flatten(), minlength=len(table)).cpu().double()
            points = tied(leading, count[:, None].expand(-1, 2) + 1e-3)
    return points


def tie(
    table: torch.Tensor,
    trellis: Trellis,
    units: tuple[float, ...] = UNITS,
    phases: Phases = TYING,
    device: str = "cpu",
) -> tuple[torch.Tensor, float]:
    """Tied points that fit as `table` does, and their unit: those of least error."""

    def turn(x: torch.Tensor, better: torch.Tensor) -> torch.Tensor:
        window = windows(search(x, better, trellis), trellis)
        improve(x, window, better, trellis)
        return window

    results = []
    for unit in units:
        points = led(table, unit, phases, device, tied_points, turn)
        e = error(points * unit, trellis, 1 << 21, seed=8, device=device)
        results.append((e, unit, points))
    _, unit, points = min(results, key=lambda result: result[0])
    return points, unit


def rounded(
    table: torch.Tensor, trellis: Trellis, device: str = "cpu"
) -> tuple[torch.Tensor, float]:
    """The points as the library has them: integers, and their unit."""
    return tie(table, trellis, device=device) if trellis.dim == 4 else round_points(table)


def error(
    table: torch.Tensor,
    trellis: Trellis,
    weights: int = 1 << 18,
    block: int = BLOCK,
    seed: int = 7,
    device: str = "cpu",
) -> float:
    """Mean square error on a unit Gaussian source, for a table in units of its deviation."""
    count = weights // block * block
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)).view(-1, block).to(device)
    window = windows(search(x, table, trellis, block), trellis)
    back = decode(window, table.double().to(device), trellis).flatten(1)
    return float((x - back).square().sum() / x.square().sum())


def made(trellis: Trellis, quick: bool, device: str) -> tuple[float, torch.Tensor, float]:
    """The error of real points, the library's points and their unit."""
    if trellis.spread:
        import overlap_spread as spread  # it is made of this module

        phases = (spread.QUICK, spread.QUICK_TYING) if quick else (spread.PHASES, spread.TYING)
        table, step = spread.train(trellis, phases[0], device=device)
        real = spread.error(table, trellis, step, 1 << 20, device=device)
        return real, *spread.tie(table, trellis, phases=phases[1], device=device)
    phases = QUICK if quick else LONG_PHASES if trellis.bits > 3 else PHASES
    table = train(trellis, phases, device=device)
    return error(table, trellis, 1 << 20, device=device), *rounded(table, trellis, device)


def measured(points: torch.Tensor, unit: float, trellis: Trellis, device: str) -> float:
    """The error of the library's points."""
    if trellis.spread:
        import overlap_spread as spread

        step = spread.LIBRARY.spread * unit
        return spread.error(points * unit, trellis, step, 1 << 20, device=device)
    return error(points * unit, trellis, 1 << 20, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu", help="of the search, such as cuda")
    parser.add_argument("--quick", action="store_true", help="fewer turns, 1 to 5 % more error")
    parser.add_argument("--only", type=float, choices=sorted(FAMILY), help="rate to do anew")
    parser.add_argument("--check", type=Path, help="measure this file")
    arguments = parser.parse_args()
    if arguments.check:
        print("| bits | MSE | MSE / 4^-bits |\n|---|---|---|")
        with np.load(arguments.check) as file:
            for bits, trellis in FAMILY.items():
                points = torch.from_numpy(file[f"{bits:g}"]).double()
                unit = float(file[f"{bits:g} unit"])
                e = measured(points, unit, trellis, arguments.device)
                print(f"| {bits:g} | {e:.5f} | {e * 4**bits:.4f} |", flush=True)
        return
    tables = {}
    if arguments.only:
        with np.load(arguments.out) as file:
            tables = dict(file)
    for bits in [arguments.only] if arguments.only else FAMILY:
        begin = time.perf_counter()
        trellis = FAMILY[bits]
        real, points, unit = made(trellis, arguments.quick, arguments.device)
        tables[f"{bits:g}"] = points.to(torch.int8).numpy()
        tables[f"{bits:g} unit"] = np.float32(unit)
        e = measured(points, unit, trellis, arguments.device)
        seconds = time.perf_counter() - begin
        print(
            f"{bits:g} bits: unit {unit:.5f}, {e * 4**bits:.4f} * 4^-R "
            f"(real points {real * 4**bits:.4f}), {seconds:.0f} s",
            flush=True,
        )
    np.savez_compressed(arguments.out, **tables)


if __name__ == "__main__":
    main()
