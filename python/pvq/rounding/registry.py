"""Rounding methods by name: the only place that lists them."""

from dataclasses import asdict, fields
from typing import Any

from pvq.rounding import Rounding
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase

ROUNDINGS: dict[str, type[Nearest] | type[GPTQ] | type[QuantEase] | type[AWQ]] = {
    rounding.name: rounding for rounding in (Nearest, GPTQ, QuantEase, AWQ)
}


def settings_of(rounding: Rounding) -> dict[str, Any]:
    """Name and settings of a method, ready for JSON."""
    return {"name": rounding.name, **asdict(rounding)}


def make_rounding(rounding: str | Rounding, **settings: Any) -> Rounding:
    """The method of that name, with its default settings but those given.

    Args:
        rounding: a name; a method is returned as it is.
        **settings: fields of the method.

    Raises:
        ValueError: if there is no such method, or it has no such setting.
        TypeError: if a setting has the wrong type.
    """
    if not isinstance(rounding, str):
        return rounding
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"rounding is {rounding!r}, expected one of {', '.join(map(repr, ROUNDINGS))}"
        )
    known = {field.name for field in fields(ROUNDINGS[rounding])}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(map(repr, unknown))} of rounding={rounding!r}; known are "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return ROUNDINGS[rounding](**settings)
