"""Operators of the codes that are written in tensor operations: decode to scratch, then multiply.

One family serves all of them on every device: a code travels as its JSON text, so that a graph
holds one opaque node for each product and no dense weight is kept for the backward pass. The
products are linear in the activations; the gradient of one is the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pvq.codes.decoded import decoder

# Weights that are decoded at one time: 16 MiB of float32 intermediate values.
_SLAB_WEIGHTS = 1 << 22


@torch.library.custom_op("pvq::decoded_dequantize", mutates_args=())
def decoded_dequantize(
    stored: Sequence[Tensor], code: str, cols: int, dtype: torch.dtype, block: int, seed: int
) -> Tensor:
    """The matrix [rows, cols] of ``stored`` in ``dtype``, rotated back unless ``block`` is 0."""
    w = _decode(stored, code, cols, torch.float32 if block else dtype)
    if block and w.numel():
        w = torch.ops.pvq.hadamard(w, block, seed, True)
    return w.to(dtype)


@torch.library.custom_op("pvq::decoded_matmul", mutates_args=())
def decoded_matmul(x: Tensor, stored: Sequence[Tensor], code: str, block: int, seed: int) -> Tensor:
    """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
    _check_activations(x)
    if block and x.numel():
        x = torch.ops.pvq.hadamard(x, block, seed)
    return functional.linear(x, _decode(stored, code, x.shape[-1], x.dtype))


@torch.library.custom_op("pvq::decoded_matmul_transposed", mutates_args=())
def decoded_matmul_transposed(
    g: Tensor, stored: Sequence[Tensor], code: str, cols: int, block: int, seed: int
) -> Tensor:
    """``g`` [..., rows] times the matrix, rotated back unless ``block`` is 0: [..., cols]."""
    _check_activations(g)
    y = g @ _decode(stored, code, cols, g.dtype)
    if block and y.numel():
        y = torch.ops.pvq.hadamard(y, block, seed, True)
    return y


def _decode(stored: Sequence[Tensor], code: str, cols: int, dtype: torch.dtype) -> Tensor:
    """The matrix [rows, cols] as it was rounded, in ``dtype``."""
    read = decoder(code)
    rows = stored[0].shape[0]
    layout = read.layout(rows, cols)
    tensors = dict(zip(layout, stored, strict=True))
    for name, (shape, expected) in layout.items():
        if tuple(tensors[name].shape) != shape or tensors[name].dtype != expected:
            raise RuntimeError(
                f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, expected {expected} "
                f"{list(shape)} for a [{rows}, {cols}] matrix of {read.describe()}"
            )
    w = torch.empty((rows, cols), dtype=dtype, device=stored[0].device)
    step = max(1, _SLAB_WEIGHTS // max(1, cols))
    for begin in range(0, rows if cols else 0, step):
        slab = slice(begin, begin + step)
        w[slab] = read.decode({name: tensor[slab] for name, tensor in tensors.items()}, cols)
    return w


def _check_activations(x: Tensor) -> None:
    if not x.is_floating_point():
        raise RuntimeError(f"x has dtype {x.dtype}, expected a floating-point dtype")


@decoded_dequantize.register_fake
def _dequantize_fake(
    stored: Sequence[Tensor], code: str, cols: int, dtype: torch.dtype, block: int, seed: int
) -> Tensor:
    return stored[0].new_empty((stored[0].shape[0], cols), dtype=dtype)


@decoded_matmul.register_fake
def _matmul_fake(x: Tensor, stored: Sequence[Tensor], code: str, block: int, seed: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], stored[0].shape[0]))


@decoded_matmul_transposed.register_fake
def _transposed_fake(
    g: Tensor, stored: Sequence[Tensor], code: str, cols: int, block: int, seed: int
) -> Tensor:
    return g.new_empty((*g.shape[:-1], cols))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, stored, ctx.code, *ctx.numbers = inputs
    ctx.cols = x.shape[-1]
    ctx.save_for_backward(*stored)


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    block, seed = ctx.numbers
    stored = list(ctx.saved_tensors)
    back = torch.ops.pvq.decoded_matmul_transposed(grad, stored, ctx.code, ctx.cols, block, seed)
    return back, [None] * len(stored), None, None, None


def _transposed_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    _, block, seed = ctx.numbers
    stored = list(ctx.saved_tensors)
    back = torch.ops.pvq.decoded_matmul(grad, stored, ctx.code, block, seed)
    return back, [None] * len(stored), None, None, None, None


decoded_matmul.register_autograd(_matmul_backward, setup_context=_keep)
decoded_matmul_transposed.register_autograd(_transposed_backward, setup_context=_keep)
