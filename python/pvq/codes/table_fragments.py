"""Fragments: the run-time form of a table code that the GPU product reads.

They are the bytes of the code in the order in which the lanes of a warp need them, behind a copy of
the code's table (csrc/cuda/table_matmul.h): as large as the stored form, which can be made from
them again, bit for bit. Columns must be a multiple of 128.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq import _core
from pvq.codes import CHUNK_COLUMNS, Stored
from pvq.codes.table_forms import TableForm


@dataclass(frozen=True)
class TableFragments(TableForm):
    """The fragments of matrices in one table code; the field is that of the code."""

    bits: int

    header: ClassVar[int] = 1024  # the table

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The fragments of a matrix; ``None`` if its columns are no multiple of 128."""
        if shape[1] % CHUNK_COLUMNS:
            return None
        table = _table(self.bits)
        return {"fragments": torch.ops.pvq.table_fragments(stored["code"], table, self.bits)}

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The code that the fragments were made from."""
        return {"code": torch.ops.pvq.table_codes(held["fragments"], *shape, self.bits)}

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        In float32, and with ``activations="float"``, the codes are expanded to a scratch of the
        dtype of ``x``, and the library multiplies.
        """
        y: torch.Tensor
        if self.fuses(x, activations):
            y = torch.ops.pvq.table_matmul_fragments(
                *(x, held["fragments"], held["row_scale"], self.bits, block, seed),
                activations == "int8x2",
            )
        else:
            code = self.to_stored(held, (rows, x.shape[-1]))["code"]
            y = torch.ops.pvq.table_matmul(x, code, held["row_scale"], self.bits, block, seed)
        return y

    def matmul_points(
        self,
        point: torch.Tensor,
        amplitude: torch.Tensor,
        pulses: int,
        held: Stored,
        rows: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The product of amplitude * point [..., cols] with every row, on int8 tensor cores.

        Points of 128 columns are multiplied as they are where few tokens are multiplied together;
        all others as 15-bit integers of 128 to 1024 columns (csrc/cuda/table_points.h).
        """
        y: torch.Tensor = torch.ops.pvq.table_matmul_points(
            *(point, amplitude, held["fragments"], held["row_scale"], self.bits, pulses, dtype)
        )
        return y

    def dequantize_rows(
        self,
        held: Stored,
        ids: torch.Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        block: int,
        seed: int,
    ) -> torch.Tensor:
        """The rows ``ids`` [n] of the matrix, rotated back unless ``block`` is 0: [n, cols].

        A row that does not exist is NaN, because raising would wait for the GPU.
        """
        w: torch.Tensor = torch.ops.pvq.table_rows(
            *(held["fragments"], held["row_scale"], ids.to(torch.int64)),
            *(self.bits, shape[1], dtype, block, seed),
        )
        return w


@functools.cache
def _table(bits: int) -> torch.Tensor:
    return torch.from_numpy(_core.code_table(bits))
