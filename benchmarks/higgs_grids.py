"""Computes the grids of python/pvq/codes/higgs_grids.npz: points of least error for N(0, I_p).

    python benchmarks/higgs_grids.py [--out FILE] [--only P] [--check FILE]

A grid of n points in p dimensions minimises E min_i |x - g_i|^2 of a standard normal vector x. On
one dimension that is the Lloyd-Max quantizer, by its fixed point in exact integrals. On more, Lloyd
iterations on quasi-random samples, from points that start with the density that is optimal for
many points (that of N(0, (p + 2) / p I), Zador), over-relaxed, the best of a few starts. Everything
is seeded. `--check` measures the error of a file's grids on other samples instead.

The sizes are those whose words (python/pvq/codes/radix.py) fill a multiple of a quarter of a bit a
weight, with and without room for a 16-bit scale of 1024 weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from pvq.codes.radix import word_shape

OUT = Path(__file__).parents[1] / "python/pvq/codes/higgs_grids.npz"
MAX_POINTS = 4096
SCALE_BITS = 1 / 64  # a 16-bit scale of 1024 weights
OVER_RELAXATION = 1.7


def sizes(p: int) -> list[int]:
    """Numbers of points to compute grids of."""
    if p == 1:
        return list(range(2, 65))
    rates = {quarter / 4 for quarter in range(4, 4 * (5 if p == 2 else 4) + 1)}
    rates = {rate for rate in rates if 2 ** (p * rate) <= MAX_POINTS}
    targets = {rate - SCALE_BITS for rate in rates} | (rates if p == 2 else set())
    powers = {2**i for i in range(p, p * 5 + 1) if i % p == 0 and 2**i <= MAX_POINTS}
    return sorted({most_points(p, target) for target in targets if target > 1} | powers)


def most_points(p: int, rate: float) -> int:
    """The most points whose words take at most `rate` bits a weight."""

    def bits(n: int) -> float:
        digits, word_bits = word_shape(n)
        return word_bits / digits / p

    return max(n for n in range(2, int(2 ** (p * rate)) + 1) if bits(n) <= rate)


def lloyd_max(n: int) -> np.ndarray:
    """Grid [n, 1] of least error on a standard normal."""
    levels = ndtri((np.arange(n) + 0.5) / n) * 3**0.5
    for _ in range(200_000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / (2 * np.pi) ** 0.5
        step = -np.diff(density) / np.diff(ndtr(edges)) - levels
        levels = levels + OVER_RELAXATION * step
        if np.abs(step).max() < 1e-9:
            break
    return (levels - levels[::-1])[:, None] / 2


def gaussian(p: int, count: int, seed: int) -> np.ndarray:
    """Quasi-random standard normal vectors [count, p]; count is a power of two."""
    uniform = qmc.Sobol(p, rng=np.random.default_rng(seed)).random(count)
    return ndtri(uniform.clip(1e-12, 1 - 1e-12))


def lloyd(grid: np.ndarray, x: np.ndarray, rounds: int) -> np.ndarray:
    """Lloyd iterations of `grid` on the samples `x`."""
    for i in range(rounds):
        nearest = cKDTree(grid).query(x, workers=-1)[1]
        count = np.bincount(nearest, minlength=len(grid))
        mean = np.stack([np.bincount(nearest, c, len(grid)) for c in x.T], 1)
        mean = np.where(count[:, None] > 0, mean / np.maximum(count, 1)[:, None], grid)
        factor = OVER_RELAXATION if i < rounds - 2 else 1.0
        grid = grid + factor * (mean - grid)
    return grid


def error(grid: np.ndarray, x: np.ndarray) -> float:
    """Mean square error a weight of the samples `x`."""
    return float((cKDTree(grid).query(x, workers=-1)[0] ** 2).mean() / grid.shape[1])


def train(p: int, n: int) -> np.ndarray:
    """The grid [n, p]."""
    few = gaussian(p, 1 << max(15, (n - 1).bit_length() + 6), seed=1)
    many = gaussian(p, 1 << max(18, (n - 1).bit_length() + 8), seed=2)
    starts = 6 if n <= 512 else 1
    candidates = []
    for start in range(starts):
        first = gaussian(p, 1 << (n - 1).bit_length(), seed=100 + start)[:n]
        candidates.append(lloyd(first * ((p + 2) / p) ** 0.5, few, 60))
    best = min(candidates, key=lambda grid: error(grid, many))
    best = lloyd(best, many, 60 if n <= 512 else 24)
    return best[np.lexsort(best.T)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", type=int, choices=(1, 2, 3, 4), help="dimensions to do anew")
    parser.add_argument("--check", type=Path, help="measure this file")
    arguments = parser.parse_args()
    if arguments.check:
        print("| p | n | b/w | MSE |\n|---|---|---|---|")
        for name, grid in np.load(arguments.check).items():
            p, n = (int(part) for part in name.split("x"))
            x = np.random.default_rng(7).standard_normal((1 << 20, p))
            print(f"| {p} | {n} | {np.log2(n) / p:.4f} | {error(grid.astype(float), x):.6f} |")
        return
    grids = dict(np.load(arguments.out)) if arguments.only else {}
    for p in [arguments.only] if arguments.only else (1, 2, 3, 4):
        for n in sizes(p):
            begin = time.perf_counter()
            grid = lloyd_max(n) if p == 1 else train(p, n)
            grids[f"{p}x{n}"] = grid.astype(np.float16)
            seconds = time.perf_counter() - begin
            print(f"p={p} n={n} {seconds:.1f} s", flush=True)
    np.savez_compressed(arguments.out, **grids)


if __name__ == "__main__":
    main()
