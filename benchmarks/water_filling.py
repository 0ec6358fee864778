"""What rates by column block could save within a layer: a bound from the Hessian.

    python benchmarks/water_filling.py MODEL --calibration train.txt [--samples 6] [--json FILE]

Under block feedback the loss of a layer is the sum over blocks of the rounding error times the mean
diagonal of the block's Schur complement, D (:mod:`pvq.rounding.gptq`). At high rate an error falls
as 4^-R, so the same loss takes log2(mean(D) / geometric mean(D)) / 2 bits a weight less if each
block gets its own rate: water-filling. That is the bound printed, for blocks of 16 columns and for
four bands of a quarter of the columns, and what it takes off the loss at equal bits. Nothing is
subtracted for rates in steps, nor for saying which block has which.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from layer_inputs import layer_inputs
from torch import Tensor

import pvq
from pvq.rounding.hessian import Hessian

STEP, BANDS = 16, 4


def saved(d: Tensor) -> float:
    """Bits a weight that water-filling saves over variances ``d``."""
    return 0.5 * math.log2((d.mean() / d.log().mean().exp()).item())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    inputs = layer_inputs(arguments.model, arguments.calibration, arguments.samples)
    rows, weights = [], 0
    for group in inputs.groups:
        cols = inputs.modules[group[0]].in_features
        block = pvq.PVQConfig(3.25).for_cols(cols).hadamard_block
        row = {"layers": group, "weights": sum(inputs.modules[n].weight.numel() for n in group)}
        for name, rotation in (("rotated", block), ("not rotated", 0)):
            hessian = Hessian(inputs.statistics[group[0]].hessian, rotation, 0)
            factor, _ = hessian.upper_factor(0.01, STEP, "natural")
            diagonal = factor.view(cols // STEP, STEP, cols // STEP, STEP)
            d = torch.stack([diagonal[i, :, i].square().sum() / STEP for i in range(cols // STEP)])
            bands = torch.stack([band.mean() for band in d.tensor_split(BANDS)])
            row[name] = {"blocks": saved(d), "bands": saved(bands)}
        rows.append(row)
        weights += row["weights"]
    count, length = inputs.samples.shape
    print(f"{count} windows of {length} tokens; bits a weight at most\n")
    print("| layers | rotated, blocks | 4 bands | not rotated, blocks | 4 bands |")
    print("|---|---|---|---|---|")
    kinds: dict[str, list] = {}
    for row in rows:
        kind = ", ".join(name.rpartition(".")[2] for name in row["layers"])
        kinds.setdefault(kind, []).append(row)
        kinds.setdefault("all", []).append(row)
    kinds["all"] = kinds.pop("all")
    for kind, members in kinds.items():
        total = sum(row["weights"] for row in members)
        means = [
            sum(row["weights"] * row[basis][part] for row in members) / total
            for basis in ("rotated", "not rotated")
            for part in ("blocks", "bands")
        ]
        cells = " | ".join(f"{m:.3f} ({1 - 4**-m:.1%})" for m in means)
        print(f"| {kind} | {cells} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
