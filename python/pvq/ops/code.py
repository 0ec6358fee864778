"""Fake-tensor rules of the operators that make and undo codes."""

import torch
from torch import Tensor

from pvq import _core


def packed_bytes(fields: int, width: int) -> int:
    """Bytes of a row of `fields` bit fields of `width` bits each."""
    return (fields * width + 7) // 8


@torch.library.register_fake("pvq::nearest")
def _nearest_fake(x: Tensor, pulses: int, quality: int = 1) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int16)


@torch.library.register_fake("pvq::encode")
def _encode_fake(y: Tensor, pulses: int) -> Tensor:
    rows, groups, dim = y.shape
    width = packed_bytes(groups, _core.index_bits(int(dim), pulses))
    return y.new_empty((rows, width), dtype=torch.uint8)


@torch.library.register_fake("pvq::decode")
def _decode_fake(index: Tensor, dim: int, pulses: int, groups: int) -> Tensor:
    return index.new_empty((index.shape[0], groups, dim), dtype=torch.int16)


@torch.library.register_fake("pvq::check_codes")
def _check_codes_fake(index: Tensor, dim: int, pulses: int, groups: int) -> None:
    return None


@torch.library.register_fake("pvq::quantize")
def _quantize_fake(
    w: Tensor, dim: int, pulses: int, gain_bits: int, gain_law: str, quality: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = w.shape
    groups = cols // dim
    index_width = packed_bytes(groups, _core.index_bits(dim, pulses))
    return (
        w.new_empty((rows, index_width), dtype=torch.uint8),
        w.new_empty((rows, packed_bytes(groups, gain_bits)), dtype=torch.uint8),
        w.new_empty((rows,), dtype=torch.bfloat16),
    )


@torch.library.register_fake("pvq::dequantize")
def _dequantize_fake(
    index: Tensor,
    gain: Tensor,
    row_scale: Tensor,
    dim: int,
    pulses: int,
    gain_bits: int,
    gain_law: str,
    cols: int,
    dtype: torch.dtype,
    block: int = 0,
    seed: int = 0,
) -> Tensor:
    return index.new_empty((row_scale.shape[0], cols), dtype=dtype)
