"""Words of mixed radix: several numbers below n share one bit field, so few bits are lost.

``digits`` numbers d_i below n make the word sum d_i * n^i, of ceil(digits * log2 n) bits. A number
for itself would take ceil(log2 n) bits: 7 for n = 87, where 9 numbers share 58 bits, 6.44 each.
"""

import functools

import torch

# A word is shifted by up to 7 bits while it is read, in an int64 that stays positive.
MAX_WORD_BITS = 56


@functools.cache
def word_shape(n: int) -> tuple[int, int]:
    """How many numbers below ``n`` share a word, and its bits: the least bits a number."""
    shapes = [(digits, (n**digits - 1).bit_length()) for digits in range(1, MAX_WORD_BITS + 1)]
    fitting = [shape for shape in shapes if shape[1] <= MAX_WORD_BITS]
    return min(fitting, key=lambda shape: (shape[1] / shape[0], shape[0]))


def join(numbers: torch.Tensor, n: int) -> torch.Tensor:
    """Words int64 [rows, ceil(count / digits)] of ``numbers`` int64 [rows, count] below ``n``."""
    digits, _ = word_shape(n)
    rows, count = numbers.shape
    words = -(-count // digits)
    padded = torch.nn.functional.pad(numbers, (0, words * digits - count))
    place = torch.tensor([n**i for i in range(digits)], device=numbers.device)
    return (padded.view(rows, words, digits) * place).sum(-1)


def split(words: torch.Tensor, n: int, count: int) -> torch.Tensor:
    """Inverse of :func:`join`: int64 [rows, count].

    Raises:
        RuntimeError: if a word is no sum of digits below ``n`` (a damaged file).
    """
    digits, _ = word_shape(n)
    numbers = words.new_empty((*words.shape, digits))
    for i in range(digits):
        rest = words.div(n, rounding_mode="floor")
        numbers[..., i] = words - rest * n
        words = rest
    if words.numel() and bool(words.any()):
        raise RuntimeError(f"a word has digits beyond {n} numbers: the codes are damaged")
    return numbers.flatten(1)[:, :count]
