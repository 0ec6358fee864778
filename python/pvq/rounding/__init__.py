"""The rounding column: which point of a code stands for a matrix, one file for each method.

A method is a frozen dataclass whose fields are its settings; :mod:`pvq.rounding.registry` knows all
of them by name. No checkpoint depends on them: they say how codes are chosen, not how they are
read.
"""

from typing import Any, ClassVar, Protocol

import torch

from pvq.codes import Code, Stored
from pvq.rounding.hessian import Hessian


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
