"""The order in which calibration visits a model, so that a layer sees what those before it made.

A transformers decoder is walked layer by layer, and inside a layer in stages: the modules that get
one input, such as the projections to queries, keys and values, are a stage, and the next is visited
when they have been replaced. So every module is fitted to the inputs that it will get. Hidden
states wait on the CPU, a layer is on the computing device only while it is visited, and a pass ends
where the stage has its inputs, so that a layer costs about three forward passes, not five.

Any other module is run as a whole, once, for all its layers at a time.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pvq.calibration.accumulate import InputStatistics, gather_statistics, input_groups
from pvq.calibration.decoder import (
    LayerCall,
    decoder_layers,
    first_hidden_states,
    record_calls,
    run_layer,
)

# A layer with more inputs than this, as one with experts apart, is visited in one stage.
_MAX_STAGES = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """Modules to replace now.

    Attributes:
        unit: name of the decoder layer that they are part of, or ``"model"``.
        names: of the modules.
        statistics: of the inputs of those that were called; one object for a shared input.
        device: where to compute.
        last: whether this completes the unit.
        layer: the decoder layer; ``None`` if the unit is the model.
        probe: the layer's output on a sample of that number, with its weights as they are, float32
            on the CPU.
        samples: how many there are to probe with.
        output: the layer's output on a sample of that number, computed on a device; gradients can
            flow through it.
        targets: outputs of the layer in the dense model, on the CPU, if they were asked for.
    """

    unit: str
    names: list[str]
    statistics: Mapping[str, InputStatistics]
    device: torch.device
    last: bool
    layer: nn.Module | None = None
    probe: Callable[[int], Tensor] | None = None
    samples: int = 0
    output: Callable[[int, torch.device], Tensor] | None = None
    targets: Sequence[Tensor] | None = None


def walk(
    model: nn.Module,
    names: Sequence[str],
    samples: Sequence[Any] | Tensor,
    *,
    device: torch.device,
    restore: Callable[[str, list[str]], bool],
    leave: Callable[[str], None],
    targets: bool = False,
) -> Iterator[Stage]:
    """Visits linear layers; the caller quantizes those of a stage before it asks for the next.

    Args:
        model: in evaluation mode; gradients are off.
        names: of the layers to visit.
        samples: token ids [samples, length] for a transformers model; inputs of any other module,
            each a tensor, a tuple of arguments or a dict of named arguments.
        device: where decoder layers are computed; other modules stay where they are.
        restore: is called with each unit and its names first, and may put finished modules in
            place; if it returns true, the unit is not visited.
        leave: is called with each unit once its outputs are computed and it is not run again.
        targets: whether stages carry the outputs of the dense model, which takes a second copy of
            the hidden states and one more pass.

    Yields:
        Stages, in the order in which the model computes.
    """
    rest = list(names)
    layers = decoder_layers(model)
    if layers is not None and isinstance(samples, Tensor):
        assert isinstance(model, PreTrainedModel)
        prefix, modules = layers
        inside = [name for name in rest if name.startswith(f"{prefix}.")]
        start = _start(model, modules, samples) if inside else None
        if start is not None:
            rest = [name for name in rest if name not in set(inside)]
            yield from _walk_decoder(
                *(model, prefix, modules, inside, *start, device, restore, leave, targets)
            )
        elif inside:
            warnings.warn(
                "the decoder layers of this model cannot be run one by one: all are calibrated in "
                "one pass of the dense model",
                stacklevel=2,
            )
    if rest:
        if not restore("model", rest):
            yield _whole(model, rest, samples)
        leave("model")


def on_device(device: torch.device, compute: Callable[[torch.device], Result], what: str) -> Result:
    """The result of ``compute(device)``; of ``compute(cpu)``, with a warning, if memory is short.

    Args:
        device: where to try first.
        compute: leaves nothing behind if it fails.
        what: is computed, for the warning.
    """
    try:
        return compute(device)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    torch.cuda.empty_cache()
    warnings.warn(f"{device} is out of memory for {what}: computed on the CPU", stacklevel=2)
    return compute(torch.device("cpu"))


def run_model(model: nn.Module, sample: Any) -> None:
    """One forward pass of a whole model on a sample as :func:`walk` takes it."""
    if isinstance(model, PreTrainedModel) and isinstance(sample, Tensor):
        model(sample[None].to(model.device), use_cache=False)
    elif isinstance(sample, Mapping):
        model(**sample)
    elif isinstance(sample, tuple):
        model(*sample)
    else:
        model(sample)


def _start(
    model: PreTrainedModel, layers: nn.ModuleList, samples: Tensor
) -> tuple[list[LayerCall], list[Tensor]] | None:
    calls = record_calls(model, layers, samples[0])
    if calls is None:
        return None
    hidden = first_hidden_states(model, layers, samples, calls[0])
    return None if hidden is None else (calls, hidden)


def _walk_decoder(
    model: PreTrainedModel,
    prefix: str,
    layers: nn.ModuleList,
    names: Sequence[str],
    calls: Sequence[LayerCall],
    hidden: list[Tensor],
    device: torch.device,
    restore: Callable[[str, list[str]], bool],
    leave: Callable[[str], None],
    targets: bool,
) -> Iterator[Stage]:
    """The decoder layers in turn; ``hidden`` is overwritten by what leaves each."""
    left = set(names)
    dense = list(hidden) if targets else None
    for number, layer in enumerate(layers):
        unit = f"{prefix}.{number}"
        inside = [name for name in names if name.startswith(f"{unit}.")]
        home = _home(layer)
        if dense is not None:
            _advance(unit, layer, dense, calls[number], device)
        if inside and not restore(unit, inside):
            yield from _walk_layer(model, unit, layer, inside, calls[number], hidden, dense, device)
        left -= set(inside)
        if left:
            _advance(unit, layer, hidden, calls[number], device)
            layer.to(home)
        leave(unit)
        if not left:
            return


def _walk_layer(
    model: nn.Module,
    unit: str,
    layer: nn.Module,
    names: list[str],
    call: LayerCall,
    hidden: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    device: torch.device,
) -> Iterator[Stage]:
    home = _home(layer)
    modules = {name: model.get_submodule(name) for name in names}

    def run(states: Tensor, call: LayerCall, where: torch.device) -> None:
        run_layer(layer, states, call, where)

    def groups_on(where: torch.device) -> tuple[list[list[str]], bool]:
        layer.to(where)
        return input_groups(modules, partial(run, hidden[0], call.to(where), where))

    groups, once = on_device(device, groups_on, unit)
    called = {name for group in groups for name in group}
    missing = [name for name in names if name not in called]
    one_by_one = once and not missing and len(groups) <= _MAX_STAGES
    stages = [[group] for group in groups] if one_by_one else [[*groups, *([n] for n in missing)]]

    for stage in stages:

        def gather_on(
            where: torch.device, stage: list[list[str]] = stage
        ) -> dict[str, InputStatistics]:
            layer.to(where)
            there = call.to(where)
            passes = (partial(run, states, there, where) for states in hidden)
            return gather_statistics(stage, modules, passes, where, stop_early=one_by_one)

        statistics = on_device(device, gather_on, f"the inputs of {stage[0][0]}")
        where = next(iter(statistics.values())).hessian.device
        inside = [name for group in stage for name in group]
        yield Stage(
            *(unit, inside, statistics, where, stage is stages[-1]),
            layer=layer,
            probe=partial(_probe, layer, hidden, call.to(where), where),
            samples=len(hidden),
            output=partial(_output, layer, hidden, call),
            targets=targets,
        )
    layer.to(home)


def _probe(
    layer: nn.Module, hidden: Sequence[Tensor], call: LayerCall, where: torch.device, number: int
) -> Tensor:
    return run_layer(layer, hidden[number], call, where).to("cpu", torch.float32)


def _output(
    layer: nn.Module, hidden: Sequence[Tensor], call: LayerCall, number: int, where: torch.device
) -> Tensor:
    layer.to(where)
    return run_layer(layer, hidden[number], call.to(where), where)


def _advance(
    unit: str, layer: nn.Module, hidden: list[Tensor], call: LayerCall, device: torch.device
) -> None:
    """Runs the layer on all samples, each in place, so that they are in memory once."""
    done = 0

    def advance_on(where: torch.device) -> None:
        nonlocal done
        layer.to(where)
        there = call.to(where)
        while done < len(hidden):
            hidden[done] = run_layer(layer, hidden[done], there, where).to("cpu")
            done += 1

    on_device(device, advance_on, f"the outputs of {unit}")


def _home(module: nn.Module) -> torch.device:
    """Where the module is kept."""
    return next(chain(module.parameters(), module.buffers())).device


def _whole(model: nn.Module, names: list[str], samples: Sequence[Any] | Tensor) -> Stage:
    modules = {name: model.get_submodule(name) for name in names}
    groups, _ = input_groups(modules, partial(run_model, model, samples[0]))
    called = {name for group in groups for name in group}
    groups += [[name] for name in names if name not in called]
    device = _home(model)
    passes = (partial(run_model, model, sample) for sample in samples)
    statistics = gather_statistics(groups, modules, passes, device)
    return Stage("model", names, statistics, device, True)
