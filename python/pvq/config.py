"""PVQConfig: every choice that quantizes one weight matrix, resolved and checked.

A configuration is independent choices (rotation, code, ...). It holds resolved values only:
``bits`` is a way to ask for a code's own choices, so two configurations that quantize alike compare
equal, and a checkpoint that stores the values decodes the same for ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pvq.activations import activation_code, check_activations
from pvq.arguments import check_choice, check_int
from pvq.codes import Code
from pvq.codes.registry import check_known, choices_of, make_code
from pvq.rotation import default_block, supported_block

# Of the stored form: raise it when an older pvq would decode a newer file wrongly. 2: other tables
# of overlapping-pyramid codes from 3 bits on.
FORMAT_VERSION = 2

MAX_BLOCK = 1 << 16
ROTATIONS = ("hadamard", "none")
DEFAULT_CODE = "pyramid"


@dataclass(frozen=True, init=False)
class PVQConfig:
    """How one weight matrix is quantized.

    ``PVQConfig(3.25)`` asks for a rate and gets the pyramid code that reaches it;
    ``PVQConfig(dim=16, pulses=27)`` names the code's choices; ``PVQConfig(code="table", bits=2)``
    takes another code. One 16-bit scale a row comes on top of ``bits`` (16 / cols bits a weight);
    it is part of every rate reported.

    ``code="pyramid"``, the default, reaches any rate. ``bits`` counts the index and the gain,
    ``round(bits * dim)`` bits a group; of all ways to share them out, the one with the least
    expected error on a Gaussian source is taken (:func:`pvq.codes.pyramid.expected_error`), or the
    most pulses that fit if ``gain_bits`` is given. At ``dim=16``, 2.25, 3.25 and 4.25 bits give 13,
    28 and 58 pulses with 2, 3 and 4 gain bits. Choices: ``dim``, ``pulses`` (instead of ``bits``),
    ``gain_bits``, ``gain_law``, ``quality``; see :class:`pvq.codes.pyramid.PyramidCode`.

    ``code="table"`` has 2, 3 or 4 ``bits`` and no other choice; it is fast in its stored form. See
    :class:`pvq.codes.table.TableCode`.

    ``code="overlap"`` has 2, 2.5, 3, 3.5 or 4 ``bits`` and no other choice; its error is the least
    of all codes at these rates. See :class:`pvq.codes.overlap.OverlapCode`.

    ``code="bands"`` is the pyramid code in ``bands`` bands of columns; calibrated rounding gives
    each its own rate, so that rows take no more bytes than with ``bits`` in all of them. See
    :class:`pvq.codes.bands.BandsCode`.

    ``code="outliers"`` keeps a ``fraction`` of each row apart from an ``inner`` code, to which
    ``bits`` goes; see :class:`pvq.codes.outliers.OutlierCode`.

    To be compared with, stored and counted alike: ``code="uniform"`` (2 to 8 ``bits``, ``group``,
    ``symmetric``, ``fit``; :class:`pvq.codes.uniform.UniformCode`), ``code="nf4"``
    (``block_size``, ``double``; :class:`pvq.codes.nf4.NF4Code`) and ``code="higgs"`` (``p`` and
    ``n`` or ``bits``, ``group``; :class:`pvq.codes.higgs.HiggsCode`).

    Attributes:
        code: the code with its choices, such as ``config.code.pulses``.
        rotation: ``"hadamard"`` (randomised block Hadamard of the input dimension) or ``"none"``;
            by default what the code is meant for, which is none for uniform and nf4.
        block: columns that one Hadamard block mixes; ``None`` chooses from the number of columns.
        seed: of the rotation's signs.
        activations: what products with the matrix do to their activations, such as ``"pyramid4"``,
            see :meth:`pvq.PVQLinear.prepare`; ``None``, the default, says nothing.
    """

    code: Code
    rotation: str
    block: int | None
    seed: int
    activations: str | None

    def __init__(
        self,
        bits: float | None = None,
        *,
        code: str = DEFAULT_CODE,
        rotation: str | None = None,
        block: int | None = None,
        seed: int = 0,
        activations: str | None = None,
        **choices: Any,
    ) -> None:
        """Checks every choice; see the class for their meaning.

        Args:
            bits: bits a weight; 3.25 for the pyramid code when ``pulses`` is not given either.
            code: name of a code, see the class.
            rotation: see the class.
            block: see the class.
            seed: see the class.
            activations: see the class.
            **choices: of the code.

        Raises:
            ValueError: naming the argument, its value, what is possible and the way out.
            TypeError: if an argument has the wrong type.
        """
        made = make_code(code, bits, choices)
        rotation = made.rotation if rotation is None else rotation
        self._set(made, rotation, block, seed, activations)

    def _set(
        self, code: Code, rotation: str, block: int | None, seed: int, activations: str | None
    ) -> None:
        check_choice("rotation", rotation, ROTATIONS)
        check_int("seed", seed, 0, 2**63 - 1)
        if block is not None:
            check_int("block", block, 1, MAX_BLOCK)
            if not supported_block(block):
                raise ValueError(
                    f"block={block} has no Hadamard matrix here: leave block out, or pass a power "
                    "of two or m * 2**k with m = 12, 20, 28, 36, ..."
                )
            if rotation == "none":
                raise ValueError(f"block={block} has no meaning with rotation='none': leave it out")
        if activations is not None:
            check_activations(activations)
        values = {"code": code, "rotation": rotation, "block": block, "seed": seed}
        values["activations"] = activations
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def bits(self) -> float:
        """Bits a weight, without the row scale."""
        return self.code.bits

    def for_cols(self, cols: int) -> "PVQConfig":
        """The same configuration with ``block`` settled for a matrix of ``cols`` columns.

        Raises:
            ValueError: if the code, ``block`` or ``activations`` does not fit ``cols``; the text
                says what does.
        """
        if self.activations is not None:
            activation_code(self.activations, cols)
        misfit = self.code.misfit(cols)
        if misfit is not None:
            raise ValueError(misfit)
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

        ``bits`` asks the code for that rate; another ``code`` starts from its own defaults, at the
        present rate unless ``bits`` or the choices say otherwise, and with its own rotation unless
        that is given.

        Raises:
            ValueError: on an unknown name or a value that the constructor refuses.
        """
        others = {"rotation": self.rotation, "block": self.block, "seed": self.seed}
        others["activations"] = self.activations
        name = changes.pop("code", self.code.name)
        known = choices_of(name)
        check_known(changes, known | others.keys() | {"code"}, name)
        choices = {key: value for key, value in changes.items() if key in known}
        if name == self.code.name:
            code = self.code.replace(**choices)
        else:
            bits = choices.pop("bits", None if choices else self.bits)
            code = make_code(name, bits, choices)
            changes = {"rotation": code.rotation, **changes}
        if changes.get("rotation") == "none" and "block" not in changes:
            others["block"] = None
        others.update((key, value) for key, value in changes.items() if key in others)
        config = object.__new__(PVQConfig)
        config._set(code, **others)  # type: ignore[arg-type]  # checked there
        return config

    def to_dict(self) -> dict[str, Any]:
        """Everything that makes the configuration and the ``format_version``, ready for JSON."""
        fields = {
            "format_version": FORMAT_VERSION,
            "code": self.code.name,
            **self.code.choices(),
            "rotation": self.rotation,
            "block": self.block,
            "seed": self.seed,
        }
        if self.activations is not None:  # left out where an older pvq can do without
            fields["activations"] = self.activations
        return fields

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PVQConfig":
        """Inverse of :meth:`to_dict`; without a ``code``, as the first checkpoints are, pyramid.

        Raises:
            ValueError: if a newer pvq wrote it, or a field is unknown, out of range or of another
                type.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"the quantization config is {stored!r}, expected an object with the fields of one"
            )
        values = dict(stored)
        version = values.pop("format_version", FORMAT_VERSION)
        check_format_version(version)
        newer = "a newer pvq or another program wrote it"
        name = values.get("code", DEFAULT_CODE)
        try:
            known = choices_of(name)
        except ValueError as error:
            raise ValueError(f"the quantization config is unreadable ({error}); {newer}") from error
        unknown = sorted(
            values.keys() - known - {"code", "rotation", "block", "seed", "activations"}
        )
        if unknown:
            raise ValueError(
                f"the quantization config has fields this pvq does not know: {', '.join(unknown)}; "
                f"{newer}"
            )
        try:
            config = cls(**values)
        except TypeError as error:  # right for an argument; in a file it is a value like others
            raise ValueError(f"the quantization config is unreadable ({error}); {newer}") from error
        check_code_version(config.code, version)
        return config


def check_config(config: object) -> None:
    """Refuses what is no configuration.

    Raises:
        TypeError: saying how one of that rate is made, if a number was given.
    """
    if isinstance(config, PVQConfig):
        return
    if isinstance(config, int | float) and not isinstance(config, bool):
        raise TypeError(f"config is {config!r}, expected a PVQConfig: PVQConfig({config!r})")
    raise TypeError(f"config is a {type(config).__name__}, expected a PVQConfig")


def check_code_version(code: Code, version: int) -> None:
    """Refuses codes that an older pvq stored and this one would decode to something else.

    Raises:
        ValueError: if the meaning of ``code`` has changed since ``version``.
    """
    since = getattr(code, "since_version", 1)
    if version < since:
        raise ValueError(
            f"this checkpoint has format_version {version}, and {code.describe()} has other tables "
            f"since {since}: quantize the model again"
        )


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
