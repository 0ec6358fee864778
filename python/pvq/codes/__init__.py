"""The code column: what a group of weights is stored as, one file for each code."""

from typing import Protocol

import torch

Stored = dict[str, torch.Tensor]
"""The stored form of a matrix: its tensors by the name that they have in a checkpoint."""


class Code(Protocol):
    """What a rounding method asks of a code."""

    def quantize(self, w: torch.Tensor) -> Stored:
        """The nearest point to each group of the float32 matrix ``w`` [rows, cols]."""
        ...

    def dequantize(self, stored: Stored, cols: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [rows, cols] that ``stored`` decodes to."""
        ...
