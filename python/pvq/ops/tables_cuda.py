"""Fake-tensor rules of the GPU operators of the table codes."""

import torch
from torch import Tensor

# As in csrc/cuda/table_matmul.h.
TABLE_BYTES = 1024
TILE_ROWS = 16


@torch.library.register_fake("pvq::table_fragments")
def _table_fragments_fake(code: Tensor, table: Tensor, bits: int) -> Tensor:
    tiles = (code.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return code.new_empty((TABLE_BYTES + tiles * TILE_ROWS * code.shape[1],))


@torch.library.register_fake("pvq::table_expand")
def _table_expand_fake(
    fragments: Tensor, row_scale: Tensor, bits: int, dtype: torch.dtype
) -> Tensor:
    rows = row_scale.shape[0]
    tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    cols = (fragments.shape[0] - TABLE_BYTES) // (tiles * TILE_ROWS) * 8 // bits
    return fragments.new_empty((rows, cols), dtype=dtype)


@torch.library.register_fake("pvq::table_matmul_fragments")
def _table_matmul_fragments_fake(
    x: Tensor,
    fragments: Tensor,
    row_scale: Tensor,
    bits: int,
    block: int = 0,
    seed: int = 0,
    residual: bool = False,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))
