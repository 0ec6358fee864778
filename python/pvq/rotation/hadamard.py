"""The randomised block Hadamard rotation of the last dimension.

The columns are cut into blocks of ``block``; each becomes ``H (s * v) / sqrt(block)`` with random
signs ``s`` drawn from a seed and a Hadamard matrix ``H``. It is orthogonal: rotating the weights'
rows and the activations leaves ``x @ W.T`` as it was.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pvq import _core

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def supported_block(block: int) -> bool:
    """Whether there is a Hadamard matrix for blocks of this many columns.

    Supported are 2^k up to 32768 and m * 2^k up to 65536, for m = 4 times an odd number up to 63
    other than 47 and 59 (m = 12, 20, 28, 36, 44, 52, ...).
    """
    return bool(_core.supported_hadamard_block(block))


def default_block(cols: int) -> int:
    """The block for an input dimension of ``cols`` columns.

    The largest power of two up to 1024 that divides ``cols`` if that is at least 256; otherwise the
    largest supported block up to 1024 that divides it, at worst 1.

    Raises:
        ValueError: ``cols`` is not positive.
    """
    if cols < 1:
        raise ValueError(f"cols is {cols}; a rotation needs at least one column")
    return int(_core.default_hadamard_block(cols))


def hadamard_matrix(block: int) -> npt.NDArray[np.int8]:
    """The Hadamard matrix of a block, int8 [block, block] of +1 and -1 with H @ H.T = block * I.

    It is the Kronecker product of a matrix of order m and Sylvester's of order 2^k.

    Raises:
        ValueError: There is no matrix for this block (see :func:`supported_block`).
    """
    _check_block(block)
    matrix: npt.NDArray[np.int8] = _core.hadamard_matrix(block)
    return matrix


def rotate(x: Tensor, block: int, seed: int | None = None, inverse: bool = False) -> Tensor:
    """Rotates each block of the last dimension, or undoes it.

    Equivalent to ``(x * s).unflatten(-1, (-1, block)) @ H.T / sqrt(block)``, flattened again, and
    for the inverse to ``(x.unflatten(-1, (-1, block)) @ H / sqrt(block)).flatten(-2) * s``.
    Differentiable in ``x``.

    Args:
        x: [..., cols], float32, float16, bfloat16 or (on the CPU) float64; any strides. Computed in
            float32 (float64 in float64) and rounded once.
        block: Columns in a block, a divisor of cols; see :func:`default_block`.
        seed: 64-bit seed of the signs, or None for none. Then a block 2^k is its own inverse.
        inverse: Undo the rotation of the same block and seed.

    Returns:
        A new contiguous tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a tensor of these dtypes.
        ValueError: The block is not supported or does not divide the columns, or the seed does not
            fit in 64 bits.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected one of {', '.join(map(str, _DTYPES))}")
    if x.dim() == 0:
        raise ValueError("x has no dimension, expected [..., cols]")
    if not torch.compiler.is_compiling():  # which cannot look into _core; the operator checks too
        _check_block(block)
    if x.shape[-1] % block:
        raise ValueError(
            f"x has {x.shape[-1]} columns, which block={block} does not divide; "
            f"pass block={default_block(x.shape[-1])} or another divisor"
        )
    if seed is not None:
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed={seed} does not fit in 64 bits; pass 0 to 2**64 - 1 or None")
        seed = seed - 2**64 if seed >= 2**63 else seed  # the operator takes the same bits as int64
    rotated: Tensor = torch.ops.pvq.hadamard(x, block, seed, inverse)
    return rotated


def _check_block(block: int) -> None:
    if not supported_block(block):
        raise ValueError(
            f"block={block} has no Hadamard matrix here; pass a power of two up to 32768, or "
            "m * 2**k up to 65536 with m = 12, 20, 28, 36, ... (pvq.rotation.supported_block)"
        )
