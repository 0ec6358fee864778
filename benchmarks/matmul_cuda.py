"""Low-bit products on the GPU beside cuBLAS FP16 and other low-bit kernels, in one run.

    python benchmarks/matmul_cuda.py [--tokens 1 2 4 8 16 64 256] [--block 256] [--json FILE]
        [--plot FILE] [--only "pvq table 2 bit" ...] [--replays 7]

Every figure is a median over CUDA-graph replays with weights that no cache can serve
(timing_cuda.py) and includes all that the call does: our codes rotate the activations (in blocks
of 256 columns, or as --block says) and narrow them inside, to int8 for table and overlapping codes
and to float16 for the pyramid code. "floor" is a kernel that only reads the bytes of that width.
Peers: F.linear in float16 (cuBLAS), torch's int4 kernel (bfloat16, groups of 128), torch's fp8
product (e4m3, row-wise inputs already quantized) and bitsandbytes NF4 where it is installed. Ratios
are cuBLAS over the kernel, so above one is faster.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing_cuda import copies_for, machine, time_calls

import pvq
from pvq.codes.overlap import trellis
from pvq.codes.overlap_fragments import OverlapFragments

SHAPES = (
    (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192),
    (8192, 28672),
)  # fmt: skip
DEFAULT_BLOCK = 256
BLOCK = DEFAULT_BLOCK  # columns that the rotation mixes; main sets it
Calls = list[Callable[[], object]]


def activations(tokens: int, cols: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(tokens, cols, device="cuda").to(dtype)


def cublas(rows: int, cols: int, tokens: int) -> Calls:
    w = torch.randn(copies_for(2 * rows * cols), rows, cols, device="cuda", dtype=torch.float16)
    x = activations(tokens, cols)
    return [lambda i=i: F.linear(x, w[i]) for i in range(len(w))]


def table_code(bits: int) -> Callable[[int, int, int], Calls]:
    def calls(rows: int, cols: int, tokens: int) -> Calls:
        entries = 2 if bits == 4 else 4
        table = torch.randint(0, 16, (256, entries), dtype=torch.int8)
        code = torch.randint(0, 256, (rows, cols * bits // 8), dtype=torch.uint8, device="cuda")
        first = torch.ops.pvq.table_fragments(code, table, bits)
        fragments = [first.clone() for _ in range(copies_for(first.numel()))]
        scale = torch.ones(rows, device="cuda", dtype=torch.bfloat16) / 64
        x = activations(tokens, cols)
        return [
            lambda f=f: torch.ops.pvq.table_matmul_fragments(x, f, scale, bits, BLOCK, 1)
            for f in fragments
        ]

    return calls


def overlap_code(bits: float) -> Callable[[int, int, int], Calls]:
    def calls(rows: int, cols: int, tokens: int) -> Calls:
        form = OverlapFragments(trellis(bits))
        code = torch.randint(
            0, 256, (rows, int(cols * bits) // 8), dtype=torch.uint8, device="cuda"
        )
        first = form.of_stored({"code": code}, (rows, cols))["fragments"]
        fragments = [first.clone() for _ in range(copies_for(first.numel()))]
        scale = torch.ones(rows, device="cuda", dtype=torch.bfloat16) / 64
        x, pair_bits = activations(tokens, cols), round(2 * bits)
        return [
            lambda f=f: torch.ops.pvq.overlap_matmul_fragments(x, f, scale, pair_bits, BLOCK, 1)
            for f in fragments
        ]

    return calls


def pyramid(layout: str, bits: float = 3.25, dim: int = 16) -> Callable[[int, int, int], Calls]:
    """The pyramid code of Gaussian weights; at 3.25 bits K = 28 and 3 gain bits."""

    @functools.cache
    def layer(rows: int, cols: int) -> pvq.PVQLinear:
        config = pvq.PVQConfig(bits, dim=dim, block=BLOCK)
        w = torch.randn(rows, cols, device="cuda")
        return pvq.PVQLinear.from_tensor(pvq.quantize_tensor(w, config)).prepare(layout)

    def calls(rows: int, cols: int, tokens: int) -> Calls:
        first = layer(rows, cols)
        layers = [copy.deepcopy(first) for _ in range(copies_for(first.resident_nbytes))]
        x = activations(tokens, cols)
        return [lambda layer=layer: layer(x) for layer in layers]

    return calls


def int4pack(rows: int, cols: int, tokens: int) -> Calls:
    nibbles = torch.randint(0, 256, (rows, cols // 2), device="cuda", dtype=torch.uint8)
    packed = torch._convert_weight_to_int4pack(nibbles, 8)
    scales = torch.ones(cols // 128, rows, 2, device="cuda", dtype=torch.bfloat16)
    weights = [packed.clone() for _ in range(copies_for(rows * cols // 2))]
    x = activations(tokens, cols, torch.bfloat16)
    return [lambda w=w: torch._weight_int4pack_mm(x, w, 128, scales) for w in weights]


def fp8(rows: int, cols: int, tokens: int) -> Calls:
    dtype = torch.float8_e4m3fn
    w = torch.randn(rows, cols, device="cuda").to(dtype)
    weights = [w.clone().t() for _ in range(copies_for(rows * cols))]
    x = activations(tokens, cols).to(dtype)
    one = torch.ones((), device="cuda")
    return [
        lambda w=w: torch._scaled_mm(x, w, one, one, out_dtype=torch.float16, use_fast_accum=True)
        for w in weights
    ]


def bitsandbytes_nf4(rows: int, cols: int, tokens: int) -> Calls:
    import bitsandbytes.functional as bnb

    w = torch.randn(rows, cols, device="cuda", dtype=torch.float16)
    packed, state = bnb.quantize_4bit(w, quant_type="nf4")
    weights = [packed.clone() for _ in range(copies_for(rows * cols // 2))]
    import bitsandbytes

    x = activations(tokens, cols)
    return [lambda p=p: bitsandbytes.matmul_4bit(x, p.t(), quant_state=state) for p in weights]


def read_floor(bits: int) -> Callable[[int, int, int], Calls]:
    def calls(rows: int, cols: int, tokens: int) -> Calls:
        from read_floor import read_all

        words = rows * cols * bits // 32
        buffers = torch.randint(
            0, 9, (copies_for(4 * words), words), device="cuda", dtype=torch.int32
        )
        return [lambda b=b: read_all(b) for b in buffers]

    return calls


CANDIDATES: dict[str, tuple[Callable[[int, int, int], Calls], int | None]] = {
    "cuBLAS FP16": (cublas, None),
    "pvq table 2 bit": (table_code(2), None),
    "pvq table 3 bit": (table_code(3), None),
    "pvq table 4 bit": (table_code(4), None),
    "pvq overlap 2 bit": (overlap_code(2), None),
    "pvq overlap 2.5 bit": (overlap_code(2.5), None),
    "pvq overlap 3 bit": (overlap_code(3), None),
    "pvq overlap 3.5 bit": (overlap_code(3.5), None),
    "pvq overlap 4 bit": (overlap_code(4), None),
    "pvq pyramid 3.25, fragments": (pyramid("fragments"), None),
    "pvq pyramid 3.25, index": (pyramid("index"), None),
    "pvq pyramid 3.25, index, D=8": (pyramid("index", dim=8), None),
    "pvq pyramid 2.25, index": (pyramid("index", 2.25), None),
    "pvq pyramid 3.25, stored": (pyramid("stored"), None),
    "torch int4": (int4pack, None),
    "torch fp8": (fp8, None),
    "bitsandbytes NF4": (bitsandbytes_nf4, None),
    "read floor 2 bit": (read_floor(2), 1),  # measured at this number of tokens only
    "read floor 3 bit": (read_floor(3), 1),
    "read floor 4 bit": (read_floor(4), 1),
}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def show(tokens: int, times: dict[str, dict[str, float]]) -> None:
    print(f"\n### {tokens} token{'s' if tokens > 1 else ''}, microseconds (ratio to cuBLAS FP16)\n")
    print("| kernel | " + " | ".join(f"{n}x{k}" for n, k in SHAPES) + " | mean ratio |")
    print("|---" * (len(SHAPES) + 2) + "|")
    reference = times["cuBLAS FP16"]
    for name, row in times.items():
        ratios = {shape: reference[shape] / t for shape, t in row.items()}
        cells = [
            f"{row[s]:.1f} ({ratios[s]:.2f})" if (s := f"{n}x{k}") in row else "-"
            for n, k in SHAPES
        ]
        mean = f"{geometric_mean(list(ratios.values())):.2f}" if len(row) == len(SHAPES) else "-"
        print(f"| {name} | " + " | ".join(cells) + f" | {mean} |", flush=True)


def plot(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    tokens = [int(t) for t in results]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    names = [n for n in CANDIDATES if "floor" not in n and n in results[str(tokens[0])]]
    for name in names:
        means = [
            geometric_mean([results[str(t)]["cuBLAS FP16"][s] / v
                            for s, v in results[str(t)][name].items()])
            if results[str(t)].get(name) else math.nan
            for t in tokens
        ]  # fmt: skip
        axes.plot(tokens, means, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("speed over cuBLAS FP16 (geometric mean of seven shapes)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256, 1024])
    parser.add_argument("--only", nargs="+", help="names of candidates, cuBLAS is always run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--block", type=int, default=DEFAULT_BLOCK)
    parser.add_argument("--replays", type=int, default=15)
    arguments = parser.parse_args()
    global BLOCK
    BLOCK = arguments.block
    here = machine()
    print(json.dumps(here), flush=True)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for tokens in arguments.tokens:
        times: dict[str, dict[str, float]] = {}
        for name, (make, only_tokens) in CANDIDATES.items():
            wanted = not arguments.only or name in arguments.only or name == "cuBLAS FP16"
            missing = "bitsandbytes" in name and not importlib.util.find_spec("bitsandbytes")
            if not wanted or missing or only_tokens not in (None, tokens):
                continue
            times[name] = {}
            for rows, cols in SHAPES:
                try:
                    times[name][f"{rows}x{cols}"] = time_calls(
                        make(rows, cols, tokens), arguments.replays
                    )
                except (RuntimeError, ImportError) as error:
                    print(f"{name} {rows}x{cols}: {str(error).splitlines()[0]}")
                    break
                finally:
                    torch.cuda.empty_cache()
        results[str(tokens)] = times
        show(tokens, times)
        if arguments.json:  # after every number of tokens, so that a run cut short leaves those
            record = {"machine": here, "block": BLOCK, "microseconds": results}
            arguments.json.write_text(json.dumps(record))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
