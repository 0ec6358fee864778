"""Benchmarks run in small, those for a GPU on the CPU, so that they do not rot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_scripts_compile(script):
    compile(script.read_text(encoding="utf-8"), script.name, "exec")


@pytest.mark.parametrize("options", [(), ("--head", "--batch", "1", "3")])
def test_generate_in_small(tmp_path, options):
    sizes = {
        "layers": 1, "hidden": 256, "intermediate": 384, "heads": 4, "kv-heads": 2, "vocab": 300,
        "tokens": 2, "prompt": 3,
    }  # fmt: skip
    flags = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    file = tmp_path / "generate.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "generate.py", "--device", "cpu", *flags, *options,
         "--json", file],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    batches = {1, 3} if "--batch" in options else {1}
    names = [
        "FP16", "no projections", "table-2", "table-3", "table-4", "overlap-2", "overlap-3",
        "pyramid-3.25",
    ]  # fmt: skip
    assert {(row["model"], row["batch"]) for row in rows} == {
        (n, b) for n in names for b in batches
    }
    assert done.stdout.count("\n|") == 2 + len(rows)
    dense = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 384 * 256
    head = 300 * 256
    others = head + 3 * 256
    size = {row["model"]: row["weight_nbytes"] for row in rows}
    assert size["FP16"] == 2 * (dense + head + others)
    assert size["no projections"] == 2 * (head + others)
    codes = size["table-2"] - 2 * (others + (0 if "--head" in options else head))
    scales = 2 * (256 + 256 + 128 + 128 + 384 + 384 + 256 + (300 if "--head" in options else 0))
    assert codes == (dense + (head if "--head" in options else 0)) * 2 // 8 + scales
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["ms_per_step"])


def small_run(script: str, file: Path, *arguments: object) -> tuple[list[dict], str]:
    """The rows that a benchmark of the bundled model writes, and what it prints."""
    data = Path(__file__).parent / "data"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, data / "tiny", "--text", data / "books.txt",
         *map(str, arguments), "--json", file],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())["rows"], done.stdout


def test_cache_in_small(tmp_path):
    rows, text = small_run(
        *("cache.py", tmp_path / "cache.json", "--windows", 1, "--length", 96),
        *("--bits", 4, 2, "--dims", 8, "--piece", 16),
    )
    names = ["none", *["pvq", "int, rotated", "int"] * 2]
    assert [row["cache"] for row in rows] == names
    assert [row["bits_per_value"] for row in rows] == [32, 4.25, 4.5, 4.5, 2.25, 2.5, 2.5]
    divergence = [row["kl_divergence"] for row in rows]
    assert 0 == divergence[0] < divergence[1] < divergence[4] < divergence[5]
    assert all(row["tokens"] == 95 for row in rows)
    assert text.count("\n|") == 2 + len(rows)


def test_activations_in_small(tmp_path):
    rows, _ = small_run(
        *("activations.py", tmp_path / "activations.json", "--tokens", 1024, "--cols", 256),
        *("--bits", 4, "--weights", 4.25),
    )
    products = [row for row in rows if row["kind"] == "product" and row["rotated"]]
    errors = {
        (row["activations"], row["bits"], row["way"]): row["relative_error"] for row in products
    }
    for bits in (2, 3, 4, 5, 6, 8):
        assert errors["Gaussian", bits, "pyramid"] < errors["Gaussian", bits, "int, 128"]
    models = {row["way"]: row["kl_divergence"] for row in rows if row["kind"] == "model"}
    assert 0 < models[None] < models["pyramid"] < models["int, 128"] < models["int, token"]


def test_errors_and_times_are_those_of_the_results_and_of_the_readme(tmp_path):
    file = tmp_path / "points.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "error_and_time.py", "--json", file],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == len(table) - 2
    times = json.loads((BENCHMARKS / "results/matmul_cuda.json").read_text())["microseconds"]["1"]
    for line, row in zip(table[2:], rows, strict=True):
        shown = [cell.strip() for cell in line.strip("|").split("|")]
        assert shown[0] == row["name"]
        assert float(shown[1]) == pytest.approx(row["bits_per_weight"], abs=6e-4)
        assert float(shown[2]) == pytest.approx(row["mse"], rel=1e-3)
        assert float(shown[4]) == pytest.approx(row["microseconds"], abs=0.06)
        if row["name"] in times:
            assert row["microseconds"] == times[row["name"]]["28672x8192"]


def test_bands_in_small(tmp_path):
    data, file = Path(__file__).parent / "data", tmp_path / "bands.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bands.py", data / "tiny", "--calibration",
         data / "books.txt", "--samples", "1", "--bits", "2.25", "--bands", "2", "--json", file],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert len(rows) == 28
    assert all(row["bands 2"]["nbytes"] <= row["nbytes"] for row in rows)
    assert sum(row["bands 2"]["loss"] / row["loss"] for row in rows) < 0.97 * len(rows)
    assert done.stdout.count("\n|") == 1 + 7 + 1
