"""Gradients that products share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def dense_gradient(grad: Tensor, w: Tensor, block: int, seed: int) -> Tensor:
    """Gradient in ``x`` of ``rotate(x) @ w.T``: ``grad @ w``, rotated back.

    Args:
        grad: [..., rows].
        w: [rows, cols], in the rotated domain.
        block: of the rotation; 0 for none.
        seed: of the rotation's signs.
    """
    x_grad = grad @ w
    if block:
        x_grad = torch.ops.pvq.hadamard(x_grad, block, seed, True)
    return x_grad


def register_by_expansion(name: str, expand: Callable[..., Tensor], options: int = 0) -> None:
    """Gives ``pvq::name``, a product from fragments, the gradient of the dense product.

    Args:
        name: of an operator (x, fragments, row_scale, *numbers, block, seed, *options).
        expand: of (fragments, row_scale, numbers, cols, dtype), the weights [rows, cols] before
            they are rotated back.
        options: how many arguments follow the seed.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, fragments, row_scale, *rest = inputs
        *ctx.numbers, ctx.block, ctx.seed = rest[: len(rest) - options]
        ctx.cols, ctx.others = x.shape[-1], len(inputs) - 1
        ctx.save_for_backward(fragments, row_scale)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w = expand(*ctx.saved_tensors, ctx.numbers, ctx.cols, grad.dtype)
        return dense_gradient(grad, w, ctx.block, ctx.seed), *[None] * ctx.others

    torch.library.register_autograd(f"pvq::{name}", backward, setup_context=keep)


def register_transposes(name: str, tensors: int) -> None:
    """Makes the products ``pvq::name`` and ``pvq::name_transposed`` each other's gradients.

    Both are linear in their first argument; the codes have no gradient.

    Args:
        name: of an operator (x, *matrix, *numbers, block, seed); its transpose takes the columns
            before the block.
        tensors: of the matrix.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.cols = inputs[0].shape[-1]
        ctx.save_for_backward(*inputs[1 : 1 + tensors])
        ctx.numbers = inputs[1 + tensors :]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *numbers, block, seed = ctx.numbers
        matrix = (*ctx.saved_tensors, *numbers, ctx.cols, block, seed)
        found = getattr(torch.ops.pvq, f"{name}_transposed")(grad, *matrix)
        return found, *[None] * (tensors + len(ctx.numbers))

    def transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *numbers, _, block, seed = ctx.numbers
        found = getattr(torch.ops.pvq, name)(grad, *ctx.saved_tensors, *numbers, block, seed)
        return found, *[None] * (tensors + len(ctx.numbers))

    torch.library.register_autograd(f"pvq::{name}", backward, setup_context=keep)
    torch.library.register_autograd(
        f"pvq::{name}_transposed", transposed_backward, setup_context=keep
    )
