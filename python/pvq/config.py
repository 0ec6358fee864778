"""PVQConfig: every choice that quantizes one weight matrix, resolved and checked.

A configuration is four independent choices (rotation, code, rounding, rate). It holds resolved
numbers only: ``bits`` is a way to ask for ``pulses``, not a field, so two configurations that
quantize alike compare equal, and a checkpoint that stores the fields decodes the same for ever.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pvq import _core
from pvq.codes.pyramid import GAIN_LAWS, PyramidCode, expected_error, most_pulses
from pvq.rotation import default_block, supported_block

# Of the stored form: raise it when an older pvq would decode a newer file wrongly.
FORMAT_VERSION = 1

MAX_DIM = 256
MAX_PULSES = 4096
MAX_GAIN_BITS = 8
MAX_BLOCK = 1 << 16
MAX_QUALITY = 2
ROTATIONS = ("hadamard", "none")


@dataclass(frozen=True, init=False)
class PVQConfig:
    """How one weight matrix is quantized.

    ``PVQConfig(3.25)`` asks for a rate and gets the pulses that reach it; ``PVQConfig(dim=16,
    pulses=27)`` names them. ``bits`` counts the index and the gain, ``round(bits * dim)`` bits a
    group; of all ways to share them out, the one with the least expected error on a Gaussian source
    is taken (:func:`pvq.codes.pyramid.expected_error`), or the most pulses that fit if
    ``gain_bits`` is given. At ``dim=16``, 2.25, 3.25 and 4.25 bits give 14, 28 and 58 pulses with
    1, 3 and 4 gain bits. One 16-bit scale a row comes on top (16 / cols bits a weight); it is part
    of every rate reported.

    Attributes:
        dim: group size D, how many consecutive weights of a row form one vector; 2 to 256.
        pulses: K, the L1 norm of the integer vector that stands for a group; 1 to 4096.
        gain_bits: bits of a group's amplitude, 0 to 8; ``None`` takes the best share of ``bits``,
            or 4 beside ``pulses``.
        gain_law: codebook of the amplitudes, ``"lloyd"`` (Lloyd-Max) or ``"beta"`` (quantiles),
            both of the law that a group's amplitude has in a Gaussian row.
        rotation: ``"hadamard"`` (randomised block Hadamard of the input dimension) or ``"none"``.
        block: columns that one Hadamard block mixes; ``None`` chooses from the number of columns.
        seed: of the rotation's signs.
        quality: effort of the search for the nearest point, 0 (fast) to 2 (best).
    """

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str
    rotation: str
    block: int | None
    seed: int
    quality: int

    def __init__(
        self,
        bits: float | None = None,
        *,
        dim: int = 16,
        pulses: int | None = None,
        gain_bits: int | None = None,
        gain_law: str = "lloyd",
        rotation: str = "hadamard",
        block: int | None = None,
        seed: int = 0,
        quality: int = 1,
    ) -> None:
        """Checks every choice; see the class for their meaning.

        Args:
            bits: index and gain bits a weight; 3.25 when neither ``bits`` nor ``pulses`` is given.
            dim: see the class, as for all that follow.
            pulses: instead of ``bits``.
            gain_bits: see the class.
            gain_law: see the class.
            rotation: see the class.
            block: see the class.
            seed: see the class.
            quality: see the class.

        Raises:
            ValueError: naming the argument, its value, what is possible and the way out.
            TypeError: if an argument has the wrong type.
        """
        if bits is not None and pulses is not None:
            raise ValueError(
                f"bits={bits} and pulses={pulses} were both given: bits is a way to ask for "
                "pulses, pass one of them"
            )
        _check_int("dim", dim, 2, MAX_DIM, "a group needs at least two weights for a direction")
        if gain_bits is not None:
            _check_int("gain_bits", gain_bits, 0, MAX_GAIN_BITS)
        if pulses is None:
            pulses, gain_bits = _share_out(3.25 if bits is None else bits, dim, gain_bits)
        elif gain_bits is None:
            gain_bits = 4
        _check_int("pulses", pulses, 1, MAX_PULSES, "without a pulse there is no direction")
        _check_choice("gain_law", gain_law, GAIN_LAWS)
        _check_choice("rotation", rotation, ROTATIONS)
        _check_int("seed", seed, 0, 2**63 - 1)
        _check_int("quality", quality, 0, MAX_QUALITY)
        if block is not None:
            _check_int("block", block, 1, MAX_BLOCK)
            if not supported_block(block):
                raise ValueError(
                    f"block={block} has no Hadamard matrix here: leave block out, or pass a power "
                    "of two or m * 2**k with m = 12, 20, 28, 36, ..."
                )
            if rotation == "none":
                raise ValueError(f"block={block} has no meaning with rotation='none': leave it out")
        for name, value in (
            ("dim", dim),
            ("pulses", pulses),
            ("gain_bits", gain_bits),
            ("gain_law", gain_law),
            ("rotation", rotation),
            ("block", block),
            ("seed", seed),
            ("quality", quality),
        ):
            object.__setattr__(self, name, value)

    @property
    def code(self) -> PyramidCode:
        """The code column: what a group of ``dim`` weights is stored as."""
        return PyramidCode(self.dim, self.pulses, self.gain_bits, self.gain_law, self.quality)

    @property
    def bits(self) -> float:
        """Index and gain bits a weight, without the row scale."""
        return (self.code.index_bits + self.gain_bits) / self.dim

    def for_cols(self, cols: int) -> "PVQConfig":
        """The same configuration with ``block`` settled for a matrix of ``cols`` columns.

        Raises:
            ValueError: if ``dim`` or ``block`` does not divide ``cols``; the text says what does.
        """
        if cols % self.dim:
            raise ValueError(
                f"{cols} columns are not a multiple of dim={self.dim}, and pvq never pads: "
                f"{_dividing_dims(cols, self.dim)}leave this layer dense"
            )
        if self.rotation == "none":
            return self
        if self.block is None:
            return self.replace(block=default_block(cols) if cols else 1)
        if cols % self.block:
            raise ValueError(
                f"{cols} columns are not a multiple of block={self.block}: leave block out (it is "
                f"then {default_block(cols)}) or pass rotation='none'"
            )
        return self

    @property
    def hadamard_block(self) -> int:
        """The block as operators take it: 0 without a rotation.

        Raises:
            ValueError: if the block is still to be chosen from the number of columns.
        """
        if self.rotation == "none":
            return 0
        if self.block is None:
            raise ValueError("block depends on the number of columns: use config.for_cols(cols)")
        return self.block

    def replace(self, **changes: Any) -> "PVQConfig":
        """A copy with some arguments of the constructor changed.

        ``bits`` shares the rate out anew; ``dim`` alone keeps the rate as near as that dim allows.

        Raises:
            ValueError: on an unknown name or a value that the constructor refuses.
        """
        known = {field.name for field in fields(self)} | {"bits"}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(
                f"unknown choice {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(sorted(known))}"
            )
        if "dim" in changes and "pulses" not in changes and "bits" not in changes:
            changes["bits"] = self.bits
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        if changes.get("bits") is not None:
            del kept["pulses"], kept["gain_bits"]
        if changes.get("rotation") == "none" and "block" not in changes:
            kept["block"] = None
        return PVQConfig(**{**kept, **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields and the ``format_version``, ready for JSON."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PVQConfig":
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: if a newer pvq wrote it, or a field is unknown or out of range.
        """
        values = dict(stored)
        check_format_version(values.pop("format_version", FORMAT_VERSION))
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"the quantization config has fields this pvq does not know: {', '.join(unknown)}; "
                "a newer pvq or another program wrote it"
            )
        return cls(**values)


