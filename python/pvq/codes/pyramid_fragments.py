"""What the fragments of pyramid codes have in common: tiles of rows that are made slab by slab."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from pvq.codes import KERNEL_DTYPES, TILE_ROWS, Stored


@dataclass(frozen=True)
class PyramidFragments(ABC):
    """Fragments of matrices in one pyramid code; the fields are those of the code.

    A form says how tiles are unpacked, and how stored tensors are made of that.
    """

    dim: int
    pulses: int
    gain_bits: int
    gain_law: str

    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    header: ClassVar[int] = 0
    slab_weights: ClassVar[int]
    """Weights that are rearranged at one time."""

    @abstractmethod
    def _product(self, x: torch.Tensor, held: Stored, block: int, seed: int) -> torch.Tensor:
        """The kernel's product."""

    @abstractmethod
    def _unpack(self, tiles: torch.Tensor, cols: int) -> torch.Tensor:
        """What the rows of tiles uint8 [n, bytes] hold: [16 * n, items]."""

    @abstractmethod
    def _empty(self, rows: int, cols: int, device: torch.device) -> Stored:
        """The tensors that the fragments replace, to be written."""

    @abstractmethod
    def _write(self, stored: Stored, rows: slice, items: torch.Tensor) -> None:
        """Writes ``rows`` of ``stored`` from what they hold."""

    def to_stored(self, held: Stored, shape: tuple[int, int]) -> Stored:
        """The stored tensors that the fragments were made from."""
        rows, cols = shape
        tiles = self._tiles(held, rows)
        stored = self._empty(rows, cols, tiles.device)
        for slab in self._slabs(rows, cols):
            part = tiles[slab.start // TILE_ROWS : -(-slab.stop // TILE_ROWS)]
            self._write(stored, slab, self._unpack(part, cols)[: slab.stop - slab.start])
        return stored

    def matmul(
        self, x: torch.Tensor, held: Stored, rows: int, block: int, seed: int, activations: str
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row.

        In float32 the stored tensors are made again and expanded to a scratch, and the library
        multiplies.
        """
        if self.fuses(x, activations):
            return self._product(x, held, block, seed)
        code = held | self.to_stored(held, (rows, x.shape[-1]))
        y: torch.Tensor = torch.ops.pvq.matmul(
            *(x, code["index"], code["gain"], code["row_scale"], *self._numbers, block, seed)
        )
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
        tiles = self._tiles(held, rows)
        stored = self._empty(len(place), cols, place.device)
        # Each row comes with its whole tile.
        for slab in self._slabs(len(place), TILE_ROWS * cols):
            items = self._unpack(tiles[place[slab] // TILE_ROWS], cols)
            items = items.view(-1, TILE_ROWS, items.shape[1])
            row = torch.arange(len(items), device=place.device)
            self._write(stored, slab, items[row, place[slab] % TILE_ROWS])
        gain = stored["gain"] if "gain" in stored else held["gain"][place]
        code = (stored["index"], gain, held["row_scale"][place], *self._numbers)
        w: torch.Tensor = torch.ops.pvq.dequantize(*code, cols, dtype, block, seed)
        return w

    @property
    def _numbers(self) -> tuple[int, int, int, str]:
        return self.dim, self.pulses, self.gain_bits, self.gain_law

    @staticmethod
    def _tiles(held: Stored, rows: int) -> torch.Tensor:
        return held["fragments"].view(-(-rows // TILE_ROWS), -1)

    @classmethod
    def _slabs(cls, rows: int, cols: int) -> list[slice]:
        step = max(1, cls.slab_weights // max(1, cols * TILE_ROWS)) * TILE_ROWS
        return [slice(begin, min(rows, begin + step)) for begin in range(0, rows, step)]
