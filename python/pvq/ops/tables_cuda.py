"""Rules of the GPU operators of the table codes and the overlapping-pyramid codes in fragments.

The fused product is linear in its activations but for their rounding, so its gradient is that of
the dense product: the incoming gradient times the expanded weights, rotated back.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pvq.codes import TILE_ROWS
from pvq.ops.gradient import register_by_expansion


def _table_bytes(bits: int) -> int:
    return 1024


def _overlap_table_bytes(pair_bits: int) -> int:
    return 1024 if pair_bits in (5, 6) else 2048


@torch.library.register_fake("pvq::table_fragments")
def _table_fragments_fake(code: Tensor, table: Tensor, bits: int) -> Tensor:
    tiles = (code.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return code.new_empty((_table_bytes(bits) + tiles * TILE_ROWS * code.shape[1],))


@torch.library.register_fake("pvq::table_codes")
def _table_codes_fake(fragments: Tensor, rows: int, cols: int, bits: int) -> Tensor:
    return fragments.new_empty((rows, cols * bits // 8))


@torch.library.register_fake("pvq::table_rows")
def _table_rows_fake(
    fragments: Tensor,
    row_scale: Tensor,
    ids: Tensor,
    bits: int,
    cols: int,
    dtype: torch.dtype,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return fragments.new_empty((ids.shape[0], cols), dtype=dtype)


def _register(
    expand: str, product: str, weights_of_byte: float, table_bytes: Callable[[int], int]
) -> None:
    """Registers the rules of a family.

    Args:
        expand: operator (fragments, row_scale, bits, dtype).
        product: operator (x, fragments, row_scale, bits, block, seed, residual).
        weights_of_byte: times ``bits``.
        table_bytes: bytes in front of the fragments, of ``bits``.
    """

    def expand_fake(fragments: Tensor, row_scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
        rows = row_scale.shape[0]
        tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
        row_bytes = (fragments.shape[0] - table_bytes(bits)) // (tiles * TILE_ROWS)
        return fragments.new_empty((rows, int(row_bytes * weights_of_byte) // bits), dtype=dtype)

    def product_fake(
        x: Tensor,
        fragments: Tensor,
        row_scale: Tensor,
        bits: int,
        block: int = 0,
        seed: int = 0,
        residual: bool = False,
    ) -> Tensor:
        return x.new_empty((*x.shape[:-1], row_scale.shape[0]))

    torch.library.register_fake(f"pvq::{expand}", expand_fake)
    torch.library.register_fake(f"pvq::{product}", product_fake)
    register_by_expansion(
        product,
        lambda fragments, row_scale, numbers, cols, dtype: getattr(torch.ops.pvq, expand)(
            fragments, row_scale, *numbers, dtype
        ),
        options=1,
    )


_register("table_expand", "table_matmul_fragments", 8, _table_bytes)
_register("overlap_expand", "overlap_matmul_fragments", 16, _overlap_table_bytes)
