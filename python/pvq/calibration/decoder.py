"""The decoder layers of a transformers model as functions of their hidden states, one by one.

A decoder runs its layers in turn, and beside the hidden states gives each the same other arguments
for every text of a length: masks, positions, rotary tables. So these are recorded once, and after
that a layer can be run alone, with all others out of the way.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pvq.calibration.accumulate import StopForwardError


@dataclass
class LayerCall:
    """What a decoder layer gets besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device) -> "LayerCall":
        """The same with all tensors on a device."""
        return LayerCall(_moved(self.args, device), _moved(self.kwargs, device))

    def same(self, other: "LayerCall") -> bool:
        """Whether all values are equal."""
        return _equal(self.args, other.args) and _equal(self.kwargs, other.kwargs)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Name and list of the layers that hold most of the decoder's weights; ``None`` without any."""
    if not isinstance(model, PreTrainedModel):
        return None
    decoder = model.get_decoder() or model
    names = {id(module): name for name, module in model.named_modules()}
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        return None
    layers = max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))
    return names[id(layers)], layers


def record_calls(
    model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor
) -> list[LayerCall] | None:
    """The other arguments of every layer; ``None`` if a layer is not called exactly once.

    Args:
        model: whose layers they are.
        layers: in order.
        tokens: [length], one sample.
    """
    calls: list[list[LayerCall]] = [[] for _ in layers]

    def make_hook(seen: list[LayerCall]) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(_split(args, kwargs)[1])

        return hook

    handles = [
        layer.register_forward_pre_hook(make_hook(seen), with_kwargs=True)
        for layer, seen in zip(layers, calls, strict=True)
    ]
    try:
        model(tokens[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(seen) != 1 for seen in calls):
        return None
    return [seen[0] for seen in calls]


def first_hidden_states(
    model: PreTrainedModel, layers: nn.ModuleList, tokens: Tensor, call: LayerCall
) -> list[Tensor] | None:
    """What enters the first layer, a tensor [1, length, width] on the CPU for each sample.

    Args:
        model: whose layers they are.
        layers: in order.
        tokens: [samples, length].
        call: the other arguments of the first layer, as recorded.

    Returns:
        ``None`` if these arguments depend on the text, so that the layers cannot be run alone.
    """
    hidden: list[Tensor] = []
    alike = True

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal alike
        states, others = _split(args, kwargs)
        alike = alike and others.same(call)
        hidden.append(states.detach().to("cpu", copy=True))
        raise StopForwardError

    handle = layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for sample in tokens:
            with suppress(StopForwardError):
                model(sample[None].to(model.device), use_cache=False)
            if not alike:
                return None
    finally:
        handle.remove()
    return hidden


def run_layer(layer: nn.Module, states: Tensor, call: LayerCall, device: torch.device) -> Tensor:
    """The hidden states behind the layer, on ``device``."""
    out = layer(states.to(device), *call.args, **call.kwargs)
    result: Tensor = out[0] if isinstance(out, tuple) else out
    return result


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
    """The hidden states, and all the rest."""
    if args:
        return args[0], LayerCall(args[1:], dict(kwargs))
    others = dict(kwargs)
    return others.pop("hidden_states"), LayerCall((), others)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return a is b or bool(a == b)
