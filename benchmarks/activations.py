"""Activations as points of pyramids beside plain integers, at equal bits.

    python benchmarks/activations.py [MODEL --text FILE] [--json FILE]

First the relative squared error of a product, against float64, on Gaussian activations and on ones
with outliers (one channel in 64 is 30 times as large), rotated as the weights are:

    pyramid      pvq's activations="pyramidB": groups of up to 128 columns
    int, token   integers with one scale a token (largest magnitude), B bits and 16 / columns
    int, 128     integers with a scale for 128 columns, B bits and 16 / 128

Then the time of a layer, rotation and rounding included: from planes on the CPU and, if there is a
GPU, from the fragments of table codes there.

Last, if a model is given, its KL divergence with weights at 4.25 bits (and dense ones) and
activations in these ways. Integers are rotated too; `bits` counts scales and amplitudes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import timing_cuda
import torch
from timing import interleave, machine, print_machine, write_json
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import pvq
from pvq.activations import activation_code, decoded
from pvq.evaluate import evaluate, tokenize
from pvq.rotation import rotate

Rounding = Callable[[torch.Tensor], torch.Tensor]


def pyramid(bits: int) -> Rounding:
    return lambda x: decoded(*activation_code(f"pyramid{bits}", x.shape[-1]).round(x))


def integers(bits: int, group: int | None) -> Rounding:
    """Symmetric integers, -(2^(bits-1) - 1) to 2^(bits-1) - 1, and a bfloat16 scale."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        cols = x.shape[-1]
        parts = x.reshape(-1, math.gcd(cols, group) if group else cols)
        scale = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        scale = scale.bfloat16().float().clamp(min=1e-30)
        limit = 2 ** (bits - 1) - 1
        return ((parts / scale).round().clamp(-limit, limit) * scale).view(x.shape)

    return rounded


def ways(bits: int, cols: int) -> dict[str, tuple[Rounding, float]]:
    """Each way to round at about so many bits, and its bits with scales."""
    code = activation_code(f"pyramid{bits}", cols)
    group = math.gcd(cols, 128)
    return {
        "pyramid": (pyramid(bits), code.bits),
        "int, token": (integers(bits, None), bits + 16 / cols),
        "int, 128": (integers(bits, 128), bits + 16 / group),
    }


def product_rows(cols: int, tokens: int) -> list[dict]:
    source = torch.Generator().manual_seed(0)
    w = torch.randn(256, cols, generator=source)
    gaussian = torch.randn(tokens, cols, generator=source)
    outliers = gaussian.clone()
    outliers[:, torch.randperm(cols, generator=source)[: cols // 64]] *= 30
    rows = []
    for name, x in (("Gaussian", gaussian), ("outliers", outliers)):
        exact = x.double() @ w.double().T
        block = pvq.rotation.default_block(cols)
        for bits in (2, 3, 4, 5, 6, 8):
            for way, (rounding, rate) in ways(bits, cols).items():
                for rotated in (True, False):
                    values = rotate(x, block, 0) if rotated else x
                    values = rounding(values)
                    values = rotate(values, block, 0, inverse=True) if rotated else values
                    error = (values.double() @ w.double().T - exact).square().sum()
                    rows.append(
                        {
                            "activations": name,
                            "way": way,
                            "bits": bits,
                            "bits_per_activation": rate,
                            "rotated": rotated,
                            "relative_error": (error / exact.square().sum()).item(),
                        }
                    )
    return rows


def speed_rows(size: int) -> list[dict]:
    """Milliseconds of a layer from planes, with activations as they are and as points."""
    linear = nn.Linear(size, size, bias=False)
    layers = {
        name: pvq.PVQLinear.from_linear(linear, pvq.PVQConfig(3.25)).prepare("planes", name)
        for name in ("float", "pyramid4", "pyramid8")
    }
    rows = []
    with torch.inference_mode():
        for tokens in (1, 8, 64):
            x = torch.randn(tokens, size)
            candidates = {"F.linear": lambda x=x: linear(x)}
            candidates |= {n: lambda x=x, layer=layer: layer(x) for n, layer in layers.items()}
            for name, timing in interleave(candidates).items():
                rows.append({"size": size, "tokens": tokens, "way": name, **timing.summary()})
    return rows


def cuda_rows(size: int) -> list[dict]:
    """Microseconds on the GPU of layers in table codes, and of the rounding to points alone."""
    linear = nn.Linear(size, size, bias=False, dtype=torch.float16, device="cuda")
    dense = [copy.deepcopy(linear) for _ in range(timing_cuda.copies_for(linear.weight.nbytes))]
    rows = []

    def add(bits: int, way: str, calls: Sequence[Callable[[torch.Tensor], object]]) -> None:
        for tokens in (1, 2, 4, 8, 16, 64):
            x = torch.randn(tokens, size, dtype=torch.float16, device="cuda")
            time = timing_cuda.time_calls([functools.partial(call, x) for call in calls])
            row = {"size": size, "bits": bits, "way": way, "tokens": tokens, "microseconds": time}
            rows.append(row)

    with torch.no_grad():
        add(16, "F.linear", dense)
        for bits in (2, 4):
            layer = pvq.PVQLinear.from_linear(linear, pvq.PVQConfig(code="table", bits=bits))
            for way in ("int8", "int8x2", "pyramid2", "pyramid4"):
                layer.prepare("fragments", way)
                copies = timing_cuda.copies_for(layer.resident_nbytes)
                add(bits, way, [copy.deepcopy(layer) for _ in range(copies)])
    for way in ("pyramid2", "pyramid4"):
        add(0, f"rounding to {way}", [activation_code(way, size).round] * 8)
    return rows


def with_rounding(model: PreTrainedModel, way: str, bits: int) -> PreTrainedModel:
    """A copy whose decoder layers round their inputs, rotated, in a way of :func:`ways`."""
    model = copy.deepcopy(model)

    def hook(module: nn.Module, arguments: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = arguments
        cols = x.shape[-1]
        block = pvq.rotation.default_block(cols)
        rounding, _ = ways(bits, cols)[way]
        values = rounding(rotate(x.float(), block, 0))
        return rotate(values, block, 0, inverse=True).to(x.dtype)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | pvq.PVQLinear) and name != "lm_head":
            module.register_forward_pre_hook(hook)
    return model


def model_rows(arguments: argparse.Namespace) -> list[dict]:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    original = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokens = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))
    settings = [(None, None), *((w, b) for b in arguments.bits for w in ways(4, 128))]
    rows = []
    for weights in arguments.weights:
        model = copy.deepcopy(original)
        rate = 16.0
        if weights:
            rate = pvq.quantize_model(model, pvq.PVQConfig(weights), progress=False).bits_per_weight
            pvq.prepare(model, "planes", "float")
        for way, bits in settings:
            if way is None:
                changed, bits_per_activation = model, 16.0
            elif way == "pyramid" and weights:  # as a user would
                changed = pvq.prepare(copy.deepcopy(model), "planes", f"pyramid{bits}")
            else:
                changed = with_rounding(model, way, bits)
            if way is not None:
                hidden = original.config.hidden_size
                bits_per_activation = ways(bits, hidden)[way][1]
            result = evaluate(
                changed, tokens, reference=original, progress=False,
                max_tokens=arguments.tokens,
            )  # fmt: skip
            rows.append(
                {
                    "bits_per_weight": rate,
                    "way": way,
                    "bits": bits,
                    "bits_per_activation": bits_per_activation,
                    **result.to_dict(),
                }
            )
            print(f"W {rate:.2f} {way} {bits}: KL {result.kl_divergence:.5f}", flush=True)
    return rows


