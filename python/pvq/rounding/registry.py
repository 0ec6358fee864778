"""Rounding methods by name: the only place that lists them."""

from dataclasses import asdict
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


def make_rounding(rounding: str | Rounding) -> Rounding:
    """The method of that name with its default settings; a method is returned as it is.

    Raises:
        ValueError: if there is none of that name.
    """
    if not isinstance(rounding, str):
        return rounding
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"rounding is {rounding!r}, expected one of {', '.join(map(repr, ROUNDINGS))}"
        )
    return ROUNDINGS[rounding]()
