"""The pyramid-table code: a byte names one of 256 points, so the stored form is fast to read.

Stored form of a matrix of R rows and n columns, n a multiple of 8:

=========== ========= ================= =====================================================
tensor      dtype     shape             content
=========== ========= ================= =====================================================
code        uint8     [R, n * bits / 8] 2 bits: a byte for 4 weights; 4 bits: a byte for 2;
                                        3 bits: a byte for 4 magnitudes, then a sign bit each
row_scale   bfloat16  [R]               weight = row_scale * table[byte] (at 3 bits, plus or
                                        minus row_scale * (2 * table[byte] + 1))
=========== ========= ================= =====================================================

csrc/core/table_codes.h defines the tables and the bits; :func:`pvq._core.code_table` returns them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq import _core
from pvq.arguments import check_bits
from pvq.codes import Layout, RunTimeForm, Stored
from pvq.codes.table_fragments import TableFragments
from pvq.codes.table_rounder import TableRounder
from pvq.codes.width import WidthCode

WIDTHS = (2, 3, 4)
STEP = 8  # columns come in multiples of it


@dataclass(frozen=True)
class TableCode(WidthCode):
    """The pyramid-table code of one width.

    Attributes:
        bits: bits a weight, 2, 3 or 4.
    """

    bits: int

    name: ClassVar[str] = "table"
    rotation: ClassVar[str] = "hadamard"
    tensors: ClassVar[tuple[str, ...]] = ("code", "row_scale")
    widths: ClassVar[tuple[float, ...]] = WIDTHS
    column_step: ClassVar[int] = STEP

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.bits not in WIDTHS:
            raise ValueError(
                f"bits={self.bits} is out of reach with code='table', whose words are bytes: "
                f"choose 2, 3 or 4, or code='pyramid'"
            )
        object.__setattr__(self, "bits", int(self.bits))

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        return {
            "code": ((rows, cols * self.bits // 8), torch.uint8),
            "row_scale": ((rows,), torch.bfloat16),
        }

    def quantize(self, w: torch.Tensor) -> Stored:
        """The nearest points to ``w`` [rows, cols], with the row scale of least squared error."""
        code, row_scale = torch.ops.pvq.table_quantize(w, self.bits)
        return {"code": code, "row_scale": row_scale}

    def rounder(self, w: torch.Tensor) -> TableRounder:
        """Rounds ``w`` [rows, cols], rotated already, the weights of a byte at a time."""
        return TableRounder(self.quantize(w), self.bits)

    def rounder_of(self, stored: Stored, cols: int) -> TableRounder:
        """A rounder with the row scales and the points of ``stored``."""
        return TableRounder(stored, self.bits)

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w: torch.Tensor = torch.ops.pvq.table_dequantize(
            stored["code"], stored["row_scale"], self.bits, cols, dtype, block, seed
        )
        return w

    def matmul(
        self, x: torch.Tensor, stored: Stored, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        y: torch.Tensor = torch.ops.pvq.table_matmul(
            x, stored["code"], stored["row_scale"], self.bits, block, seed
        )
        return y

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """Fragments on the GPU; on the CPU the stored form is the fast one."""
        if device.type != "cuda" or not _core.build_info()["cuda"]:
            return None
        return TableFragments(self.bits)
