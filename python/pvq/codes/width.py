"""What codes have in common whose only choice is one of a few widths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing since Python 3.11


class WidthCode:
    """A code that is made from its bits a weight alone; dataclasses derive from it.

    Attributes:
        bits: bits a weight, the field of the dataclass.
        widths: those that there are, rising.
        column_step: columns come in multiples of it.
    """

    bits: float

    name: ClassVar[str]
    widths: ClassVar[tuple[float, ...]]
    column_step: ClassVar[int]

    @classmethod
    def make(cls, bits: float | None) -> "Self":
        """The code of a rate.

        Raises:
            ValueError: if there is none, or no rate is given.
            TypeError: if ``bits`` is no number.
        """
        if bits is None:
            raise ValueError(f"code={cls.name!r} needs bits: choose {cls.width_names()}")
        return cls(bits)  # type: ignore[call-arg]  # the dataclass takes it, and checks it

    @classmethod
    def width_names(cls) -> str:
        """The widths in a sentence."""
        *most, last = (f"{width:g}" for width in cls.widths)
        return f"{', '.join(most)} or {last}"

    @classmethod
    def ladder(cls, low: float, high: float, **choices: Any) -> Sequence["Self"]:
        """The codes whose rate is from ``low`` to ``high``, in order of it; no other choices."""
        return [cls.make(bits, **choices) for bits in cls.widths if low <= bits <= high]

    @property
    def rate(self) -> float:
        """Bits a weight without the row scale."""
        return self.bits

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {}

    def replace(self, **changes: Any) -> "Self":
        """The same with other choices."""
        return self.make(**{**self.choices(), **changes})

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {"bits": self.bits}

    def describe(self) -> str:
        """Name and choices in a few words."""
        return f"{self.name} {self.bits:g} bits"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        if cols % self.column_step == 0:
            return None
        return (
            f"{cols} columns are not a multiple of {self.column_step}, which code={self.name!r} "
            "needs, and pvq never pads: pass code='pyramid' or leave this layer dense"
        )
