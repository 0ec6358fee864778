"""Bit fields: rows of numbers below 2^width as bytes, in the order of all codes.

Number i of a row occupies bits i * width up to (i + 1) * width of its stream, lowest bit first; bit
b of the stream is bit b % 8 of byte b // 8. Eight numbers fill ``width`` whole bytes, so they are
taken eight at a time, and each place among the eight has its own bytes and shift.
"""

import torch

from pvq.ops.code import packed_bytes


def pack(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """Packs ``numbers``, an integer tensor [rows, count], each from 0 to 2^width - 1.

    Args:
        numbers: not checked.
        width: bits of each, 0 to 56.

    Returns:
        uint8 [rows, ceil(count * width / 8)]; the bits that remain are zero.
    """
    rows, count = numbers.shape
    eights = -(-count // 8)
    dtype = _word(width)
    padded = torch.nn.functional.pad(numbers.to(dtype), (0, eights * 8 - count))
    padded = padded.view(rows, eights, 8)
    packed = torch.zeros((rows, eights, width), dtype=torch.uint8, device=numbers.device)
    for place in range(8):
        byte, shift = divmod(place * width, 8)
        shifted = padded[..., place] << shift
        for i in range(-(-(shift + width) // 8)):
            packed[..., byte + i] |= ((shifted >> (8 * i)) & 255).to(torch.uint8)
    return packed.view(rows, eights * width)[:, : packed_bytes(count, width)].contiguous()


def unpack(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """Inverse of :func:`pack`: int32 (int64 beyond 24 bits) [rows, count]."""
    rows = packed.shape[0]
    if width == 0:
        return torch.zeros((rows, count), dtype=_word(0), device=packed.device)
    eights = -(-count // 8)
    padded = torch.nn.functional.pad(packed, (0, eights * width - packed.shape[1]))
    octets = padded.view(rows, eights, width).to(_word(width))
    numbers = octets.new_empty((rows, eights, 8))
    for place in range(8):
        byte, shift = divmod(place * width, 8)
        word = octets[..., byte].clone()
        for i in range(1, -(-(shift + width) // 8)):
            word |= octets[..., byte + i] << (8 * i)
        numbers[..., place] = (word >> shift) & ((1 << width) - 1)
    return numbers.view(rows, eights * 8)[:, :count]


def _word(width: int) -> torch.dtype:
    """The integer that holds a number shifted by up to 7 bits, and stays positive."""
    return torch.int32 if width <= 24 else torch.int64
