"""What a model is calibrated on, checked before anything is computed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Samples = Tensor | Sequence[Any]


def check_samples(model: nn.Module, samples: Samples) -> Samples:
    """Refuses what the model cannot be run on.

    Args:
        model: a transformers model or any module.
        samples: token ids [samples, length] for a transformers model; for any other module a
            sequence of inputs, each a tensor, a tuple of arguments or a dict of named arguments.

    Returns:
        Token ids as int64 on the CPU; anything else as it is.

    Raises:
        TypeError: if token ids are no tensor of integers.
        ValueError: if there is no sample, or token ids do not fit the model.
    """
    if not isinstance(model, PreTrainedModel):
        if len(samples) == 0:
            raise ValueError("calibration has no samples")
        return samples
    if not isinstance(samples, Tensor):
        raise TypeError(
            f"calibration is a {type(samples).__name__}, expected token ids [samples, length] for "
            "a transformers model: make them with pvq.calibration_tokens"
        )
    if samples.is_floating_point() or samples.is_complex() or samples.dtype == torch.bool:
        raise TypeError(f"calibration has dtype {samples.dtype}, expected token ids")
    if samples.ndim != 2 or not samples.numel():
        raise ValueError(
            f"calibration has shape {list(samples.shape)}, expected token ids [samples, length]"
        )
    settings = model.config.get_text_config()
    context = getattr(settings, "max_position_embeddings", None)
    if context is not None and samples.shape[1] > context:
        raise ValueError(
            f"calibration samples have {samples.shape[1]} tokens, more than the model's context of "
            f"{context}"
        )
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high >= settings.vocab_size:
        raise ValueError(
            f"calibration has token ids from {low} to {high}, the model's are 0 to "
            f"{settings.vocab_size - 1}: use the model's own tokenizer"
        )
    return samples.to("cpu", torch.int64)
