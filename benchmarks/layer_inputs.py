"""What reaches the layers of a dense model: for the benchmarks that look at layers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pvq.calibration import InputStatistics, calibration_tokens
from pvq.calibration.accumulate import gather_statistics, input_groups


@dataclass
class LayerInputs:
    """The linear layers of a decoder, by name, those with the same inputs, and statistics of these.

    ``samples`` are the tokens [samples, length] that the inputs come from.
    """

    modules: dict[str, nn.Linear]
    groups: list[list[str]]
    statistics: dict[str, InputStatistics]
    samples: Tensor


def layer_inputs(path: str, calibration: str, samples: int) -> LayerInputs:
    """Of the model at ``path``, float32 on the CPU, from so many windows of a text."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokens = calibration_tokens(
        calibration,
        AutoTokenizer.from_pretrained(path),
        samples=samples,
        context=model.config.max_position_embeddings,
    )
    decoder = model.get_decoder()
    modules = {n: m for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    groups, _ = input_groups(modules, lambda: model(tokens[:1]))
    passes = (lambda sample=sample: model(sample[None]) for sample in tokens)
    statistics = gather_statistics(groups, modules, passes, torch.device("cpu"))
    return LayerInputs(modules, groups, statistics, tokens)
