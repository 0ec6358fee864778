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
from pvq.codes import CHUNK_COLUMNS, TILE_ROWS, Stored, regions
from pvq.codes.bits import pack, unpack
from pvq.codes.pyramid_fragments import PyramidFragments
from pvq.ops.code import packed_bytes

_LANES = 32
_SET = 4  # groups of a lane
_SECTIONS = (32, 16, 8, 4, 2, 1)  # bits of a field in each


@dataclass(frozen=True)
class IndexFragments(PyramidFragments):
    """Fragments of the index; ``dim`` is 8 or 16, ``pulses`` at most 32."""

    layout: ClassVar[str] = "index"
    replaces: ClassVar[tuple[str, ...]] = ("index", "gain")
    slab_weights: ClassVar[int] = 1 << 22  # in some 40 bytes of memory each

    @property
    def bits(self) -> int:
        """Bits of a group, its gain included."""
        return regions.number_bits(self.dim, self.pulses, self.gain_bits)

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
            for s in self._slabs(rows, cols)
        ]
        return {"fragments": torch.cat(pieces)}

    def _product(self, x: torch.Tensor, held: Stored, block: int, seed: int) -> torch.Tensor:
        tensors = (held["fragments"], held["row_scale"])
        y: torch.Tensor = torch.ops.pvq.index_matmul(x, *tensors, *self._numbers, block, seed)
        return y

    def _unpack(self, tiles: torch.Tensor, cols: int) -> torch.Tensor:
        return unpack_numbers(tiles, cols // self.dim, *self._form)

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
        """The numbers int64 [rows, groups] of :mod:`pvq.codes.regions`."""
        groups = cols // self.dim
        y = torch.ops.pvq.decode(index, self.dim, self.pulses, groups).to(torch.int8)
        codes = unpack(gain, self.gain_bits, groups)
        return regions.encode(y, codes, self.pulses, self.gain_bits)

    def _write(self, stored: Stored, rows: slice, items: torch.Tensor) -> None:
        """Index and gains of ``items``, the numbers int64 [rows, groups]."""
        y, codes = regions.decode(items, self.dim, self.pulses, self.gain_bits)
        stored["index"][rows] = torch.ops.pvq.encode(y.to(torch.int16), self.pulses)
        stored["gain"][rows] = pack(codes, self.gain_bits)


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
    place, sections = bits, []
    for width in _SECTIONS:
        if bits & width:
            place -= width
            sections.append(pack(sets >> place & ((1 << width) - 1), width))
    return torch.cat(sections, dim=1).flatten()


def unpack_numbers(tiles: torch.Tensor, groups: int, dim: int, bits: int) -> torch.Tensor:
    """The numbers int64 [16 * tiles, groups] of fragments uint8 [tiles, bytes]."""
    packed = tiles.reshape(-1, _LANES * _SET * bits // 8)
    sets = torch.zeros(len(packed), _LANES * _SET, dtype=torch.int64, device=tiles.device)
    place, begin = bits, 0
    for width in _SECTIONS:
        if bits & width:
            place -= width
            section = packed[:, begin : begin + _LANES * _SET * width // 8]
            sets |= unpack(section, width, _LANES * _SET).to(torch.int64) << place
            begin += section.shape[1]
    chunks = groups * dim // CHUNK_COLUMNS
    if dim == 16:  # tile, chunk, g, t, b, u
        v = sets.view(len(tiles), chunks, 8, 4, 2, 2).permute(0, 5, 2, 1, 4, 3)
    else:  # tile, chunk, b, g, t, u, h
        v = sets.view(len(tiles), chunks, 2, 8, 4, 2, 2).permute(0, 5, 3, 1, 2, 4, 6)
    return v.reshape(TILE_ROWS * len(tiles), groups)
