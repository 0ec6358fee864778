"""Which overlapping-pyramid code? Errors and costs of candidates on a unit Gaussian source.

    python benchmarks/overlap_design.py --device cuda      # minutes on one H200
    python benchmarks/overlap_design.py [--part shapes terms points rings scales] [--device DEVICE]
                                        [--quick] [--json FILE]

The code (csrc/core/overlap.h): symbols of s bits, one for D weights; a window of v bits that ends
with a symbol names a row of two points; group i is the first point of its own row plus the second
of the row `lag` groups before. Errors are given as multiples of 4^-R, R = s / D without any scale.

    shapes   D, s, v and lag, trained for real points in fewer turns than the library's tables,
             rings of 128 weights; and one point a row instead of two
    terms    three points a row, of which one goes to the group two lags on, D = 4: so many states
             that a beam of paths is searched, trained with a narrow one; two points beside it
    points   trained or not, integers of several sizes or real ones, pyramids or free points; the
             library's tables
    rings    the library's tables, tail-biting around 32 to 512 weights, and in sequences of 1,024
             weights that begin with the bits of a state and have no other cost
    spreads  groups of four with a further bit for each weight, which is above or below the sum of
             its points by as much as another: real points, the same tied in several ways
             (overlap_spread.py), the library's
    scales   the library's tables with one scale a row, 128 columns, or 16 x 16 tile: bits counted

Points, rings and scales are those of the codes without a spread.

Costs are counted, not measured. Decoding, in instructions a weight: an address (one byte
permutation where windows are whole bytes at byte boundaries; a shift, for several windows at once,
where they are whole bytes elsewhere; else a funnel shift and an and-or, of which a window in four
needs no shift where symbols are bytes), a load of the row from shared memory, and what follows:

    D = 1    a shift-and-add a weight and a quarter more
    D = 2    two points are a word: a permutation and an addition for four weights, and another
             permutation for a third point
    D = 4    a point is a word, and the second is a multiple of it: a multiplication and addition;
             a third point takes a load and an addition; with a spread a mask for the second point,
             and another with a multiplication and addition

Shared memory: a copy of the table for each of 32 lanes, a byte a weight and point, of tied points
of four weights only the first. Encoding: transitions of Viterbi's algorithm a weight; one is an
addition and a minimum.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import overlap_spread
import torch
from overlap_spread import LIBRARY, Tie
from overlap_tables import (
    BLOCK,
    FAMILY,
    OUT,
    PHASES,
    TYING,
    Phases,
    Trellis,
    decode,
    error,
    round_points,
    search,
    tie,
    train,
    windows,
)

# Paths kept in training with beams, and in tests.
BEAM_TRAIN, BEAMS = 64, (64, 256, 1024)
SHAPES = [
    *(Trellis(2, s, v, 1) for s in (4, 5, 6, 7, 8) for v in (8, 9, 10)),
    *(Trellis(2, 4, v, 2) for v in (8, 9)),
    *(Trellis(2, 5, v, 2) for v in (6, 7, 8)),
    *(Trellis(1, s, 8, lag) for s in (2, 3, 4) for lag in (1, 2)),
    *(Trellis(4, 8, v, 1) for v in (8, 9, 10)),
]
TERMS = [Trellis(4, 8, 8, 1, terms) for terms in (2, 3)]
ONE_POINT = [Trellis(2, 4, v, 1) for v in (8, 10, 12)]
SPREADS = [Trellis(4, s, s, 1, spread=True) for s in (6, 7, 8)]
TIES = [
    Tie(20, 16, 8, 6),
    Tie(20, 16, 5, 8),
    Tie(24, 16, 5, 8),
    Tie(20, 8, 11, 17),
    Tie(28, 8, 10, 16),
    LIBRARY,
]
PLAIN = {bits: trellis for bits, trellis in FAMILY.items() if not trellis.spread}


@dataclass(frozen=True)
class Effort:
    """Phases of training and samples of a test, also of those with beams, and where to search."""

    phases: Phases
    tying: Phases
    test: int
    beam_phases: Phases
    beam_test: int
    device: str

    def train(self, trellis: Trellis, one_point: bool = False) -> torch.Tensor:
        phases = self.beam_phases if trellis.beam else self.phases
        return train(trellis, phases, device=self.device, one_point=one_point)

    def ratio(self, table: torch.Tensor, trellis: Trellis, block: int = BLOCK) -> float:
        weights = self.beam_test if trellis.beam else self.test
        return error(table, trellis, weights, block, device=self.device) * 4**trellis.bits


def effort(quick: bool, device: str) -> Effort:
    if quick:
        return Effort(((1 << 12, 2),), ((1 << 12, 1),), 1 << 13, ((1 << 12, 1),), 1 << 12, device)
    # Half the turns of the library's tables, and none of the largest.
    phases = tuple((samples, turns // 2) for samples, turns in PHASES if samples <= 1 << 18)
    return Effort(phases, TYING, 1 << 20, ((1 << 14, 15), (1 << 16, 6)), 1 << 16, device)


def decode_instructions(trellis: Trellis, points: int | None = None) -> float:
    """A weight: an estimate, see the top."""
    dim, points = trellis.dim, points or trellis.terms
    if trellis.step_bits == 8:
        address = 1.0 if trellis.window_bits == 8 else 1.75
    elif trellis.window_bits == 8 and 8 % trellis.step_bits == 0:
        address = 1 + (1 - trellis.step_bits / 8) / 4 * 2
    else:
        address = 2.0
    loads = 1 + (points > 2)
    sums = {1: 1.25, 2: 0.5 * points, 4: 1.0 * (points - 1) + 3 * trellis.spread}[dim]
    return (address + loads + sums) / dim


def table_kib(trellis: Trellis, points: int | None = None) -> float:
    """Of 32 copies."""
    held = (points or trellis.terms) - (trellis.dim == 4)  # tied
    return 32 * trellis.dim * max(1, held) * (1 << trellis.window_bits) / 1024


def pyramid_points(trellis: Trellis, seed: int = 0) -> torch.Tensor:
    """The integer points of least L1 norm, in two random orders: untrained, step 1."""
    rows = 1 << trellis.window_bits
    largest = next(k for k in range(1, 200) if len(list(shells(trellis.dim, k))) >= rows)
    points = sorted(shells(trellis.dim, largest), key=lambda p: (sum(map(abs, p)), p))[:rows]
    generator = torch.Generator().manual_seed(seed)
    both = [
        torch.tensor(points, dtype=torch.float64)[torch.randperm(rows, generator=generator)]
        for _ in range(2)
    ]
    return torch.stack(both, 1)


def shells(dim: int, largest: int):
    """Integer vectors of L1 norm up to `largest`."""
    span = range(-largest, largest + 1)
    return (p for p in itertools.product(span, repeat=dim) if sum(map(abs, p)) <= largest)


def best_step(table: torch.Tensor, trellis: Trellis, effort: Effort) -> torch.Tensor:
    """`table` in the unit with which it has the least error."""
    spread = float((table[:, 0].square().mean() + table[:, 1].square().mean()).sqrt())
    steps = [f / spread for f in (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)]
    weights = effort.test // 64
    return table * min(
        steps, key=lambda step: error(table * step, trellis, weights, device=effort.device)
    )


def library_tables() -> dict[float, torch.Tensor]:
    """The library's points by rate, for weights of variance 1."""
    with np.load(OUT) as file:
        return {
            bits: torch.from_numpy(file[f"{bits:g}"]).double() * float(file[f"{bits:g} unit"])
            for bits in PLAIN
        }


