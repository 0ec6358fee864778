"""Rules of the GPU operators of exact indices: shapes, and the gradient of the product.

The gradient in the activations is that of the dense product: the incoming gradient times the
expanded weights, rotated back.
"""

from typing import Any

import torch
from torch import Tensor

from pvq.ops.gradient import dense_gradient


@torch.library.register_fake("pvq::index_expand")
def _index_expand_fake(
    fragments: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    cols: int,
    dtype: torch.dtype,
) -> Tensor:
    return fragments.new_empty((row_scale.shape[0], cols), dtype=dtype)


@torch.library.register_fake("pvq::index_matmul")
def _index_matmul_fake(
    x: Tensor,
    fragments: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))


def _keep_matrix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, fragments, row_scale, *ctx.code, ctx.block, ctx.seed = inputs
    ctx.cols = x.shape[-1]
    ctx.save_for_backward(fragments, row_scale)


def _index_matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    fragments, row_scale = ctx.saved_tensors
    w = torch.ops.pvq.index_expand(fragments, row_scale, *ctx.code, ctx.cols, grad.dtype)
    return dense_gradient(grad, w, ctx.block, ctx.seed), *[None] * 8


torch.library.register_autograd(
    "pvq::index_matmul", _index_matmul_backward, setup_context=_keep_matrix
)
