"""A kernel that only reads: the time below which no kernel that reads those bytes can be."""

import torch
import triton
import triton.language as tl

BLOCK = 4096
PROGRAMS = 132 * 8


@triton.jit
def _read(source, sink, size, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.int32)
    start = tl.program_id(0) * BLOCK
    step = tl.num_programs(0) * BLOCK
    for offset in range(start, size, step):
        index = offset + tl.arange(0, BLOCK)
        total += tl.load(source + index, mask=index < size, other=0)
    if tl.max(total, 0) == -1:  # never, but the compiler cannot know
        tl.store(sink, 1)


_sink: dict[int, torch.Tensor] = {}


def read_all(words: torch.Tensor) -> None:
    """Reads every element of an int32 tensor once."""
    device = words.get_device()
    if device not in _sink:
        _sink[device] = torch.zeros(1, dtype=torch.int32, device=words.device)
    _read[(PROGRAMS,)](words, _sink[device], words.numel(), BLOCK=BLOCK, num_warps=8)
