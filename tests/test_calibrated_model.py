"""Quantizing whole models with calibration: quality, resuming, and what can go wrong."""

import json

import pytest
import torch
from conftest import DATA, TINY
from torch import nn
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig, PVQLinear, layerwise, quantize_model
from pvq.evaluate import evaluate
from pvq.report import LayerRecord
from pvq.rounding.gptq import GPTQ
from pvq.rounding.quantease import QuantEase


@pytest.fixture
def samples():
    return torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))


def codes_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if value.dtype == torch.uint8}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("rounding", [GPTQ(), QuantEase(sweeps=2)])
def test_a_calibrated_model_is_nearer_to_the_dense_one(rounding, tokens):
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    divergence = {}
    for method in ("nearest", rounding):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        calibration = None if method == "nearest" else tokens[1024:3072].view(16, 128)
        report = quantize_model(
            model, PVQConfig(2.25), rounding=method, calibration=calibration,
            skip=["*.layers.[2-3].*"], progress=False,
        )  # fmt: skip
        figures = evaluate(model, tokens[:1024], reference=reference, window=512, progress=False)
        divergence[report.rounding["name"]] = figures.kl_divergence
    assert divergence[rounding.name] < 0.75 * divergence["nearest"]
    assert report.output_error < 0.75 * report.nearest_output_error


def test_records_tell_what_the_layers_saw(small_llama, samples):
    dense, model = small_llama(), small_llama()
    report = quantize_model(
        model, PVQConfig(3.25), rounding="gptq", calibration=samples, progress=False
    )
    assert [layer.rounding for layer in report.layers] == ["gptq"] * 14
    assert {layer.tokens for layer in report.layers} == {6 * 32}
    assert report.rounding == {"name": "gptq", "damping": 0.01, "order": "natural", "passes": 1}
    # The inputs of the first stage are those of the dense model.
    name = "model.layers.0.self_attn.k_proj"
    seen = []
    dense.get_submodule(name).register_forward_hook(lambda _, args, out: seen.append((*args, out)))
    with torch.no_grad():
        for sample in samples:
            dense(sample[None])
    x, y = (torch.cat([call[i][0] for call in seen]) for i in (0, 1))
    (record,) = (layer for layer in report.layers if layer.name == name)
    for error, weight in (
        (record.output_error, model.get_submodule(name).dequantize()),
        (
            record.nearest_output_error,
            pvq.quantize_tensor(dense.get_submodule(name).weight, PVQConfig(3.25)).dequantize(),
        ),
    ):
        expected = (y - x @ weight.T).square().sum() / y.square().sum()
        assert error == pytest.approx(expected.item(), rel=1e-3)
    stored = json.loads(json.dumps(record.to_dict()))
    assert LayerRecord.from_dict(stored) == record
    assert "with gptq" in report.summary()
    assert report.to_dict()["totals"]["output_error"] == report.output_error


def test_a_calibrated_model_holds_codes_only_and_is_as_it_was(small_llama, samples):
    model = small_llama(tie_word_embeddings=True).train()
    model.model.layers[1].eval()
    report = quantize_model(
        *(model, PVQConfig(2.25)),
        rounding="gptq", calibration=samples, embeddings=True, head=True, progress=False,
    )  # fmt: skip
    assert sum(isinstance(module, PVQLinear) for module in model.modules()) == 14
    assert {layer.layout for layer in model.modules() if isinstance(layer, PVQLinear)} == {"stored"}
    assert report.layers[0].kind == "embedding"
    assert report.layers[0].rounding == "nearest"
    assert model.model.layers[0].mlp.up_proj.training
    assert not model.model.layers[1].mlp.up_proj.training
    assert not any(parameter.grad_fn for parameter in model.parameters())
    assert torch.isfinite(model(samples[:1]).logits).all()


def test_the_head_is_calibrated_too(small_llama, samples):
    model = small_llama()
    report = quantize_model(
        model, PVQConfig(3.25), rounding="gptq", calibration=samples, head=True, progress=False
    )
    assert report.layers[-1].name == "lm_head"
    assert report.layers[-1].rounding == "gptq"


