"""Tied tables of overlapping-pyramid codes with groups of four weights.

csrc/core/overlap.h: the first points of a row, each plus HALF, are the bytes of a word, and the
second points are those of FACTOR times the word. With bytes 16 h + l, h and l from 0 to 7, no sum
of two points carries into the next byte:

    first[k] = 16 h[k] + l[k] - HALF,    second[k] = 16 l[k] + h[k - 1] - HALF,    h[-1] = 0.
"""

from __future__ import annotations

import torch

FACTOR, HALF, LEVELS = 16, 64, 8
INFINITE = 1e30


def tied_points(target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The tied points next to `target` [rows, 2, dim], both float64, integers.

    The squared errors of the two points of a row are weighted by `weight` [rows, 2]. Each h counts
    in two neighbouring components, so the best levels are a shortest path through these.
    """
    rows, _, dim = target.shape
    wanted = target + HALF
    level = torch.arange(LEVELS, dtype=torch.float64)
    both = FACTOR * level[:, None] + level  # [h or l, l or h]
    cost = torch.full((rows, LEVELS), INFINITE, dtype=torch.float64)
    cost[:, 0] = 0  # by h of the component before: none
    steps = []
    for k in range(dim):
        first = (both - wanted[:, 0, k, None, None]).square() * weight[:, :1, None]  # [h, l]
        second = (both.T - wanted[:, 1, k, None, None]).square() * weight[
            :, 1:, None
        ]  # [h before, l]
        best = (cost[:, :, None, None] + first[:, None] + second[:, :, None]).min(3)
        cost, before = best.values.min(1)
        steps.append((before, best.indices.gather(1, before[:, None])[:, 0]))
    h = cost.argmin(1, keepdim=True)
    found = torch.empty(rows, dim, 2, dtype=torch.float64)
    for k in range(dim - 1, -1, -1):
        before, low = steps[k]
        found[:, k, :1], found[:, k, 1:] = h, low.gather(1, h)
        h = before.gather(1, h)
    high, low = found.unbind(2)
    previous = torch.nn.functional.pad(high[:, :-1], (1, 0))
    return torch.stack([FACTOR * high + low, FACTOR * low + previous], 1) - HALF
