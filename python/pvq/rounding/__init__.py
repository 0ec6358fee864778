"""The rounding column: which point of a code stands for a matrix, one file for each method."""

from typing import Protocol

import torch

from pvq.codes import Code, Stored


class Rounding(Protocol):
    """A rounding method: knows no code by name, only what :class:`pvq.codes.Code` offers."""

    def __call__(self, w: torch.Tensor, code: Code) -> Stored:
        """Rounds the rotated float32 matrix ``w`` [rows, cols] to ``code``."""
        ...