def test_a_stopped_run_goes_on_where_it_was(small_llama, samples, tmp_path, monkeypatch):
    options = {"rounding": "gptq", "calibration": samples, "head": True, "progress": False}
    expected = small_llama()
    whole = quantize_model(expected, PVQConfig(2.25), **options)

    calls = []
    original = layerwise.quantize_layer

    def stop_at_the_tenth(target, *arguments):
        calls.append(target.name)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return original(target, *arguments)

    monkeypatch.setattr(layerwise, "quantize_layer", stop_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(small_llama(), PVQConfig(2.25), work=tmp_path / "work", **options)
    (tmp_path / "work" / "model.layers.1.safetensors.part").write_bytes(b"half a layer")
    assert {file.name for file in (tmp_path / "work").iterdir()} == {
        "run.json", "model.layers.0.safetensors", "model.layers.1.safetensors.part",
    }  # fmt: skip

    model = small_llama()
    report = quantize_model(model, PVQConfig(2.25), work=tmp_path / "work", **options)
    assert calls[10:] == [layer.name for layer in whole.layers[7:]], "one layer was lost"
    assert same(codes_of(model), codes_of(expected))
    assert [layer.name for layer in report.layers] == [layer.name for layer in whole.layers]
    for again, once in zip(report.layers, whole.layers, strict=True):
        assert again.output_error == once.output_error

    del calls[:]
    model = small_llama()
    quantize_model(model, PVQConfig(2.25), work=tmp_path / "work", **options)
    assert not calls, "all was there"
    assert same(codes_of(model), codes_of(expected))


def test_data_free_runs_go_on_as_well(small_llama, tmp_path, monkeypatch):
    expected = small_llama()
    quantize_model(expected, progress=False)
    quantize_model(small_llama(), work=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 14
    (tmp_path / "model.layers.0.mlp.up_proj.safetensors").unlink()
    calls = []
    original = layerwise.quantize_layer
    monkeypatch.setattr(
        layerwise, "quantize_layer", lambda t, *a: (calls.append(t.name), original(t, *a))[1]
    )
    model = small_llama()
    quantize_model(model, work=tmp_path, progress=False)
    assert calls == ["model.layers.0.mlp.up_proj"]
    assert same(codes_of(model), codes_of(expected))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"config": PVQConfig(3.25)}, "layers"),
        ({"rounding": GPTQ(damping=0.1)}, "rounding"),
        ({"calibration": torch.zeros(2, 8, dtype=torch.int64)}, "calibration"),
        ({"seed": 1}, "weights"),
    ],
)
def test_a_work_folder_of_another_run_is_refused(small_llama, samples, tmp_path, changes, what):
    options = {"config": PVQConfig(2.25), "rounding": "gptq", "calibration": samples}
    quantize_model(small_llama(), **options, work=tmp_path, progress=False)
    model = small_llama()
    if changes.pop("seed", None):
        nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    with pytest.raises(ValueError, match=f"is of another run, which differs in {what}: delete"):
        quantize_model(model, **{**options, **changes}, work=tmp_path, progress=False)


def test_a_layer_that_is_never_called_is_rounded_to_the_nearest_points():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    model = Half()
    expected = pvq.quantize_tensor(model.unused.weight, PVQConfig(3.25))
    with pytest.warns(UserWarning, match="never reached unused: rounded to the nearest points"):
        report = quantize_model(
            model, PVQConfig(3.25), rounding="gptq", calibration=[torch.randn(99, 64)],
            progress=False,
        )  # fmt: skip
    assert [layer.rounding for layer in report.layers] == ["gptq", "nearest"]
    assert [layer.tokens for layer in report.layers] == [99, None]
    assert torch.equal(model.unused.index, expected.stored["index"])


def test_too_few_tokens_are_reported(small_llama, samples):
    with pytest.warns(UserWarning, match=r"q_proj \(32\), .* and 11 more saw fewer tokens"):
        quantize_model(
            small_llama(), PVQConfig(3.25), rounding="gptq", calibration=samples[:1],
            progress=False,
        )  # fmt: skip


def test_inputs_that_are_not_finite_name_the_layer(small_llama, samples):
    model = small_llama()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_proj: Hessian has NaN"):
        quantize_model(model, PVQConfig(3.25), rounding="gptq", calibration=samples, progress=False)


