"""Scalar quantizers that the pyramid codes are measured against, on the same data.

Both return the quantized tensor and the stored bits a weight.
"""

from __future__ import annotations

import itertools
from statistics import NormalDist

import torch

SCALE_BITS = 16


def lloyd_max_levels(count: int) -> torch.Tensor:
    """The `count` levels of least mean square error for a standard normal (Max 1960), float64."""
    normal = NormalDist()
    levels = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    for _ in range(5000):
        edges = [-float("inf"), *((a + b) / 2 for a, b in itertools.pairwise(levels))]
        edges.append(float("inf"))
        densities = [0.0 if abs(e) == float("inf") else normal.pdf(e) for e in edges]
        masses = [normal.cdf(e) for e in edges]
        levels = [
            (densities[i] - densities[i + 1]) / (masses[i + 1] - masses[i]) for i in range(count)
        ]
    return torch.tensor(levels, dtype=torch.float64)


def nf4_levels() -> torch.Tensor:
    """The 16 levels of NF4: normal quantiles, 8 above zero, 7 below and zero, scaled to one.

    From the construction in QLoRA (arXiv 2305.14314, section 3), with the outermost probability
    halfway between 1 - 1/32 and 1 - 1/30.
    """
    quantile = NormalDist().inv_cdf
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = [quantile(0.5 + (outermost - 0.5) * i / 8) for i in range(1, 9)]
    below = [-quantile(0.5 + (outermost - 0.5) * i / 7) for i in range(1, 8)]
    levels = torch.tensor(sorted([*below, 0.0, *above]), dtype=torch.float64)
    return levels / levels.abs().max()


def nearest_level(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Each element of x replaced by the nearest of the ascending levels."""
    levels = levels.to(x.dtype)
    return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]


def lloyd_max(w: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Scalar Lloyd-Max with one root mean square a row; bits are those of whole bit fields."""
    scale = w.square().mean(1, keepdim=True).sqrt().bfloat16().to(w.dtype)
    bits = (count - 1).bit_length() + SCALE_BITS / w.shape[1]
    return nearest_level(w / scale, lloyd_max_levels(count)) * scale, bits


def nf4(w: torch.Tensor, block: int = 64) -> tuple[torch.Tensor, float]:
    """NF4 with the largest magnitude of each block of columns as a 16-bit scale."""
    blocks = w.view(w.shape[0], -1, block)
    scale = blocks.abs().amax(2, keepdim=True).bfloat16().to(w.dtype)
    quantized = nearest_level(blocks / scale, nf4_levels()) * scale
    return quantized.view_as(w), 4 + SCALE_BITS / block
