"""The loss of a layer as rounding methods see it: H = X^T X of its inputs, rotated as the weights.

Replacing W by W' changes the layer's outputs X W^T by a squared error of tr(E H E^T), E = W - W',
exactly. With a rotation Q of the weights' rows, W Q^T and X Q^T take the place of W and X, and
Q H Q^T that of H.
"""

import torch
from torch import Tensor


class Hessian:
    """H in the basis in which a matrix is rounded.

    Args:
        sums: [cols, cols], X^T X, of any floating-point dtype; symmetric but for rounding.
        block: of the Hadamard rotation of the weights, 0 for none.
        seed: of its signs.

    Raises:
        ValueError: if it holds NaN or infinite values, is not square, or all zero.
    """

    def __init__(self, sums: Tensor, block: int = 0, seed: int = 0) -> None:
        if sums.ndim != 2 or sums.shape[0] != sums.shape[1]:
            raise ValueError(f"Hessian has shape {list(sums.shape)}, expected [cols, cols]")
        if not torch.isfinite(sums).all():
            raise ValueError(
                "Hessian has NaN or infinite values: the inputs of the layer overflow or are not "
                "finite; run the model in another dtype, or leave the layer dense"
            )
        if sums.numel() and not (sums.diagonal() > 0).any():
            raise ValueError(
                "Hessian is zero: the layer saw no input, or only zeros; use rounding='nearest'"
            )
        if block:
            half = torch.ops.pvq.hadamard(sums.float(), block, seed)
            sums = torch.ops.pvq.hadamard(half.T.contiguous(), block, seed)
        sums = sums.double()
        self._matrix = (sums + sums.T) / 2
        self._factors: dict[tuple[float, int, str], tuple[Tensor, list[int]]] = {}

    def damped(self, damping: float) -> Tensor:
        """H plus ``damping`` times the mean of its diagonal on the diagonal; float64."""
        damped = self._matrix.clone()
        damped.diagonal().add_(damping * damped.diagonal().mean())
        return damped

    def blocks(self, step: int, order: str) -> list[int]:
        """Numbers of the blocks of ``step`` columns in an order of rounding."""
        energy = self._matrix.diagonal().view(-1, step).sum(1)
        if order == "natural":
            return list(range(len(energy)))
        blocks: list[int] = energy.argsort(descending=True, stable=True).tolist()
        return blocks

    def upper_factor(self, damping: float, step: int, order: str) -> tuple[Tensor, list[int]]:
        """M, upper triangular, with M M^T = the damped H in the order of its blocks.

        Args:
            damping: see :meth:`damped`.
            step: columns of a block.
            order: ``"natural"``, or ``"activation"`` for blocks with large inputs first.

        Returns:
            M [cols, cols] float32, and the numbers of the blocks in that order. Kept, for the next
            rows of the same layer.

        Raises:
            ValueError: if the damped H is not positive definite.
        """
        key = (damping, step, order)
        if key not in self._factors:
            blocks = self.blocks(step, order)
            inside = torch.arange(step)
            columns = (torch.tensor(blocks)[:, None] * step + inside).flatten()
            backwards = columns.flip(0).to(self._matrix.device)
            lower, failed = torch.linalg.cholesky_ex(self.damped(damping)[backwards][:, backwards])
            if int(failed):
                raise ValueError(
                    f"Hessian is singular with damping={damping}: the layer saw fewer independent "
                    f"inputs than its {len(columns)} columns; pass a larger damping or more "
                    "calibration text"
                )
            self._factors[key] = lower.flip(0, 1).float().contiguous(), blocks
        return self._factors[key]


def require(hessian: Hessian | None) -> Hessian:
    """Refuses a missing Hessian.

    Raises:
        ValueError: if it is ``None``.
    """
    if hessian is None:
        raise ValueError("this rounding method needs calibration: pass a Hessian")
    return hessian