def test_a_singular_hessian_names_the_layer_and_the_remedy():
    model = nn.Sequential(nn.Linear(64, 16))
    inputs = [torch.ones(5, 64)]
    with pytest.raises(ValueError, match=r"^0: Hessian is singular with damping=0.*larger damping"):
        quantize_model(
            model, PVQConfig(3.25), rounding=GPTQ(damping=0), calibration=inputs, progress=False
        )


def test_missing_calibration_and_unknown_methods_are_refused(small_llama):
    with pytest.raises(ValueError, match="rounding='gptq' needs calibration: pass token ids"):
        quantize_model(small_llama(), rounding="gptq", progress=False)
    with pytest.raises(ValueError, match="rounding is 'gtpq', expected one of 'nearest', 'gptq'"):
        quantize_model(small_llama(), rounding="gtpq", progress=False)
    for wrong in (GPTQ, 3, None):
        with pytest.raises(TypeError, match=r"rounding is .*, expected a rounding method such as"):
            quantize_model(small_llama(), rounding=wrong, progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_layers_can_be_computed_on_a_gpu(small_llama, samples):
    options = {"rounding": "gptq", "calibration": samples, "progress": False}
    here, there = small_llama(), small_llama()
    expected = quantize_model(here, PVQConfig(3.25), **options)
    report = quantize_model(there, PVQConfig(3.25), device="cuda", **options)
    assert {buffer.device.type for buffer in there.buffers()} == {"cpu"}
    assert {parameter.device.type for parameter in there.parameters()} == {"cpu"}
    assert report.output_error == pytest.approx(expected.output_error, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_without_memory_gives_the_result_of_the_cpu(small_llama, samples, monkeypatch):
    original = layerwise.quantize_layer

    def short_of_memory(target, rounding, statistics, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(target, rounding, statistics, device)

    options = {"rounding": "gptq", "calibration": samples, "progress": False}
    model = small_llama()
    monkeypatch.setattr(layerwise, "quantize_layer", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory"):
        report = quantize_model(model, PVQConfig(3.25), device="cuda", **options)
    assert report.output_error < 0.9 * report.nearest_output_error


def test_the_command_line_goes_the_whole_path(tmp_path, capsys):
    from pvq.cli import main

    text = tmp_path / "text.txt"
    text.write_text((DATA / "books.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    out = tmp_path / "out"
    arguments = [
        "quantize", str(TINY), str(out), "--bits", "2.25",
        "--rounding", "gptq:passes=2,damping=0.02", "--calibration", str(text),
        "--samples", "4", "--length", "256",
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounding"]["name"] == "gptq"
    assert (result["rounding"]["passes"], result["rounding"]["damping"]) == (2, 0.02)
    assert result["layers"][0]["tokens"] == 1024
    assert result["totals"]["output_error"] < 0.8 * result["totals"]["nearest_output_error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]
    assert "rounding gptq" in (out / "README.md").read_text()
    model = pvq.load(out)
    assert isinstance(model.model.layers[0].mlp.up_proj, PVQLinear)

    assert main([*arguments, "--overwrite", "--length", "20000"]) == 1
    assert "length is 20000, expected 1 to 1024" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("Call me Ishmael.")
    arguments[arguments.index(str(text))] = str(tmp_path / "short.txt")
    assert main([*arguments, "--overwrite"]) == 1
    assert "less than one window of 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounding", "gptq"], "--rounding gptq needs --calibration FILE"),
        (["--calibration", "a.txt"], "--rounding nearest takes no --calibration"),
        (["--rounding", "x"], "rounding is 'x', expected one of 'nearest'"),
        (["--rounding", "gptq:damp=1"], "unknown setting 'damp' of rounding='gptq'; known are"),
        (["--rounding", "gptq:damping"], "'damping' is not KEY=VALUE"),
        (["--rounding", "gptq:damping=x"], "damping is 'x', expected a number"),
        (["--rounding", "nearest:x=1"], "known are none"),
    ],
)
def test_command_lines_that_make_no_sense_are_refused(tmp_path, capsys, arguments, message):
    from pvq.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["quantize", str(TINY), str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
