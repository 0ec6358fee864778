"""Scaling the inputs of some layers inside the module that makes them.

(W s) (x / s) = W x, and what makes x can often be made to make x / s: the weight of the norm before
the layer, or the rows of the linear layer whose outputs reach it channel by channel, such as the up
projection before the down projection. No architecture is known here. Each module that could be the
one is tried, and kept only if the decoder layer's outputs stay the same bit for bit: with powers of
two, no floating-point number is rounded anywhere on the way.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def find_source(
    modules: Mapping[str, nn.Module],
    consumers: Mapping[str, nn.Linear],
    probe: Callable[[], Tensor],
) -> str | None:
    """Name of the module that can divide the consumers' input by a power of two a column.

    Args:
        modules: those that could be it, by name, such as all of a decoder layer.
        consumers: the linear layers that the input goes to; all of them.
        probe: the decoder layer's output on some text.

    Returns:
        ``None`` if there is none, as where others read the same input. Nothing is changed.
    """
    cols = next(iter(consumers.values())).in_features
    weight = next(iter(consumers.values())).weight
    trial = torch.ones(cols, dtype=weight.dtype, device=weight.device)
    trial[1::2] = 2
    trial[2::3] = 0.5
    before = probe()
    for name, module in modules.items():
        if name in consumers or not _makes(module, cols):
            continue
        scale_columns(consumers, trial)
        divide_outputs(module, trial)
        same = torch.equal(probe(), before)
        scale_columns(consumers, 1 / trial)
        divide_outputs(module, 1 / trial)
        if same:
            return name
    return None


def scale_columns(consumers: Mapping[str, nn.Linear], scale: Tensor) -> None:
    """Multiplies the columns of every weight by ``scale`` [cols], powers of two."""
    for consumer in consumers.values():
        consumer.weight.data *= scale.to(consumer.weight)


def divide_outputs(module: nn.Module, scale: Tensor) -> None:
    """Divides the outputs of a norm or a linear layer by ``scale`` [features], powers of two."""
    for parameter in (module.weight, getattr(module, "bias", None)):
        if isinstance(parameter, Tensor):
            divisor = scale.to(parameter)
            parameter.data /= divisor[:, None] if parameter.ndim == 2 else divisor


def _makes(module: nn.Module, cols: int) -> bool:
    """Whether its outputs could be the ``cols`` inputs: a norm, or a linear layer."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[:1] != (cols,):
        return False
    return weight.ndim == 1 or type(module) is nn.Linear
