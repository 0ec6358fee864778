"""HIGGS: vectors of p weights become the nearest of n points of a grid made for Gaussian weights.

From arXiv 2411.17525: after a randomised Hadamard rotation weights are nearly Gaussian, so one grid
of least error for N(0, I_p) serves every layer. A scale is the root mean square of ``group``
columns of a row. Stored form of a matrix of R rows and c columns, V = ceil(c / p) vectors a row:

====== ======== ============================= ==================================================
tensor dtype    shape                         content
====== ======== ============================= ==================================================
code   uint8    [R, ceil(V / digits * bits)]  numbers of points, ``digits`` of them a word of
                                              ``bits`` bits (pvq.codes.radix), a bit stream a row
scale  bfloat16 [R, ceil(c / group)]          scale of each group, the last one of what is left
====== ======== ============================= ==================================================

If p does not divide c, the last vector of a row has coordinates that stand for no weight; its code
is stored and counted whole. The grids come with the package: benchmarks/higgs_grids.py made them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from pvq.arguments import check_bits, check_int
from pvq.codes import Layout, Rounder, Stored
from pvq.codes.bits import pack, unpack
from pvq.codes.decoded import DecodedCode, as_stored, spec_of
from pvq.codes.feedback import round_with_feedback
from pvq.codes.radix import join, split, word_shape
from pvq.ops.code import packed_bytes

SCALE_BITS = 16
MAX_P = 4
_FILE = Path(__file__).parent / "higgs_grids.npz"
# Columns that a rounder takes together, at most, where p allows it.
_STEP = 128
# Distances that are in memory at one time.
_CHUNK = 1 << 22


@functools.cache
def grids() -> dict[tuple[int, int], torch.Tensor]:
    """The grid of each (p, n) that the package has: float32 [n, p]."""
    with np.load(_FILE) as file:
        names = [tuple(map(int, name.split("x"))) for name in file.files]
        return {
            (p, n): torch.from_numpy(file[f"{p}x{n}"].astype(np.float32)) for p, n in sorted(names)
        }


@functools.cache
def sizes(p: int) -> tuple[int, ...]:
    """Numbers of points for which there is a grid of ``p`` dimensions, in ascending order."""
    return tuple(n for q, n in grids() if q == p)


@functools.cache
def _on(device: torch.device, p: int, n: int) -> torch.Tensor:
    return grids()[p, n].to(device)


@dataclass(frozen=True)
class HiggsCode(DecodedCode):
    """A grid of n points in p dimensions.

    Attributes:
        p: weights that a point stands for, 1 to 4.
        n: points of the grid; :func:`sizes` lists them.
        group: columns that share a scale, at most; a shorter row has one.
    """

    p: int = 2
    n: int = 256
    group: int = 1024

    name: ClassVar[str] = "higgs"
    tensors: ClassVar[tuple[str, ...]] = ("code", "scale")
    rotation: ClassVar[str] = "hadamard"

    def __post_init__(self) -> None:
        _check_p(self.p)
        check_int("n", self.n, 2, 1 << 16)
        if self.n not in sizes(self.p):
            known = ", ".join(map(str, sizes(self.p)))
            raise ValueError(f"n={self.n} has no grid with p={self.p}: choose one of {known}")
        check_int("group", self.group, 1, 1 << 20)
        object.__setattr__(self, "spec", spec_of(self))

    @classmethod
    def make(cls, bits: float | None, *, p: int = 2, **choices: Any) -> "HiggsCode":
        """The code of a rate, or of explicit choices.

        Args:
            bits: bits a weight without scales, instead of ``n``; takes the largest grid that stays
                within. 4 if neither is given.
            p: see the class.
            **choices: ``n`` and ``group``, see the class.

        Raises:
            ValueError: on a rate below the smallest grid, or a value that is refused.
            TypeError: if a choice has the wrong type.
        """
        if bits is not None and "n" in choices:
            raise ValueError(
                f"bits={bits} and n={choices['n']} were both given: bits is a way to ask for n, "
                "pass one of them"
            )
        if "n" in choices:
            return cls(p, **choices)
        bits = 4.0 if bits is None else bits
        check_bits(bits)
        _check_p(p)
        low, high = _bits(p, sizes(p)[0]), _bits(p, sizes(p)[-1])
        if not low <= bits <= high:
            raise ValueError(
                f"bits={bits} is out of reach with code='higgs' and p={p}: choose from {low:.4g} "
                f"to {high:.4g}, another p, or code='pyramid'"
            )
        return cls(p, max(n for n in sizes(p) if _bits(p, n) <= bits), **choices)

    @classmethod
    def ladder(
        cls, low: float, high: float, *, p: int = 2, **choices: Any
    ) -> Sequence["HiggsCode"]:
        """The codes with those choices whose rate is from ``low`` to ``high``, in order of it."""
        _check_p(p)
        counts = (choices.pop("n"),) if "n" in choices else sizes(p)
        every = (cls(p, n, **choices) for n in counts)
        return [code for code in every if low <= code.rate <= high]

    @property
    def bits(self) -> float:
        """Bits a weight without scales."""
        return _bits(self.p, self.n)

    @property
    def rate(self) -> float:
        """Bits a weight with those of the groups."""
        return self.bits + SCALE_BITS / self.group

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {"p": self.p, "group": self.group}

    def replace(self, **changes: Any) -> "HiggsCode":
        """The same with other choices; ``p`` alone keeps the rate as near as that p allows."""
        if "p" in changes and "n" not in changes and "bits" not in changes:
            changes["bits"] = self.bits
        kept = self.choices()
        if changes.get("bits") is not None:
            del kept["n"]
        return HiggsCode.make(**{"bits": None, **kept, **changes})

    def describe(self) -> str:
        """Name and choices in a few words."""
        return f"higgs p={self.p} n={self.n}"

    def misfit(self, cols: int) -> str | None:
        """None: every row has such a code."""
        return None

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        digits, word_bits = word_shape(self.n)
        words = -(-self._vectors(cols) // digits)
        return {
            "code": ((rows, packed_bytes(words, word_bits)), torch.uint8),
            "scale": ((rows, -(-cols // self.group)), torch.bfloat16),
        }

    def rounder(self, w: torch.Tensor) -> Rounder:
        """Rounds runs of vectors; the scales are those of ``w``."""
        return HiggsRounder(self, w)

    def rounder_of(self, stored: Stored, cols: int) -> Rounder:
        """A rounder with the scales and the points of ``stored``."""
        rounder = HiggsRounder(self, self.decode(stored, cols))
        rounder.hold(stored)
        return rounder

    def decode(self, stored: Stored, cols: int) -> torch.Tensor:
        """float32 [rows, cols]: what ``stored`` was rounded to, in the rotated basis."""
        number = self.numbers(stored, cols)
        points = _on(number.device, self.p, self.n)[number].flatten(1)[:, :cols]
        return points * self._spread(stored["scale"].float(), cols)

    def numbers(self, stored: Stored, cols: int) -> torch.Tensor:
        """Numbers of the points of ``stored``, [rows, vectors]."""
        digits, word_bits = word_shape(self.n)
        vectors = self._vectors(cols)
        return split(unpack(stored["code"], word_bits, -(-vectors // digits)), self.n, vectors)

    def scales(self, w: torch.Tensor) -> torch.Tensor:
        """Root mean square of each group of ``w`` [rows, cols], rounded as stored, in float32."""
        largest = w.abs().amax(1, True) if w.shape[1] else w.new_zeros((w.shape[0], 1))
        unit = torch.where(largest > 0, w / largest, 0.0)  # squares of huge values overflow
        groups = [
            unit[:, begin : begin + self.group].square().mean(1).sqrt()
            for begin in range(0, w.shape[1], self.group)
        ]
        if not w.shape[1]:
            return w.new_zeros((w.shape[0], 0))
        return as_stored(torch.stack(groups, 1) * largest)

    def _vectors(self, cols: int) -> int:
        return -(-cols // self.p)

    def _spread(self, scale: torch.Tensor, cols: int) -> torch.Tensor:
        """The scale of each column."""
        return scale.repeat_interleave(self.group, 1)[:, :cols]


class HiggsRounder:
    """A matrix on its way into a grid code; see :class:`pvq.codes.Rounder`."""

    def __init__(self, code: HiggsCode, w: torch.Tensor) -> None:
        rows, cols = w.shape
        self._code, self._cols = code, cols
        self.step = _step(code.p, cols)
        self._scale = code.scales(w)
        self._grid = _on(w.device, code.p, code.n)
        vectors = -(-cols // code.p)
        self._number = torch.zeros((rows, vectors), dtype=torch.int64, device=w.device)

    def hold(self, stored: Stored) -> None:
        """Goes on from the stored form of a matrix of this size."""
        self._number = self._code.numbers(stored, self._cols).long()
        self._scale = stored["scale"].float()

    def round(
        self, w: torch.Tensor, first: int, metric: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rounds the vectors from column ``first`` on, one after the other under a metric."""
        p = self._code.p
        columns = torch.arange(first, first + w.shape[1], device=w.device)
        scale = self._scale[:, columns // self._code.group]

        def nearest(part: torch.Tensor, begin: int, local: torch.Tensor | None) -> torch.Tensor:
            width = part.shape[1]
            unit = scale[:, begin : begin + width]
            x = torch.where(unit > 0, part / unit, 0.0)
            number = nearest_points(x, self._grid, local)
            at = (first + begin) // p
            self._number[:, at : at + number.shape[1]] = number
            return self._grid[number].flatten(1)[:, :width] * unit

        return round_with_feedback(w, metric, p, nearest)

    def rescale(self, factor: torch.Tensor) -> torch.Tensor:
        """Multiplies all scales of each row and keeps the codes."""
        self._scale = as_stored(self._scale * factor[:, None])
        return self._code.decode(self.stored(), self._cols)

    def stored(self) -> Stored:
        """The stored form."""
        _, word_bits = word_shape(self._code.n)
        words = join(self._number, self._code.n)
        return {"code": pack(words, word_bits), "scale": self._scale.bfloat16()}


def nearest_points(
    x: torch.Tensor, grid: torch.Tensor, metric: torch.Tensor | None
) -> torch.Tensor:
    """Numbers int64 [rows, vectors] of the points of ``grid`` [n, p] nearest to ``x``.

    Args:
        x: [rows, cols]; vectors of p consecutive columns, the last one cut short if p does not
            divide cols, and then compared by the coordinates that it has.
        grid: in ascending order if p is 1.
        metric: [cols, cols] with cols at most p: the error e costs e @ metric @ e; ``None`` for the
            squared error.
    """
    rows, cols = x.shape
    p = grid.shape[1]
    if p == 1:  # under any metric
        levels = grid[:, 0]
        return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    whole, rest = divmod(cols, p)
    parts = []
    if whole:
        parts.append(_nearest(x[:, : whole * p].reshape(-1, p), grid, metric).view(rows, whole))
    if rest:
        parts.append(_nearest(x[:, whole * p :], grid[:, :rest], metric).view(rows, 1))
    return torch.cat(parts, 1) if parts else torch.zeros((rows, 0), dtype=torch.int64)


def _nearest(x: torch.Tensor, grid: torch.Tensor, metric: torch.Tensor | None) -> torch.Tensor:
    """Numbers [vectors] of the points of ``grid`` [n, p] nearest to ``x`` [vectors, p]."""
    if metric is not None:
        root = torch.linalg.cholesky(metric)  # e M e = |e root|^2
        x, grid = x @ root, grid @ root
    # The largest <x, g> - |g|^2 / 2 is the smallest distance.
    half = grid.square().sum(1) / 2
    step = max(1, _CHUNK // len(grid))
    chunks = (x[begin : begin + step] for begin in range(0, max(1, len(x)), step))
    return torch.cat([torch.addmm(-half, chunk, grid.T).argmax(1) for chunk in chunks])


def _bits(p: int, n: int) -> float:
    digits, word_bits = word_shape(n)
    return word_bits / digits / p


def _step(p: int, cols: int) -> int:
    """Columns that are rounded together: whole vectors that divide the row; else the row."""
    if cols % p:
        return cols
    return max(step for step in range(p, max(p, min(cols, _STEP)) + 1, p) if cols % step == 0)


def _check_p(p: object) -> None:
    check_int("p", p, 1, MAX_P, "a grid needs a dimension")
