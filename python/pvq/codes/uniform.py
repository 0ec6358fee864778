"""The uniform code: integers of 2 to 8 bits with a scale for each group of columns of a row.

A weight is scale * (q - zero), 0 <= q < 2^bits; ``zero`` is 2^(bits - 1) if the code is symmetric,
and stored for each group if it is not. Stored form of a matrix of R rows in G = n / group groups:

====== ======== ======================= ====================================================
tensor dtype    shape                   content
====== ======== ======================= ====================================================
code   uint8    [R, ceil(n * bits / 8)] q, a bit stream a row
scale  bfloat16 [R, G]                  step of the group; 0 for a group of zeros
zero   uint8    [R, ceil(G * bits / 8)] zero points, a bit stream a row; not if symmetric
====== ======== ======================= ====================================================

It is what round-to-nearest, GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) are published with.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pvq.arguments import check_bits, check_bool, check_choice, check_int
from pvq.codes import Layout, Rounder, Stored
from pvq.codes.bits import pack, unpack
from pvq.codes.decoded import DecodedCode, as_stored, spec_of
from pvq.codes.feedback import round_blocks, round_with_feedback
from pvq.ops.code import packed_bytes

MIN_BITS, MAX_BITS = 2, 8
SCALE_BITS = 16
FITS = ("mse", "minmax")
# Shares of the range of a group that the search for the step of least squared error tries.
_SHRINKS = tuple(1 - i / 50 for i in range(42))


@dataclass(frozen=True)
class UniformCode(DecodedCode):
    """Uniform integers in groups.

    Attributes:
        bits: of an integer, 2 to 8.
        group: columns that share a scale.
        symmetric: whether zero is in the middle; otherwise each group stores where it is.
        fit: step of a group: ``"mse"``, the one of least squared error among shares of the range,
            or ``"minmax"``, the whole range.
    """

    bits: int
    group: int = 128
    symmetric: bool = False
    fit: str = "mse"

    name: ClassVar[str] = "uniform"
    rotation: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.bits not in range(MIN_BITS, MAX_BITS + 1):
            raise ValueError(
                f"bits={self.bits} is out of reach with code='uniform', whose weights are "
                f"integers: choose {MIN_BITS} to {MAX_BITS}, or code='pyramid'"
            )
        object.__setattr__(self, "bits", int(self.bits))
        check_int("group", self.group, 1, 1 << 20)
        check_bool("symmetric", self.symmetric)
        check_choice("fit", self.fit, FITS)
        object.__setattr__(self, "spec", spec_of(self))

    @classmethod
    def make(cls, bits: float | None, **choices: Any) -> "UniformCode":
        """The code of a width.

        Raises:
            ValueError: if there is none, or no width is given.
            TypeError: if a choice has the wrong type.
        """
        if bits is None:
            raise ValueError(f"code='uniform' needs bits: choose {MIN_BITS} to {MAX_BITS}")
        return cls(bits, **choices)  # type: ignore[arg-type]  # checked there

    @classmethod
    def ladder(cls, low: float, high: float, **choices: Any) -> Sequence["UniformCode"]:
        """The codes with those choices whose rate is from ``low`` to ``high``, in order of it."""
        every = (cls(bits, **choices) for bits in range(MIN_BITS, MAX_BITS + 1))
        return [code for code in every if low <= code.rate <= high]

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the stored tensors."""
        return ("code", "scale") if self.symmetric else ("code", "scale", "zero")

    @property
    def rate(self) -> float:
        """Bits a weight with those of the groups."""
        zero_bits = 0 if self.symmetric else self.bits
        return self.bits + (SCALE_BITS + zero_bits) / self.group

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {"group": self.group, "symmetric": self.symmetric, "fit": self.fit}

    def replace(self, **changes: Any) -> "UniformCode":
        """The same with other choices."""
        return UniformCode.make(**{**self.choices(), **changes})

    def describe(self) -> str:
        """Name and choices in a few words."""
        kind = "sym" if self.symmetric else "asym"
        return f"uniform {self.bits} bits g{self.group} {kind} {self.fit}"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        if cols % self.group == 0:
            return None
        below = next(d for d in range(min(self.group, cols), 0, -1) if cols % d == 0)
        return (
            f"{cols} columns are not a multiple of group={self.group}, and pvq never pads: pass "
            f"group={below} or leave this layer dense"
        )

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        groups = cols // self.group
        layout: Layout = {
            "code": ((rows, packed_bytes(cols, self.bits)), torch.uint8),
            "scale": ((rows, groups), torch.bfloat16),
        }
        if not self.symmetric:
            layout["zero"] = ((rows, packed_bytes(groups, self.bits)), torch.uint8)
        return layout

    def rounder(self, w: torch.Tensor) -> Rounder:
        """Rounds a group at a time; its scale is fitted to the values when it is first rounded."""
        return UniformRounder(self, w)

    def rounder_of(self, stored: Stored, cols: int) -> Rounder:
        """A rounder with the scales and the integers of ``stored``."""
        rounder = UniformRounder(self, self.decode(stored, cols))
        rounder.hold(stored)
        return rounder

    def decode(self, stored: Stored, cols: int) -> torch.Tensor:
        """float32 [rows, cols]: what ``stored`` was rounded to, in the rotated basis."""
        q = unpack(stored["code"], self.bits, cols)
        rows, groups = stored["scale"].shape
        zero: torch.Tensor | int = 1 << (self.bits - 1)
        if not self.symmetric:
            zero = unpack(stored["zero"], self.bits, groups)[..., None]
        steps = (q.reshape(rows, groups, self.group) - zero).float()
        return (steps * stored["scale"].float()[..., None]).reshape(rows, cols)

    def fitted(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Step and zero point of groups ``w`` [rows, group], each [rows, 1] float32."""
        low, high = w.amin(1, True).clamp(max=0), w.amax(1, True).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        # In the range's own unit, because squares of extreme values leave float32.
        unit = torch.maximum(-low, high)
        relative = torch.where(unit > 0, w / unit, 0.0)
        shrinks: Iterable[float] = _SHRINKS if self.fit == "mse" else (1.0,)
        best_scale, best_zero = torch.zeros_like(low), torch.zeros_like(low)
        least = torch.full_like(low, math.inf)
        for shrink in shrinks:
            scale, zero = self._step_and_zero(low, high, shrink)
            q = (steps_of(w, scale) + zero).clamp_(0, self.levels)
            back = (q - zero) * torch.where(unit > 0, scale / unit, 0.0)
            error = back.sub_(relative).square_().sum(1, True)
            better = error < least
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
            least = torch.minimum(error, least)
        return best_scale, best_zero

    @property
    def levels(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    def _step_and_zero(
        self, low: torch.Tensor, high: torch.Tensor, shrink: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The step and the zero point that a share of the range from low to high gets."""
        # Divided first: the range of huge values is beyond float32.
        scale = as_stored((high / self.levels - low / self.levels) * shrink)
        if self.symmetric:
            return scale, torch.full_like(scale, float(1 << (self.bits - 1)))
        return scale, steps_of(-low * shrink, scale).clamp_(0, self.levels)


class UniformRounder:
    """A matrix on its way into a uniform code; see :class:`pvq.codes.Rounder`."""

    def __init__(self, code: UniformCode, w: torch.Tensor) -> None:
        rows, cols = w.shape
        self._code = code
        self.step = code.group
        groups = cols // code.group
        self._q = torch.zeros((rows, cols), dtype=torch.uint8, device=w.device)
        self._scale = torch.zeros((rows, groups), device=w.device)
        self._zero = torch.zeros((rows, groups), device=w.device)
        self._is_fitted = [False] * groups

    def hold(self, stored: Stored) -> None:
        """Goes on from the stored form of a matrix of this size."""
        code, (_, groups) = self._code, self._scale.shape
        self._q = unpack(stored["code"], code.bits, self._q.shape[1]).to(torch.uint8)
        self._scale = stored["scale"].float()
        self._zero = torch.full_like(self._scale, float(1 << (code.bits - 1)))
        if not code.symmetric:
            self._zero = unpack(stored["zero"], code.bits, groups).float()
        self._is_fitted = [True] * groups

    def round(
        self, w: torch.Tensor, first: int, metric: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rounds groups from column ``first`` on, column by column under a metric."""
        if w.shape[1] != self.step:
            return round_blocks(self, w, first)
        group = first // self.step
        if not self._is_fitted[group]:
            scale, zero = self._code.fitted(w)
            self._scale[:, group], self._zero[:, group] = scale[:, 0], zero[:, 0]
            self._is_fitted[group] = True
        scale, zero = self._scale[:, group, None], self._zero[:, group, None]
        levels = self._code.levels

        def nearest(part: torch.Tensor, begin: int, _: torch.Tensor | None) -> torch.Tensor:
            q = (steps_of(part, scale) + zero).clamp_(0, levels)
            self._q[:, first + begin : first + begin + part.shape[1]] = q.to(torch.uint8)
            return (q - zero) * scale

        return round_with_feedback(w, metric, 1, nearest)

    def rescale(self, factor: torch.Tensor) -> torch.Tensor:
        """Multiplies all scales of each row and keeps the codes."""
        self._scale = as_stored(self._scale * factor[:, None])
        return self._code.decode(self.stored(), self._q.shape[1])

    def stored(self) -> Stored:
        """The stored form."""
        stored = {"code": pack(self._q, self._code.bits), "scale": self._scale.bfloat16()}
        if not self._code.symmetric:
            stored["zero"] = pack(self._zero.to(torch.uint8), self._code.bits)
        return stored


def steps_of(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``w / scale`` rounded to whole steps; 0 where there is no scale."""
    return torch.where(scale > 0, w / scale, 0.0).round_()
