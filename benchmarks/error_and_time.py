"""Error of the codes against the time of their products, beside QTIP and Marlin.

    python benchmarks/error_and_time.py [--plot FILE] [--json FILE]

Joins two runs of this folder: errors on a Gaussian source (results/gaussian_mse.json, bits counted
from the bytes) and products with one token at 28672 x 8192 on an H200 (results/matmul_cuda.json).
The peers' times were measured on the same kind of machine with the same shapes. QTIP's are those of
its hybrid code (HYB). Its error at 2 bits is that of this code in its paper (Tseng et al., arXiv
2406.11235, table 1); at 3 and 4 bits, for which the paper has none, that of its computed code
(1MAD), simulated. Marlin's is that of its format, 4-bit integers with a scale from the largest of
128 weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHAPE = "28672x8192"
# Bits a weight, mean squared error on a unit Gaussian source, microseconds at SHAPE with one token.
PEERS = {
    "QTIP HYB 2 bit": (2.0, 0.071, 50.5),
    "QTIP 3 bit (error of 1MAD)": (3.0, 0.0175, 57.1),
    "QTIP 4 bit (error of 1MAD)": (4.0, 0.00457, 50.6),
    "Marlin 4 bit g128": (4.125, 0.0122, 57.8),
}
OURS = {
    "pvq table 2 bit": "pvq table 2",
    "pvq table 3 bit": "pvq table 3",
    "pvq table 4 bit": "pvq table 4",
    "pvq overlap 2 bit": "pvq overlap 2",
    "pvq overlap 2.5 bit": "pvq overlap 2.5",
    "pvq overlap 3 bit": "pvq overlap 3",
    "pvq overlap 3.5 bit": "pvq overlap 3.5",
    "pvq overlap 4 bit": "pvq overlap 4",
    "pvq pyramid 3.25, fragments": "pvq 3.25",
    "pvq pyramid 3.25, index": "pvq 3.25",
}


def points() -> list[tuple[str, float, float, float]]:
    """Name, bits a weight, error and microseconds of each code."""
    errors = {
        row["name"]: (row["bits_per_weight"], row["mse"])
        for row in json.loads((RESULTS / "gaussian_mse.json").read_text())["rows"]
        if row.get("dim", 16) == 16
    }
    times = json.loads((RESULTS / "matmul_cuda.json").read_text())["microseconds"]["1"]
    found = [
        (name, *errors[row], times[name][SHAPE])
        for name, row in OURS.items()
        if SHAPE in times.get(name, {})
    ]
    return found + [(name, *peer) for name, peer in PEERS.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    print(f"{SHAPE}, one token\n")
    print("| code | b/w | error | times 4^-b/w | us |\n|---|---|---|---|---|")
    for name, bits, error, time in points():
        print(f"| {name} | {bits:.3f} | {error:.4g} | {error * 4**bits:.3f} | {time:.1f} |")
    if arguments.json:
        fields = ("name", "bits_per_weight", "mse", "microseconds")
        rows = [dict(zip(fields, point, strict=True)) for point in points()]
        arguments.json.write_text(json.dumps({"shape": SHAPE, "rows": rows}, indent=1) + "\n")
    if arguments.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5))
        for family in ("pvq table", "pvq overlap", "pvq pyramid", "QTIP", "Marlin"):
            mine = [p for p in points() if p[0].startswith(family)]
            line = "" if len(mine) == 1 or "pyramid" in family else "-"
            axes.plot([p[3] for p in mine], [p[2] for p in mine], f"o{line}", label=family)
            for name, _, error, time in mine:
                axes.annotate(
                    name.removeprefix(family).strip(), (time, error), fontsize=7,
                    xytext=(3, -9 if family == "QTIP" else 3), textcoords="offset points",
                )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel(f"microseconds, {SHAPE}, one token, H200")
        axes.set_ylabel("mean squared error, Gaussian source of variance 1")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(arguments.plot, dpi=150)


if __name__ == "__main__":
    main()
