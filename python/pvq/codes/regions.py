"""Points of small pyramids as words of few bits that multiplications undo: csrc/core/regions.h.

The GPU's product reads such words instead of the file's index, which takes divisions. Here they
are made and undone with whole tensors, on any device.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from pvq import _core

_ONE = 1 << 32
_MOST_PULSES = 32


def has_regions(dim: int, pulses: int) -> bool:
    """Whether pyramids of this size have such words."""
    return _core.has_regions(dim, pulses)


def number_bits(dim: int, pulses: int, gain_bits: int) -> int:
    """Bits of a group's number: of its word, its gain, and the signs of its leaves."""
    return int(_tables(dim, pulses)["bits"]) + gain_bits + dim // 4


def encode(y: torch.Tensor, gain: torch.Tensor, pulses: int, gain_bits: int) -> torch.Tensor:
    """Numbers int64 [...] of the points ``y`` int8 [..., dim], dim 8 or 16, and ``gain`` [...].

    Zero groups included. Below a group's word is its gain, below that the signs of its leaves,
    first leaf lowest.
    """
    t = Tables.on(y.shape[-1], pulses, y.device)
    leaves = y.reshape(*y.shape[:-1], -1, 4).to(torch.int64)
    k = leaves.abs().sum(-1)
    # Of the coordinates other than zero the first says the sign: the heaviest in base three.
    negative = (leaves.sign() * t.weights).sum(-1) < 0
    leaves = torch.where(negative[..., None], -leaves, leaves)
    place = torch.searchsorted(t.sorted_keys, _key(leaves))
    number = t.order[place] - t.start[k]

    region = t.region[t.name_of(k)]
    if y.shape[-1] == 16:
        marked = t.encode_cells(region, k, number, gain.to(torch.int64), gain_bits)
    else:
        target = number[..., 0] * _ONE + _divide_up(number[..., 1] * _ONE, t.count[k[..., 1]])
        word = (t.first[region] << t.unit_bits) + _divide_up(target, t.share[k[..., 1]])
        marked = word << gain_bits | gain
    signs = (negative.to(torch.int64) << torch.arange(k.shape[-1], device=y.device)).sum(-1)
    return marked << k.shape[-1] | signs


