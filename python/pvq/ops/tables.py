"""Rules of the operators of the table codes.

The products are linear in the activations, so the gradient of one is the other, again from the
codes. The codes have no gradient.
"""

import torch
from torch import Tensor

from pvq.ops.gradient import register_transposes


@torch.library.register_fake("pvq::table_quantize")
def _table_quantize_fake(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    rows, cols = w.shape
    return (
        w.new_empty((rows, cols * bits // 8), dtype=torch.uint8),
        w.new_empty((rows,), dtype=torch.bfloat16),
    )


@torch.library.register_fake("pvq::table_dequantize")
def _table_dequantize_fake(
    code: Tensor,
    row_scale: Tensor,
    bits: int,
    cols: int,
    dtype: torch.dtype,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return code.new_empty((row_scale.shape[0], cols), dtype=dtype)


@torch.library.register_fake("pvq::table_matmul")
def _table_matmul_fake(
    x: Tensor, code: Tensor, row_scale: Tensor, bits: int, block: int = 0, seed: int = 0
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))


@torch.library.register_fake("pvq::table_matmul_transposed")
def _table_matmul_transposed_fake(
    g: Tensor,
    code: Tensor,
    row_scale: Tensor,
    bits: int,
    cols: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return g.new_empty((*g.shape[:-1], cols))


register_transposes("table_matmul", tensors=2)
