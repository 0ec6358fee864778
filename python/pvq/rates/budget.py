"""A budget as a person says it: a rate of the quantized weights, or the size of the whole model."""

import math
import re
from dataclasses import dataclass

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_RATES = ("bpw", "b/w")
_FORM = re.compile(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z/]+)\s*")


@dataclass(frozen=True)
class Budget:
    """How much may be stored; one of the two is set.

    Attributes:
        bits: a weight of the quantized layers, everything counted.
        nbytes: of the whole model, dense parts included.
    """

    bits: float | None = None
    nbytes: int | None = None

    def for_codes(self, weights: int, dense_nbytes: int) -> int:
        """Bytes that the codes may take.

        Args:
            weights: of the quantized layers.
            dense_nbytes: of everything else.
        """
        if self.bits is not None:
            return math.floor(self.bits * weights / 8 + 1e-6)
        assert self.nbytes is not None
        return self.nbytes - dense_nbytes


def parse_budget(text: str) -> Budget:
    """Reads ``3.25bpw`` (bits a weight) or ``4.7GB`` (decimal; ``GiB`` is binary).

    Raises:
        ValueError: if it is neither.
    """
    match = _FORM.fullmatch(text)
    unit = match[2] if match else ""
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not number > 0 or (unit not in _UNITS and unit not in _RATES):
        raise ValueError(
            f"budget is {text!r}, expected a rate such as '3.25bpw' or a size such as '4.7GB'"
        )
    if unit in _RATES:
        return Budget(bits=number)
    return Budget(nbytes=math.floor(number * _UNITS[unit]))
