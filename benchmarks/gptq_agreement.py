"""GPTQ of this package beside that of llmcompressor: uniform 4 bits in groups of 128.

    pip install llmcompressor
    python benchmarks/gptq_agreement.py MODEL --calibration train.txt --text test.txt [--json FILE]

Both get the same Hessians, those of the dense model's inputs, and the same damping. A row is a
relative squared error of outputs, tr(E H E^T) / tr(W H W^T), in the mean over all layers; the KL
divergence is that of the model with all layers replaced. llmcompressor takes the steps of all
groups from the ranges of the dense weights; pvq fits each group to the values that feedback has
left for it, when it comes to it. So a second row of pvq has its steps fixed beforehand too.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import pvq
from pvq.calibration import calibration_tokens
from pvq.calibration.accumulate import gather_statistics
from pvq.codes.bits import unpack
from pvq.codes.uniform import UniformCode
from pvq.evaluate import evaluate, tokenize
from pvq.rounding.gptq import feedback
from pvq.rounding.hessian import Hessian

DAMPING, GROUP, BITS = 0.01, 128, 4
CODE = UniformCode(BITS, GROUP, fit="minmax")


def by_llmcompressor(w: Tensor, hessian: Tensor) -> Tensor:
    """With steps and zero points of the dense weights, as pvq would store them."""
    parts = CODE.quantize(w)
    groups = w.shape[1] // GROUP
    zero = unpack(parts["zero"], BITS, groups).float() - (1 << (BITS - 1))  # theirs are signed
    arguments = QuantizationArgs(
        num_bits=BITS, type="int", symmetric=False, strategy="group", group_size=GROUP
    )
    result, *_ = quantize_weight(
        *(w[None].clone(), hessian[None].clone(), parts["scale"].float()[None], zero[None]),
        global_scale=None,
        quant_args=arguments,
        percdamp=DAMPING,
    )
    return result[0]


def by_pvq(w: Tensor, hessian: Tensor, fixed: bool) -> Tensor:
    rounder = CODE.rounder(w)
    if fixed:
        rounder.round(w, 0)
    feedback(w, rounder, Hessian(hessian), DAMPING, "natural")
    return CODE.dequantize(rounder.stored(), w.shape[1])


def nearest(w: Tensor, _: Tensor) -> Tensor:
    return CODE.dequantize(CODE.quantize(w), w.shape[1])


METHODS = {
    "nearest": nearest,
    "llmcompressor, steps fixed": by_llmcompressor,
    "pvq, steps fixed": lambda w, h: by_pvq(w, h, fixed=True),
    "pvq": lambda w, h: by_pvq(w, h, fixed=False),
}


def layers_of(model: PreTrainedModel) -> dict[str, nn.Linear]:
    decoder = model.get_decoder()
    return {n: m for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dense = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    context = dense.config.max_position_embeddings
    samples = calibration_tokens(
        arguments.calibration, tokenizer, samples=arguments.samples, context=context
    )
    text = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))[: arguments.tokens]
    layers = layers_of(dense)
    passes = (lambda sample=sample: dense(sample[None]) for sample in samples)
    statistics = gather_statistics([[n] for n in layers], layers, passes, torch.device("cpu"))
    rows = []
    print(f"pvq {pvq.__version__}, {arguments.samples} windows of {samples.shape[1]} tokens")
    print("| | output error | KL |\n|---|---|---|")
    for name, method in METHODS.items():
        model, errors = copy.deepcopy(dense), []
        for layer, module in layers_of(model).items():
            w, hessian = module.weight.float(), statistics[layer].hessian
            rounded = method(w, hessian)
            error = w - rounded
            errors.append((((error @ hessian) * error).sum() / ((w @ hessian) * w).sum()).item())
            module.weight.copy_(rounded)
        figures = evaluate(model, text, reference=dense, progress=False)
        row = {"method": name, "output_error": sum(errors) / len(errors)}
        rows.append({**row, "kl_divergence": figures.kl_divergence})
        print(f"| {name} | {row['output_error']:.6f} | {figures.kl_divergence:.5f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