def decode(
    number: torch.Tensor, dim: int, pulses: int, gain_bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The points int8 [..., dim] and the gains int64 [...] of ``number`` int64 [...]."""
    t = Tables.on(dim, pulses, number.device)
    leaves = dim // 4
    negative = (number[..., None] >> torch.arange(leaves, device=number.device) & 1).bool()
    marked = number >> leaves
    if dim == 16:
        k, place = t.decode_cells(marked, gain_bits)
    else:
        word = marked >> gain_bits
        region = torch.searchsorted(t.first, word >> t.unit_bits, right=True) - 1
        k = t.pulses[region]
        left = (word - (t.first[region] << t.unit_bits)) * t.share[k[..., 1]]
        place = torch.stack([left >> 32, _low(left) * t.count[k[..., 1]] >> 32], -1)
    points = t.points[t.start[k] + place]
    signed = torch.where(negative[..., None], -points, points)
    return signed.reshape(*number.shape, dim), marked & ((1 << gain_bits) - 1)


@dataclass(frozen=True)
class Tables:
    """The tables of csrc/core/regions.h on a device, and what undoes them."""

    bits: int
    unit_bits: int
    cell_bits: int
    split: int
    pulses: torch.Tensor  # [regions, leaves]
    first: torch.Tensor  # [regions], as `cell` and `slot`
    cell: torch.Tensor
    slot: torch.Tensor
    cell_region: torch.Tensor  # [cells], as `slot_bits`
    slot_bits: torch.Tensor
    count: torch.Tensor  # [pulses + 1], as `share` and `start`
    share: torch.Tensor
    start: torch.Tensor
    points: torch.Tensor  # int8 [leading leaves, 4]
    sorted_keys: torch.Tensor  # [leading leaves]
    order: torch.Tensor  # which leaf has that key
    weights: torch.Tensor  # [4]
    region: torch.Tensor  # by name_of

    @staticmethod
    @functools.cache
    def on(dim: int, pulses: int, device: torch.device) -> "Tables":
        """Cached for the life of the process."""
        made = _tables(dim, pulses)
        numbers = ("bits", "unit_bits", "cell_bits", "split")
        arrays: dict[str, Any] = {
            name: torch.from_numpy(value).to(device)
            for name, value in made.items()
            if name not in (*numbers, "points")
        }
        packed = torch.from_numpy(made["points"]).to(torch.uint32).view(torch.int8)
        points = packed.view(-1, 4).to(device)
        keys, order = _key(points.to(torch.int64)).sort()
        weights = torch.tensor([27, 9, 3, 1], device=device)
        names = (arrays["pulses"] * _name_weights(arrays["pulses"])).sum(-1)
        region = torch.zeros(int(names.max()) + 1, dtype=torch.int64, device=device)
        region[names] = torch.arange(len(names), device=device)
        return Tables(
            **{name: made[name] for name in numbers}, points=points, sorted_keys=keys,
            order=order, weights=weights, region=region, **arrays,
        )  # fmt: skip

    def name_of(self, k: torch.Tensor) -> torch.Tensor:
        """A number for each region, from the pulses of its leaves."""
        return (k * _name_weights(k)).sum(-1)

    def encode_cells(
        self, region: torch.Tensor, k: torch.Tensor, number: torch.Tensor, gain: torch.Tensor,
        gain_bits: int,
    ) -> torch.Tensor:  # fmt: skip
        """Words and gains of 16 dimensions, int64 [...], of leaf numbers ``number`` [..., 4]."""
        apart, fraction_bits, count = self._apart, self._fraction_bits, self._fraction_counts(k)
        rest = torch.zeros_like(gain)
        for leaf in range(self.split):
            rest |= (number[..., leaf] & 3) << 2 * leaf
        number = torch.where(apart, number >> 2, number)
        least = torch.zeros_like(gain)
        for leaf in (3, 2, 1, 0):
            least = _divide_up(number[..., leaf] * _ONE + least, count[..., leaf])
        # The first word whose fraction is no less: what follows its own bits is known.
        cell = self.cell[region]
        rest |= cell << 2 * self.split
        rest = rest << gain_bits | gain
        slot_bits = self.slot_bits[cell]
        u_bits = fraction_bits - slot_bits
        below = self.cell_bits + 2 * self.split + gain_bits
        unit = 32 - u_bits
        tail = _shift(rest & (1 << below) - 1, unit - below)
        u = (least - tail + (1 << unit) - 1).clamp(min=0) >> unit
        return (self.slot[region] << u_bits | u) << below | rest

    def decode_cells(
        self, marked: torch.Tensor, gain_bits: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pulses and numbers int64 [..., 4] of leaves, of words with their gains."""
        below = self.cell_bits + 2 * self.split + gain_bits
        rest = marked >> gain_bits
        cell = rest >> 2 * self.split & (1 << self.cell_bits) - 1
        slot_bits = self.slot_bits[cell]
        left = self._fraction_bits - slot_bits + below
        slot = marked >> left
        fraction = _shift(marked & (1 << left) - 1, 32 - left)
        k = self.pulses[self.cell_region[cell] + slot]
        count = self._fraction_counts(k)
        number = torch.empty_like(k)
        for leaf in range(4):
            product = fraction * count[..., leaf]
            number[..., leaf], fraction = product >> 32, _low(product)
            if leaf < self.split:
                number[..., leaf] = number[..., leaf] << 2 | rest >> 2 * leaf & 3
        return k, number

    @property
    def _fraction_bits(self) -> int:
        """Bits of slot and fraction."""
        return self.bits - self.cell_bits - 2 * self.split

    @property
    def _apart(self) -> torch.Tensor:
        """Bool [4]: of which leaves the last two bits of the number stand apart."""
        return torch.arange(4, device=self.count.device) < self.split

    def _fraction_counts(self, k: torch.Tensor) -> torch.Tensor:
        """How many points of each leaf of ``k`` [..., 4] the fraction tells apart."""
        return torch.where(self._apart & (k > 0), self.count[k] // 4, self.count[k])


def _name_weights(k: torch.Tensor) -> torch.Tensor:
    leaves = torch.arange(k.shape[-1], device=k.device)
    return torch.pow(_MOST_PULSES + 1, leaves)


def _key(leaves: torch.Tensor) -> torch.Tensor:
    """A number for each leaf int64 [..., 4] of entries from -128 to 127."""
    return ((leaves + 128) << 8 * torch.arange(4, device=leaves.device)).sum(-1)


def _low(a: torch.Tensor) -> torch.Tensor:
    """The last 32 bits."""
    return a & (_ONE - 1)


def _shift(a: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """``a`` times 2^left, rounded down; ``left`` of either sign."""
    return a << left.clamp(min=0) >> (-left).clamp(min=0)


def _divide_up(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a + b - 1) // b


@functools.cache
def _tables(dim: int, pulses: int) -> dict[str, Any]:
    return _core.regions(dim, pulses)
