"""What rates by column block save within a layer: the loss of feedback at equal bytes, measured.

    python benchmarks/bands.py MODEL --calibration train.txt [--samples 12] [--json FILE]

Every linear layer of a model is rounded with GPTQ to the pyramid code and to bands of it
(``code="bands"``), on the inputs that it has in the dense model. Printed is what the squared error
of its outputs on these inputs becomes, beside that with the pyramid code, in the mean of the layers
of a kind.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from layer_inputs import layer_inputs

from pvq import PVQConfig
from pvq.finished import Finished, quantize_layer
from pvq.plan import Target
from pvq.rounding.gptq import GPTQ


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.25, 3.25])
    parser.add_argument("--bands", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    inputs = layer_inputs(arguments.model, arguments.calibration, arguments.samples)

    def rounded(name: str, config: PVQConfig) -> Finished:
        module = inputs.modules[name]
        target = Target(name, module, config.for_cols(module.in_features))
        return quantize_layer(target, GPTQ(), inputs.statistics[name], torch.device("cpu"))

    rows = []
    for name in inputs.modules:
        for bits in arguments.bits:
            plain = rounded(name, PVQConfig(bits)).record
            row = {"layer": name, "bits": bits, "loss": plain.output_error, "nbytes": plain.nbytes}
            for bands in arguments.bands:
                record = rounded(name, PVQConfig(bits, code="bands", bands=bands)).record
                row[f"bands {bands}"] = {
                    "loss": record.output_error,
                    "nbytes": record.nbytes,
                    "description": record.config.code.describe(),
                }
            rows.append(row)
    columns = [(bits, bands) for bits in arguments.bits for bands in arguments.bands]
    names = " | ".join(f"{bits:g} bits, {bands} bands" for bits, bands in columns)
    print(f"| layers | {names} |")
    print("|---" * (len(columns) + 1) + "|")
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in inputs.modules))
    for kind in [*kinds, "all"]:
        cells = []
        for bits, bands in columns:
            members = [r for r in rows if r["bits"] == bits and r["layer"].endswith(kind)]
            members = members or [r for r in rows if r["bits"] == bits]
            ratio = sum(r[f"bands {bands}"]["loss"] / r["loss"] for r in members) / len(members)
            more = sum(r[f"bands {bands}"]["nbytes"] - r["nbytes"] for r in members)
            cells.append(f"{ratio - 1:+.1%}" + (f" ({more:+} bytes)" if more else ""))
        print(f"| {kind} | {' | '.join(cells)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
