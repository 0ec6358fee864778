"""Fragments: the run-time form of an overlapping-pyramid code that the GPU product reads.

They are the code's bits in the order in which the lanes of a warp need them, behind the code's
table (csrc/cuda/overlap_decode.cuh): as large as the stored form, which can be made from them
again, bit for bit. Columns must be a multiple of 128.
"""

import functools
from dataclasses import dataclass

import torch

from pvq.codes import CHUNK_COLUMNS, TILE_ROWS, Stored
from pvq.codes.overlap_trellis import Trellis
from pvq.codes.table_forms import TableForm

_LANES = 4  # that share a row
_BIAS = 128  # of the sum of the two points of a weight
_HALF = 64  # of each of them in groups of four
_FACTOR = 16  # from the first point to the second there
# With a spread: the bias of each point (the spread's is the rest), and what of the first one's byte
# makes the second.
_FIRST, _SECOND, _MASK, _SPREAD_FACTOR = 60, 44, 7, 12


@dataclass(frozen=True)
class OverlapFragments(TableForm):
    """The fragments of matrices in one overlapping-pyramid code."""

    trellis: Trellis

    @property
    def header(self) -> int:
        """Bytes of the table: a word for each window."""
        return 4 * len(self.trellis.table)

    @property
    def _pair_bits(self) -> int:
        return 2 * self.trellis.stored_bits // self.trellis.dim

    def of_stored(self, stored: Stored, shape: tuple[int, int]) -> Stored | None:
        """The fragments of a matrix; ``None`` if its columns are no multiple of 128."""
        if shape[1] % CHUNK_COLUMNS:
            return None
        code = stored["code"]
        parts = (
            _header_of(self.trellis).to(code.device),
            pack(self._lanes_of(code), self._pair_bits).flatten(),
        )
        return {"fragments": torch.cat(parts)}

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The code that the fragments were made from."""
        lanes = unpack(self._tiles(held, *shape), self._pair_bits)[: shape[0]]
        return {"code": self._stored_of(lanes)}

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        In float32, and with ``activations="float"``, the codes are expanded to a scratch of the
        dtype of ``x``, and the library multiplies.
        """
        y: torch.Tensor
        if self.fuses(x, activations):
            y = torch.ops.pvq.overlap_matmul_fragments(
                *(x, held["fragments"], held["row_scale"], self._pair_bits, block, seed),
                activations == "int8x2",
            )
        else:
            code = self.to_stored(held, (rows, x.shape[-1]))["code"]
            table, numbers = self._table(code)
            y = torch.ops.pvq.overlap_matmul(
                x, code, held["row_scale"], table, *numbers, block, seed
            )
        return y

    def matmul_points(
        self,
        point: torch.Tensor,
        amplitude: torch.Tensor,
        pulses: int,
        held: Stored,
        rows: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The product of amplitude * point [..., cols] with every row, on int8 tensor cores.

        What becomes of the points is as for :class:`pvq.codes.table_fragments.TableFragments`.
        """
        fragments = held["fragments"]
        y: torch.Tensor = torch.ops.pvq.overlap_matmul_points(
            *(point, amplitude, fragments, held["row_scale"], self._pair_bits, pulses, dtype)
        )
        return y

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
        # Each tile with one of the rows becomes a matrix of one tile.
        tiles = self._tiles(held, *shape)[place // TILE_ROWS]
        code = unpack(tiles, self._pair_bits).view(len(place), TILE_ROWS, -1)
        code = self._stored_of(
            code[torch.arange(len(place), device=place.device), place % TILE_ROWS]
        )
        table, numbers = self._table(code)
        w: torch.Tensor = torch.ops.pvq.overlap_dequantize(
            code, held["row_scale"][place], table, *numbers, cols, dtype, block, seed
        )
        return w

    def _lanes_of(self, code: torch.Tensor) -> torch.Tensor:
        """``code`` [rows, bytes] with the bytes of each 32 columns as a lane has them.

        Without a spread they are those of the stored form. With one they are the eight symbols of
        the trellis and four bytes of further bits: byte k of weight k of the groups, first lowest.
        """
        if not self.trellis.spread:
            return code
        stored = code.reshape(-1, 4, 3)  # two symbols in three bytes
        lanes = torch.zeros(len(stored), 12, dtype=torch.uint8, device=code.device)
        lanes[:, 0:8:2] = stored[..., 0]
        lanes[:, 1:8:2] = stored[..., 1] >> 4 | stored[..., 2] << 4
        for group in range(8):
            further = stored[:, group // 2, 2] >> 4 if group % 2 else stored[:, group // 2, 1]
            for k in range(4):
                lanes[:, 8 + k] |= (further >> k & 1) << group
        return lanes.view(code.shape)

    def _stored_of(self, lanes: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`_lanes_of`."""
        if not self.trellis.spread:
            return lanes
        held = lanes.reshape(-1, 12)
        stored = torch.empty(len(held), 4, 3, dtype=torch.uint8, device=lanes.device)
        stored[..., 0] = held[:, 0:8:2]
        stored[..., 1] = held[:, 1:8:2] << 4
        stored[..., 2] = held[:, 1:8:2] >> 4
        for group in range(8):
            for k in range(4):
                further = held[:, 8 + k] >> group & 1
                stored[:, group // 2, 1 + group % 2] |= further << (k + group % 2 * 4)
        return stored.view(lanes.shape)

    def _tiles(self, held: Stored, rows: int, cols: int) -> torch.Tensor:
        """The fragments behind the table, uint8 [tiles, chunks, bytes]."""
        chunks = held["fragments"][self.header :]
        tiles = -(-rows // TILE_ROWS)
        return chunks.view(tiles, cols // CHUNK_COLUMNS, TILE_ROWS * 8 * self._pair_bits)

    def _table(self, code: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
        numbers = self.trellis.to(code.device)
        return numbers.table, numbers.numbers


@functools.cache
def _header_of(trellis: Trellis) -> torch.Tensor:
    """The table in front of all fragments of a code, checked once."""
    return table_bytes(trellis.table, trellis.spread).flatten()


def table_bytes(table: torch.Tensor, spread: int = 0) -> torch.Tensor:
    """The table int8 [windows, 2, dim] as words of positive points, uint8 [windows, 4].

    Sums of two points are those of the table plus 128, with a spread plus what that leaves of 128.
    In groups of two weights a byte for each point of a weight, the own group's first. In groups of
    four only that one, from which the other follows (csrc/core/overlap.h).

    Raises:
        ValueError: if the points do not fit.
    """
    if spread:
        words = table[:, 0].to(torch.uint8) + _FIRST
        tied = _SPREAD_FACTOR * (words & _MASK)
        if not torch.equal(tied.short() - _SECOND, table[:, 1].short()):
            raise ValueError(
                f"table has second points that are not {_SPREAD_FACTOR} times the lower three bits "
                "of the first ones"
            )
        if spread != _BIAS - _FIRST - _SECOND:
            raise ValueError(f"spread is {spread}, expected {_BIAS - _FIRST - _SECOND}")
        if int(words.max()) + int(tied.max()) + 2 * spread > 255:
            raise ValueError(
                "table has points whose sums with the bias of 128 and the spread do not fit a byte"
            )
        return words
    if table.shape[2] == 4:
        words = table[:, 0].to(torch.uint8) + _HALF
        tied = (_FACTOR * words.contiguous().view(torch.int32)).view(torch.uint8)
        if not torch.equal(tied.short() - _HALF, table[:, 1].short()):
            raise ValueError(
                f"table has groups of four whose second points are not {_FACTOR} times the words "
                "of the first ones"
            )
        if int(words.max()) + int(tied.max()) > 255:
            raise ValueError(
                "table has points whose sums with the bias of 128 do not fit a byte, expected sums "
                f"of two up to {_BIAS - 1}"
            )
        return words
    bias = torch.stack([-table[:, 0].amin(), _BIAS + table[:, 0].amin()]).short()
    positive = table.short() + bias[None, :, None]
    if not 0 <= int(positive.min()) <= int(positive.amax((0, 2)).sum()) <= 255:
        raise ValueError(
            "table has points whose sums with the bias of 128 do not fit a byte, expected sums of "
            f"two from -{_BIAS} to {_BIAS - 1}"
        )
    return positive.to(torch.uint8).flatten(1)


def pack(code: torch.Tensor, pair_bits: int) -> torch.Tensor:
    """The chunks of ``code`` uint8 [rows, bytes]: uint8 [tiles, chunks, bytes of a chunk].

    A lane has ``2 * pair_bits`` bytes of two rows u: whole words i, two of a row at a time while
    there are two, then half a word if that is left.
    """
    rows, row_bytes = code.shape
    tiles, chunks = -(-rows // TILE_ROWS), row_bytes // (8 * pair_bits)
    padded = code.new_zeros(tiles * TILE_ROWS, row_bytes)
    padded[:rows] = code
    v = padded.view(tiles, 2, 8, chunks, _LANES, 2 * pair_bits)  # tile, u, g, chunk, t, byte
    words = pair_bits // 2
    even = words // 2 * 2
    pairs = v[..., : 4 * even].reshape(tiles, 2, 8, chunks, _LANES, even // 2, 2, 4)
    parts = [pairs.permute(0, 3, 5, 2, 4, 6, 1, 7)]  # [pair][g, t][i, u, byte]
    rest = [(4 * even, 4 * words), (4 * words, 2 * pair_bits)]
    parts += [v[..., a:b].permute(0, 3, 2, 4, 1, 5) for a, b in rest if a < b]  # [g, t][u, byte]
    return torch.cat([part.reshape(tiles, chunks, -1) for part in parts], dim=-1)


def unpack(tiles: torch.Tensor, pair_bits: int) -> torch.Tensor:
    """The code uint8 [16 * tiles, bytes] of chunks uint8 [tiles, chunks, bytes]."""
    count, chunks, _ = tiles.shape
    words = pair_bits // 2
    even = words // 2 * 2
    end = 32 * 2 * 4 * even  # of the pairs of words
    pairs = tiles[..., :end].reshape(count, chunks, even // 2, 8, _LANES, 2, 2, 4)
    parts = [pairs.permute(0, 6, 3, 1, 4, 2, 5, 7).reshape(count, 2, 8, chunks, _LANES, 4 * even)]
    for bytes_ in (4 * (words - even), 2 * (pair_bits % 2)):
        part = tiles[..., end : end + 32 * 2 * bytes_].reshape(count, chunks, 8, _LANES, 2, bytes_)
        parts.append(part.permute(0, 4, 2, 1, 3, 5))
        end += 32 * 2 * bytes_
    return torch.cat(parts, dim=-1).reshape(TILE_ROWS * count, -1)
