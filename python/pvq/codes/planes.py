"""Planes: the run-time form of a pyramid code that the CPU product reads (csrc/cpu/planes.h).

They hold the same integer vectors as the index, clipped to 4 or 8 bits, with what the clipping took
away in a list of outliers; so the index can be made from them again, bit for bit.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq import _core
from pvq.codes import Stored
from pvq.ops.code import packed_bytes

_PANEL_ROWS = 16
# An outlier is scale * excess. Below this it may be denormal, and the excess not recoverable.
_SMALLEST_OUTLIER = 2.0**-100
# Weights whose integers are unpacked at one time.
_SLAB_WEIGHTS = 1 << 24


@dataclass(frozen=True)
class Planes:
    """The planes of matrices in one pyramid code; the fields are those of the code."""

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str

    layout: ClassVar[str] = "planes"
    tensors: ClassVar[tuple[str, ...]] = (
        "planes",
        "scale",
        "outlier_start",
        "outlier_place",
        "outlier_value",
    )
    replaces: ClassVar[tuple[str, ...]] = ("index",)

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The planes of a matrix; ``None`` if its scales are so small that they lose the index.

        Raises:
            RuntimeError: if an index names no point of the pyramid (a damaged file).
        """
        tensors = torch.ops.pvq.to_planes(
            *(stored["index"], stored["gain"], stored["row_scale"]),
            *(self.dim, self.pulses, self.gain_bits, self.gain_law, shape[1]),
        )
        planes: Stored = dict(zip(self.tensors, tensors, strict=True))
        outliers = planes["outlier_value"]
        if outliers.numel() and outliers.abs().min() < _SMALLEST_OUTLIER:
            return None
        return planes

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The index that the planes were made from."""
        rows, cols = shape
        width = packed_bytes(cols // self.dim, _core.index_bits(self.dim, self.pulses))
        index = torch.empty(rows, width, dtype=torch.uint8, device=held["planes"].device)
        step = max(1, _SLAB_WEIGHTS // max(1, cols * _PANEL_ROWS)) * _PANEL_ROWS
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            y = _integers(held, begin, end, cols, self.dim)
            index[begin:end] = torch.ops.pvq.encode(y, self.pulses)
        return {"index": index}

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        The CPU's product rounds no activations, whatever it may do.
        """
        tensors = (held[name] for name in self.tensors)
        y: torch.Tensor = torch.ops.pvq.matmul_planes(x, *tensors, rows, self.dim, block, seed)
        return y

    def takes_points(self, dim: int, dtype: torch.dtype) -> bool:
        """Whole groups of weights in whole words of planes, in each group of activations."""
        return self.dim % 8 == 0 and dim % self.dim == 0

    def matmul_points(
        self,
        point: torch.Tensor,
        amplitude: torch.Tensor,
        pulses: int,
        held: Stored,
        rows: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The product of amplitude * point [..., cols] with every row: integer dot products."""
        tensors = (held[name] for name in self.tensors)
        y: torch.Tensor = torch.ops.pvq.matmul_planes_points(
            point, amplitude, *tensors, rows, self.dim, dtype
        )
        return y


def _integers(planes: Stored, begin: int, end: int, cols: int, dim: int) -> torch.Tensor:
    """Rows ``begin`` (a multiple of the panel) to ``end`` as int16 [rows, groups, dim]."""
    panels = slice(begin // _PANEL_ROWS, -(-end // _PANEL_ROWS))
    packed = planes["planes"][panels]
    if packed.dtype == torch.int32:  # eight 4-bit integers a word, two's complement
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
        nibbles = (packed[:, :, None, :] >> shifts[:, None]) & 15
        packed = ((nibbles ^ 8) - 8).flatten(1, 2)[:, :cols]
    y = packed.to(torch.int16).transpose(1, 2).reshape(-1, cols)[: end - begin]
    scale = planes["scale"][panels].transpose(1, 2).flatten(0, 1)[: end - begin]

    # An outlier's place is 16 * column + row within its panel.
    start = planes["outlier_start"][panels.start : panels.stop + 1].long()
    outliers = slice(int(start[0]), int(start[-1]))
    place = planes["outlier_place"][outliers].long()
    panel = torch.arange(len(start) - 1, device=y.device).repeat_interleave(start.diff())
    column, row = place // _PANEL_ROWS, panel * _PANEL_ROWS + place % _PANEL_ROWS
    excess = planes["outlier_value"][outliers] / scale[row, column // dim]
    y = y.contiguous()
    y[row, column] += excess.round().to(torch.int16)
    return y.view(end - begin, cols // dim, dim)
