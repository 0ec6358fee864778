"""The block Hadamard transform on a GPU, beside a copy of the same bytes.

    python benchmarks/hadamard_cuda.py [--dtype float16] [--signs] [--json FILE]

Times are microseconds of one call in a CUDA graph, out of place. With many rows every call has
another array, 256 MB and more in all, so that memory serves them; a single row is in the L2 cache,
as an activation is that has just been written. The figures to hold are for an H200 and float16; the
exit status says whether they do there.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

import timing_cuda
import torch

import pvq

ROWS = (1, 4096)
COLS = (4096, 8192, 14336, 28672)
BLOCKS = (128, 256, 1024)  # and the whole width
ONE_ROW_CALLS = 64
# (rows, cols) of blocks of the whole width: microseconds, or times the copy
FIGURES_MICROSECONDS = {(1, 4096): 2.0, (1, 8192): 3.0, (4096, 4096): 19.9, (4096, 8192): 48.8}
FIGURES_COPIES = {(4096, 14336): 1.6, (4096, 28672): 1.6}


def measure(rows: int, cols: int, dtype: torch.dtype, seed: int | None) -> list[dict[str, object]]:
    """One row of results for every block size."""
    nbytes = rows * cols * dtype.itemsize
    copies = ONE_ROW_CALLS if rows == 1 else timing_cuda.copies_for(nbytes)
    arrays = [torch.randn(rows, cols, device="cuda").to(dtype) for _ in range(copies)]
    target = torch.empty_like(arrays[0])
    copy = timing_cuda.time_calls([functools.partial(target.copy_, x) for x in arrays])
    times = {}
    for block in (*BLOCKS, cols):
        transform = functools.partial(torch.ops.pvq.hadamard, block=block, seed=seed)
        times[block] = timing_cuda.time_calls([functools.partial(transform, x) for x in arrays])
    return [
        {
            "rows": rows,
            "cols": cols,
            "block": block,
            "microseconds": time,
            "copy_microseconds": copy,
            "copies": time / copy,
            "gigabytes_a_second": 2e-3 * nbytes / time,
        }
        for block, time in times.items()
    ]


def bound(row: dict[str, object]) -> float | None:
    """The figure to hold in microseconds, if there is one."""
    size = (row["rows"], row["cols"])
    if row["block"] != row["cols"]:
        return None
    if size in FIGURES_COPIES:
        return FIGURES_COPIES[size] * row["copy_microseconds"]
    return FIGURES_MICROSECONDS.get(size)


def main() -> int:
    """Measures, prints and writes; 1 if a figure is missed on an H200."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--signs", action="store_true", help="with random signs")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() and pvq.build_info()["cuda"]):
        print("needs a CUDA device, and pvq built where nvcc is found", file=sys.stderr)
        return 2

    machine = timing_cuda.machine()
    print("; ".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"dtype: {arguments.dtype}; signs: {arguments.signs}\n")
    print("| rows | cols | block | us | copy us | times a copy | GB/s | to hold, us |")
    print("|---|---|---|---|---|---|---|---|")
    results: list[dict[str, object]] = []
    missed = 0
    for rows in ROWS:
        for cols in COLS:
            seed = 1 if arguments.signs else None
            for row in measure(rows, cols, getattr(torch, arguments.dtype), seed):
                to_hold = bound(row)
                shown = "-" if to_hold is None else f"{to_hold:.1f}"
                missed += to_hold is not None and row["microseconds"] > to_hold
                results.append(row | {"microseconds_to_hold": to_hold})
                print(
                    f"| {rows} | {cols} | {row['block']} | {row['microseconds']:.2f} "
                    f"| {row['copy_microseconds']:.2f} | {row['copies']:.2f} "
                    f"| {row['gigabytes_a_second']:.0f} | {shown} |",
                    flush=True,
                )
    if arguments.json:
        settings = {"dtype": arguments.dtype, "signs": arguments.signs}
        report = {"machine": machine, "settings": settings, "rows": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    held = missed == 0 or "H200" not in str(machine["gpu"]) or arguments.dtype != "float16"
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
