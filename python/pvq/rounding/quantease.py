"""QuantEase: rounds block after block again, each to the best point given all others.

The loss of a layer is tr(E H E^T), E = W - W'. With all blocks but Q held fixed it is, up to a
constant,

    e H_QQ e^T,    e = (W_Q + sum over P != Q of E_P H_PQ H_QQ^-1) - W'_Q ,

so block Q is rounded from this target in the metric H_QQ: cyclic coordinate descent. QuantEase
(arXiv 2309.01885) does it by single weights; here a coordinate is a block of the code. It starts
from another method's result and never raises the loss: a row keeps its old point where the new one
is no better. That old point is chosen by rounding it again, because a point is its own nearest.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pvq.arguments import check_int, check_number
from pvq.codes import Code, Rounder, SparseRounder, Stored
from pvq.rounding import PricesColumns, Rounding, check_inner
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian, require

# Columns whose effect on all others is one matrix product.
_PANEL = 128


@dataclass(frozen=True)
class QuantEase:
    """Coordinate descent, started from block feedback or another method.

    With a code that keeps outliers apart (:mod:`pvq.codes.outliers`), each sweep is followed by a
    step on these: down the slope of the loss by 1 / (2 lambda_max), then all but the largest of a
    row are dropped. This is the outlier-aware variant of the paper.

    Attributes:
        sweeps: how often each block is rounded again.
        damping: added to the diagonal of H, relative to its mean; 0 to 1.
        start: the method whose result is improved; one that scales columns does so here too.
    """

    sweeps: int = 6
    damping: float = 0.01
    start: Rounding = field(default_factory=GPTQ)

    name: ClassVar[str] = "quantease"
    needs_hessian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_int("sweeps", self.sweeps, 0, 1000)
        check_number("damping", self.damping, 0, 1)
        check_inner("start", self.start, self)

    def __call__(self, w: Tensor, code: Code, hessian: Hessian | None = None) -> Stored:
        """See :class:`pvq.rounding.Rounding`."""
        loss = require(hessian)
        rounder = code.rounder_of(self.start(w, code, loss), w.shape[1])
        rounded = rounder.rescale(torch.ones(len(w), device=w.device))
        h = loss.damped(self.damping).float()
        longest = 0.0
        if isinstance(rounder, SparseRounder):
            longest = 1 / float(torch.linalg.eigvalsh(loss.damped(self.damping))[-1])
        for _ in range(self.sweeps):
            changed = sweep(w, rounded, rounder, h)
            if isinstance(rounder, SparseRounder):
                sparse = rounder.sparse() + (w - rounded) @ h * longest
                rounded = rounder.set_sparse(sparse)
            elif not changed:
                break
        return rounder.stored()

    def prices(self, hessian: Hessian, step: int) -> Tensor:
        """Those of the start; see :class:`pvq.rounding.PricesColumns`."""
        if isinstance(self.start, PricesColumns):
            return self.start.prices(hessian, step)
        return hessian.damped(0).diagonal().float()


def sweep(w: Tensor, rounded: Tensor, rounder: Rounder, h: Tensor) -> bool:
    """Rounds each block once more, from left to right.

    Args:
        w: [rows, cols] float32, the matrix.
        rounded: [rows, cols] float32, what its codes decode to; kept up to date.
        rounder: that holds these codes.
        h: [cols, cols] float32, the Hessian.

    Returns:
        Whether anything changed.
    """
    step, cols = rounder.step, w.shape[1]
    width = max(1, _PANEL // step) * step
    slope = (w - rounded) @ h  # E H
    changed = False
    for begin in range(0, cols, width):
        panel = slice(begin, min(begin + width, cols))
        before = rounded[:, panel].clone()
        for first in range(panel.start, panel.stop, step):
            block = slice(first, first + step)
            metric = h[block, block]
            old = rounded[:, block].clone()
            pull = torch.linalg.solve(metric, slope[:, block], left=False)
            new = _round_better(rounder, first, metric, old, old + pull)
            rounded[:, block] = new
            change = old - new
            if change.any():
                changed = True
                slope[:, panel] += change @ h[block, panel]
        inside = slope[:, panel].clone()
        slope += (before - rounded[:, panel]) @ h[panel]
        slope[:, panel] = inside
    return changed


def _round_better(
    rounder: Rounder, first: int, metric: Tensor, old: Tensor, target: Tensor
) -> Tensor:
    """Rounds ``target`` [rows, step] where that costs less than ``old``, and ``old`` elsewhere."""

    def cost(point: Tensor) -> Tensor:
        error = target - point
        return ((error @ metric) * error).sum(1)

    new = rounder.round(target, first, metric)
    better = cost(new) < cost(old)
    if better.all():
        return new
    return rounder.round(torch.where(better[:, None], target, old), first, metric)
