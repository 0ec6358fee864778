"""Rounding methods by name: the only place that lists them."""

from dataclasses import fields
from typing import Any

from pvq.rounding import Rounding, check_method
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase
from pvq.rounding.tesseraq import TesseraQ

ROUNDINGS: dict[str, type[Nearest] | type[GPTQ] | type[QuantEase] | type[AWQ] | type[TesseraQ]] = {
    rounding.name: rounding for rounding in (Nearest, GPTQ, QuantEase, AWQ, TesseraQ)
}

# Settings that are methods themselves, which a command line can give by name.
_METHODS = ("start", "then")


def settings_of(rounding: Rounding) -> dict[str, Any]:
    """Name and settings of a method, ready for JSON."""
    settings = {field.name: getattr(rounding, field.name) for field in fields(rounding)}
    inner = {key: settings_of(settings[key]) for key in _METHODS if settings.get(key) is not None}
    return {"name": rounding.name, **settings, **inner}


def make_rounding(rounding: str | Rounding, **settings: Any) -> Rounding:
    """The method of that name, with its default settings but those given.

    Args:
        rounding: a name; a method is returned as it is.
        **settings: fields of the method; one that is a method itself may be a name.

    Raises:
        ValueError: if there is no such method, or it has no such setting.
        TypeError: if a setting has the wrong type, or ``rounding`` is neither.
    """
    if not isinstance(rounding, str):
        check_method("rounding", rounding)
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
    for key in _METHODS:
        if isinstance(settings.get(key), str):
            settings[key] = make_rounding(settings[key])
    return ROUNDINGS[rounding](**settings)
