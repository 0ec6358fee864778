"""Another code with outliers: a few weights of each row are kept apart, in bfloat16.

Stored form of a matrix of R rows and n columns, beside the tensors of the inner code, with
m = max(1, round(fraction * n)) outliers a row:

============= ============== ======= =============================================================
tensor        dtype          shape   content
============= ============== ======= =============================================================
outlier_col   int16 or int32 [R, m]  column of each outlier; int32 where n > 32768
outlier_value bfloat16       [R, m]  what is added to the weight of the inner code there
============= ============== ======= =============================================================

Behind a rotation there are no outliers, and where there is one the columns are those of the rotated
matrix: this code is for ``rotation="none"``. It is QuantEase's (arXiv 2309.01885) with a budget for
each row instead of the whole matrix, so that rows stay independent of each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pvq.arguments import check_number
from pvq.codes import Code, Layout, Rounder, RunTimeForm, Stored

MAX_FRACTION = 0.25
_PLACE, _VALUE = "outlier_col", "outlier_value"
_NBITS = 32  # of an outlier in a matrix of up to 32768 columns


@dataclass(frozen=True)
class OutlierCode:
    """An inner code and how many weights it is spared.

    Attributes:
        inner: the code of all other weights.
        fraction: of the columns that are kept apart in each row, above 0 to 0.25.
    """

    inner: Code
    fraction: float

    name: ClassVar[str] = "outliers"
    rotation: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        check_number("fraction", self.fraction, 0, MAX_FRACTION)
        if self.fraction == 0:
            raise ValueError("fraction is 0: use the inner code itself")

    @property
    def since_version(self) -> int:
        """The inner code's."""
        return getattr(self.inner, "since_version", 1)

    @classmethod
    def make(
        cls,
        bits: float | None,
        *,
        inner: str | Mapping[str, Any] | Code = "pyramid",
        fraction: float = 0.01,
    ) -> "OutlierCode":
        """The code of a rate.

        Args:
            bits: of the inner code; outliers come on top, 32 bits each.
            inner: name of the inner code, or a mapping of ``"code"`` and its choices.
            fraction: see the class.

        Raises:
            ValueError: naming the argument, its value, what is possible and the way out.
            TypeError: if an argument has the wrong type.
        """
        from pvq.codes.registry import CODES, make_code  # which knows this code too

        if isinstance(inner, str):
            return cls(make_code(_not_nested(inner), bits, {}), fraction)
        if isinstance(inner, Mapping):
            choices = dict(inner)
            name = _not_nested(choices.pop("code", "pyramid"))
            rate = choices.pop("bits", None) if bits is None else bits
            return cls(make_code(name, rate, choices), fraction)
        if not isinstance(inner, tuple(CODES.values())):
            raise TypeError(
                f"inner is {inner!r}, expected a code, its name, or a mapping of 'code' and its "
                "choices"
            )
        return cls(inner, fraction)

    @classmethod
    def ladder(
        cls,
        low: float,
        high: float,
        *,
        inner: str | Mapping[str, Any] = "pyramid",
        fraction: float = 0.01,
        **choices: Any,
    ) -> Sequence["OutlierCode"]:
        """The settings of the inner code, with those choices, and the outliers' bits on top."""
        from pvq.codes.registry import CODES  # which knows this code too

        choices |= {"code": inner} if isinstance(inner, str) else dict(inner)
        code = CODES[_not_nested(choices.pop("code", "pyramid"))]
        apart = _NBITS * fraction
        return [cls(c, fraction) for c in code.ladder(low - apart, high - apart, **choices)]

    @property
    def rate(self) -> float:
        """Bits a weight with the outliers and the scales of groups."""
        return self.inner.rate + _NBITS * self.fraction

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return (*self.inner.tensors, _PLACE, _VALUE)

    @property
    def bits(self) -> float:
        """Bits a weight with the outliers, without the row scale."""
        return self.inner.bits + _NBITS * self.fraction

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        inner = {"code": self.inner.name, **self.inner.family()}
        return {"inner": inner, "fraction": self.fraction}

    def replace(self, **changes: Any) -> "OutlierCode":
        """The same with other choices; ``bits`` asks the inner code for a rate."""
        inner = self.inner
        if changes.get("bits") is not None and "inner" not in changes:
            inner = inner.replace(bits=changes.pop("bits"))
        return OutlierCode.make(
            **{"bits": None, "inner": inner, "fraction": self.fraction, **changes}
        )

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        inner = {"code": self.inner.name, **self.inner.choices()}
        return {"inner": inner, "fraction": self.fraction}

    def describe(self) -> str:
        """Name and choices in a few words."""
        return f"{self.inner.describe()} + {100 * self.fraction:g} % outliers"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        return self.inner.misfit(cols)

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        count = self._count(cols)
        place = torch.int16 if cols <= 1 << 15 else torch.int32
        return {
            **self.inner.layout(rows, cols),
            _PLACE: ((rows, count), place),
            _VALUE: ((rows, count), torch.bfloat16),
        }

    def quantize(self, w: Tensor) -> Stored:
        """The largest weights apart, and the points nearest to the others."""
        place = self._largest(w)
        inner = self.inner.quantize(w.scatter(1, place, 0))
        decoded = self.inner.dequantize(inner, w.shape[1], torch.float32)
        value = (w - decoded).gather(1, place).to(torch.bfloat16)
        return {**inner, _PLACE: self._narrow(place, w.shape[1]), _VALUE: value}

    def rounder(self, w: Tensor) -> "OutlierRounder":
        """Rounds ``w`` [rows, cols], rotated already, in the blocks of the inner code."""
        place = self._largest(w)
        spared = w.gather(1, place)
        inner = self.inner.rounder(w.scatter(1, place, 0))
        return OutlierRounder(self, inner, place, spared.to(torch.bfloat16), w.shape[1])

    def rounder_of(self, stored: Stored, cols: int) -> "OutlierRounder":
        """A rounder with the outliers, the scales and the points of ``stored``."""
        inner = self.inner.rounder_of({name: stored[name] for name in self.inner.tensors}, cols)
        return OutlierRounder(self, inner, stored[_PLACE].long(), stored[_VALUE], cols)

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w = self.inner.dequantize(stored, cols, torch.float32)
        w.scatter_add_(1, stored[_PLACE].long(), stored[_VALUE].float())
        if block and w.numel():
            w = torch.ops.pvq.hadamard(w, block, seed, True)
        return w.to(dtype)

    def matmul(self, x: Tensor, stored: Stored, block: int = 0, seed: int = 0) -> Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        if block:
            x = torch.ops.pvq.hadamard(x, block, seed)
        rows, cols = stored[_VALUE].shape[0], x.shape[-1]
        apart = torch.zeros(rows, cols, dtype=x.dtype, device=x.device)
        apart.scatter_(1, stored[_PLACE].long(), stored[_VALUE].to(x.dtype))
        return self.inner.matmul(x, stored) + x @ apart.T

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """None: outliers are added to the product of the stored form."""
        return None

    def _count(self, cols: int) -> int:
        return min(cols, max(1, round(self.fraction * cols)))

    def _largest(self, w: Tensor) -> Tensor:
        """Columns of the largest weights of each row, ascending, int64 [rows, outliers]."""
        return w.abs().topk(self._count(w.shape[1]), dim=1).indices.sort(1).values

    def _narrow(self, place: Tensor, cols: int) -> Tensor:
        return place.to(self.layout(0, cols)[_PLACE][1])


