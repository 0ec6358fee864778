"""Decoding with a whole model of Llama-3-8B's shape: tokens a second and memory, by code.

    python benchmarks/generate.py [--batch 1 16] [--codes table-2 overlap-2] [--head]
        [--layers 32] [--json FILE]

Weights are random, made on the device in float16; each code quantizes them there, prepares and
groups its layers (pvq.prepare, pvq.group_projections). A step is the forward of transformers with a
StaticCache and a greedy choice, captured in a CUDA graph; times are means over --tokens replays
after a prompt. "weights" are the bytes of all parameters and codes as they lie in memory, "peak" is
what the allocator held at most while decoding. Embeddings stay dense, and the head unless --head is
given. The row "no projections" leaves out every linear layer of the decoder: what the rest of
transformers' forward costs, which no code can save.

On the CPU (--device cpu) a step runs without a graph: a check that the script works, not a figure.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import timing
import timing_cuda
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import pvq
from pvq.modules import dense_nbytes, quantized_modules, replace_module

CODES = {
    "table-2": pvq.PVQConfig(2, code="table"),
    "table-3": pvq.PVQConfig(3, code="table"),
    "table-4": pvq.PVQConfig(4, code="table"),
    "overlap-2": pvq.PVQConfig(2, code="overlap"),
    "overlap-3": pvq.PVQConfig(3, code="overlap"),
    "pyramid-3.25": pvq.PVQConfig(3.25),
}
DENSE, BARE = "FP16", "no projections"
WARM_UP = 3


class Nothing(nn.Module):
    """In place of a projection: an output that costs no launch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("out", linear.weight.new_zeros(linear.out_features), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out.expand(*x.shape[:-1], -1)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A model whose weights were never anywhere but on the device."""
    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocab,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with default_dtype(torch.float16), torch.device(args.device):
        return LlamaForCausalLM(config).eval()


def model_in(name: str, args: argparse.Namespace) -> tuple[LlamaForCausalLM, dict[str, object]]:
    """The model in a code, and what is to be said of making it."""
    model = random_model(args)
    if name == DENSE:
        return model, {}
    if name == BARE:
        for module in list(model.model.layers.modules()):
            if isinstance(module, nn.Linear):
                replace_module(model, module, Nothing(module))
        return model, {}
    start = time.perf_counter()
    if CODES[name].code.name == "overlap":
        bits = fill_with_codes(model, CODES[name])
    else:
        bits = pvq.quantize_model(
            model, CODES[name], head=args.head, progress=False
        ).bits_per_weight
    pvq.prepare(model)
    groups = pvq.group_projections(model)
    seconds = time.perf_counter() - start
    layouts = sorted({module.layout for _, module in quantized_modules(model)})
    made = {"quantize_seconds": seconds, "layouts": layouts, "groups": groups}
    return model, {**made, "bits_per_weight": bits}


def fill_with_codes(model: LlamaForCausalLM, config: pvq.PVQConfig) -> float:
    """Random words in place of the projections: a search for 7 billion weights takes minutes.

    Returns:
        Bits of a weight.
    """
    nbytes = weights = 0
    for module in list(model.model.layers.modules()):
        if not isinstance(module, nn.Linear):
            continue
        shape = module.out_features, module.in_features
        fitted = config.for_cols(module.in_features)
        code_shape, _ = fitted.code.layout(*shape)["code"]
        device = module.weight.device
        stored = {
            "code": torch.randint(0, 256, code_shape, dtype=torch.uint8, device=device),
            "row_scale": torch.full(shape[:1], 1e-3, dtype=torch.bfloat16, device=device),
        }
        layer = pvq.PVQLinear.from_tensor(pvq.PVQTensor(stored, shape, fitted))
        replace_module(model, module, layer)
        nbytes, weights = nbytes + layer.nbytes, weights + module.weight.numel()
    return 8 * nbytes / weights


def weight_nbytes(model: nn.Module) -> int:
    return dense_nbytes(model) + sum(m.resident_nbytes for _, m in quantized_modules(model))


class Decoder:
    """A model with a prompt in its cache, ready to take one greedy step after another."""

    def __init__(self, model: LlamaForCausalLM, batch: int, prompt: int, tokens: int) -> None:
        device = model.device
        self.model = model
        length = prompt + tokens + 2 * WARM_UP
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        self.places = torch.arange(length, device=device)
        ids = torch.randint(0, model.config.vocab_size, (batch, prompt), device=device)
        position = torch.arange(prompt, device=device)[None]
        self.token = self.run(ids, position)
        self.position = torch.full((1, 1), prompt, device=device)

    def run(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The likeliest next token of each row, [batch, 1]."""
        mask = (self.places <= position[0, :, None])[None, None]  # [1, 1, ids, places]
        out = self.model(
            ids,
            position_ids=position,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits.argmax(-1)

    def step(self) -> None:
        self.token.copy_(self.run(self.token, self.position))
        self.position.add_(1)


def milliseconds_cuda(decoder: Decoder, tokens: int) -> float:
    """Of a step replayed from a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            decoder.step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.step()
    for _ in range(WARM_UP):
        graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(tokens):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / tokens


def milliseconds_cpu(decoder: Decoder, tokens: int) -> float:
    """Of a step as it is."""
    for _ in range(WARM_UP):
        decoder.step()
    start = time.perf_counter()
    for _ in range(tokens):
        decoder.step()
    return 1e3 * (time.perf_counter() - start) / tokens


@torch.no_grad()
def measure(model: LlamaForCausalLM, batch: int, args: argparse.Namespace) -> dict[str, float]:
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    decoder = Decoder(model, batch, args.prompt, args.tokens)
    run = milliseconds_cuda if on_gpu else milliseconds_cpu
    ms = run(decoder, args.tokens)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {"ms_per_step": ms, "tokens_per_second": 1e3 * batch / ms, "peak_nbytes": peak}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(rows: list[dict]) -> None:
    print("| weights | batch | ms a step | tokens/s | x | weights GB | of FP16 | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    dense = {row["batch"]: row for row in rows if row["model"] == DENSE}
    for row in rows:
        reference = dense[row["batch"]]
        speed = row["tokens_per_second"] / reference["tokens_per_second"]
        size = row["weight_nbytes"] / reference["weight_nbytes"]
        print(
            f"| {row['model']} | {row['batch']} | {row['ms_per_step']:.3f} | "
            f"{row['tokens_per_second']:.1f} | {speed:.2f} | {row['weight_nbytes'] / 1e9:.2f} | "
            f"{size:.2f} | {row['peak_nbytes'] / 1e9:.2f} |"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--codes", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--head", action="store_true", help="quantize the output head too")
    parser.add_argument("--tokens", type=int, default=64, help="steps that are timed")
    parser.add_argument("--prompt", type=int, default=64, help="tokens in the cache before them")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    on_gpu = torch.device(args.device).type == "cuda"
    description = timing_cuda.machine() if on_gpu else timing.machine()
    timing.print_machine(description)
    rows: list[dict] = []
    for name in (DENSE, BARE, *args.codes):
        model, made = model_in(name, args)
        free()
        for batch in args.batch:
            figures = measure(model, batch, args)
            size = {"weight_nbytes": weight_nbytes(model)}
            rows.append({"model": name, "batch": batch, **figures, **size, **made})
            free()
        del model
        free()
    rows.sort(key=lambda row: row["batch"])
    show(rows)
    timing.write_json(args.json, description, rows)


if __name__ == "__main__":
    main()
