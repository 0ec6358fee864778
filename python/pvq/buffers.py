"""Buffers of a quantized module: the codes under their checkpoint names, safe from dtype casts.

``model.to(torch.float16)`` casts every floating-point tensor of a module. A cast row scale would
change the weights for good, so quantized modules hand their buffers over as bytes.
"""

from collections.abc import Callable

import torch
from torch import nn

from pvq.codes import Stored


def register_codes(module: nn.Module, stored: Stored) -> None:
    """Makes each tensor a persistent buffer of its own name."""
    for name, tensor in stored.items():
        module.register_buffer(name, tensor)


def without_casts(
    module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """``fn`` of ``nn.Module._apply``, except that the buffers of ``module`` keep their dtype.

    A move to another device, ``share_memory`` and ``to_empty`` still happen: ``fn`` sees the bytes.
    """
    buffers = {id(buffer) for buffer in module._buffers.values() if buffer is not None}

    def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in buffers and tensor.is_floating_point():
            return fn(tensor.contiguous().view(torch.uint8)).view(tensor.dtype)
        return fn(tensor)

    return keep_dtype
