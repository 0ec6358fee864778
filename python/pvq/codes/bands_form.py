"""The run-time form of bands: that of a pyramid code for each of them, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pvq.codes import RunTimeForm, Stored


class Bands(Protocol):
    """What the form asks of the code."""

    def limits(self, cols: int) -> Sequence[slice]:
        """The columns of each band."""
        ...

    def band(self, tensors: Stored, number: int) -> Stored:
        """The tensors of one band, by the names that its own code has for them."""
        ...


@dataclass(frozen=True)
class BandsForm:
    """Tensors have the names of their form and the number of their band.

    Attributes:
        code: of the matrices.
        forms: of the bands, of one layout.
    """

    code: Bands
    forms: tuple[RunTimeForm, ...]

    @property
    def layout(self) -> str:
        """That of the bands."""
        return self.forms[0].layout

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(f"{name}_{i}" for i, form in enumerate(self.forms) for name in form.tensors)

    @property
    def replaces(self) -> tuple[str, ...]:
        """Names of the stored tensors that it makes superfluous."""
        return tuple(f"{name}_{i}" for i, form in enumerate(self.forms) for name in form.replaces)

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The tensors of this form; ``None`` if one of the bands has none."""
        held: Stored = {}
        for i, (form, band) in enumerate(self._bands(shape[1])):
            width = band.stop - band.start
            tensors = form.of_stored(self.code.band(stored, i), (shape[0], width))
            if tensors is None:
                return None
            held |= {f"{name}_{i}": tensor for name, tensor in tensors.items()}
        return held

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The stored tensors that it replaces."""
        stored: Stored = {}
        for i, (form, band) in enumerate(self._bands(shape[1])):
            width = band.stop - band.start
            tensors = form.to_stored(self.code.band(held, i), (shape[0], width))
            stored |= {f"{name}_{i}": tensor for name, tensor in tensors.items()}
        return stored

    def matmul(
        self, x: Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        if block:
            x = torch.ops.pvq.hadamard(x, block, seed)
        y = torch.zeros((), device=x.device)
        for i, (form, band) in enumerate(self._bands(x.shape[-1])):
            own = self.code.band(held, i)
            part = form.matmul(x[..., band].contiguous(), own, rows, 0, 0, activations)
            y = y + part.float()
        return y.to(x.dtype)

    def _bands(self, cols: int) -> list[tuple[RunTimeForm, slice]]:
        return list(zip(self.forms, self.code.limits(cols), strict=True))
