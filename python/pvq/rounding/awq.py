"""AWQ: scales up the columns whose inputs are large, so that they are rounded more finely.

(W s) (x / s) = W x for any s > 0 a column, but the error of rounding W s is spread over columns in
proportion to 1 / s. AWQ (arXiv 2306.00978) takes s_j = a_j^alpha, a_j the size of input j, and
searches alpha for the least error of the layer's outputs; then it clips: all scales of a row are
shrunk by the factor that lowers that error most. Weights that a code keeps apart are not clipped.

Here s is rounded to powers of two. So the weights, and whatever makes the layer's inputs, can take
s and 1 / s without any rounding (:mod:`pvq.calibration.absorb`), and a checkpoint holds nothing
more. Where nothing can, the columns stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pvq.arguments import check_int
from pvq.codes import Code, Rounder, SparseRounder, Stored
from pvq.config import PVQConfig
from pvq.rounding import PricesColumns, Rounding, check_inner, scaling_of
from pvq.rounding.hessian import Hessian, require

# Powers of two that no row scale or norm overflows by.
_MAX_SHIFT = 6
_CLIP_STEP = 0.05


@dataclass(frozen=True)
class AWQ:
    """Column scales, then the nearest points with clipped row scales, or another method.

    Attributes:
        grid: values of alpha that are tried, from 0 to below 1.
        clips: factors of the row scales that are tried: 1, 0.95, 0.9, ...
        then: how the scaled matrix is rounded instead, such as ``GPTQ()``; a method that neither
            scales columns nor reconstructs decoder layers.
    """

    grid: int = 10
    clips: int = 6
    then: Rounding | None = None

    name: ClassVar[str] = "awq"
    needs_hessian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_int("grid", self.grid, 1, 1000)
        check_int("clips", self.clips, 1, 19)
        if self.then is None:
            return
        check_inner("then", self.then, self)
        if scaling_of(self.then) is not None:
            raise ValueError(
                f"then is {self.then.name!r}, which scales columns itself: use it alone"
            )

    def __call__(self, w: Tensor, code: Code, hessian: Hessian | None = None) -> Stored:
        """See :class:`pvq.rounding.Rounding`."""
        if self.then is not None:
            return self.then(w, code, hessian)
        h = require(hessian).damped(0).float()
        factors = 1 - _CLIP_STEP * torch.arange(self.clips, device=w.device)
        nearest = code.quantize(w)  # some codes fit their scales when they round
        losses = []
        for factor in factors:
            _, rounded = _clipped(nearest, code, w, factor.expand(len(w)))
            error = w - rounded
            losses.append(((error @ h) * error).sum(1))
        rounder, _ = _clipped(nearest, code, w, factors[torch.stack(losses).argmin(0)])
        return rounder.stored()

    def prices(self, hessian: Hessian, step: int) -> Tensor:
        """See :class:`pvq.rounding.PricesColumns`; nothing makes up for the nearest points."""
        if isinstance(self.then, PricesColumns):
            return self.then.prices(hessian, step)
        return hessian.damped(0).diagonal().float()

    def column_scales(
        self, weights: Sequence[Tensor], configs: Sequence[PVQConfig], hessian: Tensor
    ) -> Tensor | None:
        """Powers of two that the columns of some matrices with one input should be scaled by.

        Args:
            weights: [rows, cols] each.
            configs: how each is going to be quantized.
            hessian: [cols, cols], X^T X of their input.

        Returns:
            [cols] float32; ``None`` if no scales are better than none.
        """
        size = hessian.diagonal().clamp_min(torch.finfo(torch.float32).tiny).sqrt().log2()
        size = (size - size.median()).clamp(-_MAX_SHIFT, _MAX_SHIFT)
        best = torch.zeros_like(size)
        least = self._output_error(weights, configs, hessian, best)
        for i in range(1, self.grid):
            shift = (size * i / self.grid).round()
            loss = self._output_error(weights, configs, hessian, shift)
            if loss < least:
                best, least = shift, loss
        return best.exp2() if best.any() else None

    def _output_error(
        self,
        weights: Sequence[Tensor],
        configs: Sequence[PVQConfig],
        hessian: Tensor,
        shift: Tensor,
    ) -> float:
        total = 0.0
        for weight, config in zip(weights, configs, strict=True):
            scaled = weight.float() * shift.exp2()
            error = (scaled - _nearest(scaled, config)) / shift.exp2()
            total += ((error @ hessian) * error).sum(dtype=torch.float64).item()
        return total


def _clipped(nearest: Stored, code: Code, w: Tensor, factor: Tensor) -> tuple[Rounder, Tensor]:
    """``w`` rounded once more, with the scales of ``nearest`` times ``factor`` [rows].

    Returns:
        The rounder, and [rows, cols] float32, what its codes decode to.
    """
    rounder = code.rounder_of(nearest, w.shape[1])
    if isinstance(rounder, SparseRounder):
        apart = rounder.sparse()
        rounder.rescale(factor)
        rounder.set_sparse(apart)
    else:
        rounder.rescale(factor)
    return rounder, rounder.round(w, 0)


def _nearest(w: Tensor, config: PVQConfig) -> Tensor:
    """What rounding ``w`` [rows, cols], not rotated, to the nearest points decodes to."""
    rotated = w.clone()
    if config.hadamard_block and rotated.numel():
        torch.ops.pvq.hadamard_(rotated, config.hadamard_block, config.seed)
    return config.code.dequantize(
        config.code.quantize(rotated),
        w.shape[1],
        torch.float32,
        config.hadamard_block,
        config.seed,
    )
