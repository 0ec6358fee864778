"""The harness: every code with every rounding method at every rate, in one table.

A cell is one quantization of the model and one evaluation of it. Finished cells are kept in a work
folder under everything that determines them, so a run that was interrupted goes on where it was,
and one with more codes or rates computes only what is new.
"""

from pvq.compare.cells import Cell, cells_of, setting_at
from pvq.compare.run import Comparison, compare

__all__ = ["Cell", "Comparison", "cells_of", "compare", "setting_at"]
