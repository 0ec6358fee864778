"""Scaling the inputs of some layers inside the module that makes them.

(W s) (x / s) = W x, and what makes x can often be made to make x / s: the weight of the norm before
the layer, or the rows of the linear layer whose outputs reach it channel by channel, such as the up
projection before the down projection. No architecture is known here. Each module that could be the
one is tried, and kept only if the decoder layer's outputs stay the same bit for bit: with powers of
two, no floating-point number is rounded anywhere on the way. Only outputs that change when the
layers alone are scaled say anything: a text may not reach an expert at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Samples that are tried at most, and how many that reach the consumers are enough.
_TRIED, _ENOUGH = 16, 4


def find_source(
    modules: Mapping[str, nn.Module],
    consumers: Mapping[str, nn.Linear],
    probe: Callable[[int], Tensor],
    samples: int,
    tokens: int,
) -> str | None:
    """Name of the module that can divide the consumers' input by a power of two a column.

    Args:
        modules: those that could be it, by name, such as all of a decoder layer.
        consumers: the linear layers that the input goes to; all of them.
        probe: the decoder layer's output [..., width] on a sample of that number.
        samples: how many there are, all of one length.
        tokens: how many reach the consumers, in all samples.

    Returns:
        ``None`` if there is none, as where others read the same input, or if none of the samples
        tried reaches the consumers. Nothing is changed.
    """
    cols = next(iter(consumers.values())).in_features
    weight = next(iter(consumers.values())).weight
    trial = torch.ones(cols, dtype=weight.dtype, device=weight.device)
    trial[1::2] = 2
    trial[2::3] = 0.5
    judges = _judges(consumers, trial, probe, samples, tokens)
    if not judges:
        return None
    with _restored(consumers.values()):
        scale_columns(consumers, trial)
        for name, module in modules.items():
            if name in consumers or not _makes(module, cols):
                continue
            with _restored([module]):
                divide_outputs(module, trial)
                if all(torch.equal(probe(number), before) for number, before in judges):
                    return name
    return None


def _judges(
    consumers: Mapping[str, nn.Linear],
    trial: Tensor,
    probe: Callable[[int], Tensor],
    samples: int,
    tokens: int,
) -> list[tuple[int, Tensor]]:
    """Numbers of samples to judge by, with the outputs on them; none if no sample tells anything.

    First come those whose outputs change when the consumers alone are scaled, then others that were
    tried on the way, whose outputs no source changes. One sample is enough where every token
    reaches the consumers, as it does without experts.
    """
    telling: list[tuple[int, Tensor]] = []
    others: list[tuple[int, Tensor]] = []
    for number in range(min(samples, _TRIED)):
        before = probe(number)
        with _restored(consumers.values()):
            scale_columns(consumers, trial)
            is_telling = not torch.equal(probe(number), before)
        (telling if is_telling else others).append((number, before))
        reach_all = tokens >= samples * before[..., 0].numel()
        if len(telling) >= (1 if reach_all else _ENOUGH):
            break
    return [*telling, *others] if telling else []


def scale_columns(consumers: Mapping[str, nn.Linear], scale: Tensor) -> None:
    """Multiplies the columns of every weight by ``scale`` [cols], powers of two."""
    for consumer in consumers.values():
        consumer.weight.data *= scale.to(consumer.weight)


def divide_outputs(module: nn.Module, scale: Tensor) -> None:
    """Divides the outputs of a norm or a linear layer by ``scale`` [features], powers of two."""
    for parameter in _scaled_parts(module):
        divisor = scale.to(parameter)
        parameter.data /= divisor[:, None] if parameter.ndim == 2 else divisor


def _scaled_parts(module: nn.Module) -> list[Tensor]:
    """Weight and bias, as far as there are any."""
    parts = (module.weight, getattr(module, "bias", None))
    return [part for part in parts if isinstance(part, Tensor)]


@contextmanager
def _restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Gives some modules back what they had: tiny float16 values do not survive halving."""
    held = [(each, each.data.clone()) for module in modules for each in _scaled_parts(module)]
    try:
        yield
    finally:
        for parameter, values in held:
            parameter.data.copy_(values)


def _makes(module: nn.Module, cols: int) -> bool:
    """Whether its outputs could be the ``cols`` inputs: a norm, or a linear layer."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[:1] != (cols,):
        return False
    return weight.ndim == 1 or type(module) is nn.Linear
