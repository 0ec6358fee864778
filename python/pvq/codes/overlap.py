"""The overlapping-pyramid code: each word of a bit stream names points of two groups of weights.

Near the error of a trellis code at the decoding price of a table: group i, two weights or four, is

    y_i = T[window_i][0] + T[window_(i - lag)][1],    weight = row_scale * y,

where window_i is the newest 8 or 9 bits of the stream up to symbol i, and T a table of small
integers. At 3 bits each weight has a further bit, and is 24 above that sum or 24 below it. The
symbols of 128 columns form a ring (those of the last columns of a row too, if fewer
are left), so that no bits are spent on a beginning and such blocks do not depend on each other.
csrc/core/overlap.h has the definition; csrc/cpu/overlap_search.h the search, which is exact.

Stored form of a matrix of R rows and n columns, n a multiple of 16:

=========== ========= ================= =====================================================
tensor      dtype     shape             content
=========== ========= ================= =====================================================
code        uint8     [R, n * bits / 8] the symbols of the groups, lowest bit first
row_scale   bfloat16  [R]               0 for a row of zeros
=========== ========= ================= =====================================================

==== ================== =========== ====== === ======
bits weights of a group symbol bits window lag states
==== ================== =========== ====== === ======
2    4                  8           9      1   512
2.5  2                  5           8      2   8192
3    4                  8 and 4     8      1   256
3.5  2                  7           9      1   512
4    2                  8           9      1   512
==== ================== =========== ====== === ======

At 3 bits a symbol's lower 8 bits are the window and the others those of its weights, 1 for above.
Sums are from -128 to 127. In groups of four the second points of a row follow from the first ones.
benchmarks/overlap_design.py says why these, benchmarks/overlap_tables.py made the tables.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from pvq import _core
from pvq.arguments import check_bits
from pvq.codes import Layout, RunTimeForm, Stored
from pvq.codes.bits import unpack
from pvq.codes.overlap_fragments import OverlapFragments
from pvq.codes.overlap_rounder import OverlapRounder, nearest_code
from pvq.codes.overlap_trellis import Trellis
from pvq.codes.width import WidthCode

STEP = 16  # columns come in multiples of it
_FILE = Path(__file__).parent / "overlap_tables.npz"
# Weights of a group, bits of a symbol in the trellis, of a window, lag and spread by rate.
_SHAPES = {
    2.0: (4, 8, 9, 1, 0),
    2.5: (2, 5, 8, 2, 0),
    3.0: (4, 8, 8, 1, 24),
    3.5: (2, 7, 9, 1, 0),
    4.0: (2, 8, 9, 1, 0),
}
WIDTHS = tuple(_SHAPES)


@functools.cache
def trellis(bits: float) -> Trellis:
    """The numbers and the table, on the CPU, of one of the rates ``WIDTHS``."""
    with np.load(_FILE) as file:
        table = torch.from_numpy(file[f"{bits:g}"])
        unit = float(file[f"{bits:g} unit"])
    _, step_bits, window_bits, lag, spread = _SHAPES[bits]
    return Trellis(step_bits, window_bits, lag, table, unit, spread)


# Graphs hold the table itself, not the way to it. The rate by name: a second number would become a
# variable of the graph.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's has no types
def _table(rate: str, device: torch.device) -> torch.Tensor:
    return trellis(float(rate)).to(device).table


class _WithTrellis(WidthCode):
    """What a code has beside its fields, which are its choices."""

    _trellis: Trellis
    _rate: str


@dataclass(frozen=True)
class OverlapCode(_WithTrellis):
    """The overlapping-pyramid code of one rate.

    Attributes:
        bits: bits a weight: 2, 2.5, 3, 3.5 or 4.
    """

    bits: float

    name: ClassVar[str] = "overlap"
    rotation: ClassVar[str] = "hadamard"
    tensors: ClassVar[tuple[str, ...]] = ("code", "row_scale")
    widths: ClassVar[tuple[float, ...]] = WIDTHS
    column_step: ClassVar[int] = STEP

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.bits not in WIDTHS:
            raise ValueError(
                f"bits={self.bits} is out of reach with code='overlap': choose "
                f"{self.width_names()}, or code='pyramid'"
            )
        object.__setattr__(self, "bits", float(self.bits))
        # At hand without a look-up, because graphs are traced through the products.
        object.__setattr__(self, "_trellis", trellis(self.bits))
        object.__setattr__(self, "_rate", f"{self.bits:g}")

    @property
    def since_version(self) -> int:
        """The format version since which this rate has its table."""
        return 1 if self.bits < 3 else 2

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        return {
            "code": (
                (rows, cols // self._trellis.dim * self._trellis.stored_bits // 8),
                torch.uint8,
            ),
            "row_scale": ((rows,), torch.bfloat16),
        }

    def quantize(self, w: torch.Tensor) -> Stored:
        """The points nearest to ``w`` [rows, cols], with a row scale of small squared error."""
        numbers = self._trellis.to(w.device)
        row_scale = numbers.row_scale(w)
        return {"code": nearest_code(w, row_scale, numbers), "row_scale": row_scale}

    def rounder(self, w: torch.Tensor) -> OverlapRounder:
        """Rounds ``w`` [rows, cols], rotated already, a ring at a time."""
        numbers = self._trellis.to(w.device)
        return OverlapRounder((w.shape[0], w.shape[1]), numbers.row_scale(w), numbers)

    def rounder_of(self, stored: Stored, cols: int) -> OverlapRounder:
        """A rounder with the row scales and the symbols of ``stored``."""
        code, row_scale = stored["code"], stored["row_scale"]
        numbers = self._trellis.to(code.device)
        symbol = unpack(code, numbers.stored_bits, cols // numbers.dim).to(numbers.symbol_dtype)
        return OverlapRounder((code.shape[0], cols), row_scale, numbers, symbol)

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w: torch.Tensor = torch.ops.pvq.overlap_dequantize(
            *self._operands(stored), cols, dtype, block, seed
        )
        return w

    def matmul(
        self, x: torch.Tensor, stored: Stored, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        y: torch.Tensor = torch.ops.pvq.overlap_matmul(x, *self._operands(stored), block, seed)
        return y

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """Fragments on the GPU; on the CPU the stored form is the fast one."""
        if device.type != "cuda" or not _core.build_info()["cuda"]:
            return None
        return OverlapFragments(self._trellis)

    def _operands(
        self, stored: Stored
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
        code, row_scale = stored["code"], stored["row_scale"]
        return code, row_scale, _table(self._rate, code.device), *self._trellis.numbers
