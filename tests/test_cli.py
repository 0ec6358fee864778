"""The whole path through the command line, as a user would go it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import DATA, TINY

from pvq.cli import main


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "books.txt"
    file.write_text((DATA / "books.txt").read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    return file


def pvq(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pvq", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=DATA,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def result_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """Runs the command in this process and reads what it printed as JSON."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail in one line on stderr and nothing on stdout."""
    assert main([*map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("pvq: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0].removeprefix("pvq: error: ")


def test_from_a_dense_checkpoint_to_text_and_figures(tmp_path, text_file):
    out = tmp_path / "tiny-3.25b"
    done = pvq("quantize", TINY, out, "--bits", 3.25)
    assert done.returncode == 0, done.stderr
    assert "3.30" in done.stdout
    assert "28 layers" in done.stdout
    assert "quantizing" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name], "nothing else was left"

    done = pvq("eval", out, "--text", text_file, "--against", TINY, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["windows"] == 4
    # Noise of the code's error, 0.0195, costs 10.3 % perplexity on the whole text.
    assert 0.05 < figures["perplexity_increase"] < 0.16
    assert 0.02 < figures["kl_divergence"] < 0.20
    assert 0.75 < figures["top1_agreement"] < 0.95

    done = pvq("generate", out, "--prompt", "It was a dark and", "--max-new-tokens", 8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("It was a dark and ")

    done = pvq("info", out)
    assert done.returncode == 0, done.stderr
    assert "28 layers, 3.15 M weights at 3.30" in done.stdout

    done = pvq("info", tmp_path / "missing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pvq: error: ")
    assert done.stderr.count("\n") == 1


def test_figures_rise_with_the_rate(tmp_path, text_file, capsys):
    divergence = {}
    for bits in (2.25, 4.25):
        out = tmp_path / str(bits)
        assert main(["quantize", str(TINY), str(out), "--bits", str(bits)]) == 0
        capsys.readouterr()
        figures = result_of(
            capsys, "eval", out, "--text", text_file, "--against", TINY, "--tokens", 2048
        )
        divergence[bits] = figures["kl_divergence"]
    assert divergence[4.25] < 0.05 < 0.2 < divergence[2.25] < 1.5


def test_the_table_code_goes_the_whole_path(tmp_path, text_file, capsys):
    out = tmp_path / "out"
    result = result_of(
        capsys, "quantize", TINY, out, "--code", "table", "--bits", 3,
        "--override", "*.down_proj:bits=4", "--override", "*.o_proj:code=pyramid,bits=3.25",
        "--override", "*.1.self_attn.o_proj:gain-bits=2",
    )  # fmt: skip
    layers = {layer["name"]: layer["config"] for layer in result["layers"]}
    assert layers["model.layers.0.mlp.up_proj"]["code"] == "table"
    assert layers["model.layers.0.mlp.down_proj"]["bits"] == 4
    assert layers["model.layers.1.self_attn.o_proj"]["gain_bits"] == 2
    assert main(["info", str(out), "--layers"]) == 0
    text = capsys.readouterr().out
    assert "table 3 bits" in text
    assert "pyramid D=16 K=28 gain 3" in text
    assert "code table 3 bits" in (out / "README.md").read_text()
    figures = result_of(
        capsys, "eval", out, "--text", text_file, "--against", TINY, "--tokens", 2048
    )
    assert 0.01 < figures["kl_divergence"] < 0.3


def test_quantize_reports_every_layer(tmp_path, capsys):
    out = tmp_path / "out"
    result = result_of(
        capsys, "quantize", TINY, out, "--pulses", 12, "--seed", 3, "--quality", 0,
        "--skip", "*.layers.0.*", "--override", "*.down_proj:bits=3.25,gain-law=beta",
        "--embeddings", "--head", "--shard-size", "500KB",
    )  # fmt: skip
    assert result["out"] == str(out)
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert len(layers) == 21 + 1
    assert layers["model.layers.1.mlp.down_proj"]["config"]["pulses"] == 28
    assert layers["model.layers.1.mlp.down_proj"]["config"]["gain_law"] == "beta"
    assert layers["model.layers.1.mlp.up_proj"]["config"]["pulses"] == 12
    assert layers["model.embed_tokens"]["kind"] == "embedding"
    assert len(list(out.glob("*.safetensors"))) > 1
    stored = json.loads((out / "pvq_report.json").read_text())
    assert stored["totals"] == result["totals"]

    info = result_of(capsys, "info", out)
    assert info["quantized_nbytes"] == result["totals"]["quantized_nbytes"]
    assert info["dense_nbytes"] == result["totals"]["dense_nbytes"]
    assert info["weights"] == result["totals"]["weights"]
    assert info["bits_per_weight"] == pytest.approx(result["totals"]["bits_per_weight"])
    assert info["nbytes_on_disk"] == sum(p.stat().st_size for p in out.iterdir())
    here = result_of(capsys, "info", out, "--device", "cpu")
    assert {layer["layout"] for layer in here["layers"]} == {"planes", "stored"}
    for layer in here["layers"]:
        assert (layer["resident_nbytes"] > layer["nbytes"]) == (layer["layout"] == "planes")
    sizes = sum(layer["resident_nbytes"] for layer in here["layers"])
    assert here["resident_nbytes"] == sizes + here["dense_nbytes"]
    for name in ("stored", "index"):
        stored = result_of(capsys, "info", out, "--layout", name)
        assert stored["resident_nbytes"] == stored["quantized_nbytes"] + stored["dense_nbytes"]
    assert main(["info", str(out), "--layers", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.3.mlp.gate_proj" in text
    assert "MB on cpu with layout planes, stored" in text


def test_dense_models_can_be_evaluated_and_run(text_file, capsys):
    result = result_of(capsys, "eval", TINY, "--text", text_file, "--window", 128, "--tokens", 300)
    assert (result["windows"], result["kl_divergence"]) == (2, None)
    assert main(["eval", str(TINY), "--text", str(text_file), "--tokens", "1024"]) == 0
    assert "1 non-overlapping windows of 1024 tokens, no BOS" in capsys.readouterr().out
    sampled = [
        result_of(
            capsys, "generate", TINY, "--prompt", "The", "--max-new-tokens", 6,
            "--temperature", 1, "--seed", seed,
        )["text"]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert sampled[0] == sampled[1]
    assert sampled[0].startswith("The")


def test_activations_and_cache_in_codes(tmp_path, text_file, capsys):
    out = tmp_path / "out"
    base = ["quantize", TINY, out, "--bits", "4.25", "--device", "cpu"]
    result_of(capsys, *base, "--activations", "pyramid4")
    info = result_of(capsys, "info", out, "--device", "cpu")
    assert {layer["bits_per_activation"] for layer in info["layers"]} == {4.0}
    assert main(["info", str(out), "--device", "cpu"]) == 0
    assert "activations  points of pyramids, 4.0 bits" in capsys.readouterr().out
    text = ["--text", text_file, "--against", TINY, "--tokens", "512", "--window", "256"]
    scores = [
        result_of(capsys, "eval", out, *text, "--device", "cpu", *changed)["kl_divergence"]
        for changed in ([], ["--activations", "pyramid6"], ["--activations", "float"])
    ]
    assert scores[0] > 1.5 * scores[1] > 1.5 * scores[2] > 0
    prompt = ["generate", out, "--prompt", "It was a dark", "--max-new-tokens", "60"]
    coded = result_of(capsys, *prompt, "--device", "cpu", "--cache-bits", "3")
    assert coded["text"].startswith("It was a dark")
    assert 0 < coded["cache_nbytes"] < 60 * 4 * 2 * 2 * 64 * 2  # bfloat16 states
    assert "bits is 0.5" in error_of(capsys, *prompt, "--cache-bits", "0.5")


@pytest.mark.parametrize("command", ["quantize", "eval", "generate", "info"])
def test_unknown_activations_are_refused(command, capsys):
    arguments = {"quantize": ["a", "b"], "eval": ["a", "--text", "b"]}
    arguments |= {"generate": ["a", "--prompt", "b"], "info": ["a"]}
    with pytest.raises(SystemExit) as stop:
        main([command, *arguments[command], "--activations", "int4"])
    assert stop.value.code == 2
    assert "such as 'pyramid4'" in capsys.readouterr().err


def test_info_describes_the_installation(capsys):
    info = result_of(capsys, "info")
    assert {"version", "torch", "transformers", "cpu_instruction_set", "cuda"} <= info.keys()
    assert main(["info"]) == 0
    assert "cpu_instruction_set" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["quantize"], ["eval"], ["generate"], ["info"]])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"  pvq {command[0] if command else 'quantize'}" in text, "there is an example"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required"),
        (["quantise"], "invalid choice"),
        (["quantize", "a"], "required: out"),
        (["quantize", "a", "b", "--bits", "x"], "invalid float"),
        (["quantize", "a", "b", "--bits", "0.1"], "bits=0.1 is out of reach"),
        (["quantize", "a", "b", "--dim", "1"], "dim is 1, expected 2 to 256"),
        (["quantize", "a", "b", "--pulses", "0"], "pulses is 0, expected 1 to 4096"),
        (["quantize", "a", "b", "--bits", "3", "--pulses", "4"], "not allowed with"),
        (["quantize", "a", "b", "--override", "bits=3"], "expected PATTERN:KEY=VALUE"),
        (["quantize", "a", "b", "--override", "*:bits"], "'bits' is not KEY=VALUE"),
        (["quantize", "a", "b", "--override", "*:bit=3"], "unknown choice 'bit'"),
        (["quantize", "a", "b", "--code", "trellis"], "invalid choice: 'trellis'"),
        (["quantize", "a", "b", "--code", "table"], "needs bits: choose 2, 3 or 4"),
        (["quantize", "a", "b", "--code", "table", "--bits", "2.5"], "choose 2, 3 or 4"),
        (
            ["quantize", "a", "b", "--code", "overlap", "--bits", "2.25"],
            "choose 2, 2.5, 3, 3.5 or 4",
        ),
        (["quantize", "a", "b", "--code", "table", "--pulses", "9"], "unknown choice 'pulses'"),
        (["quantize", "a", "b", "--override", "*:code=table"], "bits=3.25 is out of reach"),
        (["quantize", "a", "b", "--shard-size", "abc"], "'abc' is no size such as 500MB"),
        (["quantize", "a", "b", "--shard-size", "0"], "'0' is no size"),
        (["quantize", "a", "b", "--shard-size", "0.0GB"], "'0.0GB' is no size"),
        (["eval", "a"], "required: --text"),
    ],
)
def test_wrong_command_lines_are_usage_errors(arguments, text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_failures_are_one_line(tmp_path, text_file, capsys):
    missing = tmp_path / "missing"
    assert "is no model folder" in error_of(capsys, "quantize", missing, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "cannot read --text" in error_of(capsys, "eval", TINY, "--text", missing)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfa")
    assert "is not UTF-8" in error_of(capsys, "eval", TINY, "--text", binary)
    (tmp_path / "folder").mkdir()
    assert "has no config.json" in error_of(capsys, "info", tmp_path / "folder")
    assert "is not a pvq checkpoint" in error_of(capsys, "info", TINY)
    assert "matches no layer" in error_of(
        capsys, "quantize", TINY, tmp_path / "out", "--skip", "*.q_porj"
    )
    assert "less than one window" in error_of(
        capsys, "eval", TINY, "--text", text_file, "--tokens", 50
    )
    assert "--device 'abc' is no device" in error_of(
        capsys, "generate", TINY, "--prompt", "a", "--device", "abc"
    )
    assert "--max-new-tokens is 0" in error_of(
        capsys, "generate", TINY, "--prompt", "a", "--max-new-tokens", 0
    )
    assert "--prompt has no tokens" in error_of(capsys, "generate", TINY, "--prompt", "")
    assert list(tmp_path.glob(".*")) == [], "no temporary folder was left"


def test_results_that_cannot_be_written_cost_no_work(tmp_path, text_file, capsys, monkeypatch):
    work = Mock(side_effect=AssertionError("the work has begun"))
    monkeypatch.setattr("pvq.cli.sensitivity.AutoModelForCausalLM.from_pretrained", work)
    monkeypatch.setattr("pvq.cli.compare.compare", work)
    commands = {"OUT": ["sensitivity", TINY]}
    if find_spec("matplotlib"):
        arguments = ["compare", TINY, "--text", text_file, "--work", tmp_path / "work", "--plot"]
        commands["--plot"] = arguments
    (tmp_path / "a").mkdir()
    for what, command in commands.items():
        assert f"cannot write {what} {tmp_path}/a: it is a folder" in error_of(
            capsys, *command, tmp_path / "a"
        )
        assert f"cannot write {what} {tmp_path}/b/c.png: there is no folder {tmp_path}/b" in (
            error_of(capsys, *command, tmp_path / "b/c.png")
        )
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
        assert "c.png: permission denied" in error_of(capsys, *command, tmp_path / "c.png")
        monkeypatch.undo()
        work.assert_not_called()


def test_debug_shows_where_an_error_came_from(tmp_path, capsys, monkeypatch):
    missing = str(tmp_path / "missing")
    assert "is no model folder" in error_of(capsys, "info", missing)
    monkeypatch.setenv("PVQ_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["info", missing])


def test_a_non_empty_output_is_kept_unless_told(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is not empty: choose another, or pass overwrite" in error_of(
        capsys, "quantize", TINY, out
    )
    assert (out / "notes.txt").read_text() == "mine"
    assert main(["quantize", str(TINY), str(out), "--overwrite", "--quality", "0"]) == 0
    assert not (out / "notes.txt").exists()
    assert (out / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_current_directory_may_be_the_output(tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert main(["quantize", str(TINY), ".", "--quality", "0"]) == 0
    assert "written         ., 6.09 MB" in capsys.readouterr().out
    assert "28 layers" in pvq("info", tmp_path / "out").stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not list(Path().glob(".*"))
