"""The pyramid code: a group is amplitude * y / ||y||_2, y an integer vector, sum |y_i| = pulses.

Stored form of a matrix of R rows and n columns in G = n / dim groups a row:

=========== ========= ============================= ==========================================
tensor      dtype     shape                         content
=========== ========= ============================= ==========================================
index       uint8     [R, ceil(G * index_bits / 8)] rank of y in the pyramid, a bit stream a row
gain        uint8     [R, ceil(G * gain_bits / 8)]  codes of the amplitudes, a bit stream a row
row_scale   bfloat16  [R]                           unit of the row's amplitudes
=========== ========= ============================= ==========================================
"""

import math
from dataclasses import dataclass

import torch

from pvq import _core
from pvq.codes import Stored
from pvq.ops.code import packed_bytes

GAIN_LAWS = ("lloyd", "beta")

# Mean square error of the best scalar quantizer of a standard normal with 2^i levels (Max 1960).
_LLOYD_MAX = (1.0, 0.3634, 0.1175, 0.03455, 0.009501, 0.002505, 0.000644, 0.000163, 0.0000412)
TENSORS = ("index", "gain", "row_scale")


@dataclass(frozen=True)
class PyramidCode:
    """The numbers that say how to write and read the stored form."""

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str
    quality: int = 1

    @property
    def index_bits(self) -> int:
        """Bits of one index; one word beyond the pyramid's points names the zero group."""
        return _core.index_bits(self.dim, self.pulses)

    def layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        groups = cols // self.dim
        return {
            "index": ((rows, packed_bytes(groups, self.index_bits)), torch.uint8),
            "gain": ((rows, packed_bytes(groups, self.gain_bits)), torch.uint8),
            "row_scale": ((rows,), torch.bfloat16),
        }

    def empty(self, rows: int, cols: int, device: torch.device | str | None = None) -> Stored:
        """Uninitialised tensors of the stored form."""
        return {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in self.layout(rows, cols).items()
        }

    def quantize(self, w: torch.Tensor) -> Stored:
        """The nearest point to each group of ``w`` [rows, cols], rotated already."""
        index, gain, row_scale = torch.ops.pvq.quantize(
            w, self.dim, self.pulses, self.gain_bits, self.gain_law, self.quality
        )
        return {"index": index, "gain": gain, "row_scale": row_scale}

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w: torch.Tensor = torch.ops.pvq.dequantize(
            *(stored[name] for name in TENSORS),
            *(self.dim, self.pulses, self.gain_bits, self.gain_law),
            *(cols, dtype, block, seed),
        )
        return w


def most_pulses(dim: int, index_bits: int, limit: int) -> int:
    """The most pulses, up to ``limit``, whose index takes at most ``index_bits`` bits."""
    inside, outside = 0, limit + 1  # index_bits grows with the pulses: bisect
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if _core.index_bits(dim, middle) <= index_bits:
            inside = middle
        else:
            outside = middle
    return inside


def expected_error(dim: int, pulses: int, gain_bits: int) -> float:
    """Mean square error on a unit Gaussian source, within some per cent: to compare settings with.

    The direction of a group has ``dim - 1`` degrees of freedom, so its error falls as
    N^(-2 / (dim - 1)); the factor 1.55 fits what the search reaches from dim 8 to 128 and from 2 to
    4 bits (benchmarks/gaussian_mse.py). The amplitude's law has variance 1/2 and is nearly normal,
    so its error is that of a scalar quantizer, shared by the group's ``dim`` weights.
    """
    direction: float = 1.55 * 2.0 ** (-2 * math.log2(_core.count(dim, pulses)) / (dim - 1))
    return direction + 0.5 * _LLOYD_MAX[gain_bits] / dim
