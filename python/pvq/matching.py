"""Does a checkpoint hold the tensors that its config describes?

transformers fills what is missing with random values and only warns, so the headers of the files
are compared with the model before anything is loaded.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from pvq.integrity import Entry, shortened
from pvq.modules import quantized_modules

_SAFETENSORS_DTYPES = {
    torch.uint8: "U8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}


def check_tensors(model: PreTrainedModel, entries: Mapping[str, Entry]) -> None:
    """Compares the headers of a checkpoint with the skeleton that is about to be filled.

    Args:
        model: skeleton, quantized modules in place, on the meta device.
        entries: what the files hold.

    Raises:
        ValueError: naming what is missing, unexpected, or of another shape or dtype.
    """
    prefix = f"{model.base_model_prefix}."
    found = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    expected = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    codes = {
        f"{name.removeprefix(prefix)}.{tensor}"
        for name, module in quantized_modules(model)
        for tensor in module.config.code.tensors
    }
    if _renames_tensors(model):  # names differ by right, what they name does not
        kinds = {_last(name) for name in codes}
        stored = Counter(_kind(n, e.shape) for n, e in found.items() if _last(n) in kinds)
        wanted = Counter(_kind(name, expected[name].shape) for name in codes)
        problems = [] if stored == wanted else ["its code tensors are not those that it lists"]
    else:
        problems = _differences(model, found, expected, codes)
    if problems:
        listed = "; ".join(problems[:3]) + (" ..." if len(problems) > 3 else "")
        raise ValueError(
            f"the checkpoint does not match its config.json: {listed}. The files come from "
            "different saves or were edited; copy the checkpoint again"
        )


def _differences(
    model: PreTrainedModel,
    found: Mapping[str, Entry],
    expected: Mapping[str, torch.Tensor],
    codes: set[str],
) -> list[str]:
    if type(model).__name__ in (model.config.architectures or []):
        missing = expected.keys() - found.keys() - _filled_by_ties(model, found)
        unexpected = found.keys() - expected.keys()
    else:  # another class may lack the head or have one of its own, but codes must be complete
        missing, unexpected = codes - found.keys(), set()
    missing = set(_not_ignored(missing, model._keys_to_ignore_on_load_missing))
    unexpected = set(_not_ignored(unexpected, model._keys_to_ignore_on_load_unexpected))
    problems = [f"missing {shortened(missing)}"] if missing else []
    problems += [f"unexpected {shortened(unexpected)}"] if unexpected else []
    for name in sorted(found.keys() & expected.keys()):
        entry, tensor = found[name], expected[name]
        dtype = _SAFETENSORS_DTYPES[tensor.dtype] if name in codes else entry.dtype
        if entry.shape != tuple(tensor.shape) or entry.dtype != dtype:
            problems.append(
                f"{name} is {entry.dtype} {list(entry.shape)}, expected {dtype} "
                f"{list(tensor.shape)}"
            )
    return problems


def _renames_tensors(model: PreTrainedModel) -> bool:
    """Whether transformers stores this architecture under other names than its modules have."""
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _filled_by_ties(model: PreTrainedModel, found: Mapping[str, Entry]) -> set[str]:
    """Names that need not be stored: either end of a tie may be the one that a checkpoint holds."""
    prefix = f"{model.base_model_prefix}."
    filled = set()
    for pair in model.all_tied_weights_keys.items():
        names = {name.removeprefix(prefix) for name in pair}
        if names & found.keys():
            filled |= names
    return filled


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _kind(name: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    return _last(name), tuple(shape)


def _not_ignored(names: set[str], patterns: Any) -> Iterator[str]:
    return (name for name in names if not any(re.search(p, name) for p in patterns or ()))