class OutlierRounder:
    """A :class:`pvq.codes.SparseRounder`: blocks are those of the inner code.

    Args:
        code: the code.
        inner: rounder of the inner code.
        place: [rows, outliers] int64, their columns.
        value: [rows, outliers] bfloat16.
        cols: of the matrix.
    """

    def __init__(
        self, code: OutlierCode, inner: Rounder, place: Tensor, value: Tensor, cols: int
    ) -> None:
        self.step = inner.step
        self._code, self._inner, self._cols = code, inner, cols
        self._place, self._value = place, value
        self._sparse = self._dense()

    def round(self, w: Tensor, first: int, metric: Tensor | None = None) -> Tensor:
        """Rounds what the outliers leave of the blocks; see :class:`pvq.codes.Rounder`."""
        apart = self._sparse[:, first : first + w.shape[1]]
        return self._inner.round(w - apart, first, metric) + apart

    def rescale(self, factor: Tensor) -> Tensor:
        """Multiplies scales and outliers; see :class:`pvq.codes.Rounder`."""
        self._value = (self._value.float() * factor[:, None]).to(torch.bfloat16)
        self._sparse = self._dense()
        return self._inner.rescale(factor) + self._sparse

    def sparse(self) -> Tensor:
        """The outliers; see :class:`pvq.codes.SparseRounder`."""
        return self._sparse

    def set_sparse(self, w: Tensor) -> Tensor:
        """Other outliers; see :class:`pvq.codes.SparseRounder`."""
        self._place = self._code._largest(w)
        self._value = w.gather(1, self._place).to(torch.bfloat16)
        self._sparse = self._dense()
        ones = torch.ones(len(w), device=w.device)
        return self._inner.rescale(ones) + self._sparse

    def stored(self) -> Stored:
        """The stored form."""
        place = self._code._narrow(self._place, self._cols)
        return {**self._inner.stored(), _PLACE: place, _VALUE: self._value}

    def _dense(self) -> Tensor:
        rows = len(self._value)
        dense = torch.zeros(rows, self._cols, device=self._value.device)
        return dense.scatter_(1, self._place, self._value.float())


def _not_nested(name: object) -> str:
    if name == OutlierCode.name:
        raise ValueError("inner is 'outliers': outliers of outliers have no code")
    return str(name)
