"""Planes: the run-time form of a quantized matrix that the CPU product reads (csrc/cpu/planes.h).

They hold the same integer vectors as the index, clipped to 4 or 8 bits, with what the clipping took
away in a list of outliers; so the index can be made from them again, bit for bit.
"""

import torch

from pvq.codes import Stored
from pvq.config import PVQConfig
from pvq.tensor import SLAB_WEIGHTS, PVQTensor

TENSORS = ("planes", "scale", "outlier_start", "outlier_place", "outlier_value")
_PANEL_ROWS = 16
# An outlier is scale * excess. Below this it may be denormal, and the excess not recoverable.
_SMALLEST_OUTLIER = 2.0**-100


def available(device: torch.device) -> bool:
    """Whether matrices on this device have planes."""
    return device.type == "cpu"


def of_codes(codes: PVQTensor) -> Stored | None:
    """The planes of a matrix; ``None`` if its scales are so small that they would lose the index.

    Raises:
        RuntimeError: if an index names no point of the pyramid (a damaged file).
    """
    config = codes.config
    tensors = torch.ops.pvq.to_planes(
        *(codes.index, codes.gain, codes.row_scale),
        *(config.dim, config.pulses, config.gain_bits, config.gain_law, codes.shape[1]),
    )
    planes: Stored = dict(zip(TENSORS, tensors, strict=True))
    outliers = planes["outlier_value"]
    if outliers.numel() and outliers.abs().min() < _SMALLEST_OUTLIER:
        return None
    return planes


def to_index(planes: Stored, shape: tuple[int, int], config: PVQConfig) -> torch.Tensor:
    """The index that the planes were made from, uint8, as :class:`pvq.PVQTensor` has it."""
    rows, cols = shape
    index = config.code.empty(rows, cols, planes["planes"].device)["index"]
    step = max(1, SLAB_WEIGHTS // max(1, cols * _PANEL_ROWS)) * _PANEL_ROWS
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        y = _integers(planes, begin, end, cols, config.dim)
        index[begin:end] = torch.ops.pvq.encode(y, config.pulses)
    return index


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
