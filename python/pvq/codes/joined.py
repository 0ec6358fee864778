"""Joined forms: matrices that lie one after the other in memory, so that one product serves all.

A form that can be joined is a header, the same for all matrices of a code, then tiles of 16 rows.
Joined, the second matrix has its own header at the end of tiles that stand between, whose rows have
scale zero; so every member's part of the memory is a complete form of that member too:

    header | tiles of the first ... | gap, header | tiles of the second ... | gap, header | ...
    [------ form of the first -----]       [----- form of the second ------]
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from pvq import _core
from pvq.activations import DECODED, ActivationCode, multiply, takes_points
from pvq.codes import RunTimeForm, Stored


@runtime_checkable
class Joinable(Protocol):
    """A run-time form in one tensor: a header, then tiles of 16 rows."""

    @property
    def header(self) -> int:
        """Bytes of the header."""
        ...

    def fuses(self, x: torch.Tensor, activations: str) -> bool:
        """Whether the product with ``x`` reads the tiles as they are, in one kernel."""
        ...


class SharedProduct:
    """A product whose result is cut into the outputs of several members.

    The first member that is asked with an input computes all outputs; the others find theirs, as
    long as they are asked with the same tensor object, unchanged (its version counter), on the same
    stream and, while a CUDA graph is captured, in the same capture. Each output is handed out once
    and forgotten; what nobody asked for goes with the input.

    Some inputs are refused: tensors of ``torch.inference_mode``, which have no version; those that
    a compiler traces; and those whose gradient is wanted, because the outputs would share a node of
    the graph, which can be gone through only once.

    Args:
        product: of an input and any further arguments, [..., rows].
        parts: rows of each member.
    """

    def __init__(self, product: Callable[..., torch.Tensor], parts: Sequence[slice]) -> None:
        self.product = product
        self.parts = tuple(parts)
        self._waiting: _Waiting | None = None

    def output(self, member: int, x: torch.Tensor, *arguments: Any) -> torch.Tensor | None:
        """The output of a member, by its number; ``None`` if ``x`` is refused."""
        if _is_refused(x):
            return None
        state = (*_state(x), *arguments)
        waiting = self._waiting
        if waiting is not None and waiting.input() is x and waiting.state == state:
            found = waiting.outputs.pop(member, None)
            if not waiting.outputs:
                self._waiting = None
            if found is not None:
                return found  # else: asked again, so a new round begins
        y = self.product(x, *arguments)
        outputs = {i: y[..., part] for i, part in enumerate(self.parts)}
        own = outputs.pop(member)
        # The callback holds the outputs and nothing else, so that a lost input frees them.
        self._waiting = _Waiting(weakref.ref(x, lambda _: outputs.clear()), state, outputs)
        return own

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files get no outputs that wait."""
        return {**self.__dict__, "_waiting": None}


@dataclass(frozen=True)
class _Waiting:
    input: weakref.ref[torch.Tensor]
    state: tuple[Any, ...]
    outputs: dict[int, torch.Tensor]  # by member


def _is_refused(x: torch.Tensor) -> bool:
    is_plain = type(x) in (torch.Tensor, torch.nn.Parameter)
    return not is_plain or x.is_inference() or (x.requires_grad and torch.is_grad_enabled())


def _state(x: torch.Tensor) -> tuple[Any, ...]:
    """What must be as it was for an output to be still that of ``x``, here and now."""
    state = (x._version, x.data_ptr(), torch.is_inference_mode_enabled())
    if not x.is_cuda:
        return state
    stream = torch.cuda.current_stream(x.device).cuda_stream
    return (*state, stream, _core.cuda_capture_id(stream))


@dataclass(frozen=True)
class JoinedProduct:
    """The product with joined matrices."""

    form: RunTimeForm
    held: Stored
    rows: int
    block: int
    seed: int

    def __call__(self, x: torch.Tensor, activations: str | ActivationCode) -> torch.Tensor:
        """The product of ``x`` with every row, those between members included."""
        return multiply(self.form, x, self.held, self.rows, self.block, self.seed, activations)


@dataclass(frozen=True)
class JoinedForm:
    """The form of one member: its own, in memory that it shares.

    It multiplies by itself whenever it cannot share: where the product does not read the tiles,
    where the input is refused, and once its tensor is another (moved, say).
    """

    form: RunTimeForm
    shared: SharedProduct
    member: int
    memory: torch.Tensor
    overhead_nbytes: int
    """Of what the members share beyond their own tensors; zero but for one of them."""

    @property
    def layout(self) -> str:
        """That of its own form."""
        return self.form.layout

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of its own form."""
        return self.form.tensors

    @property
    def replaces(self) -> tuple[str, ...]:
        """Those of its own form."""
        return self.form.replaces

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The tensors of its own form, in memory of their own."""
        return self.form.of_stored(stored, shape)

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The stored tensors that its own form replaces."""
        return self.form.to_stored(held, shape)

    def matmul(
        self,
        x: torch.Tensor,
        held: Stored,
        rows: int,
        block: int,
        seed: int,
        activations: str | ActivationCode,
    ) -> torch.Tensor:
        """:func:`pvq.activations.multiply` of ``x`` with every row of this member."""
        if not torch.compiler.is_compiling() and self._shares(x, held, activations):
            y = self.shared.output(self.member, x, activations)
            if y is not None:
                return y
        return multiply(self.form, x, held, rows, block, seed, activations)

    def _shares(self, x: torch.Tensor, held: Stored, activations: str | ActivationCode) -> bool:
        (name,) = self.form.tensors
        there = held[name].untyped_storage().data_ptr() == self.memory.untyped_storage().data_ptr()
        if not there or not isinstance(self.form, Joinable):
            return False
        if isinstance(activations, str):
            return self.form.fuses(x, activations)
        return takes_points(self.form, activations, x) or self.form.fuses(x, DECODED)
