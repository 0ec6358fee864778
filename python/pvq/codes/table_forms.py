"""What the fragments of codes that are read through a table have in common."""

from typing import ClassVar

import torch

from pvq.codes import CHUNK_COLUMNS, KERNEL_DTYPES


class TableForm:
    """Fragments in place of the code, whose product rounds activations or takes them as points."""

    layout: ClassVar[str] = "fragments"
    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    replaces: ClassVar[tuple[str, ...]] = ("code",)

    def fuses(self, x: torch.Tensor, activations: str) -> bool:
        """Whether the product with ``x`` is the kernel's, which rounds activations."""
        return activations != "float" and x.dtype in KERNEL_DTYPES

    def takes_points(self, dim: int, dtype: torch.dtype) -> bool:
        """Whether the product takes points in groups of ``dim``, of which a chunk is made."""
        return CHUNK_COLUMNS % dim == 0 and dim % 4 == 0 and dtype in KERNEL_DTYPES
