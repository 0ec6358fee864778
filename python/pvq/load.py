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
        The model, in evaluation mode; with ``output_loading_info=True`` a tuple of it and the dict
        that ``from_pretrained`` gives then.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not one of pvq, does not match its config, was truncated or altered, or
            a newer pvq wrote it.
    """
    folder = Path(path)
    if folder.is_dir():
        folder /= kwargs.get("subfolder") or ""
    check_exists(str(folder))
    if folder.is_dir():
        _check_method(folder)
    run_time = hf.RunTime(layout, activations, group)
    stored = hf.RunTime("stored", group=False)
    token = hf.run_time_when_loaded.set(run_time if device is None else stored)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated ({error}): copy it again") from error
    except OSError as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(f"{path} is no folder here, nor on the hub: {error}") from error
    finally:
        hf.run_time_when_loaded.reset(token)
    model: PreTrainedModel = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(model, "quantization_method", None) != hf.METHOD:
        raise ValueError(f"{path} is not a pvq checkpoint: use AutoModelForCausalLM")
    if device is not None:
        run_time.apply(model.to(device))
    return loaded


def check_exists(name: str) -> None:
    """Says so if ``name`` is meant to be a folder and there is none.

    Raises:
        FileNotFoundError: if it looks like a path and is not a model folder.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{name} has no config.json: it is no model folder")
    elif path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name} is no model folder, and no hub name such as owner/model")


def _check_method(folder: Path) -> None:
    config_file = folder / "config.json"
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
