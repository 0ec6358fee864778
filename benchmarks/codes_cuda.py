"""Making and undoing codes on a GPU: weights a second, beside a copy of the same bytes.

    python benchmarks/codes_cuda.py [--quick] [--json FILE]

Times are microseconds of one call in a CUDA graph, in which quantize does not wait to refuse NaN;
calls in turn have other arrays, 256 MB and more in all, so that memory serves them. The copy moves
as many bytes as the operator must read and write. Of overlapping pyramids "search" is rings of 128
weights with the row scales given, and "quantize" the whole way from weights to bytes, which tries
several scales for rows with large weights and asks the GPU which these are, so that it is timed
call after call. The figures to hold are for an H200: quantize at D = 16 and quality 1, and the
search at 2 bits; the exit status says whether they are there.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import timing_cuda
import torch

import pvq
from pvq import _core
from pvq.codes.overlap import WIDTHS, OverlapCode, trellis

SHAPES = ((8192, 8192), (28672, 8192))
CODES = ((8, 16), (16, 28), (32, 56))  # dim, pulses
GAIN_BITS = 3
TABLE_BITS = (2, 3, 4)
SEARCH_SHAPE = (512, 8192)  # of overlapping pyramids, which take long
DTYPES = (torch.float32, torch.bfloat16)
# To hold, by operator and code.
WEIGHTS_A_SECOND = {
    ("quantize, quality 1", "D=16 K=28"): 1e9,
    ("search", "overlap 2 bits"): 5e7,
}

ops = torch.ops.pvq
Code = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def copy_time(nbytes: int) -> float:
    """Microseconds of a copy that reads and writes `nbytes` together."""
    copies = timing_cuda.copies_for(nbytes, least=2)
    arrays = [torch.zeros(nbytes // 2, dtype=torch.uint8, device="cuda") for _ in range(copies)]
    target = torch.empty_like(arrays[0])
    return timing_cuda.time_calls([functools.partial(target.copy_, x) for x in arrays])


def measure(
    name: str,
    weights: int,
    nbytes: int,
    calls: list[Callable[[], object]],
    time: Callable[[list[Callable[[], object]]], float] = timing_cuda.time_calls,
) -> dict[str, object]:
    """One row of results; `nbytes` are read and written by one call."""
    microseconds = time(calls)
    copy = copy_time(nbytes)
    return {
        "operator": name,
        "microseconds": microseconds,
        "weights_a_second": 1e6 * weights / microseconds,
        "gigabytes_a_second": 1e-3 * nbytes / microseconds,
        "copy_microseconds": copy,
        "copies": microseconds / copy,
    }


def measure_code(rows: int, cols: int, dim: int, pulses: int) -> list[dict[str, object]]:
    """All operators of one code and one shape."""
    weights, groups = rows * cols, cols // dim
    copies = timing_cuda.copies_for(4 * weights, least=2)
    matrices = [torch.randn(rows, cols, device="cuda") for _ in range(copies)]
    options = (dim, pulses, GAIN_BITS, "lloyd")
    codes: list[Code] = [ops.quantize(w, *options) for w in matrices]
    index_bytes = codes[0][0].nbytes
    code_bytes = sum(t.nbytes for t in codes[0])
    results = [
        measure(
            f"quantize, quality {quality}",
            weights,
            4 * weights + code_bytes,
            [functools.partial(ops.quantize, w, *options, quality) for w in matrices],
        )
        for quality in (0, 1, 2)
    ]
    del matrices
    points = [ops.decode(code[0], dim, pulses, groups) for code in codes]
    encode = [functools.partial(ops.encode, y, pulses) for y in points]
    results.append(measure("encode", weights, 2 * weights + index_bytes, encode))
    del points, encode
    decode = [functools.partial(ops.decode, code[0], dim, pulses, groups) for code in codes]
    results.append(measure("decode", weights, 2 * weights + index_bytes, decode))
    for dtype in DTYPES:
        dequantize = [
            functools.partial(ops.dequantize, *code, *options, cols, dtype) for code in codes
        ]
        nbytes = dtype.itemsize * weights + code_bytes
        results.append(measure(f"dequantize, {str(dtype)[6:]}", weights, nbytes, dequantize))
    place = {"rows": rows, "cols": cols, "dim": dim, "pulses": pulses}
    return [place | {"code": f"D={dim} K={pulses}"} | result for result in results]


def measure_table(rows: int, cols: int, bits: int) -> list[dict[str, object]]:
    """All operators of one table code and one shape."""
    weights = rows * cols
    copies = timing_cuda.copies_for(4 * weights, least=2)
    matrices = [torch.randn(rows, cols, device="cuda") for _ in range(copies)]
    codes = [ops.table_quantize(w, bits) for w in matrices]
    code_bytes = codes[0][0].nbytes
    quantize = [functools.partial(ops.table_quantize, w, bits) for w in matrices]
    results = [measure("quantize", weights, 4 * weights + code_bytes, quantize)]
    del matrices, quantize
    for dtype in DTYPES:
        options = (bits, cols, dtype)
        dequantize = [functools.partial(ops.table_dequantize, *code, *options) for code in codes]
        nbytes = dtype.itemsize * weights + code_bytes
        results.append(measure(f"dequantize, {str(dtype)[6:]}", weights, nbytes, dequantize))
    copies = timing_cuda.copies_for(code_bytes)
    stored = [codes[i % len(codes)][0].clone() for i in range(copies)]
    table = torch.from_numpy(_core.code_table(bits))
    to_fragments = [functools.partial(ops.table_fragments, code, table, bits) for code in stored]
    results.append(measure("to fragments", weights, 2 * code_bytes, to_fragments))
    fragments = [call() for call in to_fragments]
    del stored, to_fragments
    back = [functools.partial(ops.table_codes, f, rows, cols, bits) for f in fragments]
    results.append(measure("from fragments", weights, 2 * code_bytes, back))
    place = {"rows": rows, "cols": cols, "bits": bits, "code": f"table {bits} bits"}
    return [place | result for result in results]


def measure_overlap(rows: int, cols: int, bits: float) -> list[dict[str, object]]:
    """Dequantizing with one overlapping-pyramid code and one shape."""
    weights, row_bytes = rows * cols, int(cols * bits) // 8
    copies = timing_cuda.copies_for(rows * row_bytes)
    code = OverlapCode(bits)
    codes = [
        {
            "code": torch.randint(256, (rows, row_bytes), dtype=torch.uint8, device="cuda"),
            "row_scale": torch.rand(rows, device="cuda").bfloat16(),
        }
        for _ in range(copies)
    ]
    results = []
    for dtype in DTYPES:
        dequantize = [functools.partial(code.dequantize, stored, cols, dtype) for stored in codes]
        nbytes = dtype.itemsize * weights + rows * row_bytes
        results.append(measure(f"dequantize, {str(dtype)[6:]}", weights, nbytes, dequantize))
    place = {"rows": rows, "cols": cols, "bits": bits, "code": f"overlap {bits:g} bits"}
    return [place | result for result in results]


def measure_overlap_search(bits: float) -> list[dict[str, object]]:
    """Making one overlapping-pyramid code; arithmetic, so that caches do not matter."""
    rows, cols = SEARCH_SHAPE
    weights = rows * cols
    nbytes = 4 * weights + int(weights * bits) // 8
    matrices = [torch.randn(rows, cols, device="cuda") for _ in range(2)]
    numbers = trellis(bits).to(matrices[0].device)
    search = [functools.partial(numbers.nearest, w / numbers.unit) for w in matrices]
    results = [measure("search", weights, nbytes, search)]
    quantize = [functools.partial(OverlapCode(bits).quantize, w) for w in matrices]
    results.append(measure("quantize", weights, nbytes, quantize, timing_cuda.time_eagerly))
    place = {"rows": rows, "cols": cols, "bits": bits, "code": f"overlap {bits:g} bits"}
    return [place | result for result in results]


def show(row: dict[str, object]) -> None:
    """One line of the table."""
    print(
        f"| {row['operator']} | {row['rows']}x{row['cols']} | {row['code']} "
        f"| {row['microseconds']:.0f} | {1e-9 * float(str(row['weights_a_second'])):.3g} "
        f"| {row['gigabytes_a_second']:.0f} | {row['copies']:.1f} |",
        flush=True,
    )


def main() -> int:
    """Measures, prints and writes; 1 if the figure is missed on an H200."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the smaller shape")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() and pvq.build_info()["cuda"]):
        print("needs a CUDA device, and pvq built where nvcc is found", file=sys.stderr)
        return 2

    machine = timing_cuda.machine()
    print("; ".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"gain bits: {GAIN_BITS}\n")
    print("| operator | shape | code | us | 10^9 weights/s | GB/s | times a copy |")
    print("|---|---|---|---|---|---|---|")
    results: list[dict[str, object]] = []
    for rows, cols in SHAPES[:1] if arguments.quick else SHAPES:
        for dim, pulses in CODES:
            for row in measure_code(rows, cols, dim, pulses):
                results.append(row)
                show(row)
            torch.cuda.empty_cache()
        for bits in TABLE_BITS:
            for row in measure_table(rows, cols, bits):
                results.append(row)
                show(row)
            torch.cuda.empty_cache()
        for bits in WIDTHS:
            for row in measure_overlap(rows, cols, bits):
                results.append(row)
                show(row)
            torch.cuda.empty_cache()
    for bits in WIDTHS:
        for row in measure_overlap_search(bits):
            results.append(row)
            show(row)
    if arguments.json:
        report = {"machine": machine, "gain_bits": GAIN_BITS, "rows": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    missed = any(
        float(str(row["weights_a_second"]))
        < WEIGHTS_A_SECOND.get((str(row["operator"]), str(row["code"])), 0)
        for row in results
    )
    return 1 if missed and "H200" in str(machine["gpu"]) else 0


if __name__ == "__main__":
    sys.exit(main())
