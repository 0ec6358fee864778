"""Reconstruction of decoder layers: what is stored is what was tuned, and never worse."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import DATA, TINY
from torch import nn
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig, PVQLinear, layerwise, quantize_model
from pvq.calibration import walk
from pvq.codes.pyramid import PyramidCode
from pvq.codes.registry import make_code
from pvq.evaluate import evaluate
from pvq.report import LayerRecord
from pvq.rounding.awq import AWQ
from pvq.rounding.block import Block, Matrix
from pvq.rounding.gptq import GPTQ
from pvq.rounding.nearest import Nearest
from pvq.rounding.registry import make_rounding, settings_of
from pvq.rounding.tesseraq import TesseraQ
from pvq.tensor import quantize_tensor

# Of few steps on matrices that are easily learnt.
RATE = 0.07

CODES = [
    make_code("overlap", 2, {}),
    make_code("pyramid", 2.25, {}),
    PyramidCode(8, 5, 0, gain_law="beta"),
    make_code("table", 2, {}),
    make_code("table", 3, {}),
    make_code("uniform", 2, {"group": 32}),
    make_code("uniform", 3, {"group": 32, "symmetric": True}),
    make_code("nf4", None, {"block_size": 32}),
    make_code("nf4", None, {"block_size": 32, "double": False}),
    make_code("higgs", 2.25, {}),
    make_code("higgs", 2, {"p": 3}),
    make_code("outliers", 2.25, {}),
    make_code("bands", None, {"pulses": [12, 27], "gain_bits": [2, 3]}),
]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TwoLayers:
    """x -> relu(x A^T) B^T on Gaussian samples, whose matrices are quantized to the nearest."""

    def __init__(self, config: PVQConfig, samples: int = 16, device: str = "cpu") -> None:
        self.x = (gaussian(samples, 40, 64, seed=1) * torch.logspace(-1, 1, 64)).to(device)
        dense = [gaussian(96, 64, seed=2).to(device), gaussian(24, 96, seed=3).to(device)]
        self.weights = [nn.Parameter(w.clone(), requires_grad=False) for w in dense]
        self.targets = [self.output(i) for i in range(samples)]
        self.tensors = [quantize_tensor(w, config) for w in dense]
        self.matrices = []
        for w, weight, codes in zip(dense, self.weights, self.tensors, strict=True):
            weight.data = codes.dequantize()
            c = codes.config
            rotation = (c.hadamard_block, c.seed)
            error = codes.relative_error(w)
            self.matrices.append(Matrix(weight, c.code, codes.stored, *rotation, error))
        self.block = Block(self.matrices, self.output, self.targets)

    def output(self, number: int) -> torch.Tensor:
        a, b = self.weights
        return (self.x[number] @ a.T).relu() @ b.T

    def error(self, stored, samples=slice(None)) -> float:
        """Relative, of codes, in float64."""
        a, b = (
            c.code.dequantize(s, w.shape[1], torch.float32, c.hadamard_block, c.seed).double()
            for c, s, w in zip((t.config for t in self.tensors), stored, self.weights, strict=True)
        )
        out = (self.x[samples].double() @ a.T).relu() @ b.T
        target = torch.stack(self.targets)[samples].double()
        return ((out - target).square().sum() / target.square().sum()).item()


def config_of(code) -> PVQConfig:
    return PVQConfig.from_dict({"code": code.name, **code.choices(), "rotation": code.rotation})


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_a_rounder_of_codes_holds_them(code):
    w = gaussian(7, 96) * torch.logspace(-3, 3, 7)[:, None]
    w[3] = 0
    first = code.rounder(1.1 * w)
    decoded = first.round(w, 0)
    stored = first.stored()
    rounder = code.rounder_of({name: tensor.clone() for name, tensor in stored.items()}, 96)
    assert all(torch.equal(rounder.stored()[name], stored[name]) for name in stored)
    again = rounder.round(decoded, 0)
    assert all(torch.equal(rounder.stored()[name], stored[name]) for name in stored)
    assert torch.allclose(again, code.dequantize(stored, 96, torch.float32), rtol=1e-6, atol=1e-12)
    rounder.round(-decoded, 0)
    changed = rounder.stored()
    assert any(not torch.equal(changed[name], stored[name]) for name in stored)
    kept = [name for name in stored if stored[name].is_floating_point()]
    assert all(torch.equal(changed[name], stored[name]) for name in kept), "scales stay"


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_many_blocks_at_once_are_rounded_as_one_by_one(code):
    w, start = gaussian(5, 96), code.quantize(gaussian(5, 96, seed=1))
    together, apart = code.rounder_of(start, 96), code.rounder_of(start, 96)
    step = apart.step
    expected = [apart.round(w[:, at : at + step], at) for at in range(step, 96, step)]
    assert torch.equal(together.round(w[:, step:], step), torch.cat([w[:, :0], *expected], 1))
    assert all(torch.equal(t, apart.stored()[n]) for n, t in together.stored().items())


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_every_code_gets_nearer_and_stores_what_was_tuned(code):
    layers = TwoLayers(config_of(code))
    given = [t.stored for t in layers.tensors]
    held = [weight.data.clone() for weight in layers.weights]
    result = TesseraQ(steps=60, rate=RATE).reconstruct(layers.block)
    assert result.before == pytest.approx(layers.error(given, [0]), rel=1e-4), "held back"
    assert result.after == pytest.approx(layers.error(result.stored, [0]), rel=1e-4)
    assert result.after < 0.8 * result.before
    assert layers.error(result.stored) < 0.8 * layers.error(given)
    for weight, old in zip(layers.weights, held, strict=True):
        assert torch.equal(weight, old), "the layer is left as it was"
        assert not weight.requires_grad
        assert weight.grad is None
    for stored, given in zip(result.stored, layers.tensors, strict=True):
        layout = given.config.code.layout(*given.shape)
        assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == layout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.describe())
def test_the_gpu_gets_nearer_too(code):
    layers = TwoLayers(config_of(code), device="cuda")
    result = TesseraQ(steps=60, rate=RATE).reconstruct(layers.block)
    assert result.after == pytest.approx(layers.error(result.stored, [0]), rel=1e-3)
    assert result.after < 0.8 * result.before
    assert all(tensor.is_cuda for stored in result.stored for tensor in stored.values())


@pytest.mark.parametrize("bits", [2.25, 3.25, 4.25])
def test_steps_are_as_long_as_the_error_asks_for(bits):
    result = TesseraQ().reconstruct(TwoLayers(PVQConfig(bits)).block)
    assert result.after < 0.5 * result.before
    layers = TwoLayers(PVQConfig(bits))
    other = [replace(matrix, error=100 * matrix.error) for matrix in layers.matrices]
    tenfold = TesseraQ().reconstruct(Block(other, layers.output, layers.targets))
    rates = TesseraQ(rate=10 * TesseraQ().rate, scale_rate=10 * TesseraQ().scale_rate)
    assert rates.reconstruct(layers.block).after == pytest.approx(tenfold.after, rel=1e-5)
    assert tenfold.after > 1.2 * result.after


@torch.no_grad()
def test_samples_that_are_held_back_judge():
    layers = TwoLayers(PVQConfig(2.25))
    learnt = set()

    def output(number: int) -> torch.Tensor:
        if torch.is_grad_enabled():
            learnt.add(number)
        return layers.output(number)

    targets = [layers.targets[0], *(-target for target in layers.targets[1:])]
    method = TesseraQ(steps=60, rate=RATE)
    result = method.reconstruct(Block(layers.matrices, output, targets))
    assert learnt == set(range(1, 16))
    assert result.after == result.before, "nearer to the others' targets, farther from its own"
    for stored, given in zip(result.stored, layers.tensors, strict=True):
        assert all(torch.equal(stored[name], given.stored[name]) for name in stored)
    assert method.reconstruct(layers.block).after < result.after


def test_a_single_sample_is_tuned_on_and_judged_by():
    layers = TwoLayers(PVQConfig(2.25), samples=1)
    result = TesseraQ(steps=40, rate=RATE).reconstruct(layers.block)
    assert result.after < 0.5 * result.before


@pytest.mark.parametrize("samples", [2, 31, 32, 300])
@torch.no_grad()
def test_few_samples_of_many_are_held_back(samples):
    layers = TwoLayers(PVQConfig(2.25), samples=samples)
    runs = []

    def output(number: int) -> torch.Tensor:
        runs.append((number, torch.is_grad_enabled()))
        return layers.output(number)

    method = TesseraQ(steps=samples // 3 + 1, batch=3)
    method.reconstruct(Block(layers.matrices, output, layers.targets))
    judges = {number for number, learns in runs if not learns}
    lessons = [number for number, learns in runs if learns]
    assert len(judges) == {2: 1, 31: 1, 32: 2, 300: 16}[samples]
    assert judges.isdisjoint(lessons)
    assert judges | set(lessons) == set(range(samples))
    assert len(lessons) == 3 * method.steps


def test_a_step_adds_up_the_slopes_of_its_samples():
    """Two equal samples in a step are one of twice the loss, which Adam does not see."""
    one, two = TwoLayers(PVQConfig(2.25)), TwoLayers(PVQConfig(2.25))
    for layers in (one, two):
        layers.x[1:] = layers.x[1].clone()
        layers.targets[1:] = [layers.targets[1]] * 15
    alone = TesseraQ(steps=20, batch=1).reconstruct(one.block)
    pairs = TesseraQ(steps=20, batch=2).reconstruct(two.block)
    assert pairs.after == pytest.approx(alone.after, rel=1e-3)
    assert alone.after < 0.98 * alone.before


def test_it_is_the_same_every_time():
    results = [TesseraQ(steps=10).reconstruct(TwoLayers(PVQConfig(2.25)).block) for _ in range(2)]
    for a, b in zip(results[0].stored, results[1].stored, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_points_and_scales_are_tuned_apart():
    layers = TwoLayers(PVQConfig(2.25))
    given = layers.tensors[0].stored
    scales = TesseraQ(steps=20, rate=0).reconstruct(layers.block)
    points = TesseraQ(steps=40, rate=RATE, scale_rate=0).reconstruct(layers.block)
    assert scales.after < scales.before
    assert points.after < points.before
    assert torch.equal(scales.stored[0]["index"], given["index"])
    assert not torch.equal(scales.stored[0]["row_scale"], given["row_scale"])
    assert not torch.equal(points.stored[0]["index"], given["index"])
    assert torch.equal(points.stored[0]["row_scale"], given["row_scale"])


def test_codes_that_get_no_better_stay():
    layers = TwoLayers(PVQConfig(2.25))
    result = TesseraQ(steps=2, rate=10, scale_rate=10).reconstruct(layers.block)
    assert result.after == result.before
    exact = Block(layers.matrices, layers.output, [layers.output(i) for i in range(16)])
    nothing = TesseraQ(steps=2).reconstruct(exact)
    assert (nothing.before, nothing.after) == (0, 0)
    for outcome in (result, nothing):
        for stored, given in zip(outcome.stored, layers.tensors, strict=True):
            assert all(torch.equal(stored[name], given.stored[name]) for name in stored)


def test_a_matrix_without_a_usable_gradient_keeps_its_codes():
    layers = TwoLayers(PVQConfig(2.25))
    spare = quantize_tensor(gaussian(16, 64, seed=5), PVQConfig(2.25))
    unused = nn.Parameter(spare.dequantize(), requires_grad=False)
    c = spare.config
    rotation = (c.hadamard_block, c.seed)
    matrices = [*layers.matrices, Matrix(unused, c.code, spare.stored, *rotation, 0.1)]

    def output(number: int) -> torch.Tensor:  # the slope of a root is infinite at zero
        return layers.output(number) + (layers.weights[1][0, 0] * 0).sqrt()

    result = TesseraQ(steps=20, rate=RATE).reconstruct(Block(matrices, output, layers.targets))
    assert result.after < result.before, "of the first matrix"
    for stored, given in ((result.stored[1], layers.tensors[1]), (result.stored[2], spare)):
        assert all(torch.equal(stored[name], given.stored[name]) for name in stored)


def test_an_error_leaves_the_layer_as_it_was():
    layers = TwoLayers(PVQConfig(2.25))
    held = [weight.data for weight in layers.weights]
    calls = []

    def output(number: int) -> torch.Tensor:
        calls.append(number)
        if len(calls) == 10:
            raise torch.OutOfMemoryError("out of memory")
        return layers.output(number)

    with pytest.raises(torch.OutOfMemoryError):
        TesseraQ(steps=20).reconstruct(Block(layers.matrices, output, layers.targets))
    for weight, old in zip(layers.weights, held, strict=True):
        assert weight.data is old or torch.equal(weight, old)
        assert not weight.requires_grad


@torch.no_grad()
def test_targets_are_the_outputs_of_the_dense_model(small_llama):
    model, dense = small_llama(), small_llama()
    samples = torch.randint(0, 80, (3, 24), generator=torch.Generator().manual_seed(0))
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]
    hidden = [dense.model(s[None], output_hidden_states=True).hidden_states for s in samples]
    seen = 0
    for stage in walk(
        *(model, names, samples),
        device=torch.device("cpu"),
        restore=lambda unit, inside: False,
        leave=lambda unit: None,
        targets=True,
    ):
        if stage.unit == "model.layers.0":  # behind the last layer, transformers adds the norm
            for target, states in zip(stage.targets, hidden, strict=True):
                assert torch.allclose(target, states[1], atol=1e-6)
            seen += 1
            for name in stage.names:
                model.get_submodule(name).weight.mul_(0.5)
        elif stage.last:
            out = torch.cat(list(stage.targets))
            expected = torch.cat([states[-1] for states in hidden])
            assert torch.allclose(dense.model.norm(out), expected, atol=1e-5)
            assert not torch.allclose(stage.output(0, torch.device("cpu")), out[:1], atol=1e-2)
            seen += 1
    assert seen == 5


def test_a_model_is_nearer_to_the_dense_one(tokens):
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    options = {"skip": ["*.layers.[2-3].*"], "progress": False}
    options["calibration"] = tokens[1024:4096].view(24, 128)
    divergence = {}
    for method in (GPTQ(), TesseraQ(steps=100)):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        report = quantize_model(model, PVQConfig(2.25), rounding=method, **options)
        figures = evaluate(model, tokens[:1024], reference=reference, window=512, progress=False)
        divergence[method.name] = figures.kl_divergence
    assert divergence["tesseraq"] < 0.95 * divergence["gptq"]
    assert report.block_error < 0.9 * report.start_block_error
    assert report.output_error is None
    assert "with tesseraq" in report.summary()
    assert "with gptq" in report.summary()
    assert {layer.rounding for layer in report.layers} == {"tesseraq"}
    record = report.layers[0]
    assert LayerRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    dense = reference.get_submodule(record.name).weight
    decoded = model.get_submodule(record.name).dequantize()
    assert record.relative_error == pytest.approx(
        ((dense - decoded).square().sum() / dense.square().sum()).item(), rel=1e-4
    )


def test_a_stopped_run_goes_on_where_it_was(small_llama, tmp_path, monkeypatch):
    samples = torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))
    options = {"rounding": TesseraQ(steps=5), "calibration": samples, "progress": False}
    expected = small_llama()
    quantize_model(expected, PVQConfig(2.25), **options)
    original = layerwise.quantize_layer

    def stop_in_the_second_layer(target, *arguments):
        if "layers.1.mlp" in target.name:
            raise KeyboardInterrupt
        return original(target, *arguments)

    monkeypatch.setattr(layerwise, "quantize_layer", stop_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(small_llama(), PVQConfig(2.25), work=tmp_path, **options)
    monkeypatch.setattr(layerwise, "quantize_layer", original)
    model = small_llama()
    report = quantize_model(model, PVQConfig(2.25), work=tmp_path, **options)
    assert report.block_error is not None
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_it_starts_from_any_method_and_goes_with_refits(small_llama):
    samples = torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))
    for start in ("nearest", "quantease", "awq"):
        method = make_rounding("tesseraq", start=start, steps=2)
        report = quantize_model(
            small_llama(), PVQConfig(2.25), rounding=method, calibration=samples,
            refit=start != "nearest", progress=False,
        )  # fmt: skip
        assert report.rounding["start"]["name"] == start
        assert report.block_error <= report.start_block_error


def test_errors_are_those_of_the_matrices_that_the_codes_stand_for(small_llama):
    """Scales move from columns of one layer into rows of another that is quantized already."""

    def make() -> nn.Module:
        model = small_llama(num_key_value_heads=4)
        generator = torch.Generator().manual_seed(0)
        for layer in model.model.layers:
            for linear in (layer.self_attn.v_proj, layer.mlp.up_proj):  # rows of unequal size
                size = torch.logspace(-1, 1, linear.out_features)
                order = torch.randperm(len(size), generator=generator)
                linear.weight.data *= size[order][:, None]
        return model

    samples = torch.randint(0, 80, (8, 32), generator=torch.Generator().manual_seed(0))
    dense, model = make(), make()
    report = quantize_model(
        *(model, PVQConfig(3.25, rotation="none")),
        rounding=TesseraQ(steps=2, start=AWQ()), calibration=samples, progress=False,
    )  # fmt: skip
    errors = {layer.name: layer.relative_error for layer in report.layers}
    for i, layer in enumerate(model.model.layers):
        for norm, name in (
            ("input_layernorm", "self_attn.v_proj"),
            ("post_attention_layernorm", "mlp.up_proj"),
        ):
            before = dense.model.layers[i]
            cols = before.get_submodule(norm).weight / layer.get_submodule(norm).weight
            w = (before.get_submodule(name).weight * cols).detach()
            decoded = layer.get_submodule(name).dequantize()
            rows = (w.norm(dim=1) / decoded.norm(dim=1)).log2().round().exp2()
            assert rows.unique().numel() > 1, "rows were divided"
            w /= rows[:, None]
            expected = ((w - decoded).square().sum() / w.square().sum()).item()
            assert expected < 0.05
            assert errors[f"model.layers.{i}.{name}"] == pytest.approx(expected, rel=1e-4)


def test_inference_mode_is_refused_before_anything_is_changed(small_llama):
    model = small_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    samples = torch.randint(0, 80, (4, 32), generator=torch.Generator().manual_seed(0))
    options = {"rounding": TesseraQ(steps=2), "calibration": samples, "progress": False}
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"'tesseraq' needs gradients, .* outside of it"),
    ):
        quantize_model(model, PVQConfig(2.25), **options)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    with torch.no_grad():
        report = quantize_model(model, PVQConfig(2.25), **options)
    assert report.block_error <= report.start_block_error


def test_a_plain_module_has_no_decoder_layers():
    torch.manual_seed(0)
    model, alone = (nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)) for _ in range(2))
    alone.load_state_dict(model.state_dict())
    options = {"calibration": list(gaussian(4, 16, 32)), "progress": False}
    with pytest.warns(UserWarning, match="model is rounded by gptq alone"):
        quantize_model(model, PVQConfig(2.25), rounding="tesseraq", **options)
    quantize_model(alone, PVQConfig(2.25), rounding="gptq", **options)
    expected = alone.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())


def test_alone_a_matrix_is_rounded_by_the_start():
    w, h = gaussian(8, 64), torch.eye(64)
    config = PVQConfig(2.25)
    tuned = quantize_tensor(w, config, rounding=TesseraQ(start=Nearest()), hessian=h)
    assert torch.equal(tuned.dequantize(), quantize_tensor(w, config).dequantize())


def test_the_command_line_takes_it(tmp_path, capsys):
    from pvq.cli import main

    text = tmp_path / "text.txt"
    text.write_text((DATA / "books.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    arguments = [
        "quantize", str(TINY), str(tmp_path / "out"), "--bits", "2.25", "--skip", "*.[1-9].*",
        "--rounding", "tesseraq:steps=3,start=nearest", "--calibration", str(text),
        "--samples", "4", "--length", "128",
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounding"]["start"] == {"name": "nearest"}
    assert result["totals"]["block_error"] <= result["totals"]["start_block_error"]
    model = pvq.load(tmp_path / "out")
    assert isinstance(model.model.layers[0].mlp.up_proj, PVQLinear)


def test_settings_are_told_in_full():
    assert settings_of(TesseraQ(steps=7)) == {
        "name": "tesseraq",
        "steps": 7,
        "batch": TesseraQ().batch,
        "rate": TesseraQ().rate,
        "scale_rate": TesseraQ().scale_rate,
        "start": settings_of(GPTQ()),
    }


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0, expected"),
        ({"steps": 1.5}, TypeError, "steps is 1.5"),
        ({"batch": 0}, ValueError, "batch is 0, expected"),
        ({"rate": -0.1}, ValueError, "rate is -0.1, expected 0 to 10"),
        ({"scale_rate": 11}, ValueError, "scale_rate is 11, expected 0 to 10"),
        ({"start": "tesseraq"}, ValueError, "start is 'tesseraq' itself"),
        ({"start": "x"}, ValueError, "rounding is 'x', expected one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        make_rounding("tesseraq", **settings)


def test_a_start_is_a_method_and_no_name():
    with pytest.raises(TypeError, match="start is 'gptq', expected a rounding method such as GPTQ"):
        TesseraQ(start="gptq")
