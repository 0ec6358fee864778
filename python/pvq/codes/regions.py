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


def word_bits(dim: int, pulses: int) -> int:
    """Bits of a word, those of the signs included."""
    return int(_tables(dim, pulses)["bits"]) + dim // 4


def encode(y: torch.Tensor, pulses: int) -> torch.Tensor:
    """Words int64 [...] of the points ``y`` int8 [..., dim], dim 8 or 16; zero groups included.

    The lowest dim / 4 bits are the signs of the leaves, first leaf lowest.
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
    count, share = t.count[k], t.share[k]
    target = number[..., 0] * _ONE + _divide_up(number[..., 1] * _ONE, count[..., 1])
    u = _divide_up(target, share[..., 1])
    if y.shape[-1] == 16:
        target = number[..., 2] * _ONE + _divide_up(number[..., 3] * _ONE, count[..., 3])
        u = _divide_up(u * _ONE + _divide_up(target, count[..., 2]), t.step[region])
    word = (t.first[region] << t.unit_bits) + u
    signs = (negative.to(torch.int64) << torch.arange(k.shape[-1], device=y.device)).sum(-1)
    return word << k.shape[-1] | signs


def decode(word: torch.Tensor, dim: int, pulses: int) -> torch.Tensor:
    """The points int8 [..., dim] of ``word`` int64 [...]."""
    t = Tables.on(dim, pulses, word.device)
    leaves = dim // 4
    negative = (word[..., None] >> torch.arange(leaves, device=word.device) & 1).bool()
    word = word >> leaves
    region = torch.searchsorted(t.first, word >> t.unit_bits, right=True) - 1
    k = t.pulses[region]
    count, share = t.count[k], t.share[k]
    u = word - (t.first[region] << t.unit_bits)
    number = torch.empty_like(k)
    if dim == 16:
        u = u * t.step[region]
        right = (u & _ONE - 1) * count[..., 2]
        number[..., 2] = right >> 32
        number[..., 3] = (right & _ONE - 1) * count[..., 3] >> 32
        u = u >> 32
    left = u * share[..., 1]
    number[..., 0] = left >> 32
    number[..., 1] = (left & _ONE - 1) * count[..., 1] >> 32
    points = t.points[t.start[k] + number]
    signed = torch.where(negative[..., None], -points, points)
    return signed.reshape(*word.shape, dim)


@dataclass(frozen=True)
class Tables:
    """The tables of csrc/core/regions.h on a device, and what undoes them."""

    bits: int
    unit_bits: int
    pulses: torch.Tensor  # [regions, leaves]
    step: torch.Tensor  # [regions], as `first`
    first: torch.Tensor
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
        arrays = {
            name: torch.from_numpy(value).to(device)
            for name, value in made.items()
            if name not in ("bits", "unit_bits", "points")
        }
        packed = torch.from_numpy(made["points"]).to(torch.uint32).view(torch.int8)
        points = packed.view(-1, 4).to(device)
        keys, order = _key(points.to(torch.int64)).sort()
        weights = torch.tensor([27, 9, 3, 1], device=device)
        names = (arrays["pulses"] * _name_weights(arrays["pulses"])).sum(-1)
        region = torch.zeros(int(names.max()) + 1, dtype=torch.int64, device=device)
        region[names] = torch.arange(len(names), device=device)
        return Tables(
            bits=made["bits"], unit_bits=made["unit_bits"], points=points, sorted_keys=keys,
            order=order, weights=weights, region=region, **arrays,
        )  # fmt: skip

    def name_of(self, k: torch.Tensor) -> torch.Tensor:
        """A number for each region, from the pulses of its leaves."""
        return (k * _name_weights(k)).sum(-1)


def _name_weights(k: torch.Tensor) -> torch.Tensor:
    leaves = torch.arange(k.shape[-1], device=k.device)
    return torch.pow(_MOST_PULSES + 1, leaves)


def _key(leaves: torch.Tensor) -> torch.Tensor:
    """A number for each leaf int64 [..., 4] of entries from -128 to 127."""
    return ((leaves + 128) << 8 * torch.arange(4, device=leaves.device)).sum(-1)


def _divide_up(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a + b - 1) // b


@functools.cache
def _tables(dim: int, pulses: int) -> dict[str, Any]:
    return _core.regions(dim, pulses)
