"""Which points should a byte name? Errors of candidate tables for the pyramid-table codes.

    python benchmarks/table_design.py [--bits 3] [--json FILE]
    python benchmarks/table_design.py --search 3 [--evaluations 40000] [--seed 1]

Without --search it prints, for each width, the mean square error of every candidate on a unit
Gaussian source at its best scale, and that error times 4^R for the rate R of the width:

    pyramids             the points of least L1 norm on the integer or the half-odd grid, the last
                         shell cut where the table is full
    companded magnitude  the same points, the value of each magnitude trained
    companded orbit      the pyramids' orbits that fit whole, each coordinate of each leader trained
    k-means              256 free points, trained; rounded to int8
    the library's table  orbits chosen and trained by --search, rounded to int8

An orbit is what all permutations (and sign changes, at 2 and 4 bits) make of one vector with
descending coordinates >= 0, its leader: a permutation code (Slepian, Proc. IEEE 53, 1965, p. 228).
A pyramid is a union of orbits, so a union of orbits with trained leaders is a pyramid code with
companded values. --search finds the leaders of csrc/core/table_codes.h: it anneals over which kinds
of orbit fill the 256 places, trains the leaders of each proposal, rounds the best to integers and
prints them as they stand there.

The source is a Sobol sequence mapped to normal variates, so that a run gives the same figures again
and errors are good to about one in a thousand.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

POINTS = 256


@dataclass(frozen=True)
class Width:
    """What a byte stands for at one width. Without `signed`, signs are stored apart."""

    bits: int
    dim: int
    signed: bool

    @property
    def largest(self) -> int:
        """Largest integer magnitude; at 3 bits the stored a = 0 ... 127 means 2 a + 1."""
        return 127 if self.signed else 255

    @property
    def step(self) -> int:
        return 1 if self.signed else 2

    def round(self, values: np.ndarray) -> np.ndarray:
        """To the nearest magnitude that int8 can hold, the sign kept."""
        offset = self.step - 1
        whole = np.clip(np.rint((np.abs(values) - offset) / self.step), 0, 127)
        return np.copysign(whole * self.step + offset, values)


WIDTHS = {2: Width(2, 4, True), 3: Width(3, 4, False), 4: Width(4, 2, True)}


def gaussian(width: Width, count: int, seed: int) -> np.ndarray:
    """Normal vectors [count, dim], as magnitudes where signs are stored apart; float32."""
    uniform = torch.quasirandom.SobolEngine(width.dim, scramble=True, seed=seed).draw(count)
    x = torch.special.ndtri(uniform.double().clamp(1e-12, 1 - 1e-12)).numpy().astype(np.float32)
    return x if width.signed else np.abs(x)


def folded(x: np.ndarray) -> np.ndarray:
    """Magnitudes in descending order: a point of an orbit is nearest where its leader is."""
    return np.ascontiguousarray(-np.sort(-np.abs(x), axis=1))


def nearest(x: np.ndarray, points: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Number of the point of scale * points nearest to each x."""
    points = points.astype(np.float32)
    offset = np.float32(scale / 2) * (points**2).sum(1)
    chunks = [
        (part @ points.T - offset).argmax(1) for part in np.array_split(x, 1 + len(x) // 8192)
    ]
    return np.concatenate(chunks)


def fit(x: np.ndarray, points: np.ndarray, scale: float) -> tuple[float, float]:
    """Mean square error at the scale that suits the points nearest at `scale`, and that scale."""
    chosen = points[nearest(x, points, scale)].astype(np.float64)
    product, square = (chosen * x).sum(), (chosen**2).sum()
    energy = (x.astype(np.float64) ** 2).sum()
    return (energy - product**2 / square) / x.size, product / square


def best_error(x: np.ndarray, points: np.ndarray, scale: float | None = None) -> float:
    """Mean square error of scale * points at the best scale near `scale`, or anywhere."""
    coarse = x[:16384]
    if scale is None:
        norm = np.sqrt((coarse**2).mean() / (points.astype(np.float64) ** 2).mean())
        scale = min(fit(coarse, points, norm * f) for f in np.geomspace(0.2, 3, 40))[1]
    for step in (1.06, 1.03, 1.015, 1.007):
        scale = min(fit(coarse, points, scale * f) for f in (1 / step, 1, step))[1]
    return min(fit(x, points, scale * f)[0] for f in (0.996, 1, 1.004))


# --- structured candidates ------------------------------------------------------------------------


def pyramid_points(width: Width, half_odd: bool) -> np.ndarray:
    """Grid points by L1 norm, then by L2 norm; twice their value on the half-odd grid."""
    magnitudes = range(1, 64, 2) if half_odd else range(32)
    values = sorted({s * m for m in magnitudes for s in ((1, -1) if width.signed else (1,))})
    limit = 14 if width.dim == 4 else 60
    grid = [
        p
        for p in itertools.product([v for v in values if abs(v) <= limit], repeat=width.dim)
        if sum(map(abs, p)) <= limit
    ]
    grid.sort(key=lambda p: (sum(map(abs, p)), sum(v * v for v in p), p))
    return np.array(grid[:POINTS], dtype=np.float64)


def train(x: np.ndarray, points: np.ndarray, labels: np.ndarray, rounds: int) -> np.ndarray:
    """Lloyd's algorithm for points whose coordinates of equal label share one magnitude.

    labels [points, dim]: the number of a magnitude, -1 for a coordinate that stays zero.
    """
    signs = np.where(points < 0, -1.0, 1.0)
    shared = labels.max() + 1
    for _ in range(rounds):
        chosen = nearest(x, points)
        count = np.bincount(chosen, minlength=len(points))
        sums = np.stack([np.bincount(chosen, c, len(points)) for c in x.T], axis=1) * signs
        free = labels >= 0
        total = np.bincount(labels[free], sums[free], shared)
        weight = np.bincount(labels[free], np.repeat(count[:, None], x.shape[1], 1)[free], shared)
        value = np.divide(total, weight, out=np.zeros(shared), where=weight > 0)
        points = np.where(free, value[labels], 0.0) * signs
    return points


def arrangements(width: Width, leader: tuple[float, ...]) -> list[tuple[float, ...]]:
    """The orbit of a leader."""
    permuted = sorted(set(itertools.permutations(leader)), reverse=True)
    if not width.signed:
        return permuted
    return [p for q in permuted for p in itertools.product(*[(v, -v) if v else (v,) for v in q])]


def pyramid_orbits(width: Width, half_odd: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pyramids' orbits that fit whole, by L1 and L2 norm; points and labels for `train`."""
    grid = pyramid_points(width, half_odd)
    leaders = list(dict.fromkeys(tuple(sorted(map(abs, p), reverse=True)) for p in grid.tolist()))
    points: list[tuple[float, ...]] = []
    labels: list[list[int]] = []
    for number, leader in enumerate(leaders):
        orbit = arrangements(width, leader)
        if len(points) + len(orbit) <= POINTS:
            points += orbit
            places = [leader.index(v) for v in leader]
            label = {
                v: -1 if v == 0 else number * width.dim + p
                for v, p in zip(leader, places, strict=True)
            }
            labels += [[label[abs(v)] for v in p] for p in orbit]
    return np.array(points), np.array(labels)


# --- the search for leaders -----------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of orbit: which coordinates of its leader are equal, and whether the last are zero."""

    average: np.ndarray  # projects a vector onto leaders of this kind
    size: int


def kinds(width: Width) -> list[Kind]:
    result = []
    for cuts in itertools.product((False, True), repeat=width.dim - 1):
        run = np.cumsum((False, *cuts))
        for zero in (False, True) if width.signed else (False,):
            average = (run[:, None] == run).astype(np.float32)
            average /= average.sum(1, keepdims=True)
            if zero:
                average[run == run[-1]] = 0
            example = tuple(float(width.dim - r) if average[i].any() else 0.0
                            for i, r in enumerate(run))  # fmt: skip
            result.append(Kind(average, len(arrangements(width, example))))
    return result


class Annealing:
    """Unions of orbits that fill the table, each with its leaders trained."""

    # What one more leader must gain: each costs the encoder an inner product.
    LEADER_COST = 2e-4

    def __init__(self, width: Width, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.kinds = kinds(width)
        self.sizes = np.array([kind.size for kind in self.kinds])
        self.averages = np.stack([kind.average for kind in self.kinds])
        self.x = folded(gaussian(width, 8192, 1))

    def lloyd(
        self, x: np.ndarray, kind: np.ndarray, leader: np.ndarray, rounds: int
    ) -> tuple[np.ndarray, float]:
        for _ in range(rounds):
            chosen = nearest(x, leader)
            count = np.bincount(chosen, minlength=len(leader))
            sums = np.stack([np.bincount(chosen, c, len(leader)) for c in x.T], axis=1)
            means = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], leader)
            leader = np.einsum("oij,oj->oi", self.averages[kind], means).astype(np.float32)
        residual = x - leader[nearest(x, leader)]
        return leader, float((residual.astype(np.float64) ** 2).mean())

    def filled(self, kind: np.ndarray, leader: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Random orbits, at random samples, in the places that are left."""
        kind, leader = list(kind), list(leader)
        weight = self.sizes.astype(float) ** self.random.choice([0.0, 0.5, 1.0, 1.5, 2.5])
        left = POINTS - int(self.sizes[kind].sum())
        while True:
            fits = weight * (self.sizes <= left)
            if any(self.sizes[k] == 1 and not self.averages[k].any() for k in kind):
                fits[[not a.any() for a in self.averages]] = 0  # one origin is enough
            if not fits.any():
                return np.array(kind), np.array(leader, dtype=np.float32)
            kind.append(self.random.choice(len(fits), p=fits / fits.sum()))
            leader.append(self.averages[kind[-1]] @ self.x[self.random.integers(len(self.x))])
            left -= self.sizes[kind[-1]]

    def cost(self, error: float, leader: np.ndarray) -> float:
        return error * (1 + self.LEADER_COST * len(leader))

    def run(self, evaluations: int) -> tuple[np.ndarray, np.ndarray]:
        kind, leader = self.filled(np.array([], dtype=int), np.array([]))
        leader, error = self.lloyd(self.x, kind, leader, 30)
        cost = self.cost(error, leader)
        best = (cost, kind, leader)
        for step in range(evaluations):
            temperature = 2e-3 * cost * (1 - step / evaluations) ** 2
            kept = np.ones(len(kind), dtype=bool)
            kept[self.random.integers(len(kind), size=self.random.integers(1, 4))] = False
            new_kind, new_leader = self.filled(kind[kept], leader[kept])
            new_leader, error = self.lloyd(self.x, new_kind, new_leader, 8)
            new_cost = self.cost(error, new_leader)
            if new_cost < cost or self.random.random() < np.exp((cost - new_cost) / temperature):
                kind, leader, cost = new_kind, new_leader, new_cost
                if cost < best[0]:
                    best = (cost, kind, leader)
        return best[1], best[2]


def rounded_leaders(width: Width, leader: np.ndarray) -> np.ndarray:
    """Integer leaders: the best unit, then single values moved while that lowers the error."""
    x = folded(gaussian(width, 1 << 16, 5))
    top = leader.max()

    def error(integers: np.ndarray, scale: float) -> float:
        return min(fit(x, integers, scale * f)[0] for f in (0.998, 1, 1.002))

    units = np.linspace(0.8, 1.0, 81) * width.largest / top
    unit = min(units, key=lambda u: error(width.round(leader * u), 1 / u))
    integers = width.round(leader * unit)
    lowest, improved = error(integers, 1 / unit), True
    while improved:
        improved = False
        for row in range(len(integers)):
            for value in sorted(set(integers[row]) - {0.0}):
                for step in (-width.step, width.step):
                    if not width.step <= value + step + width.step - 1 <= width.largest:
                        continue
                    trial = integers.copy()
                    trial[row][integers[row] == value] += step
                    found = error(trial, 1 / unit)
                    if found < lowest * (1 - 1e-6) and len(set(trial[row])) == len(
                        set(integers[row])
                    ):
                        integers, lowest, improved = trial, found, True
                        break
    return integers.astype(int)


def search(width: Width, evaluations: int, seed: int) -> None:
    annealing = Annealing(width, seed)
    kind, leader = annealing.run(evaluations)
    leader, error = annealing.lloyd(folded(gaussian(width, 1 << 17, 2)), kind, leader, 80)
    integers = rounded_leaders(width, leader)
    print(f"{width.bits} bits: {len(leader)} leaders, {annealing.sizes[kind].sum()} points, "
          f"error {error:.6f} before rounding, "
          f"{best_error(folded(gaussian(width, 1 << 18, 3)), integers):.6f} after")  # fmt: skip
    for row in sorted(integers.tolist(), key=lambda r: (sum(v * v for v in r), r)):
        print("    {" + ", ".join(str(v // 2 if width.step == 2 else v) for v in row) + "},")


# --- the table of candidates ----------------------------------------------------------------------


def k_means(width: Width) -> np.ndarray:
    best = None
    for seed in range(2):
        x = gaussian(width, 1 << 15, 10 + seed)
        points = x[np.random.default_rng(seed).permutation(len(x))[:POINTS]].astype(np.float64)
        points = train(x, points, np.arange(points.size).reshape(points.shape), 60)
        x = gaussian(width, 1 << 18, 20 + seed)
        points = train(x, points, np.arange(points.size).reshape(points.shape), 40)
        error = best_error(x, points, 1.0)
        if best is None or error < best[0]:
            best = (error, points)
    return best[1]


def candidates(width: Width) -> dict[str, np.ndarray]:
    from pvq import _core

    x = gaussian(width, 1 << 17, 4)
    result: dict[str, np.ndarray] = {}
    for name, half_odd in (("integer", False), ("half-odd", True)):
        points = pyramid_points(width, half_odd)
        result[f"pyramids, {name} grid"] = points
        norm = min(
            (fit(x[:16384], points, s) for s in np.geomspace(0.05, 2, 60)), key=lambda f: f[0]
        )[1]
        _, labels = np.unique(np.abs(points), return_inverse=True)
        labels = labels.reshape(points.shape) - (0 if half_odd else 1)
        result[f"{name}, companded magnitude"] = train(x, points * norm, labels, 40)
        points, labels = pyramid_orbits(width, half_odd)
        result[f"{name}, companded orbit"] = train(x, points * norm, labels, 60)
    result["k-means"] = k_means(width)
    scales = np.linspace(0.8, 1.0, 41) * width.largest / np.abs(result["k-means"]).max()
    result["k-means, int8"] = min(
        (width.round(result["k-means"] * s) for s in scales), key=lambda p: best_error(x, p)
    )
    table = _core.code_table(width.bits).astype(np.float64)
    result["the library's table"] = table if width.signed else 2 * table + 1
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bits", type=int, choices=WIDTHS, help="one width only")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--search", type=int, choices=WIDTHS, metavar="BITS", help="find leaders")
    parser.add_argument("--evaluations", type=int, default=40_000, help="of the search")
    parser.add_argument("--seed", type=int, default=1, help="of the search")
    arguments = parser.parse_args()
    if arguments.search:
        search(WIDTHS[arguments.search], arguments.evaluations, arguments.seed)
        return
    rows = []
    print("| bits | candidate | points | MSE | MSE x 4^R | above the best |")
    print("|---|---|---|---|---|---|")
    for bits in [arguments.bits] if arguments.bits else WIDTHS:
        width = WIDTHS[bits]
        x = gaussian(width, 1 << 19, 3)
        errors = {name: (best_error(x, p), len(p)) for name, p in candidates(width).items()}
        best = min(error for error, _ in errors.values())
        for name, (error, count) in sorted(errors.items(), key=lambda item: -item[1][0]):
            rows.append({"bits": bits, "candidate": name, "points": count, "mse": error})
            print(f"| {bits} | {name} | {count} | {error:.6f} | {error * 4**bits:.4f} "
                  f"| {100 * (error / best - 1):.2f} % |", flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
