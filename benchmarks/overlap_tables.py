"""Computes the tables of python/pvq/codes/overlap_tables.npz, for weights like Gaussian ones.

    python benchmarks/overlap_tables.py [--out FILE] [--only BITS] [--check FILE]

A table of an overlapping-pyramid code (csrc/core/overlap.h) has two points in each row; group i is
the sum of the first one of its own window's row and the second one of the row `lag` groups before.
Training takes turns, as for trellis quantizers (Ayanoglu and Gray, IEEE Trans. Inf. Theory 32,
1986): Viterbi's algorithm finds the best symbols for Gaussian samples, and then every point moves
to the mean of what it should have been, given the other point of its sums (Gauss-Seidel sweeps of
the least squares problem). Fresh samples in every turn, more of them in later ones, so nothing is
fitted to noise. At the end all points are rounded to multiples of one unit, the smallest one with
which no sum of two leaves the range of int8: at that resolution rounding costs less than 0.1 %.

Everything is seeded, and the search gives the same bits on every machine. `--check` measures a
file's tables on other samples.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import pvq  # noqa: F401  registers the operators

OUT = Path(__file__).parents[1] / "python/pvq/codes/overlap_tables.npz"
BLOCK = 128  # weights of a ring
LARGEST = 127  # magnitude of a sum
# Samples of a turn, and how many turns.
PHASES = ((1 << 14, 15), (1 << 16, 25), (1 << 18, 8), (1 << 20, 3))
SWEEPS = 6


@dataclass(frozen=True)
class Trellis:
    """A code's numbers; csrc/core/overlap.h says what they mean."""

    dim: int
    step_bits: int
    window_bits: int
    lag: int
    terms: int = 2  # points in a row of the table
    beam: int = 0  # paths that the search keeps; 0: all

    @property
    def bits(self) -> float:
        return self.step_bits / self.dim

    @property
    def word_bits(self) -> int:
        return self.window_bits + (self.terms - 1) * self.lag * self.step_bits


# By bits a weight; benchmarks/overlap_design.py says why these.
FAMILY = {
    2.0: Trellis(2, 4, 8, 2),
    2.5: Trellis(2, 5, 8, 2),
    3.0: Trellis(2, 6, 9, 1),
    3.5: Trellis(2, 7, 9, 1),
    4.0: Trellis(2, 8, 9, 1),
}


def gaussian(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count // BLOCK, BLOCK, generator=generator)


def search(
    x: torch.Tensor, table: torch.Tensor, trellis: Trellis, block: int = BLOCK
) -> torch.Tensor:
    """The best symbols [rings, groups] for the weights `x`, cut into rings of `block`."""
    return torch.ops.pvq.overlap_search(
        *(x.reshape(-1, block), table.float(), trellis.step_bits, trellis.lag),
        ring=True,
        beam=trellis.beam,
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


def improve(x: torch.Tensor, window: torch.Tensor, table: torch.Tensor, trellis: Trellis) -> None:
    """Moves the points of `table` [rows, terms, dim] to fit `x`, given the windows."""
    target = x.view(*window.shape, trellis.dim).to(table.dtype)
    used = [torch.roll(window, term * trellis.lag, 1).flatten() for term in range(trellis.terms)]
    counts = [torch.bincount(w, minlength=len(table)).clamp(min=1)[:, None] for w in used]
    for _ in range(SWEEPS):
        for term in range(trellis.terms):
            error = (target - decode(window, table, trellis)).flatten(0, 1)
            table[:, term].index_add_(0, used[term], error / counts[term][used[term]])


def train(trellis: Trellis, phases: tuple[tuple[int, int], ...] = PHASES, seed: int = 0):
    """Real points [rows, 2, dim], float64, for weights of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1 << trellis.window_bits, 2, trellis.dim)
    table = torch.randn(shape, generator=generator, dtype=torch.float64) / 2**0.5
    for samples, turns in phases:
        for _ in range(turns):
            x = gaussian(samples, generator)
            improve(x, windows(search(x, table, trellis), trellis), table, trellis)
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


def error(
    table: torch.Tensor, trellis: Trellis, weights: int = 1 << 18, block: int = BLOCK, seed: int = 7
) -> float:
    """Mean square error on a unit Gaussian source, for a table in units of its deviation."""
    count = weights // block * block
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)).view(-1, block)
    window = windows(search(x, table, trellis, block), trellis)
    back = decode(window, table.double(), trellis).flatten(1)
    return float((x - back).square().sum() / x.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", type=float, choices=sorted(FAMILY), help="rate to do anew")
    parser.add_argument("--check", type=Path, help="measure this file")
    arguments = parser.parse_args()
    if arguments.check:
        print("| bits | MSE | MSE / 4^-bits |\n|---|---|---|")
        with np.load(arguments.check) as file:
            for bits, trellis in FAMILY.items():
                points = torch.from_numpy(file[f"{bits:g}"]).double()
                e = error(points * float(file[f"{bits:g} unit"]), trellis)
                print(f"| {bits:g} | {e:.5f} | {e * 4**bits:.4f} |", flush=True)
        return
    tables = {}
    if arguments.only:
        with np.load(arguments.out) as file:
            tables = dict(file)
    for bits in [arguments.only] if arguments.only else FAMILY:
        begin = time.perf_counter()
        trellis = FAMILY[bits]
        points, unit = round_points(train(trellis))
        tables[f"{bits:g}"] = points.to(torch.int8).numpy()
        tables[f"{bits:g} unit"] = np.float32(unit)
        e = error(points * unit, trellis)
        seconds = time.perf_counter() - begin
        print(f"{bits:g} bits: unit {unit:.5f}, {e * 4**bits:.4f} * 4^-R, {seconds:.0f} s")
    np.savez_compressed(arguments.out, **tables)


if __name__ == "__main__":
    main()
