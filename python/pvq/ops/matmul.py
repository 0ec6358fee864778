"""Rules of the products from codes: ``matmul``, ``matmul_planes`` and their transposes.

All are linear in the activations, so the gradient of a product is its transposed product and the
other way round, again from the codes: no dense weight is ever made. The codes have no gradient.

A gradient rule costs a few microseconds a call also where no gradient is wanted, except under
``torch.inference_mode()``: on the CPU, generate under it.
"""

from typing import Any

import torch
from torch import Tensor

from pvq import _core
from pvq.ops.gradient import register_transposes

_PANEL_ROWS = 16  # rows that the planes hold together, see csrc/cpu/planes.h
_PLANES_INPUTS = 9  # of matmul_planes and its transpose, after x or g


@torch.library.register_fake("pvq::matmul")
def _matmul_fake(
    x: Tensor,
    index: Tensor,
    gain: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], row_scale.shape[0]))


@torch.library.register_fake("pvq::matmul_transposed")
def _matmul_transposed_fake(
    g: Tensor,
    index: Tensor,
    gain: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    cols: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return g.new_empty((*g.shape[:-1], cols))


@torch.library.register_fake("pvq::to_planes")
def _to_planes_fake(
    index: Tensor,
    gain: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    cols: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    panels = (row_scale.shape[0] + _PANEL_ROWS - 1) // _PANEL_ROWS
    if _core.plane_bits(dim, pulses) == 4:
        planes = index.new_empty((panels, (cols + 7) // 8, _PANEL_ROWS), dtype=torch.int32)
    else:
        planes = index.new_empty((panels, cols, _PANEL_ROWS), dtype=torch.int8)
    outliers = torch.library.get_ctx().new_dynamic_size()
    return (
        planes,
        index.new_empty((panels, cols // dim, _PANEL_ROWS), dtype=torch.float32),
        index.new_empty((panels + 1,), dtype=torch.int32),
        index.new_empty((outliers,), dtype=torch.int32),
        index.new_empty((outliers,), dtype=torch.float32),
    )


@torch.library.register_fake("pvq::matmul_planes")
def _matmul_planes_fake(
    x: Tensor,
    planes: Tensor,
    scale: Tensor,
    outlier_start: Tensor,
    outlier_place: Tensor,
    outlier_value: Tensor,
    rows: int,
    dim: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.register_fake("pvq::matmul_planes_transposed")
def _matmul_planes_transposed_fake(
    g: Tensor,
    planes: Tensor,
    scale: Tensor,
    outlier_start: Tensor,
    outlier_place: Tensor,
    outlier_value: Tensor,
    rows: int,
    dim: int,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return g.new_empty((*g.shape[:-1], scale.shape[1] * dim))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Saves what describes the matrix: all inputs but the activations."""
    ctx.save_for_backward(*(i for i in inputs[1:] if isinstance(i, Tensor)))
    ctx.numbers = [i for i in inputs[1:] if not isinstance(i, Tensor)]


def _matmul_planes_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    matrix = (*ctx.saved_tensors, *ctx.numbers)
    return torch.ops.pvq.matmul_planes_transposed(grad, *matrix), *[None] * _PLANES_INPUTS


def _matmul_planes_transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    matrix = (*ctx.saved_tensors, *ctx.numbers)
    return torch.ops.pvq.matmul_planes(grad, *matrix), *[None] * _PLANES_INPUTS


register_transposes("matmul", tensors=3)
for _name, _backward in (
    ("matmul_planes", _matmul_planes_backward),
    ("matmul_planes_transposed", _matmul_planes_transposed_backward),
):
    torch.library.register_autograd(f"pvq::{_name}", _backward, setup_context=_keep_inputs)
