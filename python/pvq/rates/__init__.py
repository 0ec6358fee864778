"""The rate column: how many bits each layer gets.

For small independent errors a model's loss grows by the sum over layers of sensitivity times
relative error, whatever the quantizer (the linearity theorem of arXiv 2411.17525), with a term for
what codes do beyond noise:
:mod:`pvq.rates.sensitivity` measures the sensitivities, :mod:`pvq.rates.allocate` spends a budget
of bytes so that the sum is least. :mod:`pvq.rates.columns` shares the bytes of a layer out over
bands of its columns.
"""

from pvq.rates.allocate import Allocation, allocate
from pvq.rates.budget import Budget, parse_budget
from pvq.rates.columns import fill_columns
from pvq.rates.measure import measure_sensitivity
from pvq.rates.sensitivity import Sensitivity, random_tokens

__all__ = [
    "Allocation",
    "Budget",
    "Sensitivity",
    "allocate",
    "fill_columns",
    "measure_sensitivity",
    "parse_budget",
    "random_tokens",
]
