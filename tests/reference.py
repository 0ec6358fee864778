"""Slow, obvious versions of what the library computes, sharing nothing with it."""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np


@cache
def _count_row(dim: int, pulses: int) -> list[int]:
    if dim == 0:
        return [1] + [0] * pulses
    above = _count_row(dim - 1, pulses)
    row = [1]
    for k in range(1, pulses + 1):
        row.append(above[k] + row[k - 1] + above[k - 1])
    return row


def count(dim: int, pulses: int) -> int:
    """N(dim, pulses) by its recurrence, in exact integers."""
    return _count_row(dim, 1 << pulses.bit_length())[pulses]


def points(dim: int, pulses: int) -> np.ndarray:
    """All of P(dim, pulses), int16 [N, dim], in index order: a tree of halves."""

    @cache
    def tree(d: int, k: int) -> list[tuple[int, ...]]:
        if d == 1:
            return [(k,), (-k,)] if k else [(0,)]
        left = d - d // 2
        return [x + y for j in range(k + 1) for x in tree(left, j) for y in tree(d // 2, k - j)]

    return np.array(tree(dim, pulses), dtype=np.int16).reshape(-1, dim)


def rank(y: np.ndarray) -> int:
    """Index of one point in the same order, by adding up exact counts."""
    y = [int(v) for v in y]
    if len(y) == 1:
        return int(y[0] < 0)
    left = len(y) - len(y) // 2
    j, k = sum(map(abs, y[:left])), sum(map(abs, y))
    before = sum(count(left, i) * count(len(y) - left, k - i) for i in range(j))
    return before + rank(y[:left]) * count(len(y) - left, k - j) + rank(y[left:])


def pack(fields: list[int], width: int) -> np.ndarray:
    """A bit stream, uint8: field i begins at bit i * width, least significant bit first."""
    stream = sum(value << (i * width) for i, value in enumerate(fields))
    return np.frombuffer(stream.to_bytes((len(fields) * width + 7) // 8, "little"), np.uint8)


def unpack(stream: np.ndarray, width: int, fields: int) -> list[int]:
    """The inverse of `pack`."""
    value = int.from_bytes(bytes(stream), "little")
    return [(value >> (i * width)) & ((1 << width) - 1) for i in range(fields)]


def best_direction_error(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared distance of each x [n, dim] to the nearest ray through `points`, float64 [n]."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return (x**2).sum(1) - (x @ unit.T).max(1) ** 2


def direction_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distance of each x [n, dim] to the ray through its own y, float64 [n]."""
    return (x**2).sum(1) - ((x * y).sum(1) / np.linalg.norm(y, axis=1)) ** 2


def dequantize(
    y: np.ndarray, gain_code: np.ndarray, row_scale: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Weights [rows, groups * dim] of y [rows, groups, dim] and gain_code [rows, groups]."""
    norm = np.sqrt((y.astype(np.float64) ** 2).sum(-1, keepdims=True))
    direction = np.divide(y, norm, out=np.zeros(y.shape), where=norm > 0)
    amplitude = row_scale.astype(np.float64)[:, None] * levels.astype(np.float64)[gain_code]
    return (amplitude[..., None] * direction).reshape(y.shape[0], -1)


def beta_cdf(dim: int, cols: int, steps: int = 400_001) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of a group in units of the row's r.m.s., and their distribution function.

    Numerical integration of the density of g = sqrt(cols * x), x ~ Beta(dim/2, (cols-dim)/2):
    proportional to g^(dim-1) (1 - g^2/cols)^((cols-dim)/2 - 1).
    """
    top = min(sqrt(cols), sqrt(dim) + 12.0)
    g = np.linspace(0, top, steps)[1:-1]
    log_density = (dim - 1) * np.log(g) + ((cols - dim) / 2 - 1) * np.log1p(-(g**2) / cols)
    density = np.exp(log_density - log_density.max())
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return g, cdf / cdf[-1]
