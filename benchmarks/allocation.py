"""Predicted against measured loss, with one rate for all layers and with rates by sensitivity.

    pvq sensitivity MODEL layers.json --text test.txt --tokens 8192 --windows 8 --length 1024
    python benchmarks/allocation.py MODEL --text test.txt --tokens 8192 --sensitivity layers.json
        [--bits 2.25 3.25 4.25] [--json FILE]

Predictions hold for the text that the sensitivities are measured on. On another text the same
errors may cost more or less: a model is more sensitive to them where it was not trained.

Each rate is quantized twice, to the nearest points: with one setting for all layers, and with the
settings that `pvq.allocate` chooses for exactly as many bytes. Predicted is the sum over layers of
sensitivity times the relative error that the layer really got; measured is the KL divergence from
the original in nats a token (windows as `pvq eval` states), in float32, as the sensitivities are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sensitivity = pvq.Sensitivity.load(arguments.sensitivity)

    def load() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        return model.eval()

    original = load()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokens = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))

    def measure(bits: float, overrides: dict[str, pvq.PVQConfig]) -> dict[str, object]:
        model = load()
        report = pvq.quantize_model(model, pvq.PVQConfig(bits), overrides=overrides, progress=False)
        scored = evaluate(
            model.dequantize(),
            tokens,
            reference=original,
            max_tokens=arguments.tokens,
            progress=False,
        )
        errors = {layer.name: layer.relative_error for layer in report.layers}
        return {
            "allocated": bool(overrides),
            "bits": bits,
            "bits_per_weight": report.bits_per_weight,
            "quantized_nbytes": report.quantized_nbytes,
            "predicted": sensitivity.predict(errors),
            **scored.to_dict(),
        }

    rows: list[dict[str, object]] = []
    print(f"sensitivities measured on {sensitivity.tokens} tokens of {sensitivity.source}")
    print("| | b/w stored | predicted KL | measured KL | ratio | perplexity | increase |")
    print("|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for bits in arguments.bits:
            plain = measure(bits, {})
            budget = f"{plain['bits_per_weight']:.9f}bpw"
            allocation = pvq.allocate(original, budget, sensitivity)
            for row in (plain, measure(bits, allocation.overrides)):
                rows.append(row)
                name = "allocated" if row["allocated"] else "one rate"
                print(
                    f"| {bits:g} {name} | {row['bits_per_weight']:.4f} | {row['predicted']:.5f} "
                    f"| {row['kl_divergence']:.5f} | {row['predicted'] / row['kl_divergence']:.3f} "
                    f"| {row['perplexity']:.3f} | {row['perplexity_increase']:+.2%} |",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
