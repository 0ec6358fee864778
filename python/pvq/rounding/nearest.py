"""Rounding to the nearest point: needs no data, minimises the squared error of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq.codes import Code, Stored
from pvq.rounding.hessian import Hessian


@dataclass(frozen=True)
class Nearest:
    """Each group of weights on its own."""

    name: ClassVar[str] = "nearest"
    needs_hessian: ClassVar[bool] = False

    def __call__(self, w: torch.Tensor, code: Code, hessian: Hessian | None = None) -> Stored:
        """The point of ``code`` nearest to each group of ``w`` [rows, cols]."""
        return code.quantize(w)
