"""Bands: the columns of a matrix in a few bands, each a pyramid code of its own rate.

Stored form of a matrix of R rows and n columns, band i of them with G_i groups of ``dim`` columns:

=========== ========= ================================= ==========================================
tensor      dtype     shape                             content
=========== ========= ================================= ==========================================
index_i     uint8     [R, ceil(G_i * index_bits_i / 8)] as ``index`` of :mod:`pvq.codes.pyramid`
gain_i      uint8     [R, ceil(G_i * gain_bits_i / 8)]  as ``gain`` there
row_scale   bfloat16  [R]                               unit of the row's amplitudes, in all bands
=========== ========= ================================= ==========================================

Bands are as equal as whole bytes allow, so their limits follow from the number of columns. They are
bands of the rotated matrix: a product rotates its activations once and adds up those of the bands.
Which band gets which rate is what :func:`pvq.rates.fill_columns` decides, from the Hessian.

One scale serves all bands. One for each would cost 16 bits a row and band: with two bands of 256
columns 0.03 bits a weight, worth 4 % of the error and so as much as their rates save. Amplitudes of
a rotated row are alike in all of its columns, and the gains take up the rest: with bands of 128
columns a Gaussian's error is 1 % more than with scales of their own, which would be worth 12 %.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pvq.arguments import check_int
from pvq.codes import CHUNK_COLUMNS, Layout, RunTimeForm, Stored
from pvq.codes.bands_form import BandsForm
from pvq.codes.bands_rounder import BandsRounder
from pvq.codes.pyramid import PyramidCode

MAX_BANDS = 64
DEFAULT_BANDS = 2
_BYTE = 8  # groups whose bits fill whole bytes


@dataclass(frozen=True)
class BandsCode:
    """The pyramid code of each band.

    Attributes:
        bands: how many there are, 1 to 64.
        dim: group size, of all bands.
        pulses: K of each band.
        gain_bits: of each band.
        gain_law: see :class:`pvq.codes.pyramid.PyramidCode`.
        quality: see there.
    """

    bands: int
    dim: int
    pulses: tuple[int, ...]
    gain_bits: tuple[int, ...]
    gain_law: str = "lloyd"
    quality: int = 1

    name: ClassVar[str] = "bands"
    rotation: ClassVar[str] = "hadamard"

    def __post_init__(self) -> None:
        check_int("bands", self.bands, 1, MAX_BANDS)
        for name in ("pulses", "gain_bits"):
            values = getattr(self, name)
            if len(values) != self.bands:
                raise ValueError(
                    f"{name} has {len(values)} values, expected one for each of bands={self.bands}"
                )
        _ = self.settings  # which checks the values

    @classmethod
    def make(
        cls,
        bits: float | None,
        *,
        bands: int | None = None,
        pulses: int | Sequence[int] | None = None,
        gain_bits: int | Sequence[int] | None = None,
        **choices: Any,
    ) -> "BandsCode":
        """The code with the same rate in all bands, or with the settings of each.

        Args:
            bits: as :meth:`pvq.codes.pyramid.PyramidCode.make` takes it.
            bands: how many; 2, or as many as there are values, if not given.
            pulses: one value for each band, or one for all.
            gain_bits: the same.
            **choices: ``dim``, ``gain_law`` and ``quality``.

        Raises:
            ValueError: naming the argument, its value, what is possible and the way out.
            TypeError: if an argument has the wrong type.
        """
        each = [value for value in (pulses, gain_bits) if isinstance(value, Sequence)]
        if bands is None:
            bands = len(each[0]) if each else DEFAULT_BANDS
        check_int("bands", bands, 1, MAX_BANDS)
        if isinstance(pulses, Sequence) or isinstance(gain_bits, Sequence):
            if pulses is None or gain_bits is None or bits is not None:
                raise ValueError(
                    f"pulses={pulses}, gain_bits={gain_bits} and bits={bits}: what each band has "
                    "takes pulses and gain_bits and no bits; for one rate in all bands pass bits"
                )
            dim = choices.pop("dim", 16)
            return cls(bands, dim, _each(pulses, bands), _each(gain_bits, bands), **choices)
        code = PyramidCode.make(bits, pulses=pulses, gain_bits=gain_bits, **choices)
        return cls.uniform(code, bands)

    @classmethod
    def uniform(cls, code: PyramidCode, bands: int) -> "BandsCode":
        """The same code in all bands."""
        return cls.of_settings([code] * bands)

    @classmethod
    def of_settings(cls, settings: Sequence[PyramidCode]) -> "BandsCode":
        """The code with these bands, which differ in ``pulses`` and ``gain_bits`` at most."""
        first = settings[0]
        pulses = tuple(code.pulses for code in settings)
        gain_bits = tuple(code.gain_bits for code in settings)
        return cls(len(settings), first.dim, pulses, gain_bits, first.gain_law, first.quality)

    @classmethod
    def ladder(
        cls, low: float, high: float, *, bands: int = DEFAULT_BANDS, **choices: Any
    ) -> Sequence["BandsCode"]:
        """The codes with one rate in all bands; see :class:`pvq.codes.pyramid.PyramidCode`."""
        check_int("bands", bands, 1, MAX_BANDS)
        return [cls.uniform(code, bands) for code in PyramidCode.ladder(low, high, **choices)]

    @functools.cached_property
    def settings(self) -> tuple[PyramidCode, ...]:
        """The code of each band."""
        return tuple(
            PyramidCode(self.dim, pulses, gain_bits, self.gain_law, self.quality)
            for pulses, gain_bits in zip(self.pulses, self.gain_bits, strict=True)
        )

    @property
    def is_uniform(self) -> bool:
        """Whether all bands have the same code."""
        return len(set(self.settings)) == 1

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        names = [(f"index_{i}", f"gain_{i}") for i in range(self.bands)]
        return (*(name for pair in names for name in pair), "row_scale")

    @property
    def bits(self) -> float:
        """Index and gain bits a weight, in the mean of the bands; without the row scale."""
        return sum(code.bits for code in self.settings) / self.bands

    @property
    def rate(self) -> float:
        """Index and gain bits a weight, in the mean of the bands; without the row scale."""
        return self.bits

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {"bands": self.bands, **self.settings[0].family()}

    def replace(self, **changes: Any) -> "BandsCode":
        """The same with other choices.

        ``bits`` gives all bands one rate; ``dim`` or ``bands`` alone do so as near to the present
        one as that allows.
        """
        if changes.keys() & {"dim", "bands"} and not changes.keys() & {"bits", "pulses"}:
            changes["bits"] = self.bits
        kept = {"bits": None, **self.choices()}
        if changes.get("bits") is not None:
            del kept["pulses"], kept["gain_bits"]
        return BandsCode.make(**{**kept, **changes})

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        lists = {"pulses": list(self.pulses), "gain_bits": list(self.gain_bits)}
        return {"bands": self.bands, **lists, **self.settings[0].family()}

    def describe(self) -> str:
        """Name and choices in a few words, such as ``bands D=16 K=26/28/28/30 gain 3/3/3/3``."""
        if self.is_uniform:
            return f"{self.bands} bands of {self.settings[0].describe()}"
        pulses, gains = ("/".join(map(str, each)) for each in (self.pulses, self.gain_bits))
        return f"bands D={self.dim} K={pulses} gain {gains}"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        problem = self.settings[0].misfit(cols)
        groups = cols // self.dim
        if problem is not None or groups >= self.bands:
            return problem
        remedy = f"pass bands={groups} or " if groups else ""
        return (
            f"{cols} columns are {groups} groups of dim={self.dim}, fewer than bands={self.bands}: "
            f"{remedy}leave this layer dense"
        )

    def limits(self, cols: int) -> tuple[slice, ...]:
        """The columns of each band of a matrix of ``cols``, which fits: see :meth:`misfit`.

        Bands are multiples of what fills whole bytes and the chunks of the GPU's products, if there
        are enough columns for that; else of what fills whole bytes; else of a group.
        """
        whole = self.dim * _BYTE
        units = (math.lcm(whole, CHUNK_COLUMNS), whole, self.dim)
        unit = next(unit for unit in units if unit * self.bands <= cols)
        edges = [cols // unit * i // self.bands * unit for i in range(self.bands)]
        return tuple(slice(*pair) for pair in zip(edges, [*edges[1:], cols], strict=True))

    def widths(self, cols: int) -> tuple[int, ...]:
        """How many columns each band has."""
        return tuple(band.stop - band.start for band in self.limits(cols))

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        layout: Layout = {}
        for i, (code, width) in enumerate(zip(self.settings, self.widths(cols), strict=True)):
            band = code.layout(rows, width)
            layout |= {f"index_{i}": band["index"], f"gain_{i}": band["gain"]}
        return {**layout, "row_scale": ((rows,), torch.bfloat16)}

    def quantize(self, w: Tensor) -> Stored:
        """The nearest point to each group of ``w`` [rows, cols], rotated already."""
        rounder = self.rounder(w)
        rounder.round(w, 0)
        return rounder.stored()

    def rounder(self, w: Tensor) -> BandsRounder:
        """Rounds ``w`` [rows, cols], rotated already, group after group.

        The scale of a row is the root mean square of those that its bands would have alone.
        """
        cols = w.shape[1]
        bands = [
            code.quantize(w[:, band].contiguous())
            for code, band in zip(self.settings, self.limits(cols), strict=True)
        ]
        square = torch.zeros(len(w), dtype=torch.float64, device=w.device)
        for stored, width in zip(bands, self.widths(cols), strict=True):
            square += width * stored["row_scale"].double().square()
        scale = (square / cols).sqrt().to(torch.bfloat16)
        return self._rounder([{**stored, "row_scale": scale} for stored in bands], cols)

    def rounder_of(self, stored: Stored, cols: int) -> BandsRounder:
        """A rounder with the row scales and the points of ``stored``."""
        return self._rounder([self.band(stored, i) for i in range(self.bands)], cols)

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        bands = [
            code.dequantize(self.band(stored, i), width, torch.float32 if block else dtype)
            for i, (code, width) in enumerate(zip(self.settings, self.widths(cols), strict=True))
        ]
        w = torch.cat(bands, 1)
        if block and w.numel():
            w = torch.ops.pvq.hadamard(w, block, seed, True)
        return w.to(dtype)

    def matmul(self, x: Tensor, stored: Stored, block: int = 0, seed: int = 0) -> Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        if block:
            x = torch.ops.pvq.hadamard(x, block, seed)
        y = torch.zeros((), device=x.device)
        for i, (code, band) in enumerate(zip(self.settings, self.limits(x.shape[-1]), strict=True)):
            y = y + code.matmul(x[..., band].contiguous(), self.band(stored, i)).float()
        return y.to(x.dtype)

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """That of the pyramid code for each band: a product takes one launch a band."""
        forms = [code.run_time(device) for code in self.settings]
        present = tuple(form for form in forms if form is not None)
        return BandsForm(self, present) if len(present) == self.bands else None

    def band(self, tensors: Stored, number: int) -> Stored:
        """What the code of one band knows of the tensors of a matrix, by its own names."""
        end = f"_{number}"
        own = {name.removesuffix(end): t for name, t in tensors.items() if name.endswith(end)}
        return {**own, "row_scale": tensors["row_scale"]}

    def _rounder(self, bands: Sequence[Stored], cols: int) -> BandsRounder:
        widths = self.widths(cols)
        rounders = [
            code.rounder_of(stored, width)
            for code, stored, width in zip(self.settings, bands, widths, strict=True)
        ]
        return BandsRounder(rounders, self.limits(cols))


def _each(values: int | Sequence[int], bands: int) -> tuple[int, ...]:
    """One value for each band."""
    return tuple(values) if isinstance(values, Sequence) else (values,) * bands
