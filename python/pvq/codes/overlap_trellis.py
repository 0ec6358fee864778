"""The trellis of an overlapping-pyramid code: its numbers, its table, and searches in it.

csrc/core/overlap.h says what they mean. Values are in units of the row scale here: small integers.
"""

from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pvq.codes.bits import pack

BLOCK = 128  # columns whose symbols form a ring
# Deviations up to which the tables are dense enough for their unit to be the best.
_DENSE = 4.2
# From one row scale to try to the next one, for rows with larger weights.
_RATIO = 1.25
# A row with more columns is so long that a Gaussian's scale costs it 0.1 % of error at most; with
# 128 columns it is 1 %.
_LONG = 1024


@dataclass(frozen=True, eq=False)
class Trellis:
    """A code's numbers and points.

    Attributes:
        step_bits: of a symbol.
        window_bits: of a window.
        lag: groups from a window's own group to the other that it has a point for.
        table: int8 [2^window_bits, 2, dim], the points of a window: of its own group, of the other.
        unit: the row scale for Gaussian weights of variance 1.
        spread: how far weights are above or below the sums of their points, 0 if they are not. A
            stored symbol then has a bit for each weight above the trellis's bits: 1 for above.
        points: the table in float32, as searches take it.
    """

    step_bits: int
    window_bits: int
    lag: int
    table: Tensor
    unit: float
    spread: int = 0
    points: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", self.table.float())

    def to(self, device: torch.device) -> "Trellis":
        """The same with its table on ``device``, copied there once."""
        if device == self.table.device:
            return self
        copies = _ELSEWHERE.setdefault(self, {})
        there = copies.get(device)
        if there is None:
            there = replace(self, table=self.table.to(device))
            if type(there.table) is Tensor:  # no stand-in of a graph that is being traced
                copies[device] = there
        return there

    @property
    def dim(self) -> int:
        """Weights of a group."""
        return self.table.shape[2]

    @property
    def stored_bits(self) -> int:
        """Bits of a symbol as it is stored."""
        return self.step_bits + (self.dim if self.spread else 0)

    @property
    def symbol_dtype(self) -> torch.dtype:
        """Of symbols as they are stored."""
        return torch.uint8 if self.stored_bits <= 8 else torch.int16

    @property
    def numbers(self) -> tuple[int, int, int]:
        """What operators take beside the table: step bits, lag, spread."""
        return self.step_bits, self.lag, self.spread

    @property
    def state_bits(self) -> int:
        """Bits of a state: those that a group depends on beside its own symbol."""
        return self.window_bits + (self.lag - 1) * self.step_bits

    def search(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        start: Tensor | None = None,
        end: Tensor | None = None,
        *,
        ring: bool = False,
    ) -> Tensor:
        """The symbols of least cost sum(weight * (x - y)^2), as stored, [rows, cols / dim].

        Args:
            x: [rows, cols] float32, on the device of the table.
            weight: [cols] float32; ones if not given.
            start: [rows] int32, states to begin from, -1 for any.
            end: [rows] int32, states to end in, -1 for any.
            ring: whether the end is the beginning.
        """
        symbol, began, _ = torch.ops.pvq.overlap_search(
            x, self.points, self.step_bits, self.lag, weight, start, end, ring, 0, self.spread
        )
        return self._with_signs(x, symbol, began) if self.spread else symbol

    def _with_signs(self, x: Tensor, symbol: Tensor, state: Tensor) -> Tensor:
        """``symbol`` [rows, groups] behind states [rows], with the bits that bring it next to x."""
        # Windows are symbols here, and a state the last ones of those, the oldest lowest.
        mask = (1 << self.step_bits) - 1
        older = [state[:, None] >> i * self.step_bits & mask for i in range(self.lag)]
        before = torch.cat([*older, symbol.int()], 1)[:, : symbol.shape[1]]
        middle = self.points[symbol.int(), 0] + self.points[before, 1]
        above = (x.view(middle.shape) >= middle).short()
        place = torch.arange(self.dim, dtype=torch.int16, device=x.device) + self.step_bits
        return symbol.short() | (above << place).sum(2, dtype=torch.int16)

    def nearest(self, x: Tensor) -> Tensor:
        """The symbols of the rings nearest to ``x`` [rows, cols], [rows, cols / dim]."""
        rows, cols = x.shape
        whole = cols // BLOCK * BLOCK
        parts = []
        if whole:
            rings = x[:, :whole].reshape(-1, BLOCK)
            parts.append(self.search(rings, ring=True).view(rows, whole // self.dim))
        if whole < cols or not cols:
            parts.append(self.search(x[:, whole:].contiguous(), ring=True))
        return torch.cat(parts, 1)

    def integers(self, symbol: Tensor) -> Tensor:
        """What symbols [rows, cols / dim] of rings decode to, float32 [rows, cols]."""
        ones = torch.ones(len(symbol), dtype=torch.bfloat16, device=symbol.device)
        y: Tensor = torch.ops.pvq.overlap_dequantize(
            *(pack(symbol, self.stored_bits), ones, self.table, *self.numbers),
            *(self.dim * symbol.shape[1], torch.float32),
        )
        return y

    def state(self, symbol: Tensor) -> Tensor:
        """The states int32 [rows] behind rings of ``symbol`` [rows, groups]."""
        state = torch.zeros(len(symbol), dtype=torch.int32, device=symbol.device)
        for back in range(-(-self.state_bits // self.step_bits), 0, -1):
            state = self._next(state, symbol[:, -back])
        return state

    def walk(self, state: Tensor, symbol: Tensor) -> tuple[Tensor, Tensor]:
        """What symbols decode to after a state [rows], float32 [rows, cols], and the state then."""
        groups = []
        for i in range(symbol.shape[1]):
            word = (self._coded(symbol[:, i]) << self.state_bits) | state
            own = self.table[word >> (self.lag * self.step_bits), 0]
            other = self.table[word & (len(self.table) - 1), 1]
            groups.append(own.float() + other.float() + self._signed(symbol[:, i]))
            state = self._next(state, symbol[:, i])
        return torch.cat(groups, 1), state

    def _next(self, state: Tensor, symbol: Tensor) -> Tensor:
        return ((self._coded(symbol) << self.state_bits) | state) >> self.step_bits

    def _coded(self, symbol: Tensor) -> Tensor:
        """The part of stored symbols that the trellis knows, int32."""
        return symbol.int() & ((1 << self.step_bits) - 1)

    def _signed(self, symbol: Tensor) -> Tensor | float:
        """The spreads of symbols [rows], [rows, dim]."""
        if not self.spread:
            return 0.0
        place = torch.arange(self.dim, device=symbol.device) + self.step_bits
        return self.spread * (2.0 * (symbol[:, None].int() >> place & 1) - 1.0)

    def row_scale(self, w: Tensor) -> Tensor:
        """A scale for each row of ``w`` [rows, cols], bfloat16: one that has a small squared error.

        The unit of the table times the root mean square is next to the best for rows without large
        weights; long ones get it. For shorter ones it is tried, and the scale that suits the points
        found with it taken; where there are large weights, larger scales are tried too, up to the
        one that makes the largest weight one of few deviations, and the best is taken.
        """
        best = torch.zeros(len(w), dtype=torch.float64, device=w.device)
        if not w.numel():
            return best.bfloat16()
        largest = w.abs().amax(1)
        exponent = torch.frexp(largest).exponent
        x = _times_power(w, -exponent[:, None])  # no square overflows or is lost
        nominal = x.double().square().mean(1).sqrt() * self.unit
        limit = torch.where(nominal > 0, x.abs().amax(1) / nominal * self.unit / _DENSE, 0.0)
        gain = torch.zeros_like(best)
        tried = (nominal > 0) & ((limit > 1) | (w.shape[1] <= _LONG))
        best = torch.where(tried, best, nominal)
        active, factor = torch.nonzero(tried)[:, 0], 1.0
        while len(active):
            part = x[active]
            scale = nominal[active] * limit[active].clamp(1.0, factor)
            y = self.integers(self.nearest(over_scale(part, scale)))
            product, square = (part * y).double().sum(1), y.double().square().sum(1)
            reduced = product.square() / square  # by the best scale for these points
            better = (product > 0) & (reduced > gain[active])
            gain[active[better]] = reduced[better]
            best[active[better]] = (product / square)[better]
            active = active[limit[active] > factor]
            factor *= _RATIO
        return _times_power(best.float(), exponent).bfloat16()


# Copies on other devices, by trellis and device; beside the trellis, so as not to be saved with it.
_ELSEWHERE: WeakKeyDictionary[Trellis, dict[torch.device, Trellis]] = WeakKeyDictionary()


def over_scale(w: Tensor, scale: Tensor) -> Tensor:
    """``w`` [rows, cols] in units of ``scale`` [rows], float32; zeros where that is zero.

    Weights far beyond any table become some far one, so that no cost is infinite.
    """
    units = w.double() / scale.double()[:, None]
    return torch.where(scale[:, None] > 0, units, 0.0).clamp(-1e6, 1e6).float()


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """The product x * 2^exponent; half of it at a time, because 2^149 is no float."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(x, half), exponent - half)
