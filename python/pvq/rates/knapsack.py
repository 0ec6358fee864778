"""The multiple-choice knapsack: one option for each item, the least total loss within a budget.

Dynamic programming over a budget of whole units: best[b] is the least loss of the items so far with
at most b units. Costs are rounded up to units, so the result is always within the budget; it is
optimal if the unit divides all costs, and otherwise as good as any choice that leaves one unit for
each item. What the rounding left is then spent on the options that gain most for a byte.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_UNITS = 1 << 15


def choose(
    costs: Sequence[npt.NDArray[np.int64]],
    losses: Sequence[npt.NDArray[np.float64]],
    budget: int,
    max_units: int = MAX_UNITS,
) -> tuple[list[int], int]:
    """One option of each item.

    Args:
        costs: of the options of each item, in bytes.
        losses: of the same.
        budget: bytes, at least the sum of the items' least costs.
        max_units: how finely the budget is cut, at most.

    Returns:
        The number of the option of each item, and the bytes of a unit.
    """
    least = [int(cost.min()) for cost in costs]
    spare = budget - sum(least)
    assert spare >= 0
    extras = [cost - low for cost, low in zip(costs, least, strict=True)]
    unit = _unit(extras, min(spare, sum(int(extra.max()) for extra in extras)), max_units)
    units = min(spare, sum(int(extra.max()) for extra in extras)) // unit
    best = np.zeros(units + 1)
    taken = np.zeros((len(costs), units + 1), np.int32)
    for i, (extra, loss) in enumerate(zip(extras, losses, strict=True)):
        new = np.full(units + 1, np.inf)
        for option, (need, value) in enumerate(zip(-(-extra // unit), loss, strict=True)):
            if need > units:
                continue
            total = best[: units + 1 - need] + value
            better = total < new[need:]
            new[need:][better] = total[better]
            taken[i, need:][better] = option
        best = new
    chosen, left = [0] * len(costs), units
    for i in range(len(costs) - 1, -1, -1):
        chosen[i] = int(taken[i, left])
        left -= -(-int(extras[i][chosen[i]]) // unit)
    _spend_rest(costs, losses, chosen, budget)
    return chosen, unit


def _unit(extras: Sequence[npt.NDArray[np.int64]], spare: int, max_units: int) -> int:
    """The greatest common divisor of all costs if the budget has few enough of it."""
    common = math.gcd(*(int(value) for extra in extras for value in extra))
    return max(common, -(-spare // max_units), 1)


def _spend_rest(
    costs: Sequence[npt.NDArray[np.int64]],
    losses: Sequence[npt.NDArray[np.float64]],
    chosen: list[int],
    budget: int,
) -> None:
    """Upgrades items as long as something fits, the most gain for a byte first."""
    rest = budget - sum(int(cost[i]) for cost, i in zip(costs, chosen, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for item, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
            more = cost - cost[chosen[item]]
            gain = loss[chosen[item]] - loss
            for option in np.flatnonzero((more <= rest) & (gain > 0)).tolist():
                worth = float(gain[option]) / max(int(more[option]), 1)
                if best is None or worth > best[0]:
                    best = (worth, item, option)
        if best is None:
            return
        _, item, option = best
        rest -= int(costs[item][option] - costs[item][chosen[item]])
        chosen[item] = option
