"""Predicted against measured loss, with one rate for all layers and with rates by sensitivity.

    pvq sensitivity MODEL layers.json --text test.txt --tokens 8192 --windows 8 --length 1024
    python benchmarks/allocation.py MODEL --text test.txt --tokens 8192 --sensitivity layers.json
        [--bits 2.25 3.25 4.25] [--seeds 1] [--json FILE]

Predictions hold for the text that the sensitivities are measured on. On another text the same
errors may cost more or less: a model is more sensitive to them where it was not trained.

Each rate is quantized twice, to the nearest points: with one setting for all layers, and with the
settings that `pvq.allocate` chooses for exactly as many bytes. Predicted is the sum over layers of
sensitivity times the relative error that the layer really got. Measured is the loss of the
sensitivities, in nats a token (windows as `pvq eval` states) and in float32, as they are: the KL
divergence from the original, or the increase of the negative log-likelihood.

An error moves the likelihood of a text by a term of the first order too, which no sensitivity
tells: its sign is random, and it outweighs the rest where errors are small. Means over rotations of
several seeds (--seeds) are free of it; the table gives the standard error of such a mean.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import pvq
from pvq.evaluate import evaluate, tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sensitivity", required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.25, 3.25, 4.25])
    parser.add_argument("--tokens", type=int, help="use no more of the text")
    parser.add_argument("--seeds", type=int, default=1, help="rotations to take the mean over")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sensitivity = pvq.Sensitivity.load(arguments.sensitivity)

    def load() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        return model.eval()

    original = load()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokens = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))

    def measure(config: pvq.PVQConfig, overrides: dict[str, pvq.PVQConfig]) -> dict[str, Any]:
        model = load()
        report = pvq.quantize_model(model, config, overrides=overrides, progress=False)
        scored = evaluate(
            model.dequantize(),
            tokens,
            reference=original,
            max_tokens=arguments.tokens,
            progress=False,
        )
        errors = {layer.name: layer.relative_error for layer in report.layers}
        increase = math.log1p(scored.perplexity_increase or 0.0)
        return {
            "allocated": bool(overrides),
            "bits": config.bits,
            "seed": config.seed,
            "bits_per_weight": report.bits_per_weight,
            "quantized_nbytes": report.quantized_nbytes,
            "predicted": sensitivity.predict(errors),
            "measured": scored.kl_divergence if sensitivity.loss == "kl" else increase,
            **scored.to_dict(),
        }

    rows: list[dict[str, Any]] = []
    print(
        f"{sensitivity.loss} sensitivities measured on {sensitivity.tokens} tokens of "
        f"{sensitivity.source}"
    )
    print("| | b/w stored | predicted | measured | +- | predicted / measured | increase |")
    print("|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for bits in arguments.bits:
            plain, allocated = [], []
            for seed in range(arguments.seeds):
                config = pvq.PVQConfig(bits, seed=seed)
                plain.append(measure(config, {}))
                budget = f"{plain[-1]['bits_per_weight']:.9f}bpw"
                allocation = pvq.allocate(original, budget, sensitivity, config)
                allocated.append(measure(config, allocation.overrides))
            for name, runs in (("one rate", plain), ("allocated", allocated)):
                print(_line(f"{bits:g} {name}", runs), flush=True)
                rows += runs
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def _line(name: str, runs: list[dict[str, Any]]) -> str:
    """A line of the table: means over runs of different seeds."""

    def mean(key: str) -> float:
        return fmean(run[key] for run in runs)

    spread = "-"
    if len(runs) > 1:
        spread = f"{stdev(run['measured'] for run in runs) / math.sqrt(len(runs)):.5f}"
    return (
        f"| {name} | {mean('bits_per_weight'):.4f} | {mean('predicted'):.5f} "
        f"| {mean('measured'):.5f} | {spread} | {mean('predicted') / mean('measured'):.3f} "
        f"| {mean('perplexity_increase'):+.2%} |"
    )


if __name__ == "__main__":
    main()
