"""Error of the codes on a unit Gaussian source, beside the Shannon bound and other codes.

    python benchmarks/gaussian_mse.py [--rows 256] [--cols 4096] [--json FILE]

A matrix of independent standard normal weights is quantized without a rotation and decoded again.
The rate R is read off the bytes of the stored form, row scales included; the bound is 4^-R. The
named settings at the end are those with a figure to hold, and the exit status says whether they do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import pvq

DIMS = (8, 16, 32, 64, 128)
RATES = (1.0, 1.5, 2.0, 2.25, 2.5, 3.0, 3.25, 3.5, 4.0, 4.25)
TABLE_WIDTHS = (2, 3, 4)
OVERLAP_WIDTHS = (2, 2.5, 3, 3.5, 4)
PEERS = (
    *((f"Lloyd-Max scalar, {n} levels", {"code": "higgs", "p": 1, "n": n}) for n in (2, 4, 8, 16)),
    *((f"HIGGS p=2, n={n}", {"code": "higgs", "p": 2, "n": n}) for n in (16, 64, 256)),
    *((f"HIGGS p=4, n={n}", {"code": "higgs", "p": 4, "n": n}) for n in (16, 256)),
    *((f"uniform {bits} bits, groups of 128", {"code": "uniform", "bits": bits})
      for bits in (2, 3, 4)),
    ("NF4, blocks of 64", {"code": "nf4", "double": False}),
    ("NF4, double quantization", {"code": "nf4"}),
)  # fmt: skip
# name, configuration, largest error allowed
FIGURES = (
    ("D=16 K=27, 4 gain bits", {"dim": 16, "pulses": 27, "gain_bits": 4}, 0.0195),
    ("D=16 at 2.25", {"dim": 16, "bits": 2.25}, 0.082),
    ("D=16 at 4.25", {"dim": 16, "bits": 4.25}, 0.0047),
    ("D=64 at 3.25", {"dim": 64, "bits": 3.25}, 0.0176),
    ("table, 2 bits", {"code": "table", "bits": 2}, 0.0972),
    ("table, 3 bits", {"code": "table", "bits": 3}, 0.0262),
    ("table, 4 bits", {"code": "table", "bits": 4}, 0.0079),
    ("overlap, 2 bits", {"code": "overlap", "bits": 2}, 1.20 * 4**-2),
    ("overlap, 2.5 bits", {"code": "overlap", "bits": 2.5}, 1.20 * 4**-2.5),
    ("overlap, 3 bits", {"code": "overlap", "bits": 3}, 1.25 * 4**-3),
    ("overlap, 3.5 bits", {"code": "overlap", "bits": 3.5}, 1.25 * 4**-3.5),
    ("overlap, 4 bits", {"code": "overlap", "bits": 4}, 1.28 * 4**-4),
)


def measure_code(w: torch.Tensor, name: str, config: pvq.PVQConfig) -> dict[str, object]:
    stored = pvq.quantize_tensor(w, config)
    result = measure(name, w, stored.dequantize(torch.float32), 8 * stored.nbytes / w.numel())
    return result | config.code.choices()


def measure(name: str, w: torch.Tensor, quantized: torch.Tensor, bits: float) -> dict[str, object]:
    error = float((w - quantized).double().square().mean() / w.double().square().mean())
    return {"name": name, "bits_per_weight": bits, "mse": error, "ratio": error * 4**bits}


def show(row: dict[str, object]) -> None:
    point = f"{row['dim']} | {row['pulses']} | {row['gain_bits']}" if "dim" in row else "- | - | -"
    print(
        f"| {row['name']} | {point} | {row['bits_per_weight']:.4f} | {row['mse']:.5f} "
        f"| {row['ratio']:.3f} |",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    source = torch.Generator().manual_seed(arguments.seed)
    w = torch.randn(arguments.rows, arguments.cols, generator=source)

    print("| code | D | K | gain bits | b/w stored | MSE | MSE / 4^-R |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, object]] = []

    def add(row: dict[str, object]) -> None:
        rows.append(row)
        show(row)

    for dim in DIMS:
        for bits in RATES:
            config = pvq.PVQConfig(bits, dim=dim, rotation="none")
            add(measure_code(w, f"pvq {bits:g}", config))
    for width in TABLE_WIDTHS:
        config = pvq.PVQConfig(width, code="table", rotation="none")
        add(measure_code(w, f"pvq table {width}", config))
    for width in OVERLAP_WIDTHS:
        config = pvq.PVQConfig(width, code="overlap", rotation="none")
        add(measure_code(w, f"pvq overlap {width:g}", config))
    for name, choices in PEERS:
        add(measure_code(w, name, pvq.PVQConfig(**choices, rotation="none")))

    missed = 0
    for name, choices, bound in FIGURES:
        row = measure_code(w, name, pvq.PVQConfig(rotation="none", **choices)) | {"bound": bound}
        add(row)
        if row["mse"] > bound:
            missed += 1
            print(f"MISSED: {name} has {row['mse']:.5f}, allowed {bound}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": vars(arguments) | {"json": None},
                                              "rows": rows}, indent=1))  # fmt: skip
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
