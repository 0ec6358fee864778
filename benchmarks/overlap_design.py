"""Which overlapping-pyramid code? Errors and costs of candidates on a unit Gaussian source.

    python benchmarks/overlap_design.py [--part shapes terms points rings scales] [--json FILE]

The code (csrc/core/overlap.h): symbols of s bits, one for D weights; a window of v bits that ends
with a symbol names a row of two points; group i is the first point of its own row plus the second
of the row `lag` groups before. Errors are given as multiples of 4^-R, R = s / D without any scale.

    shapes   D, s, v and lag, trained for real points (fewer samples than the library's tables:
             about 1 % behind them), rings of 128 weights; and one point a row instead of two
    terms    three points a row, of which one goes to the group two lags on, D = 4: so many states
             that a beam of paths is searched, trained with a narrow one; two points beside it
    points   trained or not, integers of several sizes or real ones, pyramids or free points
    rings    tail-biting around 32 to 512 weights, and sequences of 1,024 weights that begin with
             the bits of a state and have no other cost
    scales   one scale a row, 128 columns, or 16 x 16 tile: bits counted

Costs are counted, not measured. Decoding, in instructions a weight: an address (one byte
permutation where windows are whole bytes at byte boundaries; a shift, for several windows at once,
where they are whole bytes elsewhere; else a funnel shift and an and-or), a load of the row from
shared memory, and for D = 2 two permutations and an addition for four weights, for D = 4 one
addition, for D = 1 a shift-and-add a weight. Shared memory: a copy of the table for each of 32
lanes. Encoding: transitions of Viterbi's algorithm a weight; one is an addition and a minimum.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch
from overlap_tables import (
    BLOCK,
    FAMILY,
    Trellis,
    decode,
    error,
    gaussian,
    improve,
    round_points,
    search,
    windows,
)

Phases = tuple[tuple[int, int], ...]
QUICK = ((1 << 14, 15), (1 << 16, 20))
TEST = 1 << 17
# With beams: samples of a turn and turns, paths kept then, weights to test with, and paths.
BEAM_QUICK, BEAM_TRAIN = ((1 << 14, 15), (1 << 16, 6)), 64
BEAM_TEST, BEAMS = 1 << 16, (64, 256, 1024)
SHAPES = [
    *(Trellis(2, s, v, 1) for s in (4, 5, 6, 7, 8) for v in (8, 9, 10)),
    *(Trellis(2, 4, v, 2) for v in (8, 9)),
    *(Trellis(2, 5, v, 2) for v in (6, 7, 8)),
    *(Trellis(1, s, 8, lag) for s in (2, 3, 4) for lag in (1, 2)),
    *(Trellis(4, 8, v, 1) for v in (8, 9)),
]
TERMS = [Trellis(4, 8, 8, 1, terms) for terms in (2, 3)]
ONE_POINT = [Trellis(2, 4, v, 1) for v in (8, 10, 12)]


def decode_instructions(trellis: Trellis) -> float:
    """An estimate, see the top."""
    if trellis.window_bits == 8 and trellis.step_bits == 8:
        address = 1.0
    elif trellis.window_bits == 8 and 8 % trellis.step_bits == 0:
        address = 1 + (1 - trellis.step_bits / 8) / 4 * 2
    else:
        address = 2.0
    combine = {1: 1.25, 2: 0.75, 4: 0.25}[trellis.dim] * (trellis.terms - 1)
    loads = trellis.terms - 1  # the first brings two points
    return (address + loads) / trellis.dim + combine


def train(
    trellis: Trellis, one_point: bool = False, seed: int = 0, phases: Phases = QUICK
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1 << trellis.window_bits, trellis.terms, trellis.dim)
    table = torch.randn(shape, generator=generator, dtype=torch.float64) / trellis.terms**0.5
    if one_point:
        table[:, 0] *= 2**0.5
        table[:, 1] = 0
    for samples, turns in phases:
        for _ in range(turns):
            x = gaussian(samples, generator)
            improve(x, windows(search(x, table, trellis), trellis), table, trellis)
            if one_point:
                table[:, 1] = 0
    return table


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


def best_step(table: torch.Tensor, trellis: Trellis) -> torch.Tensor:
    """`table` in the unit with which it has the least error."""
    spread = float((table[:, 0].square().mean() + table[:, 1].square().mean()).sqrt())
    steps = [f / spread for f in (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)]
    return table * min(steps, key=lambda step: error(table * step, trellis, 1 << 14))


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


def shapes(report: Report) -> None:
    report.part("Shapes", *SHAPE_COLUMNS, "points", "x 4^-R", "decode, instr/w",
                "table x 32, KiB", "transitions/w")  # fmt: skip
    for trellis, single in [(t, False) for t in SHAPES] + [(t, True) for t in ONE_POINT]:
        e = error(train(trellis, single), trellis, TEST)
        word_bits = trellis.window_bits if single else trellis.word_bits
        row_bytes = trellis.dim * (1 if single else 2)
        report.add("shapes", trellis, points=1 if single else 2, ratio=e * 4**trellis.bits,
                   instructions=decode_instructions(trellis),
                   kib=(32 * row_bytes << trellis.window_bits) / 1024,
                   transitions=(1 << word_bits) // trellis.dim)  # fmt: skip


def terms(report: Report) -> None:
    report.part("Terms", *SHAPE_COLUMNS, "terms", "paths kept", "x 4^-R", "decode, instr/w",
                "table x 32, KiB", "transitions/w")  # fmt: skip
    for trellis in TERMS:
        table = train(replace(trellis, beam=BEAM_TRAIN), phases=BEAM_QUICK)
        states = 1 << (trellis.word_bits - trellis.step_bits)
        for beam in sorted({min(beam, states) for beam in BEAMS}):
            e = error(table, replace(trellis, beam=beam), BEAM_TEST)
            report.add("terms", trellis, points=trellis.terms, paths=beam,
                       ratio=e * 4**trellis.bits, instructions=decode_instructions(trellis),
                       kib=(32 * trellis.dim * trellis.terms << trellis.window_bits) / 1024,
                       transitions=(beam << trellis.step_bits) // trellis.dim)  # fmt: skip


def points(report: Report, tables: dict[float, torch.Tensor]) -> None:
    report.part("Points", *SHAPE_COLUMNS, "points", "x 4^-R")
    for bits, trellis in FAMILY.items():
        shape = (1 << trellis.window_bits, 2, trellis.dim)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        candidates = {
            "Gaussian, untrained": best_step(normal, trellis),
            "pyramids in random order, untrained": best_step(pyramid_points(trellis), trellis),
            "trained, real": tables[bits],
        }
        for largest in (127, 63, 31, 15):
            whole, unit = round_points(tables[bits], largest)
            candidates[f"trained, sums up to {largest}"] = whole * unit
        for name, table in candidates.items():
            ratio = error(table, trellis, TEST) * 4**bits
            report.add("points", trellis, points=name, ratio=ratio)


def rings(report: Report, tables: dict[float, torch.Tensor]) -> None:
    report.part("Rings", *SHAPE_COLUMNS, "ring", "bits a weight for a beginning", "x 4^-R with it")
    for bits, trellis in FAMILY.items():
        for block in (32, 64, 128, 256, 512):
            ratio = error(tables[bits], trellis, TEST, block) * 4**bits
            report.add("rings", trellis, ring=block, extra=0.0, ratio=ratio)
        length = 1024
        x = torch.randn(TEST // length, length, generator=torch.Generator().manual_seed(7))
        cost = torch.ops.pvq.overlap_search(
            x, tables[bits].float(), trellis.step_bits, trellis.lag
        )[2]
        e = float(cost.sum() / x.square().sum())
        extra = (trellis.word_bits - trellis.step_bits) / length
        report.add("rings", trellis, ring=f"none, {length} weights", extra=extra,
                   ratio=e * 4 ** (bits + extra))  # fmt: skip


def scales(report: Report, tables: dict[float, torch.Tensor]) -> None:
    report.part("Scales", *SHAPE_COLUMNS, "a scale for", "bits a weight for it", "x 4^-R with it")
    rows, cols = 32, 4096
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(7))
    for bits, trellis in FAMILY.items():
        table = tables[bits]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = ("shapes", "terms", "points", "rings", "scales")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    if "shapes" in arguments.part:
        shapes(report)
    if "terms" in arguments.part:
        terms(report)
    if set(arguments.part) - {"shapes", "terms"}:
        tables = {bits: train(trellis) for bits, trellis in FAMILY.items()}
        for name, run in (("points", points), ("rings", rings), ("scales", scales)):
            if name in arguments.part:
                run(report, tables)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": report.rows}, indent=1))


if __name__ == "__main__":
    main()
