"""Choices on the command line: ``KEY=VALUE`` and ``NAME:KEY=VALUE,...``."""

from collections.abc import Sequence
from typing import Any


def parsed_choices(assignments: Sequence[str], option: str) -> dict[str, Any]:
    """``KEY=VALUE`` texts as choices.

    Raises:
        ValueError: naming ``option`` if a text is no assignment.
    """
    choices: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"{option}: {assignment!r} is not KEY=VALUE")
        choices[key.strip().replace("-", "_")] = _parsed_value(value.strip())
    return choices


def parsed_named(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME:KEY=VALUE,...`` as a name and its choices.

    Raises:
        ValueError: naming ``option`` if something is no assignment.
    """
    name, colon, assignments = text.partition(":")
    return name, parsed_choices(assignments.split(","), f"{option} {text!r}") if colon else {}


def _parsed_value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
