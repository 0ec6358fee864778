"""What is compared: the cells of the table, each a code at its setting and a rounding method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pvq.codes import Code
from pvq.codes.registry import CODES, choices_of
from pvq.config import PVQConfig
from pvq.rounding import Rounding
from pvq.rounding.registry import make_rounding

# A rate is met if it is missed by less, as sums of fractions of a bit do.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Named:
    """Something of a registry with choices, as a command line names it: ``uniform:group=64``.

    Attributes:
        name: in the registry.
        choices: by name; of a code also ``rotation``, ``block`` and ``seed``.
    """

    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        listed = ",".join(f"{key}={value}" for key, value in self.choices.items())
        return f"{self.name}:{listed}" if listed else self.name


@dataclass(frozen=True)
class Cell:
    """One quantization.

    Attributes:
        code: as it was asked for.
        method: as it was asked for.
        bits: the rate asked for.
        config: the setting at that rate; ``None`` if there is none.
        rounding: the rounding method.
        problem: why there is no setting.
    """

    code: str
    method: str
    bits: float
    config: PVQConfig | None
    rounding: Rounding
    problem: str | None = None


def cells_of(bits: Iterable[float], codes: Sequence[Named], methods: Sequence[Named]) -> list[Cell]:
    """Every combination, ordered by rate, code and method.

    Raises:
        ValueError: on an unknown code or method, or a choice that it refuses.
        TypeError: if a choice has the wrong type.
    """
    roundings = [(method, rounding_of(method)) for method in methods]
    cells = []
    for rate in sorted(bits):
        for code in codes:
            config, problem = None, None
            try:
                config = setting_at(code, rate)
            except UnreachableRateError as error:
                problem = str(error)
            cells += [
                Cell(str(code), str(method), rate, config, rounding, problem)
                for method, rounding in roundings
            ]
    return cells


class UnreachableRateError(ValueError):
    """A code has no setting at or below a rate."""


def setting_at(code: Named, bits: float) -> PVQConfig:
    """The setting of a code with the highest rate that is at most ``bits``.

    Rates count the scales of groups and not those of whole rows, which depend on the layer.

    Raises:
        UnreachableRateError: if all of them are above; the text names the least.
        ValueError: on an unknown code, or a choice that it refuses.
        TypeError: if a choice has the wrong type.
    """
    known = choices_of(code.name)
    if "bits" in code.choices:
        raise ValueError(f"code {code}: bits are what the rates to compare at ask for, drop it")
    of_code = {key: value for key, value in code.choices.items() if key in known}
    others = {key: value for key, value in code.choices.items() if key not in known}
    ladder = CODES[code.name].ladder
    settings: Sequence[Code] = ladder(bits - 0.5, bits + _TOLERANCE, **of_code)
    settings = settings or ladder(0.0, bits + _TOLERANCE, **of_code)
    if not settings:
        above: Sequence[Code] = ladder(bits, float("inf"), **of_code)
        least = f": its least rate is {above[0].rate:.4g}" if above else ""
        raise UnreachableRateError(f"{code} has no setting at or below {bits:g} bits{least}")
    chosen = settings[-1]
    return PVQConfig.from_dict({"code": chosen.name, **chosen.choices(),
                                "rotation": chosen.rotation, **others})  # fmt: skip


def rounding_of(method: Named) -> Rounding:
    """The rounding method with its settings.

    Raises:
        ValueError: if there is none of that name, or it does not have such a setting.
        TypeError: if a setting has the wrong type.
    """
    return make_rounding(method.name, **method.choices)
