"""Rounding into the pyramid-table code one byte's weights at a time, in the metric of the loss.

The table has 256 points, so all of them are tried: with the metric S and the row scale s, the point
p costs s^2 p S p - 2 s p S v up to a constant. At 3 bits, where a byte holds magnitudes and signs
stand apart, tried are the signs of v and those with one of them flipped: a second flip pays only
where two weights are next to zero, and the metric of a rotated layer is too near to a multiple of
the identity for more.
"""

import torch
from torch import Tensor

from pvq import _core
from pvq.codes import Stored
from pvq.codes.bits import pack, unpack
from pvq.codes.feedback import round_blocks


class TableRounder:
    """A :class:`pvq.codes.Rounder` of the table code; a block is what one byte stands for.

    Args:
        stored: the codes and the row scales to start from.
        bits: of the code.
    """

    def __init__(self, stored: Stored, bits: int) -> None:
        code, self._row_scale = stored["code"], stored["row_scale"]
        table = torch.from_numpy(_core.code_table(bits)).to(code.device, torch.float32)
        self._signs_apart = bits == 3
        self._points = 2 * table + 1 if self._signs_apart else table
        self.step = table.shape[1]
        cols = code.shape[1] * 8 // bits
        self._code = code[:, : cols // self.step].clone()
        self._negative = torch.zeros(len(code), cols, dtype=torch.uint8, device=code.device)
        if self._signs_apart:
            self._negative = unpack(code[:, cols // self.step :], 1, cols).to(torch.uint8)

    def round(self, w: Tensor, first: int, metric: Tensor | None = None) -> Tensor:
        """Rounds the weights of some bytes; see :class:`pvq.codes.Rounder`."""
        if w.shape[1] != self.step:
            return round_blocks(self, w, first)
        if metric is None:
            metric = torch.eye(self.step, device=w.device)
        scale = self._row_scale.float()[:, None]
        target = w @ metric
        patterns = self._sign_patterns(w)
        best = torch.full_like(scale[:, 0], torch.inf)
        code = torch.zeros_like(best, dtype=torch.int64)
        signs = patterns[0]
        for pattern in patterns:
            product = (target * pattern) @ self._points.T
            cost = scale.square() * self._squares(metric, pattern) - 2 * scale * product
            cost, point = cost.min(1)
            better = cost < best
            best = torch.where(better, cost, best)
            code = torch.where(better, point, code)
            signs = torch.where(better[:, None], pattern, signs)
        columns = slice(first, first + self.step)
        self._code[:, first // self.step] = torch.where(scale[:, 0] > 0, code, 0).to(torch.uint8)
        if self._signs_apart:
            self._negative[:, columns] = ((signs < 0) & (scale > 0)).to(torch.uint8)
        return scale * signs * self._points[code]

    def rescale(self, factor: Tensor) -> Tensor:
        """Multiplies the row scales; see :class:`pvq.codes.Rounder`."""
        self._row_scale = (self._row_scale.float() * factor).to(torch.bfloat16)
        signs = 1 - 2 * self._negative.float()
        points = self._points[self._code.long()].flatten(1)
        return self._row_scale.float()[:, None] * signs * points

    def stored(self) -> Stored:
        """The stored form."""
        code = self._code
        if self._signs_apart:
            code = torch.cat([code, pack(self._negative, 1)], 1)
        return {"code": code, "row_scale": self._row_scale}

    def _sign_patterns(self, w: Tensor) -> list[Tensor]:
        """Signs [rows, step] of +-1 to try; a point of the other widths brings its own."""
        if not self._signs_apart:
            return [torch.ones_like(w)]
        signs = torch.where(w < 0, -1.0, 1.0)
        patterns = [signs]
        for i in range(self.step):
            flipped = signs.clone()
            flipped[:, i] *= -1
            patterns.append(flipped)
        return patterns

    def _squares(self, metric: Tensor, signs: Tensor) -> Tensor:
        """Costs p S p of all points with each row's signs, [rows, 256]; [1, 256] without signs."""
        if not self._signs_apart:
            return ((self._points @ metric) * self._points).sum(1)[None]
        bit = 2 ** torch.arange(self.step, device=signs.device)
        every = 1.0 - 2.0 * ((torch.arange(2**self.step, device=signs.device)[:, None] & bit) > 0)
        signed = every[:, None] * self._points  # [patterns, 256, step]
        squares = ((signed @ metric) * signed).sum(-1)
        return squares[((signs < 0).long() * bit).sum(1)]
