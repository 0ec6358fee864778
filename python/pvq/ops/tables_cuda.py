"""Rules of the GPU operators of the table codes.

The fused product is linear in its activations but for their rounding, so its gradient is that of
the dense product: the incoming gradient times the expanded weights, rotated back.
"""

from typing import Any

import torch
from torch import Tensor

from pvq.ops.gradient import dense_gradient

# As in csrc/cuda/table_matmul.h.
TABLE_BYTES = 1024
TILE_ROWS = 16


@torch.library.register_fake("pvq::table_fragments")
def _table_fragments_fake(code: Tensor, table: Tensor, bits: int) -> Tensor:
    tiles = (code.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return code.new_empty((TABLE_BYTES + tiles * TILE_ROWS * code.shape[1],))


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


def _keep_matrix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, fragments, row_scale, ctx.bits, ctx.block, ctx.seed, _ = inputs
    ctx.save_for_backward(fragments, row_scale)


def _matmul_fragments_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    fragments, row_scale = ctx.saved_tensors
    w = torch.ops.pvq.table_expand(fragments, row_scale, ctx.bits, grad.dtype)
    return dense_gradient(grad, w, ctx.block, ctx.seed), *[None] * 6


torch.library.register_autograd(
    "pvq::table_matmul_fragments", _matmul_fragments_backward, setup_context=_keep_matrix
)
