"""Quality against bits of a whole model, quantized without data, beside its bf16 original.

    python benchmarks/model_quality.py tests/data/tiny --text tests/data/books.txt
        [--bits 4.25 3.25 2.25] [--json FILE]

For each rate: true bits a weight of the quantized layers and bytes of the whole model, read off
the stored form, then perplexity, KL divergence from the original and top-1 agreement (windows as
`pvq eval` states). The last column is a check: the increase that Gaussian noise of the same
relative error, layer by layer, gives to the dense model. The rotation makes the code's error act
like such noise, so the two should agree.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import pvq
from pvq.evaluate import evaluate, tokenize


def with_noise(model: PreTrainedModel, report: pvq.Report, seed: int) -> PreTrainedModel:
    """A copy whose layers carry Gaussian noise of the relative error that quantization had."""
    noisy = copy.deepcopy(model)
    source = torch.Generator().manual_seed(seed)
    for layer in report.layers:
        module = noisy.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        w = module.weight.data.float()
        noise = torch.randn(w.shape, generator=source)
        noise *= w.norm() / noise.norm() * layer.relative_error**0.5
        module.weight.data = (w + noise).to(module.weight.dtype)
    return noisy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[4.25, 3.25, 2.25])
    parser.add_argument("--tokens", type=int, help="use no more of the text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    original = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokens = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))

    def score(model: PreTrainedModel) -> dict:
        return evaluate(model, tokens, reference=original, max_tokens=arguments.tokens).to_dict()

    rows = []
    for bits in arguments.bits:
        model = copy.deepcopy(original)
        report = pvq.quantize_model(model, pvq.PVQConfig(bits), progress=False)
        pvq.prepare(model)
        noisy = score(with_noise(original, report, seed=0))
        rows.append(
            {
                "bits": bits,
                "bits_per_weight": report.bits_per_weight,
                "nbytes": report.nbytes,
                "original_nbytes": report.original_nbytes,
                "relative_error": report.relative_error,
                "noise_increase": noisy["perplexity_increase"],
                **score(model),
            }
        )
    first = rows[0]
    print(f"{first['convention']}\n")
    print("| | b/w stored | bytes | error | perplexity | increase | KL | top-1 | same noise |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| original | 16 | {first['original_nbytes']:,} | 0 "
        f"| {first['reference_perplexity']:.2f} | | 0 | 100 % | |"
    )
    for row in rows:
        print(
            f"| pvq {row['bits']:g} | {row['bits_per_weight']:.3f} | {row['nbytes']:,} "
            f"| {row['relative_error']:.5f} | {row['perplexity']:.2f} "
            f"| {row['perplexity_increase']:+.1%} | {row['kl_divergence']:.4f} "
            f"| {row['top1_agreement']:.1%} | {row['noise_increase']:+.1%} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
