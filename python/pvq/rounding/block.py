"""A decoder layer whose linear layers are rounded, as methods see it that tune them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pvq.codes import Code, Stored


@dataclass(frozen=True)
class Matrix:
    """The weight of one linear layer.

    Attributes:
        weight: [rows, cols], the parameter of the layer; holds what ``stored`` decodes to.
        code: of the matrix.
        stored: its codes, on the device of ``weight``.
        block: of the Hadamard rotation of its rows, 0 for none.
        seed: of the rotation's signs.
        error: squared error of ``stored``, relative to the energy of the dense weight.
    """

    weight: Tensor
    code: Code
    stored: Stored
    block: int
    seed: int
    error: float


@dataclass(frozen=True)
class Block:
    """The layer, with the samples that it is calibrated on.

    Attributes:
        matrices: of its quantized linear layers.
        output: of the layer on a sample of that number, with its weights as they are; gradients can
            flow through it.
        targets: what the output should be on each sample, on any device.
    """

    matrices: Sequence[Matrix]
    output: Callable[[int], Tensor]
    targets: Sequence[Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """What became of a block.

    Attributes:
        stored: the codes of each matrix.
        before: squared error of the outputs relative to their energy, with the codes as given, on
            the samples that the method judges by.
        after: the same with these codes; never more than ``before``.
    """

    stored: Sequence[Stored]
    before: float
    after: float
