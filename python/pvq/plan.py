"""Which modules of a model are quantized and how: decided before the first is touched."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pvq.arguments import check_model, check_patterns
from pvq.config import PVQConfig, check_config
from pvq.embedding import PVQEmbedding
from pvq.integrity import shortened
from pvq.linear import PVQLinear
from pvq.tensor import unquantizable

Override = PVQConfig | Mapping[str, Any]

# Linear layers that choose experts: tiny, and an error there changes which weights run at all.
ROUTERS = ("gate", "router", "router_gate", "shared_expert_gate")
_CONV1D = (
    "weight is that of a transformers Conv1D (GPT-2 style, stored transposed), which pvq does not "
    "quantize: replace it by an nn.Linear or pass it in skip"
)
_SHARED = (
    "weight is shared with other modules, which would change with it: pass all such layers in skip"
)
_MOST_CAUSES = 4  # that a refusal names


@dataclass(frozen=True)
class Target:
    """A module to quantize."""

    name: str
    module: nn.Linear | nn.Embedding
    config: PVQConfig


@dataclass(frozen=True)
class LeftDense:
    """A weight matrix that stays as it is, and why."""

    name: str
    reason: str
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """What :func:`pvq.quantize_model` is going to do."""

    targets: list[Target]
    left_dense: list[LeftDense]
    tied: tuple[str, str] | None
    """Names of the head and of the embedding whose codes it reads, if both are quantized as one."""


def make_plan(
    model: nn.Module,
    config: PVQConfig,
    *,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Override] | None = None,
    embeddings: bool = False,
    head: bool = False,
) -> Plan:
    """Chooses the modules, settles the configuration of each, and checks every one of them.

    Args:
        model: a transformers model or any ``nn.Module``.
        config: of all modules that no override names.
        skip: shell patterns of full module names (``"*.down_proj"``) to leave dense.
        overrides: pattern to configuration, or to changes of it; all that match a module apply, in
            the order given.
        embeddings: also the input embeddings.
        head: also the output head.

    Returns:
        The plan.

    Raises:
        TypeError: if ``model``, ``config``, ``skip`` or an override is of the wrong type.
        ValueError: naming the modules that cannot be quantized and what to do about them; or a
            pattern that matches nothing; or a choice that would break tied embeddings; or if the
            model is itself a layer.
    """
    overrides = {} if overrides is None else overrides
    _check_arguments(model, config, skip, overrides)
    modules = dict(model.named_modules())
    if any(isinstance(module, PVQLinear | PVQEmbedding) for module in modules.values()):
        raise ValueError("the model is quantized by pvq already: start from the dense checkpoint")
    names = [name for name, module in modules.items() if _holds_matrix(module)]
    for pattern in [*skip, *overrides]:
        if not fnmatch.filter(names, pattern):
            known = f", such as {names[len(names) // 2]!r}" if names else ""
            raise ValueError(
                f"pattern {pattern!r} matches no layer of the model; patterns are matched against "
                f"full names{known}"
            )

    tied = _tied_modules(model, modules, embeddings, head)
    if tied is not None and any(fnmatch.filter(tied, pattern) for pattern in skip):
        raise ValueError(
            f"{tied[0]} and {tied[1]} are one tied weight, which embeddings and head ask to "
            "quantize and a skip pattern to leave dense: drop one or the other"
        )
    excluded = _excluded_by_default(model, modules, embeddings, head)
    targets: list[Target] = []
    left_dense = list(_stacks_of_experts(model))
    causes: dict[str, list[str]] = {}
    for name in names:
        module = modules[name]
        reason = excluded.get(name)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
            reason = "skipped as asked"
        if reason is None and isinstance(module, Conv1D):
            causes.setdefault(_CONV1D, []).append(name)
        elif reason is None and tied is not None and name == tied[0]:
            continue  # reads the codes of the embedding
        elif reason is None and isinstance(module, nn.Linear | nn.Embedding):
            chosen = _override(config, name, overrides)
            problem = unquantizable(module.weight, chosen)
            if problem is None:
                cols = module.weight.shape[1]
                targets.append(Target(name, module, chosen.for_cols(cols)))
            else:
                causes.setdefault(f"weight {problem}", []).append(name)
        elif isinstance(module, nn.Linear | Conv1D):
            left_dense.append(LeftDense(name, str(reason), module.weight.nbytes))
    refused = sum(map(len, causes.values()))
    for cause, holders, count in _shared_weights(model, modules, targets, tied):
        causes.setdefault(cause, []).append(holders)
        refused += count
    problems = [f"{cause}: {shortened(found)}" for cause, found in causes.items()]
    if problems:
        layers = f"{refused} layer{'s' if refused > 1 else ''}"
        rest = len(problems) - _MOST_CAUSES
        if rest > 0:
            problems[_MOST_CAUSES:] = [f"and {rest} other cause{'s' if rest > 1 else ''}"]
        raise ValueError(
            f"{layers} cannot be quantized, nothing was changed: {'; '.join(problems)}"
        )
    if not targets:
        raise ValueError("there is no layer to quantize: no nn.Linear is left by the patterns")
    return Plan(targets, left_dense, tied)


def _check_arguments(model: object, config: object, skip: object, overrides: object) -> None:
    check_model(model)
    check_config(config)
    check_patterns("skip", skip)
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f"overrides is a {type(overrides).__name__}, expected a mapping of patterns to changes"
        )
    for pattern, override in overrides.items():
        if not isinstance(override, PVQConfig | Mapping):
            raise TypeError(
                f"overrides[{pattern!r}] is {override!r}, expected a PVQConfig or a mapping of "
                "changes such as {'bits': 4.25}"
            )
    if isinstance(model, nn.Linear | nn.Embedding):
        raise ValueError(
            "the model is a single layer, which cannot be replaced in place: use "
            "pvq.PVQLinear.from_linear, or pvq.PVQEmbedding.from_embedding"
        )


def _holds_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding | Conv1D)


def _override(config: PVQConfig, name: str, overrides: Mapping[str, Override]) -> PVQConfig:
    for pattern, override in overrides.items():
        if fnmatch.fnmatchcase(name, pattern):
            try:
                config = override if isinstance(override, PVQConfig) else config.replace(**override)
            except (ValueError, TypeError) as error:
                raise ValueError(f"override {pattern!r}: {error}") from error
    return config


def _excluded_by_default(
    model: nn.Module, modules: Mapping[str, nn.Module], embeddings: bool, head: bool
) -> dict[str, str]:
    """Modules that stay dense without being named, with the reason."""
    decoder: nn.Module = model
    output = table = None
    if isinstance(model, PreTrainedModel):
        decoder = model.get_decoder() or model
        output, table = model.get_output_embeddings(), model.get_input_embeddings()
    inside = {id(module) for module in decoder.modules()}
    excluded = {}
    for name, module in modules.items():
        if output is not None and module is output:
            if not head:
                excluded[name] = "output head (pass head=True to quantize it)"
        elif isinstance(module, nn.Embedding):
            if not embeddings or (table is not None and module is not table):
                excluded[name] = "embedding"
            elif type(module) is not nn.Embedding:
                excluded[name] = f"{type(module).__name__} is not a plain nn.Embedding"
        elif id(module) not in inside:
            excluded[name] = "outside the decoder"
        elif isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            excluded[name] = f"{type(module).__name__} is not a plain nn.Linear"
        elif name.rpartition(".")[2] in ROUTERS:
            excluded[name] = "router of experts"
    return excluded


def _tied_modules(
    model: nn.Module, modules: Mapping[str, nn.Module], embeddings: bool, head: bool
) -> tuple[str, str] | None:
    """Names of the head and the embedding if they share a weight that is to be quantized."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if output is None:
        if head:
            raise ValueError("head=True, but the model has no output embeddings")
        return None
    assert isinstance(model, PreTrainedModel)
    table = model.get_input_embeddings()
    if getattr(output, "weight", None) is not getattr(table, "weight", None):
        return None
    if embeddings != head:
        raise ValueError(
            "input embeddings and output head of this model are one tied weight: pass embeddings "
            "and head together to quantize it once, or neither (untie the model to treat them "
            "differently)"
        )
    if not head:
        return None
    if type(table) is not nn.Embedding or type(output) is not nn.Linear:
        raise ValueError(
            f"the tied embedding and head of this model are a {type(table).__name__} and a "
            f"{type(output).__name__}, not a plain nn.Embedding and nn.Linear: leave them dense"
        )
    names = {id(module): name for name, module in modules.items()}
    return names[id(output)], names[id(table)]


