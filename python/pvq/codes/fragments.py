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
from pvq.codes import CHUNK_COLUMNS, KERNEL_DTYPES, Stored
from pvq.codes.bits import unpack
from pvq.ops.code import packed_bytes

TILE_ROWS = 16
_WIDTHS = (4, 6, 8)
# Weights that are rearranged at one time.
_SLAB_WEIGHTS = 1 << 25


def fits_fragments(dim: int, cols: int) -> bool:
    """Whether matrices of ``cols`` columns in groups of ``dim`` have fragments."""
    return dim % 8 == 0 and cols % CHUNK_COLUMNS == 0


@dataclass(frozen=True)
class PlaneFragments:
    """The fragments of matrices in one pyramid code; the fields are those of the code."""

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str

    layout: ClassVar[str] = "fragments"
    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    replaces: ClassVar[tuple[str, ...]] = ("index",)
    header: ClassVar[int] = 0

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
        slabs = _slabs(rows, cols)
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

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The index that the fragments were made from."""
        rows, cols = shape
        tiles = held["fragments"].view(-(-rows // TILE_ROWS), -1)
        index = self._empty_index(rows, cols, tiles.device)
        for slab in _slabs(rows, cols):
            part = tiles[slab.start // TILE_ROWS : -(-slab.stop // TILE_ROWS)]
            index[slab] = self._encode(unpack_planes(part, cols)[: slab.stop - slab.start])
        return {"index": index}

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        In float32 the index is made again and expanded to a scratch, and the library multiplies.
        """
        y: torch.Tensor
        if self.fuses(x, activations):
            y = torch.ops.pvq.plane_matmul(x, held["fragments"], held["row_scale"], block, seed)
        else:
            index = self.to_stored(held, (rows, x.shape[-1]))["index"]
            code = (index, held["gain"], held["row_scale"], *self._numbers)
            y = torch.ops.pvq.matmul(x, *code, block, seed)
        return y

    def fuses(self, x: torch.Tensor, activations: str) -> bool:
        """Whether the product with ``x`` is the kernel's; it never rounds activations to 8 bits."""
        return x.dtype in KERNEL_DTYPES

    def dequantize_rows(
        self,
        held: Stored,
        ids: torch.Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        block: int,
        seed: int,
    ) -> torch.Tensor:
        """The rows ``ids`` [n] of the matrix, rotated back unless ``block`` is 0: [n, cols]."""
        rows, cols = shape
        place = torch.where(ids < 0, ids + rows, ids).to(torch.int64)
        tiles = held["fragments"].view(-(-rows // TILE_ROWS), -1)
        index = self._empty_index(len(place), cols, place.device)
        for slab in _slabs(len(place), TILE_ROWS * cols):
            y = unpack_planes(tiles[place[slab] // TILE_ROWS], cols).view(-1, TILE_ROWS, cols)
            row = torch.arange(len(y), device=place.device)
            index[slab] = self._encode(y[row, place[slab] % TILE_ROWS])
        code = (index, held["gain"][place], held["row_scale"][place], *self._numbers)
        w: torch.Tensor = torch.ops.pvq.dequantize(*code, cols, dtype, block, seed)
        return w

    @property
    def _numbers(self) -> tuple[int, int, int, str]:
        return self.dim, self.pulses, self.gain_bits, self.gain_law

    def _empty_index(self, rows: int, cols: int, device: torch.device) -> torch.Tensor:
        width = packed_bytes(cols // self.dim, _core.index_bits(self.dim, self.pulses))
        return torch.empty(rows, width, dtype=torch.uint8, device=device)

    def _encode(self, y: torch.Tensor) -> torch.Tensor:
        """The index of the integers ``y`` int8 [rows, cols]."""
        groups = y.to(torch.int16).view(len(y), y.shape[1] // self.dim, self.dim)
        index: torch.Tensor = torch.ops.pvq.encode(groups, self.pulses)
        return index

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


def _slabs(rows: int, cols: int) -> list[slice]:
    step = max(1, _SLAB_WEIGHTS // max(1, cols * TILE_ROWS)) * TILE_ROWS
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


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
