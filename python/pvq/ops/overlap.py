"""Rules of the operators of the overlapping-pyramid codes.

The products are linear in the activations, so the gradient of one is the other, again from the
codes. The codes have no gradient.
"""

import torch
from torch import Tensor

from pvq.ops.gradient import register_transposes


@torch.library.register_fake("pvq::overlap_search")
def _overlap_search_fake(
    x: Tensor,
    table: Tensor,
    step_bits: int,
    lag: int,
    weight: Tensor | None = None,
    start: Tensor | None = None,
    end: Tensor | None = None,
    ring: bool = False,
    beam: int = 0,
    spread: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = x.shape
    return (
        x.new_empty((rows, cols // table.shape[2]), dtype=torch.uint8),
        x.new_empty((rows,), dtype=torch.int32),
        x.new_empty((rows,)),
    )


@torch.library.register_fake("pvq::overlap_dequantize")
def _overlap_dequantize_fake(
    code: Tensor,
    row_scale: Tensor,
    table: Tensor,
    step_bits: int,
    lag: int,
    spread: int,
    cols: int,
    dtype: torch.dtype,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return code.new_empty((row_scale.shape[0], cols), dtype=dtype)


@torch.library.register_fake("pvq::overlap_matmul")
def _overlap_matmul_fake(
    x: Tensor,
    code: Tensor,
    row_scale: Tensor,
    table: Tensor,
    step_bits: int,
    lag: int,
    spread: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))


@torch.library.register_fake("pvq::overlap_matmul_transposed")
def _overlap_matmul_transposed_fake(
    g: Tensor,
    code: Tensor,
    row_scale: Tensor,
    table: Tensor,
    step_bits: int,
    lag: int,
    spread: int,
    cols: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return g.new_empty((*g.shape[:-1], cols))


register_transposes("overlap_matmul", tensors=3)
