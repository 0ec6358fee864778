"""Bit streams of a row: field i begins at bit i * width, least significant bit first."""

import torch
from torch import Tensor

from pvq.ops.code import packed_bytes


def pack_bits(fields: Tensor, width: int) -> Tensor:
    """Packs the lowest ``width`` bits of each field.

    Args:
        fields: [rows, n] uint8.
        width: 0 to 8.

    Returns:
        [rows, ceil(n * width / 8)] uint8.
    """
    rows, count = fields.shape
    place = torch.arange(width, dtype=torch.uint8, device=fields.device)
    bits = (fields[:, :, None] >> place & 1).flatten(1)
    nbytes = packed_bytes(count, width)
    padded = bits.new_zeros(rows, nbytes * 8)
    padded[:, : bits.shape[1]] = bits
    value = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=fields.device)
    return (padded.view(rows, nbytes, 8) * value).sum(-1, dtype=torch.uint8)
