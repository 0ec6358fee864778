"""The gradient that all products from fragments share."""

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
