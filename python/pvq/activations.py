"""What products do to their activations: the names of the choices, and pyramid codes for them.

With ``"pyramid4"``, say, activations are rotated as the weights are and cut into groups; each
becomes amplitude * y, an integer vector y with sum |y_i| = pulses and a bfloat16 amplitude, so that
a value takes 4 bits at most, were it stored: ``(index_bits + 16) / dim``. Products with planes on
the CPU, and with table and overlapping codes on the GPU, multiply the integers; others take what
the points stand for.
"""

import functools
import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pvq import _core
from pvq.codes import ACTIVATIONS, MultipliesPoints, RunTimeForm, Stored
from pvq.codes.pyramid import MAX_PULSES, most_pulses

# As many columns as a scale has in the GPU's products, or fewer.
DIMS = (128, 64, 32, 16, 8)
MIN_BITS, MAX_BITS = 2.0, 8.0
AMPLITUDE_BITS = 16

# What products may do to decoded points: the GPU's integers of 15 bits keep all that they have.
DECODED = "int8x2"

_PYRAMID = re.compile(r"pyramid(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class ActivationCode:
    """The points that activations are rounded to.

    Attributes:
        dim: columns of a group.
        pulses: sum of the magnitudes of its integers.
    """

    dim: int
    pulses: int

    @property
    def bits(self) -> float:
        """Bits of an activation, index and amplitude."""
        return (_core.index_bits(self.dim, self.pulses) + AMPLITUDE_BITS) / self.dim

    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds ``x`` [..., cols], rotated already.

        Returns:
            The integers int16 [..., cols] and the amplitudes bfloat16 [..., cols / dim].

        Raises:
            RuntimeError: if ``x`` holds NaN or infinity, on the CPU. Refusing them would wait for
                a GPU: there, their groups become zeros.
        """
        point, amplitude = torch.ops.pvq.activation_points(x, self.dim, self.pulses)
        return point, amplitude


def rotated(x: Tensor, block: int, seed: int) -> Tensor:
    """``x`` [..., cols] in float32, rotated unless ``block`` is 0."""
    wide = x.float()
    return torch.ops.pvq.hadamard(wide, block, seed) if block else wide


def takes_points(form: RunTimeForm, points: ActivationCode, x: Tensor) -> bool:
    """Whether the product of ``form`` with ``x`` multiplies the integers of its points."""
    return isinstance(form, MultipliesPoints) and form.takes_points(points.dim, x.dtype)


def multiply(
    form: RunTimeForm,
    x: Tensor,
    held: Stored,
    rows: int,
    block: int,
    seed: int,
    activations: str | ActivationCode,
) -> Tensor:
    """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

    ``activations`` is one of :data:`pvq.codes.ACTIVATIONS`, or the points that the rotated ``x`` is
    rounded to. Then the product has no gradient.
    """
    if isinstance(activations, str):
        return form.matmul(x, held, rows, block, seed, activations)
    rounded = activations.round(rotated(x, block, seed))
    if takes_points(form, activations, x):
        integer_form = cast(MultipliesPoints, form)
        return integer_form.matmul_points(*rounded, activations.pulses, held, rows, x.dtype)
    return multiply_values(form, decoded(*rounded).to(x.dtype), held, rows)


def multiply_values(form: RunTimeForm, values: Tensor, held: Stored, rows: int) -> Tensor:
    """The product of what points stand for, [..., cols], with every row."""
    return form.matmul(values, held, rows, 0, 0, DECODED)


def decoded(point: Tensor, amplitude: Tensor) -> Tensor:
    """float32 [..., cols]: what points stand for."""
    groups = point.view(*amplitude.shape, point.shape[-1] // max(1, amplitude.shape[-1]))
    return (groups * amplitude.float().unsqueeze(-1)).view(point.shape)


def check_activations(name: object) -> None:
    """Refuses what names no choice.

    Raises:
        ValueError: naming the choices.
    """
    if name not in ACTIVATIONS and _bits_of(name) is None:
        raise ValueError(
            f"activations is {name!r}, expected one of {', '.join(map(repr, ACTIVATIONS))}, or "
            f"'pyramid' and a number of bits from {MIN_BITS:g} to {MAX_BITS:g}, such as 'pyramid4'"
        )


@functools.cache
def activation_code(name: str, cols: int) -> ActivationCode | None:
    """The points of a choice for rows of ``cols`` activations; ``None`` if it asks for none.

    Of all group sizes, the one with the finest points at that rate.

    Raises:
        ValueError: if ``name`` is no choice, or no group size fits ``cols``.
    """
    check_activations(name)
    bits = _bits_of(name)
    if bits is None:
        return None
    codes = []
    for dim in DIMS:
        index_bits = int(bits * dim) - AMPLITUDE_BITS
        if cols % dim == 0 and index_bits >= _core.index_bits(dim, 1):
            codes.append(ActivationCode(dim, most_pulses(dim, index_bits, MAX_PULSES)))
    if not codes:
        raise ValueError(
            f"activations={name!r} has no groups for {cols} columns, which need a multiple of 32: "
            "pass activations='float' or leave this layer dense"
        )
    return max(codes, key=lambda code: code.pulses / code.dim)


def _bits_of(name: object) -> float | None:
    """The bits that a name asks for; ``None`` if it names no pyramid."""
    match = _PYRAMID.fullmatch(name) if isinstance(name, str) else None
    if match is None or not MIN_BITS <= float(match[1]) <= MAX_BITS:
        return None
    return float(match[1])
