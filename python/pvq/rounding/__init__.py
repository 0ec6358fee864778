"""The rounding column: which point of a code stands for a matrix, one file for each method.

A method is a frozen dataclass whose fields are its settings; :mod:`pvq.rounding.registry` knows all
of them by name. No checkpoint depends on them: they say how codes are chosen, not how they are
read.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from pvq.codes import Code, Stored
from pvq.config import PVQConfig
from pvq.rounding.block import Block, Reconstruction
from pvq.rounding.hessian import Hessian


@runtime_checkable
class ScalesColumns(Protocol):
    """A rounding method that wants columns scaled before it rounds, where inputs can be too."""

    def column_scales(
        self,
        weights: Sequence[torch.Tensor],
        configs: Sequence[PVQConfig],
        hessian: torch.Tensor,
    ) -> torch.Tensor | None:
        """Powers of two [cols] float32 for all matrices with one input; ``None`` for none.

        Args:
            weights: [rows, cols] each, not rotated.
            configs: how each is going to be quantized.
            hessian: [cols, cols] float32, X^T X of their input, not rotated.
        """
        ...


@runtime_checkable
class PricesColumns(Protocol):
    """A rounding method that knows where errors cost most, for codes with a rate a band."""

    def prices(self, hessian: Hessian, step: int) -> torch.Tensor:
        """What a squared error in each column adds to the loss of a row, [cols] float32.

        Args:
            hessian: of the loss.
            step: columns that the code rounds together.

        Raises:
            ValueError: if the method needs more of the Hessian than that has, such as an inverse.
        """
        ...


@runtime_checkable
class Rounding(Protocol):
    """A rounding method: knows no code by name, only what :class:`pvq.codes.Code` offers."""

    name: ClassVar[str]
    """As the command line calls it."""
    needs_hessian: ClassVar[bool]
    """Whether it asks for the inputs of a layer."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, w: torch.Tensor, code: Code, hessian: Hessian | None = None) -> Stored:
        """Rounds a matrix.

        Args:
            w: [rows, cols] float32, rotated already.
            code: to round it to.
            hessian: of the loss in a row of ``w``, which has the same rotation.

        Raises:
            ValueError: if the method needs a Hessian and there is none, or it is singular.
        """
        ...


@runtime_checkable
class ReconstructsBlocks(Protocol):
    """A rounding method that goes on from another one, with a whole decoder layer at a time."""

    name: ClassVar[str]
    start: Rounding
    """What rounds the matrices first, one by one."""

    def reconstruct(self, block: Block) -> Reconstruction:
        """Other codes for a decoder layer, or those that it has.

        Args:
            block: the layer; its weights are left as they are.
        """
        ...


def scaling_of(rounding: Rounding) -> ScalesColumns | None:
    """The method, or the one that it starts from, that wants columns scaled; ``None`` if none."""
    if isinstance(rounding, ScalesColumns):
        return rounding
    start = getattr(rounding, "start", None)
    return None if start is None else scaling_of(start)


def check_method(name: str, value: object) -> None:
    """Refuses what is no rounding method.

    Raises:
        TypeError: if ``value`` is none, such as a name or a class.
    """
    if isinstance(value, type) or not isinstance(value, Rounding):
        raise TypeError(
            f"{name} is {value!r}, expected a rounding method such as GPTQ(); names go through "
            "pvq.rounding.registry.make_rounding"
        )


def check_inner(name: str, value: object, outer: Rounding) -> None:
    """Refuses what is no rounding method for the matrices of ``outer``, one by one.

    Raises:
        TypeError: if ``value`` is no rounding method.
        ValueError: if it goes on with whole decoder layers, which only the outermost method can.
    """
    check_method(name, value)
    if isinstance(value, ReconstructsBlocks):
        raise ValueError(
            f"{name} is {value.name!r}, which tunes whole decoder layers after their matrices are "
            f"rounded: turn it around, {value.name!r} with start={outer.name!r}"
        )