class Report:
    """The rows of all parts, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def part(self, title: str, *columns: str) -> None:
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, part: str, trellis: Trellis, **values: object) -> None:
        self.rows.append({"part": part, **vars(trellis), **values})
        texts = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values.values()]
        t = trellis
        print(f"| {t.dim} | {t.step_bits} | {t.window_bits} | {t.lag} | {t.bits:g} | "
              f"{' | '.join(texts)} |", flush=True)  # fmt: skip


SHAPE_COLUMNS = ("D", "s", "v", "lag", "b/w")
COSTS = ("decode, instr/w", "table x 32, KiB", "transitions/w")


def costs(trellis: Trellis, points: int, transitions: int) -> dict[str, object]:
    """The columns COSTS."""
    return {
        "instructions": decode_instructions(trellis, points),
        "kib": table_kib(trellis, points),
        "transitions": transitions // trellis.dim,
    }


def shapes(report: Report, effort: Effort) -> None:
    report.part("Shapes", *SHAPE_COLUMNS, "points", "x 4^-R", *COSTS)
    for trellis, single in [(t, False) for t in SHAPES] + [(t, True) for t in ONE_POINT]:
        ratio = effort.ratio(effort.train(trellis, single), trellis)
        points = 1 if single else 2
        word_bits = trellis.window_bits if single else trellis.word_bits
        report.add("shapes", trellis, points=points, ratio=ratio,
                   **costs(trellis, points, 1 << word_bits))  # fmt: skip


def terms(report: Report, effort: Effort) -> None:
    report.part("Terms", *SHAPE_COLUMNS, "terms", "paths kept", "x 4^-R", *COSTS)
    for trellis in TERMS:
        table = effort.train(replace(trellis, beam=BEAM_TRAIN))
        states = 1 << (trellis.word_bits - trellis.step_bits)
        for beam in sorted({min(beam, states) for beam in BEAMS}):
            ratio = effort.ratio(table, replace(trellis, beam=beam))
            report.add("terms", trellis, points=trellis.terms, paths=beam, ratio=ratio,
                       **costs(trellis, trellis.terms, beam << trellis.step_bits))  # fmt: skip


def points(report: Report, effort: Effort) -> None:
    report.part("Points", *SHAPE_COLUMNS, "points", "x 4^-R")
    library = library_tables()
    for bits, trellis in PLAIN.items():
        shape = (1 << trellis.window_bits, 2, trellis.dim)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        pyramids = pyramid_points(trellis)
        trained = effort.train(trellis)
        candidates = {
            "Gaussian, untrained": best_step(normal, trellis, effort),
            "pyramids in random order, untrained": best_step(pyramids, trellis, effort),
            "trained, real": trained,
        }
        for largest in (127, 63, 31, 15):
            whole, unit = round_points(trained, largest)
            candidates[f"trained, sums up to {largest}"] = whole * unit
        if trellis.dim == 4:
            whole, unit = tie(trained, trellis, phases=effort.tying, device=effort.device)
            candidates[f"trained, tied, in units of {unit}"] = whole * unit
        candidates["the library's, trained for longer"] = library[bits]
        for name, table in candidates.items():
            report.add("points", trellis, points=name, ratio=effort.ratio(table, trellis))


def rings(report: Report, effort: Effort) -> None:
    report.part("Rings", *SHAPE_COLUMNS, "ring", "bits a weight for a beginning", "x 4^-R with it")
    library = library_tables()
    for bits, trellis in PLAIN.items():
        for block in (32, 64, 128, 256, 512):
            ratio = effort.ratio(library[bits], trellis, block)
            report.add("rings", trellis, ring=block, extra=0.0, ratio=ratio)
        length = 1024
        x = torch.randn(effort.test // length, length, generator=torch.Generator().manual_seed(7))
        x = x.to(effort.device)
        table = library[bits].float().to(effort.device)
        cost = torch.ops.pvq.overlap_search(x, table, trellis.step_bits, trellis.lag)[2]
        e = float(cost.double().sum() / x.double().square().sum())
        extra = (trellis.word_bits - trellis.step_bits) / length
        report.add("rings", trellis, ring=f"none, {length} weights", extra=extra,
                   ratio=e * 4 ** (bits + extra))  # fmt: skip


def scales(report: Report, effort: Effort) -> None:
    report.part("Scales", *SHAPE_COLUMNS, "a scale for", "bits a weight for it", "x 4^-R with it")
    library = library_tables()
    cols = min(4096, effort.test // 16)
    rows = max(16, effort.test // cols // 4)
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(7)).to(effort.device)
    for bits, trellis in PLAIN.items():
        table = library[bits].to(effort.device)
        for name, height, width in (("row", 1, cols), ("128 columns", 1, 128), ("tile", 16, 16)):
            tiles = w.view(rows // height, height, cols // width, width)
            scale = tiles.square().mean((1, 3), keepdim=True).sqrt()
            for _ in range(3):  # points, then the scale that suits them
                x = (tiles / scale).reshape(-1, BLOCK)
                y = decode(windows(search(x, table, trellis), trellis), table, trellis)
                y = y.reshape(tiles.shape).float()
                error_ = float((tiles - scale * y).square().sum() / w.square().sum())
                scale = (tiles * y).sum((1, 3), keepdim=True) / y.square().sum((1, 3), keepdim=True)
            extra = 16 / (height * width)
            report.add(
                "scales", trellis, scale=name, extra=extra, ratio=error_ * 4 ** (bits + extra)
            )


def spreads(report: Report, effort: Effort) -> None:
    report.part("Spreads", *SHAPE_COLUMNS, "points", "x 4^-R", *COSTS)
    for trellis in SPREADS:
        table, step = overlap_spread.train(trellis, effort.phases, device=effort.device)
        candidates = {"trained, real": (table, step)}
        if trellis == FAMILY.get(trellis.bits):
            for form in TIES:
                # The first turns say which is best.
                settings = {"phases": effort.tying[:2], "device": effort.device, "form": form}
                whole, unit = overlap_spread.tie(table, trellis, (0.68, 0.71), **settings)
                name = f"tied, {form.low} h + l and {form.factor} l, spread {form.spread}"
                candidates[name] = whole * unit, form.spread * unit
            with np.load(OUT) as file:
                whole = torch.from_numpy(file[f"{trellis.bits:g}"]).double()
                unit = float(file[f"{trellis.bits:g} unit"])
            candidates["the library's"] = whole * unit, LIBRARY.spread * unit
        for name, (points_, step_) in candidates.items():
            e = overlap_spread.error(points_, trellis, step_, effort.test, device=effort.device)
            report.add("spreads", trellis, points=name, ratio=e * 4**trellis.bits,
                       **costs(trellis, 2, 1 << trellis.word_bits))  # fmt: skip


PARTS = {
    "shapes": shapes, "terms": terms, "points": points, "rings": rings, "spreads": spreads,
    "scales": scales,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu", help="of the searches, such as cuda")
    parser.add_argument("--quick", action="store_true", help="so few samples as to mean little")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    report = Report()
    for name in PARTS:
        if name in arguments.part:
            PARTS[name](report, effort(arguments.quick, arguments.device))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": report.rows}, indent=1))


if __name__ == "__main__":
    main()
