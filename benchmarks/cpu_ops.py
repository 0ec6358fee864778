"""Speed of the operators on the CPU: products beside torch's own, and the codes' throughput.

    python benchmarks/cpu_ops.py [--threads 2] [--seconds 2] [--json FILE]

The product is timed in both layouts, the stored index and the run-time planes, against
``F.linear`` with a dense weight in the same dtype, all under ``torch.inference_mode()``. The
weights are those of D = 16, K = 27 with 4-bit gains: 3.25 bits a weight. "x" columns say how many
times faster than ``F.linear`` a product is; "rotated" includes the Hadamard transform of the
activations. Throughput is in million weights a second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import Timing, interleave, machine, parsed_arguments, print_machine, write_json

import pvq  # noqa: F401  registers torch.ops.pvq

OPS = torch.ops.pvq
DIM, PULSES, GAIN_BITS, LAW = 16, 27, 4, "lloyd"
SHAPES = ((4096, 4096), (14336, 4096))
TOKENS = (1, 4, 16, 64)
BLOCK = 1024  # of the Hadamard transform


def code_of(w: torch.Tensor) -> tuple:
    """The arguments that describe the quantized `w` to an operator."""
    return *OPS.quantize(w, DIM, PULSES, GAIN_BITS, LAW), DIM, PULSES, GAIN_BITS, LAW


def time_products(seconds: float) -> list[dict]:
    """Prints and returns a row for each weight, dtype and number of tokens."""
    print(
        "| weight | dtype | tokens | F.linear ms | planes ms | planes x | rotated, planes x "
        "| index ms | index x |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for shape in SHAPES:
        w = torch.randn(shape)
        code = code_of(w)
        planes = (*OPS.to_planes(*code, shape[1]), shape[0], DIM)
        for dtype in (torch.float32, torch.bfloat16):
            dense = w.to(dtype)
            for tokens in TOKENS:
                x = torch.randn(tokens, shape[1], dtype=dtype)
                times = time_product(x, dense, planes, code, seconds)
                rows.append(product_row(shape, dtype, tokens, times))
    return rows


def time_product(
    x: torch.Tensor, dense: torch.Tensor, planes: tuple, code: tuple, seconds: float
) -> dict[str, Timing]:
    """Times every way to multiply `x` in turn."""
    linear: Callable[[], object] = lambda: F.linear(x, dense)  # noqa: E731
    fast = {
        "linear": linear,
        "planes": lambda: OPS.matmul_planes(x, *planes),
        "planes_rotated": lambda: OPS.matmul_planes(x, *planes, BLOCK, 1),
    }
    # Apart, because the index takes so much longer that it would leave the others few rounds.
    slow = {"linear_again": linear, "index": lambda: OPS.matmul(x, *code)}
    return interleave(fast, seconds=seconds) | interleave(slow, seconds=seconds / 2)


def product_row(shape: tuple, dtype: torch.dtype, tokens: int, times: dict[str, Timing]) -> dict:
    """Prints one line of the table; returns it with all that was measured."""
    planes_ratio = times["planes"].times_faster_than(times["linear"])
    rotated_ratio = times["planes_rotated"].times_faster_than(times["linear"])
    index_ratio = times["index"].times_faster_than(times["linear_again"])
    name = str(dtype).removeprefix("torch.")
    print(
        f"| {shape[0]} x {shape[1]} | {name} | {tokens} | {1e3 * times['linear'].median:.2f} "
        f"| {1e3 * times['planes'].median:.2f} | {planes_ratio:.2f} | {rotated_ratio:.2f} "
        f"| {1e3 * times['index'].median:.1f} | {index_ratio:.3f} |",
        flush=True,
    )
    return {
        "kind": "product",
        "shape": shape,
        "dtype": name,
        "tokens": tokens,
        "planes_times_faster": planes_ratio,
        "planes_rotated_times_faster": rotated_ratio,
        "index_times_faster": index_ratio,
        **{label: timing.summary() for label, timing in times.items()},
    }


def time_codes(seconds: float) -> list[dict]:
    """Prints and returns the throughput of the operators that make, undo and rotate codes."""
    print("\n| operator | million weights/s | spread |")
    print("|---|---|---|")
    rows, cols = SHAPES[0]
    w = torch.randn(rows, cols)
    code = code_of(w)
    y = OPS.decode(code[0], DIM, PULSES, cols // DIM)
    half = w.bfloat16()
    operators: dict[str, Callable[[], object]] = {
        "quantize": lambda: code_of(w),
        "nearest": lambda: OPS.nearest(w.view(-1, DIM), PULSES),
        "encode": lambda: OPS.encode(y, PULSES),
        "decode": lambda: OPS.decode(code[0], DIM, PULSES, cols // DIM),
        "dequantize to float32": lambda: OPS.dequantize(*code, cols, torch.float32),
        "dequantize to bfloat16": lambda: OPS.dequantize(*code, cols, torch.bfloat16),
        "to_planes": lambda: OPS.to_planes(*code, cols),
        f"hadamard of {BLOCK}, float32": lambda: OPS.hadamard(w, BLOCK, 1),
        f"hadamard of {BLOCK}, bfloat16": lambda: OPS.hadamard(half, BLOCK, 1),
    }
    results = []
    for name, run in operators.items():
        timing = interleave({name: run}, seconds=seconds)[name]
        throughput = w.numel() / timing.median / 1e6
        print(f"| {name} | {throughput:.0f} | {timing.spread:.0%} |", flush=True)
        results.append({"kind": "code", "operator": name, "million_weights_per_second": throughput}
                       | timing.summary())  # fmt: skip
    return results


def main() -> None:
    """Runs both tables."""
    arguments = parsed_arguments(__doc__, seconds=2.0)
    description = machine()
    print_machine(description)
    with torch.inference_mode():
        rows = time_products(arguments.seconds) + time_codes(arguments.seconds)
    write_json(arguments.json, description, rows)


if __name__ == "__main__":
    main()