def print_products(rows: list[dict]) -> None:
    print("\n| activations | rotated | bits | " + " | ".join(ways(4, 128)) + " |")
    print("|---|---|---|" + "---|" * len(ways(4, 128)))
    for name in ("Gaussian", "outliers"):
        for rotated in (True, False):
            for bits in sorted({row["bits"] for row in rows}):
                errors = [
                    f"{row['relative_error']:.2e}"
                    for row in rows
                    if (row["activations"], row["rotated"], row["bits"]) == (name, rotated, bits)
                ]
                print(f"| {name} | {'yes' if rotated else 'no'} | {bits} | {' | '.join(errors)} |")


def print_models(rows: list[dict]) -> None:
    print("\n| b/weight | activations | b/activation | perplexity | increase | KL | top-1 |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['bits_per_weight']:.3f} | {row['way'] or 'float'} "
            f"| {row['bits_per_activation']:.3f} | {row['perplexity']:.2f} "
            f"| {row['perplexity_increase']:+.1%} | {row['kl_divergence']:.4f} "
            f"| {row['top1_agreement']:.1%} |"
        )


def print_speed(rows: list[dict]) -> None:
    names = list(dict.fromkeys(row["way"] for row in rows))
    print(f"\n| tokens | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        times = [f"{row['median_ms']:.2f}" for row in rows if row["tokens"] == tokens]
        print(f"| {tokens} | {' | '.join(times)} |")


def print_cuda(rows: list[dict]) -> None:
    print("\n| b/weight | activations | tokens | us |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['bits']} | {row['way']} | {row['tokens']} | {row['microseconds']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3])
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 4.25], help="0: dense")
    parser.add_argument("--tokens", type=int, help="use no more of the text")
    parser.add_argument("--cols", type=int, default=4096, help="of the products")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    description = machine()
    print_machine(description)
    products = product_rows(arguments.cols, tokens=64)
    print_products(products)
    speeds = speed_rows(arguments.cols // 2)
    print_speed(speeds)
    on_gpu = cuda_rows(arguments.cols) if torch.cuda.is_available() else []
    if on_gpu:
        description |= timing_cuda.machine()
        print_cuda(on_gpu)
    models = model_rows(arguments) if arguments.model else []
    if models:
        print_models(models)
    rows = [
        {"kind": kind, **row}
        for kind, group in (
            ("product", products),
            ("speed", speeds),
            ("speed, cuda", on_gpu),
            ("model", models),
        )
        for row in group
    ]
    write_json(
        arguments.json,
        description | {"model": arguments.model and Path(arguments.model).name},
        rows,
    )


if __name__ == "__main__":
    main()
