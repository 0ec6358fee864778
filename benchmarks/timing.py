"""One way to time on the CPU, for all benchmarks.

Candidates run in turn, round after round, so that whatever else the machine does falls on all of
them alike; times are medians over the rounds, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

import pvq


@dataclass(frozen=True)
class Timing:
    """Seconds of every round of one candidate."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, _, high = quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def times_faster_than(self, other: Timing) -> float:
        """How many times the other's time is this one's, in the median round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return median(theirs / ours for ours, theirs in pairs)

    def summary(self) -> dict[str, float]:
        """What goes into a JSON file."""
        return {
            "median_ms": 1e3 * self.median,
            "fastest_ms": 1e3 * min(self.seconds),
            "spread": self.spread,
            "rounds": len(self.seconds),
        }


def interleave(
    candidates: dict[str, Callable[[], object]], *, seconds: float = 1.0, rounds: int = 5
) -> dict[str, Timing]:
    """Times the candidates in turn for about `seconds` in all, but at least `rounds` rounds."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < end:
        rounds -= 1
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: Timing(tuple(values)) for name, values in times.items()}


def machine() -> dict[str, object]:
    """What the figures depend on."""
    info = pvq.build_info()
    return {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "instruction_set": info["cpu_instruction_set"],
        "torch": torch.__version__,
        "pvq": info["version"],
        "compiler": info["cxx_compiler"],
    }


def parsed_arguments(description: str, *, seconds: float) -> argparse.Namespace:
    """Those of a benchmark that times cells for ``seconds``; sets threads and torch's seed."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--threads", type=int, help="of torch; its own choice otherwise")
    parser.add_argument("--seconds", type=float, default=seconds, help="for each cell or line")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def print_machine(description: dict[str, object]) -> None:
    """One line, ``name: value`` after ``name: value``."""
    print("; ".join(f"{name}: {value}" for name, value in description.items()) + "\n", flush=True)


def write_json(file: Path | None, description: dict[str, object], rows: list[dict]) -> None:
    """Writes the rows with the machine's description, if there is a file to write to."""
    if file:
        file.write_text(json.dumps({"machine": description, "rows": rows}, indent=1) + "\n")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
