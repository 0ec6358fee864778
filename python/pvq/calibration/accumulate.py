"""What the inputs of a linear layer say about its loss: H = X^T X, summed over all tokens."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

# Tokens whose inputs are in float32 at one time.
_CHUNK = 8192


class InputStatistics:
    """The sums over a layer's inputs x [..., cols].

    Args:
        cols: of the layer.
        device: where to sum.

    Attributes:
        hessian: [cols, cols] float32, the sum of x x^T over tokens.
        tokens: how many there were.
    """

    def __init__(self, cols: int, device: torch.device) -> None:
        self.hessian = torch.zeros(cols, cols, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Adds the tokens of one call of the layer."""
        flat = x.detach().reshape(-1, x.shape[-1])
        for begin in range(0, len(flat), _CHUNK):
            values = flat[begin : begin + _CHUNK].to(self.hessian.device, torch.float32)
            self.hessian.addmm_(values.T, values)
        self.tokens += len(flat)


class StopForwardError(Exception):
    """Ends a forward pass of which nothing more is needed; caught by whoever asked for it."""


@contextmanager
def watch_inputs(
    modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Calls ``see(name, x)`` before each call of a module with the input ``x``."""

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [
        module.register_forward_pre_hook(make_hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_groups(
    modules: Mapping[str, nn.Module], run: Callable[[], None]
) -> tuple[list[list[str]], bool]:
    """Which modules get one input, such as the projections to queries, keys and values.

    Args:
        modules: by name.
        run: a forward pass.

    Returns:
        Names in the order of their first calls, in groups with one input; modules that the pass did
        not call are missing. A module that was called more than once is alone, because its other
        inputs are its own. And whether each was called no more than once.
    """
    inputs: list[tuple[Tensor, Tensor | int]] = []  # alive, so that none takes another's place
    first: dict[str, int] = {}  # which of them a module was called with first
    calls: dict[str, int] = {}

    def see(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if calls[name] > 1:
            return
        for number, (seen, state) in enumerate(inputs):
            if seen is x and _is_unchanged(x, state):
                first[name] = number
                return
        first[name] = len(inputs)
        inputs.append((x, x.clone() if x.is_inference() else x._version))

    with watch_inputs(modules, see):
        run()
    groups: dict[int | str, list[str]] = {}
    for name, number in first.items():
        groups.setdefault(number if calls[name] == 1 else name, []).append(name)
    return list(groups.values()), all(count == 1 for count in calls.values())


def _is_unchanged(x: Tensor, state: Tensor | int) -> bool:
    """Whether nothing was written into ``x`` since it had this version, or equalled this copy.

    Tensors made under ``torch.inference_mode()`` count no versions.
    """
    return torch.equal(x, state) if isinstance(state, Tensor) else x._version == state


def gather_statistics(
    groups: Sequence[Sequence[str]],
    modules: Mapping[str, nn.Module],
    passes: Iterable[Callable[[], None]],
    device: torch.device,
    *,
    stop_early: bool = False,
) -> dict[str, InputStatistics]:
    """Sums over all passes, one for each group: its modules get the same object.

    Args:
        groups: names of modules that share an input.
        modules: by name; linear layers.
        passes: forward passes, one after the other.
        device: where to sum.
        stop_early: end each pass where the last of the groups is called for the first time.
    """
    columns = {group[0]: int(modules[group[0]].weight.shape[1]) for group in groups}  # type: ignore
    sums = {first: InputStatistics(cols, device) for first, cols in columns.items()}
    last = groups[-1][0] if stop_early else None

    def see(name: str, x: Tensor) -> None:
        sums[name].add(x)
        if name == last:
            raise StopForwardError

    with watch_inputs({name: modules[name] for name in sums}, see):
        for run in passes:
            with suppress(StopForwardError):
                run()
    return {name: sums[group[0]] for group in groups for name in group}
