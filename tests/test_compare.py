"""The harness: settings at a rate, cells that are kept, the table, the plot, the command."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM

import pvq
from pvq.cli import main
from pvq.codes import stored_nbytes
from pvq.compare import cells_of, compare, setting_at
from pvq.compare import run as run_module
from pvq.compare.cells import Named, UnreachableRateError
from pvq.compare.memory import peak_memory
from pvq.compare.plot import check_format, plot
from pvq.compare.store import Store, digest_of_model, digest_of_tokens, key_of
from pvq.evaluate import evaluate

NEAREST = [Named("nearest")]


@pytest.fixture
def dense(small_llama, tmp_path) -> Path:
    small_llama().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 80, (100,), generator=torch.Generator().manual_seed(1))


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "bits", "description"),
    [
        (Named("pyramid"), 3.25, "pyramid D=16 K=28 gain 3"),
        (Named("pyramid", {"dim": 8}), 3.25, "pyramid D=8 "),
        (Named("pyramid", {"gain_bits": 4}), 3.3, "pyramid D=16 K=27 gain 4"),
        (Named("table"), 3.25, "table 3 bits"),
        (Named("overlap"), 2.9, "overlap 2.5 bits"),
        (Named("uniform"), 2.25, "uniform 2 bits g128 asym"),
        (Named("uniform"), 4.1, "uniform 3 bits"),
        (Named("uniform", {"group": 1024}), 4.1, "uniform 4 bits"),
        (Named("nf4"), 4.25, "nf4 b64 double"),
        (Named("nf4"), 4.5, "nf4 b64"),
        (Named("higgs", {"p": 1}), 2.25, "higgs p=1 n=4"),
        (Named("higgs"), 3.25, "higgs p=2 n=86"),
        (Named("higgs", {"p": 4}), 4.25, "higgs p=4 n=4096"),
    ],
)
def test_a_code_takes_its_best_setting_at_or_below_the_rate(code, bits, description):
    config = setting_at(code, bits)
    assert config.code.describe().startswith(description)
    assert config.code.rate <= bits + 1e-6
    assert config.rotation == type(config.code).rotation


def test_choices_beside_those_of_the_code():
    config = setting_at(Named("uniform", {"rotation": "hadamard", "seed": 3, "group": 64}), 4.5)
    assert (config.rotation, config.seed, config.code.group) == ("hadamard", 3, 64)


def test_at_the_rate_of_nf4_the_pyramid_code_gets_no_more():
    pyramid, nf4 = (setting_at(Named(name), 4.13).code for name in ("pyramid", "nf4"))
    for cols in (512, 1792, 4096):
        assert stored_nbytes(pyramid, 64, cols) <= stored_nbytes(nf4, 64, cols)
    assert nf4.rate - pyramid.rate < 0.01


@pytest.mark.parametrize(
    ("code", "bits", "error", "text"),
    [
        (Named("nf4"), 2.25, UnreachableRateError, r"nf4 has no setting .* 2\.25 .* is 4\.126"),
        (Named("uniform", {"group": 32}), 2.25, UnreachableRateError, r"group=32 .* is 2\.562"),
        (Named("pyramid"), 0.1, UnreachableRateError, r"no setting at or below 0\.1 bits"),
        (Named("pyramid", {"bits": 3}), 3, ValueError, "bits are what the rates"),
        (Named("octree"), 3, ValueError, "code is 'octree', expected one of"),
        (Named("uniform", {"grup": 3}), 3, ValueError, "grup"),
    ],
)
def test_settings_that_there_are_not(code, bits, error, text):
    with pytest.raises(error, match=text):
        setting_at(code, bits)


def test_cells_are_every_combination_in_order():
    cells = cells_of([4.25, 2.25], [Named("pyramid"), Named("nf4")], NEAREST)
    assert [(cell.bits, cell.code) for cell in cells] == [
        (2.25, "pyramid"),
        (2.25, "nf4"),
        (4.25, "pyramid"),
        (4.25, "nf4"),
    ]
    assert [cell.problem is None for cell in cells] == [True, False, True, True]
    settings = Named("gptq", {"damping": 0.05})
    assert cells_of([3], [Named("pyramid")], [settings])[0].rounding.damping == 0.05
    for method, text in (
        (Named("magic"), "rounding is .magic., expected one of 'nearest'"),
        (Named("gptq", {"dampening": 1}), "unknown setting .dampening."),
    ):
        with pytest.raises(ValueError, match=text):
            cells_of([3], [Named("pyramid")], [method])


# --- running --------------------------------------------------------------------------------------


def test_figures_are_those_of_quantizing_and_evaluating(dense, ids, tmp_path):
    codes = [Named("pyramid"), Named("uniform", {"group": 32})]
    result = compare(dense, cells_of([3.25, 4.63], codes, NEAREST), ids, work=tmp_path / "work",
                     window=32, progress=False)  # fmt: skip
    assert [row["asked"] for row in result.rows] == [3.25, 3.25, 4.63, 4.63]
    original = AutoModelForCausalLM.from_pretrained(dense)
    row = result.rows[3]
    model = AutoModelForCausalLM.from_pretrained(dense)
    report = pvq.quantize_model(model, pvq.PVQConfig(4, code="uniform", group=32), progress=False)
    expected = evaluate(model, ids, reference=original, window=32, progress=False)
    assert row["bits_per_weight"] == report.bits_per_weight > 4.6
    assert row["nbytes"] == report.nbytes
    assert row["kl_divergence"] == pytest.approx(expected.kl_divergence, rel=1e-3)
    assert row["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
    assert row["top1_agreement"] == pytest.approx(expected.top1_agreement, abs=0.02)
    assert row["seconds"] > 0
    assert result.reference["reference_perplexity"] == row["reference_perplexity"]


def test_finished_cells_are_not_run_again(dense, ids, tmp_path, monkeypatch):
    work, codes = tmp_path / "work", [Named("pyramid"), Named("table")]
    first = compare(dense, cells_of([2.25], codes, NEAREST), ids, work=work, window=32,
                    progress=False)  # fmt: skip
    runs = []
    quantize = run_module.quantize_model
    monkeypatch.setattr(
        run_module, "quantize_model", lambda *a, **k: runs.append(a) or quantize(*a, **k)
    )
    again = compare(dense, cells_of([2.25, 3.25], codes, NEAREST), ids, work=work, window=32,
                    progress=False)  # fmt: skip
    assert len(runs) == 2, "only the new rate"
    assert again.rows[:2] == first.rows


@pytest.mark.parametrize("change", ["text", "window", "model", "code", "method", "calibration"])
def test_whatever_matters_makes_another_cell(dense, ids, tmp_path, monkeypatch, change):
    work = tmp_path / "work"
    calibration = ids[:96].view(3, 32)
    settings = {"tokens": ids, "window": 32, "code": {"group": 32}, "damping": 0.01}
    method = "gptq" if change in ("method", "calibration") else "nearest"

    def run() -> None:
        choices = {"damping": settings["damping"]} if method == "gptq" else {}
        cells = cells_of([4.63], [Named("uniform", settings["code"])], [Named(method, choices)])
        compare(dense, cells, settings["tokens"], work=work, window=settings["window"],
                calibration=calibration, progress=False)  # fmt: skip

    run()
    run()
    assert len(list(work.glob("*.json"))) == 1
    if change == "text":
        settings["tokens"] = ids.flip(0)
    elif change == "window":
        settings["window"] = 16
    elif change == "model":
        model = AutoModelForCausalLM.from_pretrained(dense)
        model.model.norm.weight.data *= 1.01
        model.save_pretrained(dense)
    elif change == "code":
        settings["code"] = {"group": 32, "symmetric": True}
    elif change == "method":
        settings["damping"] = 0.1
    else:
        calibration = calibration.flip(1)
    run()
    assert len(list(work.glob("*.json"))) == 2


def test_calibration_does_not_matter_to_methods_without(dense, ids, tmp_path):
    work = tmp_path / "work"
    for calibration in (None, ids[:96].view(3, 32)):
        compare(dense, cells_of([3], [Named("pyramid")], NEAREST), ids, work=work, window=32,
                calibration=calibration, progress=False)  # fmt: skip
    assert len(list(work.glob("*.json"))) == 1


def test_an_interrupted_run_loses_one_cell(dense, ids, tmp_path, monkeypatch):
    work = tmp_path / "work"
    cells = cells_of([2.25, 3.25, 4.25], [Named("pyramid")], NEAREST)
    quantize, runs = run_module.quantize_model, []

    def interrupted(*arguments, **options):
        runs.append(arguments)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return quantize(*arguments, **options)

    monkeypatch.setattr(run_module, "quantize_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(dense, cells, ids, work=work, window=32, progress=False)
    result = compare(dense, cells, ids, work=work, window=32, progress=False)
    assert len(runs) == 4
    assert all("problem" not in row for row in result.rows)


def test_problems_are_rows_and_not_the_end(dense, ids, tmp_path):
    codes = [Named("uniform", {"group": 24}), Named("nf4", {"double": True}), Named("table")]
    result = compare(dense, cells_of([3.8], codes, NEAREST), ids, work=tmp_path / "work",
                     window=32, progress=False)  # fmt: skip
    assert "64 columns are not a multiple of group=24" in result.rows[0]["problem"]
    assert "nf4:double=True has no setting at or below 3.8" in result.rows[1]["problem"]
    assert result.rows[2]["description"] == "table 3 bits"
    table = result.table()
    assert table.count("\n| uniform") == table.count("\n| nf4") == table.count("\n| table") == 1
    columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(columns) == 1, "every line has the same columns"


def test_a_method_that_needs_calibration_says_so(dense, ids, tmp_path):
    cells = cells_of([3], [Named("pyramid")], [Named("gptq")])
    with pytest.raises(ValueError, match="gptq needs calibration: pass a text"):
        compare(dense, cells, ids, work=tmp_path / "work", window=32, progress=False)


def test_no_model(tmp_path, ids):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        compare(tmp_path, [], ids, work=tmp_path / "work")


# --- parts ----------------------------------------------------------------------------------------


def test_damaged_results_are_computed_again(tmp_path):
    store = Store(tmp_path / "a" / "b")
    assert store.load("k") is None
    store.save("k", {"x": 1}, {"y": 2})
    assert store.load("k") == {"y": 2}
    file = tmp_path / "a" / "b" / "k.json"
    for content in (file.read_text()[:-5], "[]", "{}", ""):
        file.write_text(content)
        assert store.load("k") is None


def test_keys_and_digests(tmp_path):
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": 2})
    tokens = torch.arange(6)
    assert digest_of_tokens(tokens) == digest_of_tokens(tokens.to(torch.int32))
    assert digest_of_tokens(tokens) != digest_of_tokens(tokens.view(2, 3))
    (tmp_path / "config.json").write_text("{}")
    before = digest_of_model(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert digest_of_model(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert digest_of_model(tmp_path) != before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_is_that_of_the_work_inside():
    with peak_memory(torch.device("cpu")) as outside:
        pass
    with peak_memory(torch.device("cpu")) as inside:
        torch.ones(50 << 20, dtype=torch.uint8)
    if outside.nbytes is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 45 << 20 < inside.nbytes - outside.nbytes < 80 << 20


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"code": "pyramid", "method": m, "bits_per_weight": b, "kl_divergence": 4.0**-b}
        for m in ("nearest", "gptq")
        for b in (2.25, 3.25)
    ]
    plot([*rows, {"code": "nf4", "method": "nearest", "problem": "none"}], tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<svg" in drawn
    with pytest.raises(ValueError, match="nothing to plot"):
        plot([], tmp_path / "b.svg")


def test_formats_of_plots_are_looked_at_before_the_work(tmp_path):
    pytest.importorskip("matplotlib")
    check_format(tmp_path / "a.PNG")
    check_format(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a\.xyz has an unknown format: expected one of .*png"):
        check_format(tmp_path / "a.xyz")


def test_without_matplotlib_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'pvq\[plot\]'"):
        plot([], tmp_path / "a.svg")


# --- the command ----------------------------------------------------------------------------------


def test_command_line(tmp_path, books, capsys):
    text = tmp_path / "text.txt"
    text.write_text(books[:6000], encoding="utf-8")
    command = ["compare", TINY, "--text", text, "--window", 256, "--tokens", 512, "--work",
               tmp_path / "work", "--bits", 4.25, "--codes", "pyramid", "uniform:group=64",
               "higgs:p=1"]  # fmt: skip
    command = [str(word) for word in command]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "2 non-overlapping windows of 256 tokens" in table
    assert "| pyramid D=16 K=58 gain 4 | nearest | 4.25 | 4.30" in table
    assert "uniform:group=64 | nearest | 4.25 | - " not in table
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "work" / "comparison.json").read_text())
    rows = {row["code"]: row for row in result["rows"]}
    assert rows["pyramid"]["kl_divergence"] < rows["higgs:p=1"]["kl_divergence"] < math.inf


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--codes", "octree"], "code is 'octree'"),
        (["--codes", "uniform:group"], "'group' is not KEY=VALUE"),
        (["--codes", "uniform:group=0"], "group is 0"),
        (["--methods", "magic"], "rounding is 'magic'"),
    ],
)
def test_command_line_refuses(capsys, arguments, text):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "model", "--text", "x", *arguments])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_command_line_says_at_once_that_matplotlib_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["compare", str(TINY), "--text", "x", "--plot", "kl.png"]) == 1
    assert "pip install 'pvq[plot]'" in capsys.readouterr().err
