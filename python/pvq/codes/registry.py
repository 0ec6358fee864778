"""Codes by name: the only place that lists them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pvq.codes import Code
from pvq.codes.bands import BandsCode
from pvq.codes.higgs import HiggsCode
from pvq.codes.nf4 import NF4Code
from pvq.codes.outliers import OutlierCode
from pvq.codes.overlap import OverlapCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode
from pvq.codes.uniform import UniformCode

AnyCode = type[
    PyramidCode
    | TableCode
    | OverlapCode
    | BandsCode
    | OutlierCode
    | UniformCode
    | NF4Code
    | HiggsCode
]

CODES: dict[str, AnyCode] = {
    code.name: code
    for code in (
        PyramidCode,
        TableCode,
        OverlapCode,
        BandsCode,
        OutlierCode,
        UniformCode,
        NF4Code,
        HiggsCode,
    )
}


def choices_of(name: str) -> set[str]:
    """Names of the choices that make a code, ``bits`` among them.

    Raises:
        ValueError: if there is no code of that name.
    """
    if not isinstance(name, str) or name not in CODES:
        raise ValueError(f"code is {name!r}, expected one of {', '.join(map(repr, CODES))}")
    return {field.name for field in fields(CODES[name])} | {"bits"}


def make_code(name: str, bits: float | None, choices: Mapping[str, Any]) -> Code:
    """The code of that name.

    Args:
        name: of the code.
        bits: the rate to ask for; ``None`` for the code's default, or where choices settle it.
        choices: values of the code's fields; the others take their defaults.

    Raises:
        ValueError: on an unknown name, a choice that the code does not have, or a value that it
            refuses.
        TypeError: if a value has the wrong type.
    """
    known = choices_of(name)
    check_known(choices, known, name)
    return CODES[name].make(bits, **choices)


def check_known(choices: Mapping[str, Any], known: set[str], code: str) -> None:
    """Refuses choices that are not among those known for a code.

    Raises:
        ValueError: naming the unknown and the known.
    """
    unknown = sorted(set(choices) - known)
    if unknown:
        raise ValueError(
            f"unknown choice {', '.join(map(repr, unknown))} with code={code!r}; known are "
            f"{', '.join(sorted(known))}"
        )