def _shared_weights(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    targets: Sequence[Target],
    tied: tuple[str, str] | None,
) -> Iterator[tuple[str, str, int]]:
    """Weights of targets that other modules hold too: what to do, who holds them, of how many.

    What quantizes one of these layers changes the others: they would be quantized once more, or be
    changed although they were to stay dense. A module with two names is one module.
    """
    holders: dict[int, list[str]] = {}
    for name, module in modules.items():
        if tied is not None and name == tied[0]:
            continue  # reads the codes of the embedding
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name or "the model itself")
    chosen: dict[int, list[str]] = {}
    for target in targets:
        chosen.setdefault(id(target.module.weight), []).append(target.name)
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    for weight, names in chosen.items():
        every = [*names, *(name for name in holders.get(weight, []) if name not in names)]
        if len(every) > 1:
            # What transformers ties it ties again on loading, when there are codes in its place.
            by_class = any(f"{name}.weight" in (*ties, *ties.values()) for name in names)
            rest = f" and {len(every) - 2} more" if len(every) > 2 else ""
            cause = _SHARED if by_class else f"{_SHARED}, or untie them"
            yield cause, f"{every[0]} with {every[1]}{rest}", len(names)


def _stacks_of_experts(model: nn.Module) -> Iterator[LeftDense]:
    """Mixture-of-experts weights that transformers holds as one 3-D parameter, not as nn.Linear."""
    for module_name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                full = f"{module_name}.{name}" if module_name else name
                yield LeftDense(full, "stack of experts (a 3-D parameter)", parameter.nbytes)
