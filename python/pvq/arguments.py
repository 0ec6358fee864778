"""Checks of arguments: messages name the argument, its value and what was expected."""

import os

from torch import nn


def check_int(name: str, value: object, low: int, high: int, why: str = "") -> None:
    """Refuses what is no integer from ``low`` to ``high``.

    Args:
        name: of the argument.
        value: to check.
        low: smallest allowed.
        high: largest allowed.
        why: nothing smaller than ``low`` makes sense.

    Raises:
        TypeError: if ``value`` is no integer.
        ValueError: if it is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer from {low} to {high}")
    if not low <= value <= high:
        reason = f" ({why})" if why and value < low else ""
        raise ValueError(f"{name} is {value}, expected {low} to {high}{reason}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Refuses what is no number from ``low`` to ``high``.

    Raises:
        TypeError: if ``value`` is no number.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, expected a number from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low} to {high}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuses what is none of ``choices``.

    Raises:
        ValueError: naming them.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_bits(bits: object) -> None:
    """Refuses a rate that is no number.

    Raises:
        TypeError: if ``bits`` is no number.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | float):
        raise TypeError(f"bits is {bits!r}, expected a number of bits a weight such as 3.25")


def check_model(model: object) -> None:
    """Refuses what is no module.

    Raises:
        TypeError: saying how a model is loaded, if a name was given.
    """
    if isinstance(model, str | os.PathLike):
        raise TypeError(
            f"model is the name {str(model)!r}, expected a model: load it first, with "
            "transformers.AutoModelForCausalLM.from_pretrained"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected an nn.Module")


def check_patterns(name: str, patterns: object) -> None:
    """Refuses a single pattern, whose letters would be read as patterns.

    Raises:
        TypeError: naming it.
    """
    if isinstance(patterns, str):
        raise TypeError(f"{name} is a str, expected a sequence of patterns: [{patterns!r}]")


def check_bool(name: str, value: object) -> None:
    """Refuses what is neither true nor false.

    Raises:
        TypeError: naming it.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")
