"""Rules of the GPU operators of planes: shapes, and the gradient of the product.

The gradient in the activations is that of the dense product: the incoming gradient times the
expanded weights, rotated back.
"""

import torch
from torch import Tensor

from pvq.ops.gradient import register_by_expansion


@torch.library.register_fake("pvq::plane_expand")
def _plane_expand_fake(
    fragments: Tensor, row_scale: Tensor, cols: int, dtype: torch.dtype
) -> Tensor:
    return fragments.new_empty((row_scale.shape[0], cols), dtype=dtype)


@torch.library.register_fake("pvq::plane_matmul")
def _plane_matmul_fake(
    x: Tensor, fragments: Tensor, row_scale: Tensor, block: int = 0, seed: int = 0
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))


register_by_expansion(
    "plane_matmul",
    lambda fragments, row_scale, numbers, cols, dtype: torch.ops.pvq.plane_expand(
        fragments, row_scale, *numbers, cols, dtype
    ),
)
