"""The code column: what the weights of a row are stored as, one file for each code.

A code is a frozen dataclass whose fields are its choices: the numbers that a checkpoint must hold
for its tensors to be read again. :mod:`pvq.codes.registry` knows all codes by name.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

Stored = dict[str, torch.Tensor]
"""The stored form of a matrix: its tensors by the name that they have in a checkpoint."""

ACTIVATIONS = ("int8", "int8x2", "float")
"""What a product may do to its activations beside rounding them to points
(:mod:`pvq.activations`); see :meth:`pvq.PVQLinear.prepare`."""

KERNEL_DTYPES = (torch.float16, torch.bfloat16)
"""Of the activations that the GPU's kernels multiply with fragments."""

CHUNK_COLUMNS = 128
"""That the GPU's kernels multiply at a time: fragments have whole chunks."""

TILE_ROWS = 16
"""Of a tile of fragments (csrc/cuda/fragments.h)."""

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor of a stored form."""


class RunTimeForm(Protocol):
    """A matrix as the product of one kind of device reads it fastest, made from the stored form.

    Its tensors take the place of some stored ones, which can be made from them again bit for bit.
    """

    @property
    def layout(self) -> str:
        """Its name, as :meth:`pvq.PVQLinear.prepare` takes it."""
        ...

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors."""
        ...

    @property
    def replaces(self) -> tuple[str, ...]:
        """Names of the stored tensors that it makes superfluous."""
        ...

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The tensors of this form; ``None`` if this matrix would not survive the way back.

        Raises:
            RuntimeError: if the codes are damaged.
        """
        ...

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The tensors that :attr:`replaces` names, from what a layer holds in this form."""
        ...

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        ``activations`` is one of :data:`ACTIVATIONS`.
        """
        ...


@runtime_checkable
class GivesRows(Protocol):
    """A run-time form from which single rows can be read: tables of embeddings can take it."""

    def dequantize_rows(
        self,
        held: Stored,
        ids: torch.Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        block: int,
        seed: int,
    ) -> torch.Tensor:
        """The rows ``ids`` [n] of the matrix, rotated back unless ``block`` is 0: [n, cols]."""
        ...


@runtime_checkable
class GivesIndex(Protocol):
    """A code whose products can read what it stores, in as many bits, without a dense scratch."""

    def index_form(self, device: torch.device) -> RunTimeForm | None:
        """The form named ``"index"`` on ``device``; ``None`` where that is the stored form."""
        ...


@runtime_checkable
class MultipliesPoints(Protocol):
    """A run-time form whose product takes activations as integer points, :mod:`pvq.activations`."""

    def takes_points(self, dim: int, dtype: torch.dtype) -> bool:
        """Whether it does so in groups of ``dim`` columns, for a product in ``dtype``."""
        ...

    def matmul_points(
        self,
        point: torch.Tensor,
        amplitude: torch.Tensor,
        pulses: int,
        held: Stored,
        rows: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The product of amplitude * point [..., cols], rotated already, with every row.

        ``pulses`` is the sum of the magnitudes of a group's integers.
        """
        ...


class Rounder(Protocol):
    """A matrix on its way into a code, block of columns after block: what feedback methods ask.

    Made by :meth:`Code.rounder`, which fixes what holds for whole rows, such as their scales.
    Blocks may be rounded in any order, and again: the last rounding of a block counts.
    """

    step: int
    """Columns that are rounded together; a divisor of the matrix's columns."""

    def round(
        self, w: torch.Tensor, first: int, metric: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rounds the block that starts at column ``first``, a multiple of :attr:`step`.

        Args:
            w: [rows, step] float32, what the block should be; not changed. Without a metric it may
                be several blocks, one after the other.
            first: its first column.
            metric: [step, step] float32, symmetric positive definite: the error e of a row costs
                e @ metric @ e; ``None`` for the squared error.

        Returns:
            float32 in the shape of ``w``, what the codes decode to: a point with a small cost, not
            always the least one.
        """
        ...

    def rescale(self, factor: torch.Tensor) -> torch.Tensor:
        """Multiplies all scales of each row and keeps the codes.

        Args:
            factor: [rows] float32, positive; the products are rounded to the dtype stored.

        Returns:
            [rows, cols] float32, what all codes decode to afterwards.
        """
        ...

    def stored(self) -> Stored:
        """The stored form, after every block was rounded."""
        ...


@runtime_checkable
class SparseRounder(Rounder, Protocol):
    """A rounder of a code that keeps some weights apart from all blocks, a few in each row."""

    def sparse(self) -> torch.Tensor:
        """The part that is kept apart, [rows, cols] float32, zero nearly everywhere."""
        ...

    def set_sparse(self, w: torch.Tensor) -> torch.Tensor:
        """Keeps the largest of ``w`` [rows, cols] apart, as many as a row can hold.

        Returns:
            [rows, cols] float32, what everything decodes to afterwards.
        """
        ...


class Code(Protocol):
    """What layers, rounding methods and checkpoints ask of a code."""

    name: ClassVar[str]
    """As configurations, checkpoints and the command line call it."""
    rotation: ClassVar[str]
    """The rotation that it is meant for, which configurations take if they are not told."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        ...

    @property
    def bits(self) -> float:
        """Bits a weight as configurations ask for them, without any scales."""
        ...

    @property
    def rate(self) -> float:
        """Bits a weight with the scales of groups; without what there is once a row."""
        ...

    @classmethod
    def ladder(cls, low: float, high: float, **choices: Any) -> Sequence["Code"]:
        """The settings with some fixed choices and a rate from ``low`` to ``high``, in its order.

        Raises:
            ValueError: on a choice that this code does not have, or a value that it refuses.
        """
        ...

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        ...

    def replace(self, **changes: Any) -> "Code":
        """The same code with other choices; ``bits`` asks for a rate.

        Raises:
            ValueError: on a choice that this code does not have, or a value that it refuses.
        """
        ...

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        ...

    def describe(self) -> str:
        """Name and choices in a few words, such as ``pyramid D=16 K=28 gain 3``."""
        ...

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out; ``None`` if they do."""
        ...

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        ...

    def quantize(self, w: torch.Tensor) -> Stored:
        """The points nearest to the float32 matrix ``w`` [rows, cols], rotated already."""
        ...

    def rounder(self, w: torch.Tensor) -> Rounder:
        """Starts to round the float32 matrix ``w`` [rows, cols], rotated already, in blocks."""
        ...

    def rounder_of(self, stored: Stored, cols: int) -> Rounder:
        """A rounder with the scales and the points of ``stored``, of a matrix with ``cols``."""
        ...

    def dequantize(
        self, stored: Stored, cols: int, dtype: torch.dtype, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0.

        Raises:
            RuntimeError: if the codes are damaged.
        """
        ...

    def matmul(
        self, x: torch.Tensor, stored: Stored, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        Raises:
            RuntimeError: if the codes are damaged, or ``x`` has a dtype without a kernel.
        """
        ...

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """The form that products on ``device`` read faster than the stored one, if there is any."""
        ...


def empty_stored(
    code: Code, rows: int, cols: int, device: torch.device | str | None = None
) -> Stored:
    """Uninitialised tensors of the stored form of a [rows, cols] matrix."""
    return {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in code.layout(rows, cols).items()
    }


def stored_nbytes(code: Code, rows: int, cols: int) -> int:
    """Bytes of the stored form of a [rows, cols] matrix."""
    return sum(
        torch.Size(shape).numel() * dtype.itemsize
        for shape, dtype in code.layout(rows, cols).values()
    )
