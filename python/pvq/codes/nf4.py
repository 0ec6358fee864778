"""NormalFloat4: 16 levels at normal quantiles times the largest magnitude of 64 weights.

From QLoRA (arXiv 2305.14314, section 3). Stored form of a matrix of R rows and n columns, in
B = n / block blocks a row:

=========== ======== ===================== ====================================================
tensor      dtype    shape                 content
=========== ======== ===================== ====================================================
code        uint8    [R, ceil(n / 2)]      number of the level, two a byte, the first one low
absmax      float32  [R, B]                largest magnitude of the block, or, doubly quantized:
absmax_code uint8    [R, B]                the same in 255ths of
absmax_max  bfloat16 [R, ceil(B / 256)]    1.25 times the largest of 256 blocks
=========== ======== ===================== ====================================================

With block = 64 these are 4.5 bits a weight and, doubly quantized, 4.126 for rows of 16384 columns,
as in the paper; the 256 blocks are of one row, so narrower rows pay up to 16 bits a row for the
last. Rows stay independent of each other that way, as tables of embeddings need it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import torch

from pvq.arguments import check_bits, check_bool, check_int
from pvq.codes import Layout, Rounder, Stored
from pvq.codes.bits import pack, unpack
from pvq.codes.decoded import DecodedCode, spec_of
from pvq.codes.feedback import round_blocks, round_with_feedback
from pvq.ops.code import packed_bytes

BITS = 4
NESTED_BLOCK = 256
# Blocks grow while feedback moves errors to them: 255ths are fine enough to leave room for that.
HEADROOM = 1.25


@functools.cache
def levels() -> torch.Tensor:
    """The 16 levels in ascending order, float32, from -1 to 1.

    Eight quantiles of the standard normal above zero and seven below it, evenly spaced in
    probability up to the mean of 1 - 1/32 and 1 - 1/30, and zero itself.
    """
    quantile = NormalDist().inv_cdf
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = [quantile(0.5 + (outermost - 0.5) * i / 8) for i in range(1, 9)]
    below = [-quantile(0.5 + (outermost - 0.5) * i / 7) for i in range(1, 8)]
    ascending = torch.tensor(sorted([*below, 0.0, *above]), dtype=torch.float64)
    return (ascending / ascending[-1]).float()


@dataclass(frozen=True)
class NF4Code(DecodedCode):
    """NormalFloat4 in blocks.

    Attributes:
        block_size: columns that share a largest magnitude.
        double: whether the magnitudes are quantized to 8 bits in their turn.
    """

    block_size: int = 64
    double: bool = True

    name: ClassVar[str] = "nf4"
    rotation: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        check_int("block_size", self.block_size, 1, 1 << 20)
        check_bool("double", self.double)
        object.__setattr__(self, "spec", spec_of(self))

    @classmethod
    def make(cls, bits: float | None, **choices: Any) -> "NF4Code":
        """The code; ``bits`` may only be 4.

        Raises:
            ValueError: on another rate.
            TypeError: if a choice has the wrong type.
        """
        if bits is not None:
            check_bits(bits)
            if bits != BITS:
                raise ValueError(
                    f"bits={bits} is out of reach with code='nf4', which has {BITS} (and its "
                    "scales on top): leave bits out, or choose code='pyramid'"
                )
        return cls(**choices)

    @classmethod
    def ladder(cls, low: float, high: float, **choices: Any) -> Sequence["NF4Code"]:
        """The codes with those choices whose rate is from ``low`` to ``high``, in order of it."""
        doubles = (choices.pop("double"),) if "double" in choices else (True, False)
        every = (cls(double=double, **choices) for double in doubles)
        return [code for code in every if low <= code.rate <= high]

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the stored tensors."""
        return ("code", "absmax_code", "absmax_max") if self.double else ("code", "absmax")

    @property
    def bits(self) -> float:
        """Bits a weight without scales."""
        return float(BITS)

    @property
    def rate(self) -> float:
        """Bits a weight with those of the blocks."""
        return BITS + ((8 + 16 / NESTED_BLOCK) if self.double else 32) / self.block_size

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {"block_size": self.block_size}

    def replace(self, **changes: Any) -> "NF4Code":
        """The same with other choices."""
        return NF4Code.make(**{"bits": None, **self.choices(), **changes})

    def describe(self) -> str:
        """Name and choices in a few words."""
        return f"nf4 b{self.block_size}{' double' if self.double else ''}"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        if cols % self.block_size == 0:
            return None
        below = next(d for d in range(min(self.block_size, cols), 0, -1) if cols % d == 0)
        return (
            f"{cols} columns are not a multiple of block_size={self.block_size}, and pvq never "
            f"pads: pass block_size={below} or leave this layer dense"
        )

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        blocks = cols // self.block_size
        layout: Layout = {"code": ((rows, packed_bytes(cols, BITS)), torch.uint8)}
        if self.double:
            layout["absmax_code"] = ((rows, blocks), torch.uint8)
            layout["absmax_max"] = ((rows, -(-blocks // NESTED_BLOCK)), torch.bfloat16)
        else:
            layout["absmax"] = ((rows, blocks), torch.float32)
        return layout

    def rounder(self, w: torch.Tensor) -> Rounder:
        """Rounds a block at a time; its magnitude is taken when it is first rounded."""
        return NF4Rounder(self, w)

    def rounder_of(self, stored: Stored, cols: int) -> Rounder:
        """A rounder with the magnitudes and the levels of ``stored``."""
        rounder = NF4Rounder(self, self.decode(stored, cols))
        rounder.hold(stored)
        return rounder

    def decode(self, stored: Stored, cols: int) -> torch.Tensor:
        """float32 [rows, cols]: what ``stored`` was rounded to, in the rotated basis."""
        number = unpack(stored["code"], BITS, cols)
        absmax = self.absmax(stored)
        table = levels().to(number.device)
        values = table[number].view(*absmax.shape, self.block_size) * absmax[..., None]
        return values.view(absmax.shape[0], cols)

    def absmax(self, stored: Stored) -> torch.Tensor:
        """float32 [rows, blocks]: the scale of each block."""
        if not self.double:
            return stored["absmax"]
        blocks = stored["absmax_code"].shape[1]
        unit = (stored["absmax_max"].float() / 255).repeat_interleave(NESTED_BLOCK, 1)
        return stored["absmax_code"].float() * unit[:, :blocks]


class NF4Rounder:
    """A matrix on its way into NF4; see :class:`pvq.codes.Rounder`."""

    def __init__(self, code: NF4Code, w: torch.Tensor) -> None:
        rows, cols = w.shape
        blocks = cols // code.block_size
        self._code = code
        self.step = code.block_size
        self._number = torch.zeros((rows, cols), dtype=torch.uint8, device=w.device)
        self._scale: Stored = {
            name: torch.zeros(shape, dtype=dtype, device=w.device)
            for name, (shape, dtype) in code.layout(rows, cols).items()
            if name != "code"
        }
        self._is_fitted = [False] * blocks
        self._levels = levels().to(w.device)
        if code.double:
            absmax = w.view(rows, blocks, code.block_size).abs().amax(2)
            largest = [
                absmax[:, begin : begin + NESTED_BLOCK].amax(1)
                for begin in range(0, blocks, NESTED_BLOCK)
            ]
            if largest:
                self._scale["absmax_max"] = (HEADROOM * torch.stack(largest, 1)).bfloat16()

    def hold(self, stored: Stored) -> None:
        """Goes on from the stored form of a matrix of this size."""
        self._number = unpack(stored["code"], BITS, self._number.shape[1]).to(torch.uint8)
        self._scale = {name: stored[name].clone() for name in self._scale}
        self._is_fitted = [True] * len(self._is_fitted)

    def round(
        self, w: torch.Tensor, first: int, metric: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rounds blocks from column ``first`` on, column by column under a metric."""
        if w.shape[1] != self.step:
            return round_blocks(self, w, first)
        block = first // self.step
        if not self._is_fitted[block]:
            self._fit(block, w.abs().amax(1))
            self._is_fitted[block] = True
        scale = self._code.absmax(self._scale)[:, block, None]
        middle = (self._levels[1:] + self._levels[:-1]) / 2

        def nearest(part: torch.Tensor, begin: int, _: torch.Tensor | None) -> torch.Tensor:
            number = torch.bucketize(torch.where(scale > 0, part / scale, 0.0), middle)
            self._number[:, first + begin : first + begin + part.shape[1]] = number.to(torch.uint8)
            return self._levels[number] * scale

        return round_with_feedback(w, metric, 1, nearest)

    def rescale(self, factor: torch.Tensor) -> torch.Tensor:
        """Multiplies all scales of each row and keeps the codes."""
        name = "absmax_max" if self._code.double else "absmax"
        scale = self._scale[name]
        self._scale[name] = (scale.float() * factor[:, None]).to(scale.dtype)
        return self._code.decode(self.stored(), self._number.shape[1])

    def stored(self) -> Stored:
        """The stored form."""
        return {"code": pack(self._number, BITS), **self._scale}

    def _fit(self, block: int, absmax: torch.Tensor) -> None:
        """Takes down the magnitudes [rows] of a block."""
        if not self._code.double:
            self._scale["absmax"][:, block] = absmax
            return
        unit = self._scale["absmax_max"][:, block // NESTED_BLOCK].float() / 255
        code = torch.where(unit > 0, absmax / unit, 0.0).round_().clamp_(0, 255)
        self._scale["absmax_code"][:, block] = code.to(torch.uint8)
