"""States of attention heads in a pyramid code: what a cache keeps of keys or values.

A state is the vector of one token and one head. It is rotated by a randomised Hadamard matrix of
its own size, so that a channel with large values, as keys have them, is spread over all; then it is
stored as a row of a matrix is (:mod:`pvq.codes.pyramid`): groups of ``dim`` values, each an index
and an amplitude, and one bfloat16 scale a state.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvq import _core
from pvq.arguments import check_bits
from pvq.codes.pyramid import MAX_GAIN_BITS, MAX_PULSES, PyramidCode, expected_error, most_pulses
from pvq.ops.code import packed_bytes
from pvq.rotation import default_block

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_BITS, MAX_BITS = 1.0, 8.0


@dataclass(frozen=True)
class StateCode:
    """How states of one size are stored.

    Attributes:
        code: of the groups.
        head_dim: values of a state.
        block: of the rotation, a divisor of ``head_dim``.
        seed: of the rotation's signs.
    """

    code: PyramidCode
    head_dim: int
    block: int
    seed: int

    def quantize(self, states: Tensor) -> "CodedStates":
        """Stores ``states`` [batch, heads, tokens, head_dim].

        Raises:
            RuntimeError: if they hold NaN or infinity.
        """
        rows = states.reshape(-1, self.head_dim).float()
        rotated = torch.ops.pvq.hadamard(rows, self.block, self.seed)
        stored = self.code.quantize(rotated)
        shape = states.shape[:3]
        return CodedStates(self, tuple(t.view(*shape, *t.shape[1:]) for t in stored.values()))


@dataclass(frozen=True)
class CodedStates:
    """States in a code: tensors [batch, heads, tokens] and [batch, heads, tokens, bytes].

    Attributes:
        code: how they are stored.
        tensors: in the order of :attr:`pvq.codes.pyramid.PyramidCode.tensors`.
    """

    code: StateCode
    tensors: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.tensors[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The states [batch, heads, tokens, head_dim] that the codes stand for."""
        code, shape = self.code, self.tensors[0].shape[:3]
        rows = [tensor.flatten(0, 2) for tensor in self.tensors]
        stored = dict(zip(PyramidCode.tensors, rows, strict=True))
        states = code.code.dequantize(stored, code.head_dim, dtype, code.block, code.seed)
        return states.view(*shape, code.head_dim)

    def map(self, change: Callable[[Tensor], Tensor]) -> "CodedStates":
        """The same with every tensor changed in one of the first three dimensions."""
        return CodedStates(self.code, tuple(change(tensor) for tensor in self.tensors))

    def followed_by(self, other: "CodedStates") -> "CodedStates":
        """These tokens and then those of ``other``."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return CodedStates(self.code, tuple(torch.cat(pair, dim=2) for pair in pairs))


@functools.cache
def state_code(bits: float, head_dim: int, dim: int | None, seed: int) -> StateCode:
    """The code of states that fills the bytes of a rate as well as possible.

    Args:
        bits: a value, without the scale: a state's indices and amplitudes take at most
            ``bits * head_dim / 8`` bytes, padding included.
        head_dim: values of a state.
        dim: group size, a divisor of ``head_dim``; ``None`` for the largest of 16, 8, 4 and 2.
        seed: of the rotation's signs.

    Raises:
        TypeError: if ``bits`` is no number.
        ValueError: if ``bits`` is out of reach, or ``dim`` does not divide ``head_dim``.
    """
    check_bits(bits)
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits is {bits}, expected {MIN_BITS:g} to {MAX_BITS:g} bits a value")
    fitting = [d for d in (16, 8, 4, 2) if head_dim % d == 0]
    if dim is None and fitting:
        dim = fitting[0]
    if dim is None or not 2 <= dim <= 256 or head_dim % dim:
        remedy = f"pass dim={fitting[0]}" if fitting else "use transformers' own cache"
        raise ValueError(f"no groups of dim={dim} in head_dim={head_dim} of this model: {remedy}")
    groups, nbytes = head_dim // dim, int(bits * head_dim / 8)
    choices = (0,) if groups == 1 else range(MAX_GAIN_BITS + 1)  # a lone group has the scale
    shares = []
    for gain_bits in choices:
        index_bits = 8 * (nbytes - packed_bytes(groups, gain_bits)) // groups
        if index_bits >= _core.index_bits(dim, 1):
            shares.append((most_pulses(dim, index_bits, MAX_PULSES), gain_bits))
    if not shares:
        raise ValueError(
            f"bits={bits} leaves no index for groups of dim={dim} at head_dim={head_dim}: pass "
            "more bits or a larger dim"
        )
    pulses, gain_bits = min(shares, key=lambda share: expected_error(dim, *share))
    return StateCode(PyramidCode(dim, pulses, gain_bits), head_dim, default_block(head_dim), seed)


def joined(old: CodedStates | None, recent: Sequence[Tensor]) -> Tensor:
    """Decoded ``old`` states and exact ``recent`` ones in one tensor."""
    parts = [tensor for tensor in recent if tensor.shape[2]]
    if old is not None and old.tokens:
        parts.insert(0, old.decode(recent[0].dtype))
    return torch.cat(parts, dim=2) if len(parts) > 1 else (parts or recent)[0]
