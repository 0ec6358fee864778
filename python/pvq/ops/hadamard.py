"""Rules of ``torch.ops.pvq.hadamard`` and ``hadamard_``.

The transform is orthogonal, so its gradient is the inverse transform of the incoming gradient.
``hadamard_`` works in place and has no gradient.
"""

from typing import Any

import torch
from torch import Tensor


def _fake(x: Tensor, block: int, seed: int | None = None, inverse: bool = False) -> Tensor:
    return x.new_empty(x.shape)


def _fake_in_place(x: Tensor, block: int, seed: int | None = None, inverse: bool = False) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.block, ctx.seed, ctx.inverse = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.pvq.hadamard(grad, ctx.block, ctx.seed, not ctx.inverse), None, None, None


torch.library.register_fake("pvq::hadamard", _fake)
torch.library.register_fake("pvq::hadamard_", _fake_in_place)
torch.library.register_autograd("pvq::hadamard", _backward, setup_context=_setup_context)
