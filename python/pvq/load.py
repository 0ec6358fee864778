"""load: a pvq checkpoint as a transformers model, with errors that say what is wrong with it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from pvq import hf


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    layout: str = "auto",
    activations: str | None = None,
    group: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Loads a quantized causal language model; no dense copy of its weights is ever made.

    ``AutoModelForCausalLM.from_pretrained(path)`` does the same once pvq is imported.

    Args:
        path: folder of the checkpoint, or its name on the hub.
        device: where to put it; codes are moved before they are prepared there.
        layout: run-time form of the layers, see :meth:`pvq.PVQLinear.prepare`.
        activations: what products may do to them, see there.
        group: on a GPU, run projections that read the same input as one product, see
            :func:`pvq.group_projections`.
        **kwargs: of ``AutoModelForCausalLM.from_pretrained``.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not one of pvq, does not match its config, was truncated or altered, or
            a newer pvq wrote it.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_method(folder)
    run_time = hf.RunTime(layout, activations, group)
    stored = hf.RunTime("stored", group=False)
    token = hf.run_time_when_loaded.set(run_time if device is None else stored)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated ({error}): copy it again") from error
    finally:
        hf.run_time_when_loaded.reset(token)
    if getattr(model, "quantization_method", None) != hf.METHOD:
        raise ValueError(f"{path} is not a pvq checkpoint: use AutoModelForCausalLM")
    if device is not None:
        run_time.apply(model.to(device))
    return model


def _check_method(folder: Path) -> None:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is no model folder")
    try:
        config = json.loads(config_file.read_text())
    except ValueError as error:
        raise ValueError(f"{config_file} is not JSON ({error}): copy it again") from error
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != hf.METHOD:
        raise ValueError(
            f"{folder} is not a pvq checkpoint (no quantization_config of method 'pvq'): load it "
            "with AutoModelForCausalLM, or quantize it first"
        )
