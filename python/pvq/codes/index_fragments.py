"""Fragments of the index: the run-time form of a pyramid code that takes the least memory on a GPU.

They hold what the index and the gains hold, in as many bits, as the words of
:mod:`pvq.codes.regions`, in the order in which the lanes of a warp feed the tensor cores
(csrc/cuda/index_matmul.h); the product decodes them as it multiplies. Index and gains can be made
from them again, bit for bit.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq import _core
from pvq.codes import KERNEL_DTYPES, Stored, regions
from pvq.codes.bits import pack, unpack
from pvq.codes.fragments import CHUNK_COLUMNS, TILE_ROWS
from pvq.ops.code import packed_bytes

_LANES = 32
_SET = 4  # groups of a lane
_SECTIONS = (32, 16, 8, 4, 2, 1)  # bits of a field in each
# Weights that are converted at one time, in some 40 bytes of memory each.
_SLAB_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class IndexFragments:
    """The fragments of matrices in one pyramid code; the fields are those of the code.

    ``dim`` is 8 or 16, ``pulses`` at most 32.
    """

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str

    layout: ClassVar[str] = "index"
    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    replaces: ClassVar[tuple[str, ...]] = ("index", "gain")
    header: ClassVar[int] = 0

    @property
    def bits(self) -> int:
        """Bits of a group, its gain included."""
        return regions.word_bits(self.dim, self.pulses) + self.gain_bits

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The fragments of a matrix; ``None`` if its columns are no multiple of 128.

        Raises:
            RuntimeError: if an index names no point of the pyramid (a damaged file).
        """
        rows, cols = shape
        if cols % CHUNK_COLUMNS or rows == 0 or cols == 0:
            return None
        # decode cannot refuse an index on the GPU, because that would wait for it.
        torch.ops.pvq.check_codes(stored["index"], self.dim, self.pulses, cols // self.dim)
        pieces = [
            pack_numbers(self._numbers_of(stored["index"][s], stored["gain"][s], cols), *self._form)
            for s in _slabs(rows, cols)
        ]
        return {"fragments": torch.cat(pieces)}

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The index and the gains that the fragments were made from."""
        rows, cols = shape
        tiles = held["fragments"].view(-(-rows // TILE_ROWS), -1)
        stored = self._empty(rows, cols, tiles.device)
        for slab in _slabs(rows, cols):
            part = tiles[slab.start // TILE_ROWS : -(-slab.stop // TILE_ROWS)]
            numbers = unpack_numbers(part, cols // self.dim, *self._form)
            self._write(stored, slab, numbers[: slab.stop - slab.start])
        return stored

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        In float32 index and gains are made again and expanded to a scratch, and the library
        multiplies.
        """
        y: torch.Tensor
        if self.fuses(x, activations):
            tensors = (held["fragments"], held["row_scale"])
            y = torch.ops.pvq.index_matmul(x, *tensors, *self._numbers, block, seed)
        else:
            stored = self.to_stored(held, (rows, x.shape[-1]))
            code = (stored["index"], stored["gain"], held["row_scale"], *self._numbers)
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
        stored = self._empty(len(place), cols, place.device)
        for slab in _slabs(len(place), TILE_ROWS * cols):
            numbers = unpack_numbers(
                tiles[place[slab] // TILE_ROWS], cols // self.dim, *self._form
            ).view(-1, TILE_ROWS, cols // self.dim)
            row = torch.arange(len(numbers), device=place.device)
            self._write(stored, slab, numbers[row, place[slab] % TILE_ROWS])
        code = (stored["index"], stored["gain"], held["row_scale"][place], *self._numbers)
        w: torch.Tensor = torch.ops.pvq.dequantize(*code, cols, dtype, block, seed)
        return w

    @property
    def _numbers(self) -> tuple[int, int, int, str]:
        return self.dim, self.pulses, self.gain_bits, self.gain_law

    @property
    def _form(self) -> tuple[int, int]:
        return self.dim, self.bits

    def _empty(self, rows: int, cols: int, device: torch.device) -> Stored:
        groups = cols // self.dim
        widths = {
            "index": packed_bytes(groups, _core.index_bits(self.dim, self.pulses)),
            "gain": packed_bytes(groups, self.gain_bits),
        }
        return {
            name: torch.empty(rows, width, dtype=torch.uint8, device=device)
            for name, width in widths.items()
        }

    def _numbers_of(self, index: torch.Tensor, gain: torch.Tensor, cols: int) -> torch.Tensor:
        """The numbers int64 [rows, groups]: a word, below it the gain, below that the signs."""
        groups, leaves = cols // self.dim, self.dim // 4
        y = torch.ops.pvq.decode(index, self.dim, self.pulses, groups).to(torch.int8)
        word = regions.encode(y, self.pulses)
        codes = unpack(gain, self.gain_bits, groups).to(torch.int64)
        signs = word & ((1 << leaves) - 1)
        return word >> leaves << leaves + self.gain_bits | codes << leaves | signs

    def _write(self, stored: Stored, rows: slice, numbers: torch.Tensor) -> None:
        """Index and gains of ``numbers`` int64 [rows, groups], into ``rows`` of ``stored``."""
        leaves = self.dim // 4
        signs = numbers & ((1 << leaves) - 1)
        word = numbers >> leaves + self.gain_bits << leaves | signs
        y = regions.decode(word, self.dim, self.pulses).to(torch.int16)
        stored["index"][rows] = torch.ops.pvq.encode(y, self.pulses)
        codes = numbers >> leaves & ((1 << self.gain_bits) - 1)
        stored["gain"][rows] = pack(codes, self.gain_bits)


def _slabs(rows: int, cols: int) -> list[slice]:
    step = max(1, _SLAB_WEIGHTS // max(1, cols * TILE_ROWS)) * TILE_ROWS
    return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


def pack_numbers(numbers: torch.Tensor, dim: int, bits: int) -> torch.Tensor:
    """Fragments uint8 [bytes] of ``numbers`` int64 [rows, groups] of ``bits`` bits."""
    rows, groups = numbers.shape
    tiles, chunks = -(-rows // TILE_ROWS), groups * dim // CHUNK_COLUMNS
    padded = numbers.new_zeros(tiles * TILE_ROWS, groups)
    padded[:rows] = numbers
    # tile, u, g, chunk, b, t, h: index_matmul.h names them.
    v = padded.view(tiles, 2, 8, chunks, 2, 4, 16 // dim)
    order = (0, 3, 2, 5, 4, 1, 6) if dim == 16 else (0, 3, 4, 2, 5, 1, 6)
    sets = v.permute(order).reshape(-1, _LANES * _SET)
    place, sections = 0, []
    for width in _SECTIONS:
        if bits & width:
            sections.append(pack(sets >> place & ((1 << width) - 1), width))
            place += width
    return torch.cat(sections, dim=1).flatten()


def unpack_numbers(tiles: torch.Tensor, groups: int, dim: int, bits: int) -> torch.Tensor:
    """The numbers int64 [16 * tiles, groups] of fragments uint8 [tiles, bytes]."""
    packed = tiles.reshape(-1, _LANES * _SET * bits // 8)
    sets = torch.zeros(len(packed), _LANES * _SET, dtype=torch.int64, device=tiles.device)
    place, begin = 0, 0
    for width in _SECTIONS:
        if bits & width:
            section = packed[:, begin : begin + _LANES * _SET * width // 8]
            sets |= unpack(section, width, _LANES * _SET).to(torch.int64) << place
            place, begin = place + width, begin + section.shape[1]
    chunks = groups * dim // CHUNK_COLUMNS
    if dim == 16:  # tile, chunk, g, t, b, u
        v = sets.view(len(tiles), chunks, 8, 4, 2, 2).permute(0, 5, 2, 1, 4, 3)
    else:  # tile, chunk, b, g, t, u, h
        v = sets.view(len(tiles), chunks, 2, 8, 4, 2, 2).permute(0, 5, 3, 1, 2, 4, 6)
    return v.reshape(TILE_ROWS * len(tiles), groups)
