"""Tables of overlapping-pyramid codes with a spread.

csrc/core/overlap.h: a weight is `spread` above the sum of its points or below it. Training is that
of overlap_tables.py for what is left of the samples without that step, which then moves to the mean
of what it should have been. Points are tied as a `Tie` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from overlap_tables import (
    FINE,
    SWEEPS,
    Phases,
    Trellis,
    decode,
    gaussian,
    improve,
    led,
    search,
    windows,
)  # fmt: skip


@dataclass(frozen=True)
class Tie:
    """Points that a byte makes, with h below `levels` and l below `low`, a power of two.

        first + half = low h + l,    second + 128 - spread - half = factor l,

    in a unit of which the spread is a multiple as well. Half of the first point's range is `half`.
    Of all points together no sum may leave int8.
    """

    spread: int
    low: int
    factor: int
    levels: int

    @property
    def half(self) -> int:
        return self.low * self.levels // 2

    def points(self) -> torch.Tensor:
        """Every pair of points, float64 [levels * low, 2]."""
        low = torch.arange(self.low, dtype=torch.float64).repeat(self.levels)
        high = torch.arange(self.levels, dtype=torch.float64).repeat_interleave(self.low)
        second = self.factor * low - (128 - self.spread - self.half)
        return torch.stack([self.low * high + low - self.half, second], 1)


LIBRARY = Tie(spread=24, low=8, factor=12, levels=15)
# Deviations of the spread that are tried for tied points.
SPREADS = (0.69, 0.7, 0.71, 0.72)
PHASES = (
    (1 << 13, 1000),
    (1 << 14, 2000),
    (1 << 15, 2000),
    (1 << 16, 2000),
    (1 << 18, 240),
    (1 << 20, 160),
    (1 << 22, 24),
)
TYING = ((1 << 16, 100), (1 << 17, 100), (1 << 18, 100), (1 << 20, 40), (1 << 22, 6))
QUICK = ((1 << 14, 30), (1 << 16, 20))
QUICK_TYING = ((1 << 16, 20),)


def best_windows(
    x: torch.Tensor, table: torch.Tensor, trellis: Trellis, spread: float
) -> torch.Tensor:
    """Of the weights `x` [rings, BLOCK], [rings, groups]."""
    return windows(search(x, table, trellis, spread=spread), trellis)


def rest(
    x: torch.Tensor, window: torch.Tensor, table: torch.Tensor, trellis: Trellis
) -> torch.Tensor:
    """What the points leave of `x`, float64 [rings, groups, dim]."""
    return x.view(*window.shape, trellis.dim).double() - decode(
        window, table.double().to(x.device), trellis
    )


def signs(left: torch.Tensor) -> torch.Tensor:
    return torch.where(left >= 0, 1.0, -1.0).to(left.dtype)


def turn(
    x: torch.Tensor, table: torch.Tensor, trellis: Trellis, spread: float
) -> tuple[torch.Tensor, float]:
    """Moves the points of `table` to fit `x`; the windows they were for, and the best spread."""
    window = best_windows(x, table, trellis, spread)
    sign = signs(rest(x, window, table, trellis))
    for _ in range(SWEEPS // 2):
        target = (x.view(sign.shape) - spread * sign).float().reshape(x.shape)
        improve(target, window, table, trellis)
        # in integers, so that the order of the sum does not matter
        step = sign * rest(x, window, table, trellis)
        spread = float((step * FINE).round().long().sum()) / FINE / step.numel()
    return window, spread


def train(
    trellis: Trellis, phases: Phases = PHASES, seed: int = 0, device: str = "cpu"
) -> tuple[torch.Tensor, float]:
    """Real points [rows, 2, dim], float64, and the spread, for weights of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1 << trellis.window_bits, 2, trellis.dim)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    table *= torch.tensor([0.6, 0.4])[:, None]
    spread = 0.65
    for samples, turns in phases:
        for _ in range(turns):
            _, spread = turn(gaussian(samples, generator).to(device), table, trellis, spread)
    return table, spread


def tied_points(target: torch.Tensor, weight: torch.Tensor, form: Tie = LIBRARY) -> torch.Tensor:
    """The tied points next to `target` [rows, 2, dim], weighted by `weight` [rows, 2]."""
    first, second = form.points().unbind(1)
    cost = weight[:, 0, None, None] * (target[:, 0, :, None] - first).square()
    cost = cost + weight[:, 1, None, None] * (target[:, 1, :, None] - second).square()
    best = cost.argmin(2)
    return torch.stack([first[best], second[best]], 1)


def tie(
    table: torch.Tensor,
    trellis: Trellis,
    spreads: tuple[float, ...] = SPREADS,
    phases: Phases = TYING,
    device: str = "cpu",
    form: Tie = LIBRARY,
) -> tuple[torch.Tensor, float]:
    """Tied points that fit as `table` does, and their unit: those of least error."""
    results = []
    for spread in spreads:
        unit = spread / form.spread
        points = led(
            *(table, unit, phases, device),
            lambda target, weight: tied_points(target, weight, form),
            lambda x, better, spread=spread: turn(x, better, trellis, spread)[0],
        )
        e = error(points * unit, trellis, spread, 1 << 21, seed=8, device=device)
        results.append((e, unit, points))
    _, unit, points = min(results, key=lambda result: result[0])
    return points, unit


def error(
    table: torch.Tensor,
    trellis: Trellis,
    spread: float,
    weights: int = 1 << 18,
    seed: int = 7,
    device: str = "cpu",
) -> float:
    """Mean square error on a unit Gaussian source, for a table in units of its deviation."""
    x = gaussian(weights, torch.Generator().manual_seed(seed)).to(device)
    left = rest(x, best_windows(x, table, trellis, spread), table, trellis)
    return float((left.abs() - spread).square().sum() / x.double().square().sum())
