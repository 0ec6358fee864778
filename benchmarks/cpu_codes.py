"""Products from table and overlapping codes on the CPU beside torch's own dense product.

    python benchmarks/cpu_codes.py [--threads 2] [--seconds 1] [--json FILE]

Every product is timed in turn with ``F.linear`` and a dense weight in the same dtype, under
``torch.inference_mode()``; codes multiply float32 activations by the integers that they decode, in
float32. "x" says how many times faster than ``F.linear`` a product is. Activations are not rotated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import interleave, machine, parsed_arguments, print_machine, write_json

from pvq.codes.overlap import WIDTHS, trellis

OPS = torch.ops.pvq
SHAPES = ((4096, 4096), (14336, 4096))
TOKENS = (1, 4, 16, 64)
Product = Callable[[torch.Tensor], torch.Tensor]


def random_bytes(rows: int, cols: int, bits: float) -> torch.Tensor:
    return torch.randint(0, 256, (rows, int(cols * bits) // 8), dtype=torch.uint8)


def products(rows: int, cols: int) -> dict[str, Product]:
    """The product of each code with a matrix of random symbols."""
    scale = torch.rand(rows).bfloat16()

    def table(bits: int) -> Product:
        code = random_bytes(rows, cols, bits)
        return lambda x: OPS.table_matmul(x, code, scale, bits)

    def overlap(bits: float) -> Product:
        numbers = trellis(bits)
        code = random_bytes(rows, cols, bits)
        return lambda x: OPS.overlap_matmul(x, code, scale, numbers.table, *numbers.numbers)

    return {f"table {bits} bit": table(bits) for bits in (2, 3, 4)} | {
        f"overlap {bits:g} bit": overlap(bits) for bits in WIDTHS
    }


def time_product(product: Product, dense: torch.Tensor, tokens: int, seconds: float) -> dict:
    """What a row of the JSON says of one number of tokens."""
    x = torch.randn(tokens, dense.shape[1])
    times = interleave(
        {"linear": lambda: F.linear(x, dense), "code": lambda: product(x)}, seconds=seconds
    )
    ratio = times["code"].times_faster_than(times["linear"])
    return {"tokens": tokens, "times_faster": ratio} | {
        label: timing.summary() for label, timing in times.items()
    }


def main() -> None:
    """Prints the table."""
    arguments = parsed_arguments(__doc__, seconds=1.0)
    description = machine()
    print_machine(description)
    header = [f"{n} token{'s' if n > 1 else ''}, ms (x)" for n in TOKENS]
    print("| weight | product | " + " | ".join(header) + " |")
    print("|---" * (len(header) + 2) + "|")
    rows = []
    with torch.inference_mode():
        for shape in SHAPES:
            dense = torch.randn(shape)
            for name, product in products(*shape).items():
                measured = [
                    time_product(product, dense, tokens, arguments.seconds) for tokens in TOKENS
                ]
                cells = [
                    f"{row['code']['median_ms']:.2f} ({row['times_faster']:.2f})"
                    for row in measured
                ]
                print(
                    f"| {shape[0]} x {shape[1]} | {name} | " + " | ".join(cells) + " |", flush=True
                )
                rows += [{"product": name, "shape": shape} | row for row in measured]
    write_json(arguments.json, description, rows)


if __name__ == "__main__":
    main()
