"""The progress bar on stderr: lively in a terminal, a line every ten seconds in a log."""

import sys
from collections.abc import Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(items: Sequence[Item], description: str, unit: str, shown: bool) -> "tqdm[Item]":
    """An iterator over ``items`` that shows how far it is and how long the rest will take."""
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        unit=unit,
        disable=not shown,
        mininterval=0.1 if terminal else 10.0,
        dynamic_ncols=terminal,
    )
