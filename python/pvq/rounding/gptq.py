"""GPTQ: rounds block after block, and lets later blocks make up for the error of earlier ones.

The loss of a layer is tr(E H E^T), E = W - W'. With H = M M^T, M upper triangular, it is the
squared norm of E M, of which block Q of columns is

    E_Q M_QQ + sum over blocks P before Q of E_P M_PQ.

Once the blocks before Q are rounded, what is left to choose for Q therefore costs

    e (M_QQ M_QQ^T) e^T,    e = (W_Q + sum_P E_P M_PQ M_QQ^-1) - W'_Q :

the target of Q is W_Q plus this feedback, and its metric is M_QQ M_QQ^T.

GPTQ (arXiv 2210.17323) and LDLQ (arXiv 2307.13304) do the same column by column, from U with
H^-1 = U^T U. U = M^-1, so the metric is the Schur complement of H on Q given all later columns; but
no inverse is needed, and a block of any size costs one triangular solve. Derived here for blocks.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pvq.arguments import check_choice, check_int, check_number
from pvq.codes import Code, Rounder, Stored
from pvq.rounding.hessian import Hessian, require

ORDERS = ("natural", "activation")
# Columns whose feedback from all columns before them is one matrix product.
_PANEL = 128


@dataclass(frozen=True)
class GPTQ:
    """Block feedback.

    Attributes:
        damping: added to the diagonal of H, relative to its mean; 0 to 1.
        order: of rounding, ``"natural"``, or ``"activation"``: blocks with large inputs first,
            which matters without a rotation only, because a rotation makes all inputs alike.
        passes: how often all is rounded. Row scales are those of W in the first pass; in each
            later one those of the targets in the pass before, which feedback has made larger. A
            second pass lowers the loss by less than a per cent.
    """

    damping: float = 0.01
    order: str = "natural"
    passes: int = 1

    name: ClassVar[str] = "gptq"
    needs_hessian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("damping", self.damping, 0, 1)
        check_choice("order", self.order, ORDERS)
        check_int("passes", self.passes, 1, 100)

    def __call__(self, w: Tensor, code: Code, hessian: Hessian | None = None) -> Stored:
        """See :class:`pvq.rounding.Rounding`."""
        targets = w
        for _ in range(self.passes):
            rounder = code.rounder(targets)
            targets = feedback(w, rounder, require(hessian), self.damping, self.order)
        return rounder.stored()

    def prices(self, hessian: Hessian, step: int) -> Tensor:
        """The diagonals of the metrics; see :class:`pvq.rounding.PricesColumns`."""
        factor, blocks = hessian.upper_factor(self.damping, step, self.order)
        count = len(blocks)
        roots = factor.view(count, step, count, step).diagonal(dim1=0, dim2=2)
        prices = torch.empty(count, step, device=factor.device)
        prices[blocks] = roots.square().sum(1).T  # the roots are [step, step, count]
        return prices.flatten()


def feedback(w: Tensor, rounder: Rounder, hessian: Hessian, damping: float, order: str) -> Tensor:
    """Rounds every block of ``w`` once.

    Args:
        w: [rows, cols] float32.
        rounder: of a code, for this matrix.
        hessian: of its loss.
        damping: see :class:`GPTQ`.
        order: see :class:`GPTQ`.

    Returns:
        [rows, cols] float32, the target that each block was rounded from.
    """
    step = rounder.step
    factor, blocks = hessian.upper_factor(damping, step, order)
    error = torch.empty_like(w)  # in the order of rounding
    targets = torch.empty_like(w)
    together = max(1, _PANEL // step)
    for begin in range(0, len(blocks), together):
        panel = slice(begin * step, min(begin + together, len(blocks)) * step)
        carried = error[:, : panel.start] @ factor[: panel.start, panel]
        for i in range(begin, min(begin + together, len(blocks))):
            here = slice(i * step, (i + 1) * step)
            own = slice(blocks[i] * step, (blocks[i] + 1) * step)
            inside = slice(panel.start, here.start)
            fed = carried[:, here.start - panel.start : here.stop - panel.start]
            fed = fed + error[:, inside] @ factor[inside, here]
            root = factor[here, here]
            target = w[:, own] + torch.linalg.solve_triangular(root, fed, upper=True, left=False)
            rounded = rounder.round(target, own.start, root @ root.T)
            targets[:, own] = target
            error[:, here] = w[:, own] - rounded
    return targets
