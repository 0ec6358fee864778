"""Feedback inside a block: rounding a few columns at a time under a metric of the whole block.

The error e of a row costs e M e^T. With M^-1 = U^T U, U upper triangular, rounding columns B with
error E and moving the columns F after them by -E U_BB^-1 U_BF minimises the cost over all real
values of F (the recursion of GPTQ, arXiv 2210.17323, here for several columns at a time), and
(U_BB^T U_BB)^-1 is the metric that is left for B once what comes after is free to follow.
"""

from collections.abc import Callable

import torch

from pvq.codes import Rounder

Nearest = Callable[[torch.Tensor, int, torch.Tensor | None], torch.Tensor]
"""Rounds columns [rows, width] from a first column on under a metric [width, width] or none."""


def round_blocks(rounder: Rounder, w: torch.Tensor, first: int) -> torch.Tensor:
    """Rounds several blocks to their nearest points, one after the other."""
    step = rounder.step
    starts = range(0, w.shape[1], step)
    rounded = [rounder.round(w[:, at : at + step], first + at) for at in starts]
    return torch.cat(rounded, 1) if rounded else w.clone()


def round_with_feedback(
    w: torch.Tensor, metric: torch.Tensor | None, width: int, nearest: Nearest
) -> torch.Tensor:
    """Rounds ``w`` [rows, cols] from left to right, ``width`` columns at a time.

    Args:
        w: not changed.
        metric: [cols, cols], symmetric positive definite; ``None`` rounds all columns at once.
        width: columns that ``nearest`` takes; the last may be fewer.
        nearest: called for each run of columns in order; may record what it rounds to.

    Returns:
        What ``nearest`` returned, [rows, cols].
    """
    if metric is None:
        return nearest(w, 0, None)
    values, decoded = w.clone(), torch.empty_like(w)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric.double()))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for begin in range(0, w.shape[1], width):
        end = min(begin + width, w.shape[1])
        corner = upper[begin:end, begin:end]
        local = None
        if end - begin > 1:
            local = torch.cholesky_inverse(corner, upper=True).float()
        decoded[:, begin:end] = nearest(values[:, begin:end].contiguous(), begin, local)
        if end < w.shape[1]:
            pull = torch.linalg.solve_triangular(corner, upper[begin:end, end:], upper=True)
            error = values[:, begin:end] - decoded[:, begin:end]
            values[:, end:] -= error @ pull.float()
    return decoded