def check_format_version(version: object) -> None:
    """Refuses what a newer pvq wrote.

    Raises:
        ValueError: if ``version`` is newer than this pvq reads, or no version at all.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"format_version is {version!r}, expected 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"this checkpoint has format_version {version}, and this pvq reads up to "
            f"{FORMAT_VERSION}: upgrade pvq (pip install --upgrade pvq)"
        )


@functools.cache
def _share_out(bits: float, dim: int, gain_bits: int | None) -> tuple[int, int]:
    """Pulses and gain bits of a rate; ``gain_bits`` is kept if it is given."""
    if isinstance(bits, bool) or not isinstance(bits, int | float):
        raise TypeError(f"bits is {bits!r}, expected a number of bits a weight such as 3.25")
    choices = range(MAX_GAIN_BITS + 1) if gain_bits is None else (gain_bits,)
    low = (_core.index_bits(dim, 1) + choices[0]) / dim
    high = (_core.index_bits(dim, MAX_PULSES) + choices[-1]) / dim
    if not math.isfinite(bits) or not low <= bits <= high:
        given = "" if gain_bits is None else f" and gain_bits={gain_bits}"
        raise ValueError(
            f"bits={bits} is out of reach with dim={dim}{given}: choose from {low:.4g} to "
            f"{high:.4g}, or another dim"
        )
    budget = math.floor(bits * dim + 0.5)
    shares = [
        (most_pulses(dim, budget - gain, MAX_PULSES), gain)
        for gain in choices
        if _core.index_bits(dim, 1) <= budget - gain
    ]
    return min(shares, key=lambda share: expected_error(dim, *share))


def _dividing_dims(cols: int, dim: int) -> str:
    """What to pass instead of ``dim``, as a clause that ends in ' or ', or nothing."""
    below = [d for d in range(dim, 1, -1) if cols % d == 0]
    return f"pass dim={below[0]} or " if below else ""


def _check_int(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer from {low} to {high}")
    if not low <= value <= high:
        reason = f" ({why})" if why and value < low else ""
        raise ValueError(f"{name} is {value}, expected {low} to {high}{reason}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
