"""The instruction sets that CPU kernels are written for; PVQ_CPU names the last that may be used.

csrc/cpu/isa.h chooses, once, when pvq is imported.
"""

import os
import warnings

VARIABLE = "PVQ_CPU"
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512vbmi", "amx")


def check_limit() -> None:
    """Warns if ``PVQ_CPU`` names no instruction set: kernels then run as if it were not set."""
    limit = os.environ.get(VARIABLE)
    if limit and limit not in INSTRUCTION_SETS:
        warnings.warn(
            f"{VARIABLE} is {limit!r}, expected one of {', '.join(INSTRUCTION_SETS)}: ignored",
            stacklevel=2,
        )
