"""Fragments: the run-time form of a pyramid code that the GPU product reads.

The integers of the points, in planes of 4, 6 or 8 bits, and one float16 scale for 8 or 16 of them,
lie in the order in which the lanes of a warp feed the tensor cores (csrc/cuda/plane_matmul.h). They
replace the index, which can be made from them again, bit for bit; gains and row scales stay.

The product takes activations as float16 values, points (:mod:`pvq.activations`) decoded to them:
integer sums would have to be folded with a scale of the weights every 8 or 16 columns, less than
one step of the int8 tensor cores, where the codes of tables have a scale for a whole row.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq import _core
from pvq.codes import CHUNK_COLUMNS, TILE_ROWS, Stored
from pvq.codes.bits import unpack
from pvq.codes.pyramid_fragments import PyramidFragments
from pvq.ops.code import packed_bytes

_WIDTHS = (4, 6, 8)


def fits_fragments(dim: int, cols: int) -> bool:
    """Whether matrices of ``cols`` columns in groups of ``dim`` have fragments."""
    return dim % 8 == 0 and cols % CHUNK_COLUMNS == 0


@dataclass(frozen=True)
class PlaneFragments(PyramidFragments):
    """Fragments of the points' integers."""

    layout: ClassVar[str] = "fragments"
    replaces: ClassVar[tuple[str, ...]] = ("index",)
    slab_weights: ClassVar[int] = 1 << 25

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The fragments of a matrix; ``None`` if its shape or an integer of it does not fit them.

        Raises:
            RuntimeError: if an index names no point of the pyramid (a damaged file).
        """
        rows, cols = shape
        if not fits_fragments(self.dim, cols) or rows == 0 or cols == 0:
            return None
        # decode cannot refuse an index on the GPU, because that would wait for it.
        torch.ops.pvq.check_codes(stored["index"], self.dim, self.pulses, cols // self.dim)
        slabs = self._slabs(rows, cols)
        points = []
        for slab in slabs:
            y = self._points(stored["index"][slab], cols)
            if y is None:
                return None
            points.append(y)
        largest = max((int(y.max()) for y in points if y.numel()), default=0)
        smallest = min((int(y.min()) for y in points if y.numel()), default=0)
        bits = next(b for b in _WIDTHS if -smallest <= 1 << (b - 1) and largest < 1 << (b - 1))
        levels = _core.gain_levels(self.dim, cols, self.gain_bits, self.gain_law)
        level = torch.from_numpy(levels).to(stored["gain"].device)
        pieces = [
            pack_planes(y, self._scales(y, stored["gain"][slab], level), bits)
            for y, slab in zip(points, slabs, strict=True)
        ]
        return {"fragments": torch.cat(pieces) if pieces else stored["index"].new_empty(0)}

    def _product(self, x: torch.Tensor, held: Stored, block: int, seed: int) -> torch.Tensor:
        y: torch.Tensor = torch.ops.pvq.plane_matmul(
            x, held["fragments"], held["row_scale"], block, seed
        )
        return y

    def _unpack(self, tiles: torch.Tensor, cols: int) -> torch.Tensor:
        return unpack_planes(tiles, cols)

    def _empty(self, rows: int, cols: int, device: torch.device) -> Stored:
        width = packed_bytes(cols // self.dim, _core.index_bits(self.dim, self.pulses))
        return {"index": torch.empty(rows, width, dtype=torch.uint8, device=device)}

    def _write(self, stored: Stored, rows: slice, items: torch.Tensor) -> None:
        groups = items.to(torch.int16).view(len(items), items.shape[1] // self.dim, self.dim)
        stored["index"][rows] = torch.ops.pvq.encode(groups, self.pulses)

    def _points(self, index: torch.Tensor, cols: int) -> torch.Tensor | None:
        """The integers as int8 [rows, cols]; ``None`` if one does not fit."""
        y: torch.Tensor = torch.ops.pvq.decode(index, self.dim, self.pulses, cols // self.dim)
        if y.numel() and int(y.abs().max()) > 127:
            return None
        return y.to(torch.int8).view(len(index), cols)

    def _scales(self, y: torch.Tensor, gain: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Level over norm, float16 [rows, cols / 8 or 16]."""
        groups = y.view(len(y), -1, self.dim)
        codes = unpack(gain, self.gain_bits, groups.shape[1])
        norm = groups.float().square().sum(-1).sqrt()
        scale = torch.where(norm > 0, level[codes] / norm, torch.zeros_like(norm))
        return scale.half().repeat_interleave(self.dim // _group(self.dim), dim=1)


def _group(dim: int) -> int:
    return 16 if dim % 16 == 0 else 8


def pack_planes(y: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Fragments uint8 [bytes] of ``y`` int8 [rows, cols] and ``scale`` float16 [rows, groups]."""
    rows, cols = y.shape
    tiles, chunks = -(-rows // TILE_ROWS), cols // CHUNK_COLUMNS
    biased = torch.full((tiles * TILE_ROWS, cols), 1 << (bits - 1), dtype=torch.uint8).to(y.device)
    biased[:rows] = (y.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    # tile, u, g, chunk, b, t, q, i: plane_matmul.h names them.
    v = biased.view(tiles, 2, 8, chunks, 2, 4, 4, 4)
    sections = []
    if bits == 8:
        sections.append(v.permute(0, 3, 4, 1, 2, 5, 6, 7))  # [b, u][g, t][q, i]
    else:
        low = v[..., 0::2, :] & 15 | (v[..., 1::2, :] & 15) << 4
        sections.append(low.permute(0, 3, 4, 2, 5, 1, 6, 7))  # [b][g, t][u, q / 2, i]
    if bits == 6:
        high = (v >> 4) << (2 * torch.arange(4, device=y.device, dtype=torch.uint8))[:, None]
        high = high[..., 0, :] | high[..., 1, :] | high[..., 2, :] | high[..., 3, :]
        sections.append(high.permute(0, 3, 2, 5, 4, 1, 6))  # [g, t][b, u, i]
    scales = torch.zeros(tiles * TILE_ROWS, scale.shape[1], dtype=torch.float16, device=y.device)
    scales[:rows] = scale
    s = scales.view(tiles, 2, 8, chunks, 2, 4, -1).permute(0, 3, 2, 5, 4, 1, 6)  # [g, t][b, u][..]
    sections.append(s.contiguous().view(torch.uint8))
    return torch.cat([part.reshape(tiles, chunks, -1) for part in sections], dim=-1).flatten()


def unpack_planes(tiles: torch.Tensor, cols: int) -> torch.Tensor:
    """The integers int8 [16 * tiles, cols] of fragments uint8 [tiles, bytes]."""
    chunks = cols // CHUNK_COLUMNS
    packed = tiles.reshape(len(tiles), chunks, -1)
    bits = next(
        b for b in _WIDTHS if packed.shape[-1] < TILE_ROWS * CHUNK_COLUMNS * (b + 2) // 8 + 1
    )
    if bits == 8:
        v = packed[..., :2048].reshape(-1, chunks, 2, 2, 8, 4, 4, 4).permute(0, 3, 4, 1, 2, 5, 6, 7)
    else:
        low = packed[..., :1024].reshape(-1, chunks, 2, 8, 4, 2, 2, 4)
        v = torch.stack([low & 15, low >> 4], dim=-2)  # ... u, q / 2, q % 2, i
        v = v.flatten(-3, -2).permute(0, 5, 3, 1, 2, 4, 6, 7)
        if bits == 6:
            high = packed[..., 1024:1536].reshape(-1, chunks, 8, 4, 2, 2, 4)
            shifts = (2 * torch.arange(4, device=tiles.device, dtype=torch.uint8))[:, None]
            planes = (high[..., None, :] >> shifts) & 3  # tile, chunk, g, t, b, u, q, i
            v = v | planes.permute(0, 5, 2, 1, 4, 3, 6, 7) << 4
    biased = v.reshape(TILE_ROWS * len(tiles), cols).to(torch.int16)
    return (biased - (1 << (bits - 1))).to(torch.int8)
