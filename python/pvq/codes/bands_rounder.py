"""Rounding into bands, each by the rounder of its own code."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pvq.codes import Rounder, Stored


class BandsRounder:
    """A :class:`pvq.codes.Rounder` of bands; a block is a group.

    Args:
        rounders: of the bands, with the same row scales.
        limits: columns of each.
    """

    def __init__(self, rounders: Sequence[Rounder], limits: Sequence[slice]) -> None:
        self.step = rounders[0].step
        self._bands = list(zip(rounders, limits, strict=True))

    def round(self, w: Tensor, first: int, metric: Tensor | None = None) -> Tensor:
        """Rounds the groups that start at column ``first``; see :class:`pvq.codes.Rounder`."""
        decoded, end = [], first + w.shape[1]
        for rounder, band in self._bands:
            begin, stop = max(first, band.start), min(end, band.stop)
            if begin < stop:
                part = w[:, begin - first : stop - first]
                decoded.append(rounder.round(part, begin - band.start, metric))
        return torch.cat(decoded, 1)

    def rescale(self, factor: Tensor) -> Tensor:
        """Multiplies the row scales; see :class:`pvq.codes.Rounder`."""
        return torch.cat([rounder.rescale(factor) for rounder, _ in self._bands], 1)

    def stored(self) -> Stored:
        """The stored form."""
        stored: Stored = {}
        for i, (rounder, _) in enumerate(self._bands):
            band = rounder.stored()
            stored |= {f"index_{i}": band["index"], f"gain_{i}": band["gain"]}
        return {**stored, "row_scale": band["row_scale"]}
