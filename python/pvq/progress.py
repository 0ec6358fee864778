"""The progress bar on stderr: lively in a terminal, a line every ten seconds in a log."""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(items: Sequence[Item], description: str, unit: str, shown: bool) -> "tqdm[Item]":
    """An iterator over ``items`` that shows how far it is and how long the rest will take."""
    return _bar(items, None, description, unit, shown)


def counter(total: int, description: str, unit: str, shown: bool) -> "tqdm[Any]":
    """A bar to :func:`advance`, for work that is no loop."""
    return _bar(None, total, description, unit, shown)


def advance(bar: "tqdm[Any]", name: str) -> None:
    """One item, ``name``, is done."""
    bar.set_postfix_str(name, refresh=False)
    bar.update()


def _bar(items: Any, total: int | None, description: str, unit: str, shown: bool) -> "tqdm[Any]":
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=description,
        unit=unit,
        disable=not shown,
        mininterval=0.1 if terminal else 10.0,
        dynamic_ncols=terminal,
    )
