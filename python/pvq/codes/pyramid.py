"""The pyramid code: a group is amplitude * y / ||y||_2, y an integer vector, sum |y_i| = pulses.

Stored form of a matrix of R rows and n columns in G = n / dim groups a row:

=========== ========= ============================= ==========================================
tensor      dtype     shape                         content
=========== ========= ============================= ==========================================
index       uint8     [R, ceil(G * index_bits / 8)] rank of y in the pyramid, a bit stream a row
gain        uint8     [R, ceil(G * gain_bits / 8)]  codes of the amplitudes, a bit stream a row
row_scale   bfloat16  [R]                           unit of the row's amplitudes
=========== ========= ============================= ==========================================
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from pvq import _core
from pvq.arguments import check_bits, check_choice, check_int
from pvq.codes import Layout, RunTimeForm, Stored
from pvq.codes.bits import unpack
from pvq.codes.fragments import PlaneFragments
from pvq.codes.index_fragments import IndexFragments
from pvq.codes.planes import Planes
from pvq.codes.pyramid_rounder import PyramidRounder
from pvq.codes.regions import has_regions
from pvq.ops.code import packed_bytes

MAX_DIM = 256
MAX_PULSES = 4096
MAX_GAIN_BITS = 8
MAX_QUALITY = 2
GAIN_LAWS = ("lloyd", "beta")

# Mean square error of the best scalar quantizer of a standard normal with 2^i levels (Max 1960).
_LLOYD_MAX = (1.0, 0.3634, 0.1175, 0.03455, 0.009501, 0.002505, 0.000644, 0.000163, 0.0000412)
_AMPLITUDE_WEIGHT = 1.3


@dataclass(frozen=True)
class PyramidCode:
    """The numbers that say how to write and read the stored form.

    Attributes:
        dim: group size D, how many consecutive weights of a row form one vector; 2 to 256.
        pulses: K, the L1 norm of the integer vector that stands for a group; 1 to 4096.
        gain_bits: bits of a group's amplitude, 0 to 8.
        gain_law: codebook of the amplitudes, ``"lloyd"`` (Lloyd-Max) or ``"beta"`` (quantiles),
            both of the law that a group's amplitude has in a Gaussian row.
        quality: effort of the search for the nearest point, 0 (fast) to 2 (best).
    """

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str = "lloyd"
    quality: int = 1

    name: ClassVar[str] = "pyramid"
    rotation: ClassVar[str] = "hadamard"
    tensors: ClassVar[tuple[str, ...]] = ("index", "gain", "row_scale")

    def __post_init__(self) -> None:
        _check_dim(self.dim)
        check_int("gain_bits", self.gain_bits, 0, MAX_GAIN_BITS)
        check_int("pulses", self.pulses, 1, MAX_PULSES, "without a pulse there is no direction")
        check_choice("gain_law", self.gain_law, GAIN_LAWS)
        check_int("quality", self.quality, 0, MAX_QUALITY)

    @classmethod
    def make(
        cls,
        bits: float | None,
        *,
        dim: int = 16,
        pulses: int | None = None,
        gain_bits: int | None = None,
        gain_law: str = "lloyd",
        quality: int = 1,
    ) -> "PyramidCode":
        """The code of a rate, or of explicit choices.

        Args:
            bits: index and gain bits a weight, instead of ``pulses``; 3.25 if neither is given.
            dim: see the class.
            pulses: see the class.
            gain_bits: ``None`` takes the best share of ``bits``, or 4 beside ``pulses``.
            gain_law: see the class.
            quality: see the class.

        Raises:
            ValueError: naming the argument, its value, what is possible and the way out.
            TypeError: if an argument has the wrong type.
        """
        if bits is not None and pulses is not None:
            raise ValueError(
                f"bits={bits} and pulses={pulses} were both given: bits is a way to ask for "
                "pulses, pass one of them"
            )
        _check_dim(dim)
        if gain_bits is not None:
            check_int("gain_bits", gain_bits, 0, MAX_GAIN_BITS)
        if pulses is None:
            pulses, gain_bits = _share_out(3.25 if bits is None else bits, dim, gain_bits)
        return cls(dim, pulses, 4 if gain_bits is None else gain_bits, gain_law, quality)

    @classmethod
    def ladder(
        cls, low: float, high: float, *, dim: int = 16, **choices: Any
    ) -> Sequence["PyramidCode"]:
        """The codes with those choices at every rate from ``low`` to ``high`` that a dim has.

        Rates are whole bits a group, ``1 / dim`` of a bit a weight apart; the range is cut to what
        the choices reach. See :meth:`make` for these.
        """
        if "pulses" in choices:
            every = [cls.make(None, dim=dim, **choices)]
        else:
            _check_dim(dim)
            floor, ceiling = reach(dim, choices.get("gain_bits"))
            groups = range(
                math.ceil(max(low, floor) * dim), math.floor(min(high, ceiling) * dim) + 1
            )
            every = [cls.make(bits / dim, dim=dim, **choices) for bits in groups]
        return [code for code in every if low <= code.rate <= high]

    @property
    def rate(self) -> float:
        """Index and gain bits a weight, without the row scale."""
        return self.bits

    @property
    def index_bits(self) -> int:
        """Bits of one index; one word beyond the pyramid's points names the zero group."""
        return _core.index_bits(self.dim, self.pulses)

    @property
    def bits(self) -> float:
        """Index and gain bits a weight, without the row scale."""
        return (self.index_bits + self.gain_bits) / self.dim

    def family(self) -> dict[str, Any]:
        """The choices that do not set the rate, as :meth:`ladder` takes them."""
        return {"dim": self.dim, "gain_law": self.gain_law, "quality": self.quality}

    def replace(self, **changes: Any) -> "PyramidCode":
        """The same with other choices.

        ``bits`` shares the rate out anew; ``dim`` alone keeps the rate as near as that dim allows.
        """
        if "dim" in changes and "pulses" not in changes and "bits" not in changes:
            changes["bits"] = self.bits
        kept = {"bits": None, **self.choices()}
        if changes.get("bits") is not None:
            del kept["pulses"], kept["gain_bits"]
        return PyramidCode.make(**{**kept, **changes})

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Name and choices in a few words."""
        return f"pyramid D={self.dim} K={self.pulses} gain {self.gain_bits}"

    def misfit(self, cols: int) -> str | None:
        """Why rows of ``cols`` weights have no such code, and the way out."""
        if cols % self.dim == 0:
            return None
        below = [d for d in range(self.dim, 1, -1) if cols % d == 0]
        remedy = f"pass dim={below[0]} or " if below else ""
        return (
            f"{cols} columns are not a multiple of dim={self.dim}, and pvq never pads: "
            f"{remedy}leave this layer dense"
        )

    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""
        groups = cols // self.dim
        return {
            "index": ((rows, packed_bytes(groups, self.index_bits)), torch.uint8),
            "gain": ((rows, packed_bytes(groups, self.gain_bits)), torch.uint8),
            "row_scale": ((rows,), torch.bfloat16),
        }

    def quantize(self, w: torch.Tensor) -> Stored:
        """The nearest point to each group of ``w`` [rows, cols], rotated already."""
        index, gain, row_scale = torch.ops.pvq.quantize(
            w, self.dim, self.pulses, self.gain_bits, self.gain_law, self.quality
        )
        return {"index": index, "gain": gain, "row_scale": row_scale}

    def rounder(self, w: torch.Tensor) -> PyramidRounder:
        """Rounds ``w`` [rows, cols], rotated already, group after group."""
        groups = w.shape[1] // self.dim
        y = torch.zeros(len(w), groups, self.dim, dtype=torch.int16, device=w.device)
        gain = torch.zeros(len(w), groups, dtype=torch.uint8, device=w.device)
        return self._rounder(y, gain, self.quantize(w)["row_scale"])

    def rounder_of(self, stored: Stored, cols: int) -> PyramidRounder:
        """A rounder with the row scales and the points of ``stored``."""
        groups = cols // self.dim
        y = torch.ops.pvq.decode(stored["index"], self.dim, self.pulses, groups)
        gain = unpack(stored["gain"], self.gain_bits, groups).to(torch.uint8)
        return self._rounder(y, gain, stored["row_scale"])

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w: torch.Tensor = torch.ops.pvq.dequantize(
            *self._operands(stored), cols, dtype, block, seed
        )
        return w

    def matmul(
        self, x: torch.Tensor, stored: Stored, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        y: torch.Tensor = torch.ops.pvq.matmul(x, *self._operands(stored), block, seed)
        return y

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """Planes on the CPU, fragments of planes on a GPU."""
        numbers = (self.dim, self.pulses, self.gain_bits, self.gain_law)
        if device.type == "cuda" and self.dim % 8 == 0 and _core.build_info()["cuda"]:
            return PlaneFragments(*numbers)
        return Planes(*numbers) if device.type == "cpu" else None

    def index_form(self, device: torch.device) -> RunTimeForm | None:
        """The exact index in the order of the tensor cores, on a GPU that decodes it in products.

        That is one of compute capability 9.0, with ``dim`` 8 or 16 and at most 32 pulses.
        """
        if device.type != "cuda" or not has_regions(self.dim, self.pulses):
            return None
        if "90a" not in _core.build_info()["cuda_architectures"]:
            return None
        if torch.cuda.get_device_capability(device) != (9, 0):
            return None
        return IndexFragments(self.dim, self.pulses, self.gain_bits, self.gain_law)

    def _rounder(
        self, y: torch.Tensor, gain: torch.Tensor, row_scale: torch.Tensor
    ) -> PyramidRounder:
        numbers = (self.pulses, self.gain_bits, self.gain_law, self.quality)
        return PyramidRounder(y, gain, row_scale, *numbers)

    def _operands(self, stored: Stored) -> tuple[Any, ...]:
        """What every operator takes of a stored matrix."""
        numbers = (self.dim, self.pulses, self.gain_bits, self.gain_law)
        return *(stored[name] for name in self.tensors), *numbers


def _check_dim(dim: object) -> None:
    check_int("dim", dim, 2, MAX_DIM, "a group needs at least two weights for a direction")


@functools.cache
def _share_out(bits: float, dim: int, gain_bits: int | None) -> tuple[int, int]:
    """Pulses and gain bits of a rate; ``gain_bits`` is kept if it is given."""
    check_bits(bits)
    choices = range(MAX_GAIN_BITS + 1) if gain_bits is None else (gain_bits,)
    low, high = reach(dim, gain_bits)
    if not math.isfinite(bits) or not low <= bits <= high:
        given = "" if gain_bits is None else f" and gain_bits={gain_bits}"
        raise ValueError(
            f"bits={bits} is out of reach with dim={dim}{given}: choose from {low:.4g} to "
            f"{high:.4g}, or another dim"
        )
    budget = math.floor(bits * dim + 0.5)
    shares = [
        (most_pulses(dim, budget - gain, MAX_PULSES), gain)
        for gain in choices
        if _core.index_bits(dim, 1) <= budget - gain
    ]
    return min(shares, key=lambda share: expected_error(dim, *share))


def reach(dim: int, gain_bits: int | None) -> tuple[float, float]:
    """The least and the greatest rate of a dim, of all gain bits or of those given."""
    fewest, most = (0, MAX_GAIN_BITS) if gain_bits is None else (gain_bits, gain_bits)
    low = (_core.index_bits(dim, 1) + fewest) / dim
    return low, (_core.index_bits(dim, MAX_PULSES) + most) / dim


def most_pulses(dim: int, index_bits: int, limit: int) -> int:
    """The most pulses, up to ``limit``, whose index takes at most ``index_bits`` bits."""
    inside, outside = 0, limit + 1  # index_bits grows with the pulses: bisect
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if _core.index_bits(dim, middle) <= index_bits:
            inside = middle
        else:
            outside = middle
    return inside


def expected_error(dim: int, pulses: int, gain_bits: int) -> float:
    """Mean square error on a unit Gaussian source, within some per cent: to compare settings with.

    The direction of a group has ``dim - 1`` degrees of freedom, so its error falls as
    N^(-2 / (dim - 1)); the factor 1.55 fits what the search reaches from dim 8 to 128 and from 2 to
    4 bits (benchmarks/gaussian_mse.py). The amplitude's law has variance 1/2 and is nearly normal,
    so its error is that of a scalar quantizer, shared by the group's ``dim`` weights; it counts
    a third more than an error of direction, because it is common to a whole group (measured as KL
    divergence of two small models at 2.25 bits over several seeds).
    """
    direction: float = 1.55 * 2.0 ** (-2 * math.log2(_core.count(dim, pulses)) / (dim - 1))
    return direction + _AMPLITUDE_WEIGHT * 0.5 * _LLOYD_MAX[gain_bits] / dim
