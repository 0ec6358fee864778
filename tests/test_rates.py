"""Rates: sensitivities against the theory, the knapsack against brute force, budgets, commands."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import DATA, TINY
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import pvq
from pvq import PVQConfig
from pvq.cli import main
from pvq.evaluate import tokenize
from pvq.plan import make_plan
from pvq.rates import Budget, Sensitivity, allocate, parse_budget
from pvq.rates.allocate import gaussian_error
from pvq.rates.knapsack import choose
from pvq.rates.sensitivity import measure_targets, random_tokens

LINEARS = 14  # of the small model


@pytest.fixture
def sensitivity(small_llama) -> Sensitivity:
    """Made up: the later a layer, the more it matters."""
    names = [target.name for target in make_plan(small_llama(), PVQConfig()).targets]
    layers = {name: (0.01 * 1.5**i,) for i, name in enumerate(names)}
    return Sensitivity("kl", "nothing", 1, (0.01,), layers, dict.fromkeys(names, 0.0))


# --- the knapsack ---------------------------------------------------------------------------------


def brute_force(costs, losses, budget) -> float:
    best = np.inf
    for choice in itertools.product(*(range(len(cost)) for cost in costs)):
        if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= budget:
            best = min(best, sum(v[i] for v, i in zip(losses, choice, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_optimal(seed):
    rng = np.random.default_rng(seed)
    items = rng.integers(1, 6)
    costs = [rng.integers(1, 60, rng.integers(1, 6)).astype(np.int64) for _ in range(items)]
    losses = [rng.random(len(cost)) for cost in costs]
    least, most = sum(c.min() for c in costs), sum(c.max() for c in costs)
    for budget in {least, (least + most) // 2, most - 1, most, most + 100}:
        if budget < least:
            continue
        chosen, unit = choose(costs, losses, int(budget))
        assert unit == 1
        assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= budget
        got = sum(v[i] for v, i in zip(losses, chosen, strict=True))
        assert got == pytest.approx(brute_force(costs, losses, budget), abs=1e-12)


def test_a_common_divisor_of_the_costs_is_the_unit():
    costs = [np.array([1024, 3072, 5120])] * 3
    losses = [np.array([9.0, 3.0, 1.0])] * 3
    chosen, unit = choose(costs, losses, 12_000)
    assert unit == 2048
    assert sum(losses[0][i] for i in chosen) == brute_force(costs, losses, 12_000)


@pytest.mark.parametrize("units", [10, 50, 200])
def test_a_coarse_budget_is_kept_and_loses_at_most_a_unit_an_item(units):
    rng = np.random.default_rng(units)
    costs = [np.sort(rng.integers(1, 10_000, 8)) for _ in range(6)]
    losses = [np.sort(rng.random(8))[::-1].copy() for _ in range(6)]
    budget = int(sum(c.min() for c in costs) * 2)
    chosen, unit = choose(costs, losses, budget, max_units=units)
    spent = sum(int(c[i]) for c, i in zip(costs, chosen, strict=True))
    assert spent <= budget
    got = sum(v[i] for v, i in zip(losses, chosen, strict=True))
    exact, _ = choose(costs, losses, budget, max_units=1 << 20)
    best = sum(v[i] for v, i in zip(losses, exact, strict=True))
    tighter = max(budget - 6 * unit, sum(int(c.min()) for c in costs))
    less, _ = choose(costs, losses, tighter, max_units=1 << 20)
    bound = sum(v[i] for v, i in zip(losses, less, strict=True))
    assert best - 1e-12 <= got <= bound + 1e-12


def test_nothing_is_left_that_would_buy_something():
    costs = [np.array([10, 11, 12, 13])] * 4
    losses = [np.array([4.0, 3.0, 2.0, 1.0])] * 4
    chosen, _ = choose(costs, losses, 52, max_units=3)
    assert chosen == [3, 3, 3, 3]


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3.25bpw", Budget(bits=3.25)),
        (" 3 bpw ", Budget(bits=3.0)),
        ("2.5b/w", Budget(bits=2.5)),
        ("4.7GB", Budget(nbytes=4_700_000_000)),
        ("1.5 GiB", Budget(nbytes=3 << 29)),
        ("850MB", Budget(nbytes=850_000_000)),
        ("123456B", Budget(nbytes=123_456)),
    ],
)
def test_budgets_as_a_person_says_them(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "3.25", "GB", "3.25 bits", "-3GB", "0bpw", "1.2.3GB", "3gb"])
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match=r"expected a rate such as '3\.25bpw' or a size"):
        parse_budget(text)


def test_bytes_that_codes_may_take():
    assert Budget(bits=3.25).for_codes(1000, 77) == 406
    assert Budget(nbytes=1000).for_codes(5, 300) == 700


# --- sensitivity ----------------------------------------------------------------------------------


def test_noise_costs_what_the_slopes_predict(small_llama):
    """The linearity theorem itself: noise in all layers at once adds up."""
    model = small_llama()
    targets = make_plan(model, PVQConfig()).targets
    tokens = random_tokens(80, 6, 48)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sensitivity = measure_targets(model, targets, tokens, levels=(0.02,), progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert sensitivity.tokens == 6 * 47
    assert set(sensitivity.layers) == {target.name for target in targets}
    assert len(targets) == LINEARS
    predicted = sum(sensitivity.slope(target.name) * 0.02 for target in targets)
    measured, source = 0.0, torch.Generator().manual_seed(9)
    with torch.no_grad():
        for ids in tokens:
            clean = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
            for target in targets:
                w = target.module.weight.data
                noise = torch.randn(w.shape, generator=source)
                target.module.weight.data = w + noise * (0.02**0.5 * w.norm() / noise.norm())
            noisy = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
            measured += float((clean.exp() * (clean - noisy)).sum(-1).mean()) / len(tokens)
            for target in targets:
                target.module.weight.data = before[f"{target.name}.weight"].clone()
    assert measured == pytest.approx(predicted, rel=0.15)


def test_public_names_are_enough(small_llama):
    """What pvq exports plans by itself, and what it measures is allocated and quantized."""
    model, tokens = small_llama(), random_tokens(80, 1, 16)
    got = pvq.measure_sensitivity(model, tokens, progress=False)
    targets = make_plan(model, PVQConfig()).targets
    assert got == measure_targets(model, targets, tokens, progress=False)
    some = pvq.measure_sensitivity(model, tokens, skip=["*.mlp.*"], head=True, progress=False)
    attention = {name for name in got.layers if ".self_attn." in name}
    assert set(some.layers) == {*attention, "lm_head"}
    overrides = pvq.allocate(model, "3.5bpw", got).overrides
    report = pvq.quantize_model(model, overrides=overrides, progress=False)
    assert {layer.name: layer.config for layer in report.layers} == overrides
    for arguments, text in (
        ((model, "text.txt"), "tokens is a str, expected a tensor"),
        (("folder", tokens), "model is the name 'folder'"),
    ):
        with pytest.raises(TypeError, match=text):
            pvq.measure_sensitivity(*arguments, progress=False)


def test_a_shrunk_layer_by_hand(small_llama):
    model = small_llama()
    targets = make_plan(model, PVQConfig()).targets[5:6]
    tokens = random_tokens(80, 2, 20, seed=4)
    got = measure_targets(model, targets, tokens, progress=False).shrunk[targets[0].name]
    w, expected = targets[0].module.weight.data, 0.0
    for ids in tokens:
        both = []
        for factor in (1.0, 0.9):
            targets[0].module.weight.data = w * factor
            with torch.no_grad():
                both.append(model(ids[None]).logits[0, :-1].double().log_softmax(-1))
        expected += float((both[0].exp() * (both[0] - both[1])).sum(-1).mean()) / 2
    assert got == pytest.approx(expected, rel=0.02)


def test_codes_shrink_as_the_model_of_the_loss_says():
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(5))
    for bits in (1.25, 2.25, 3.25):
        tensor = pvq.quantize_tensor(w, PVQConfig(bits))
        back, error = tensor.dequantize(), tensor.relative_error(w)
        kept = float((w * back).sum() / w.square().sum())
        assert kept == pytest.approx(1 - error, abs=0.03 * error + 1e-3)


def test_log_likelihood_by_hand(small_llama):
    model = small_llama()
    targets = make_plan(model, PVQConfig()).targets[:1]
    tokens = random_tokens(80, 1, 20, seed=4)
    got = measure_targets(
        model, targets, tokens, loss="nll", levels=(0.05,), seed=7, progress=False
    )
    w = targets[0].module.weight.data
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(7))
    noise *= 0.05**0.5 * w.norm() / noise.norm()
    losses = []
    for change in (0, noise, -noise):
        targets[0].module.weight.data = w + change
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].double()
        losses.append(float(nn.functional.cross_entropy(logits, tokens[0, 1:])))
    expected = (losses[1] + losses[2]) / 2 - losses[0]
    assert got.layers[targets[0].name][0] == pytest.approx(expected, rel=0.02, abs=1e-7)


def test_the_slope_is_that_of_least_squares_through_the_origin():
    sensitivity = Sensitivity("kl", "", 1, (1.0, 2.0), {"a": (3.0, 5.0)}, {"a": 0.03})
    assert sensitivity.slope("a") == pytest.approx((1 * 3 + 2 * 5) / 5)
    assert sensitivity.increase("a", 0.5) == pytest.approx(2.6 * 0.25 + 0.03 * 25)
    assert sensitivity.predict({"a": 0.5}) == sensitivity.increase("a", 0.5)
    assert Sensitivity("kl", "", 1, (1.0,), {"a": (-1.0,)}, {"a": -1.0}).increase("a", 0.5) == 0
    with pytest.raises(ValueError, match="b is missing, 1 of 1"):
        sensitivity.predict({"b": 1.0})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": "mse"}, "loss is 'mse', expected one of 'kl', 'nll'"),
        ({"levels": ()}, r"levels are \[\]"),
        ({"levels": (0.0,)}, r"levels are \[0\.0\], expected numbers above 0"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens have shape \[3\]"),
        ({"tokens": torch.zeros(3, 1, dtype=torch.int64)}, r"\[3, 1\], expected \[windows, 2"),
    ],
)
def test_sensitivity_refuses(small_llama, arguments, text):
    model = small_llama()
    values = {"tokens": random_tokens(80, 1, 8), **arguments}
    with pytest.raises(ValueError, match=text):
        measure_targets(
            model, make_plan(model, PVQConfig()).targets, values.pop("tokens"), **values
        )


@pytest.mark.parametrize("loss", ["kl", "nll"])
def test_noise_that_makes_float16_overflow_is_refused(small_llama, loss):
    """A layer with NaN would seem to cost nothing, and get the least rate."""
    model, tokens = small_llama(), random_tokens(80, 2, 32)
    mlp, largest = model.model.layers[1].mlp, []
    mlp.gate_proj.weight.data *= 10
    mlp.down_proj.weight.data /= 100
    handle = mlp.down_proj.register_forward_pre_hook(lambda _, args: largest.append(args[0]))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    mlp.up_proj.weight.data *= 60_000 / largest[0].abs().max()  # near the end of float16
    options = {"loss": loss, "levels": (0.02, 1.0), "progress": False}
    name = "model.layers.1.mlp.up_proj"
    for dtype in (torch.float32, torch.float16):
        model = model.to(dtype)
        targets = [t for t in make_plan(model, PVQConfig()).targets if t.name == name]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            assert torch.isfinite(model(tokens).logits).all(), "without noise"
        if dtype == torch.float32:
            increases = measure_targets(model, targets, tokens, **options).layers[name]
            assert all(np.isfinite(increases))
            continue
        with pytest.raises(
            ValueError,
            match=rf"^{loss} of window 0 with noise of 1 in {name} is nan in torch\.float16: "
            r"measure in float32 \(--dtype float32\)$",
        ):
            measure_targets(model, targets, tokens, **options)
        after = model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_model_that_overflows_without_noise_is_refused(small_llama):
    model = small_llama()
    model.lm_head.weight.data[3, 5] = torch.inf
    targets = make_plan(model, PVQConfig()).targets
    for dtype, end in ((torch.float32, "$"), (torch.bfloat16, ": measure in float32")):
        text = rf"^kl of window 0 without noise is nan in {dtype}{end}"
        with pytest.raises(ValueError, match=text):
            measure_targets(model.to(dtype), targets, random_tokens(80, 1, 8), progress=False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layers": {"a": (1.0, float("nan"))}}, r"with noise of 0\.5 in a is nan.*in float32"),
        ({"layers": {"a": (float("inf"), 1.0)}}, r"with noise of 0\.25 in a is inf.*in float32"),
        ({"shrunk": {"a": float("nan")}}, "with a a tenth smaller is nan, expected a finite"),
        ({"levels": (0.25, float("nan"))}, r"levels are \[0\.25, nan\], expected finite"),
        ({"levels": (0.25, float("inf"))}, r"levels are \[0\.25, inf\]"),
        ({"levels": (0.0, 0.5)}, r"levels are \[0\.0, 0\.5\], expected finite numbers above 0"),
        ({"levels": (-0.25, 0.5)}, r"levels are \[-0\.25, 0\.5\]"),
        ({"levels": (), "layers": {"a": ()}}, r"levels are \[\]"),
        ({"tokens": 0}, "tokens is 0, expected 1 or more"),
    ],
)
def test_sensitivities_that_mean_nothing_are_refused(tmp_path, changes, text):
    good = {
        "loss": "kl",
        "source": "nothing",
        "tokens": 1,
        "levels": (0.25, 0.5),
        "layers": {"a": (1.0, -1e-9)},  # a rounding error
        "shrunk": {"a": -1e-9},
    }
    file = tmp_path / "layers.json"
    Sensitivity(**good).save(file)
    assert Sensitivity.load(file) == Sensitivity(**good)
    with pytest.raises(ValueError, match=text):
        Sensitivity(**{**good, **changes})
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=rf"layers\.json cannot be used: .*{text}"):
        Sensitivity.load(file)


def test_sensitivities_in_files(tmp_path, sensitivity):
    file = tmp_path / "layers.json"
    sensitivity.save(file)
    assert Sensitivity.load(file) == sensitivity
    stored = json.loads(file.read_text())
    for change, text in (
        ({"format_version": 2}, "upgrade pvq"),
        ({"levels": [0.1, 0.2]}, "one value for each level"),
        ({"layers": 3}, "no file of sensitivities"),
    ):
        file.write_text(json.dumps({**stored, **change}))
        with pytest.raises(ValueError, match=text):
            Sensitivity.load(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="no file of sensitivities"):
        Sensitivity.load(file)


# --- allocation -----------------------------------------------------------------------------------


def test_errors_of_settings_are_those_of_gaussian_matrices():
    w = torch.randn(512, 256, generator=torch.Generator().manual_seed(5))
    for config in (PVQConfig(2.25), PVQConfig(3.25, seed=4), PVQConfig(3, code="table")):
        expected = pvq.quantize_tensor(w, config).relative_error(w)
        assert gaussian_error(config, 256) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", [2.5, 3.25, 4.0])
def test_a_model_in_exactly_so_many_bits(small_llama, sensitivity, bits):
    model = small_llama()
    allocation = allocate(model, f"{bits}bpw", sensitivity)
    assert bits - 0.02 < allocation.bits_per_weight <= bits
    report = pvq.quantize_model(model, overrides=allocation.overrides, progress=False)
    assert report.bits_per_weight == pytest.approx(allocation.bits_per_weight, abs=1e-12)
    assert report.nbytes == allocation.nbytes
    assert [layer.nbytes for layer in report.layers] == [x.nbytes for x in allocation.layers]
    assert [layer.config for layer in report.layers] == [x.config for x in allocation.layers]
    rates = {layer.name: layer.bits_per_weight for layer in report.layers}
    same_shape = [rates[f"model.layers.{i}.mlp.up_proj"] for i in (0, 1)]
    assert same_shape[0] < same_shape[1], "what matters more gets more"
    errors = {layer.name: layer.relative_error for layer in report.layers}
    assert sensitivity.predict(errors) == pytest.approx(allocation.predicted, rel=0.15)
    assert allocation.predicted < allocation.uniform


def test_a_size_of_the_whole_model(small_llama, sensitivity):
    model = small_llama()
    allocation = allocate(model, "70kB", sensitivity)
    report = pvq.quantize_model(model, overrides=allocation.overrides, progress=False)
    assert 69_500 < report.nbytes == allocation.nbytes <= 70_000


@pytest.mark.parametrize(
    "config",
    [PVQConfig(4, code="uniform", group=32), PVQConfig(4, code="higgs", p=1), PVQConfig(dim=8)],
    ids=lambda config: config.code.describe(),
)
def test_other_codes_and_their_choices(small_llama, sensitivity, config):
    allocation = allocate(small_llama(), "3.9bpw", sensitivity, config)
    assert allocation.bits_per_weight <= 3.9
    for layer in allocation.layers:
        assert layer.config.code.family() == config.code.family()
        assert layer.config.rotation == config.rotation
    assert len({layer.config.bits for layer in allocation.layers}) > 1


def test_equal_sensitivities_of_equal_weights_give_nearly_one_rate(small_llama):
    names = [target.name for target in make_plan(small_llama(), PVQConfig()).targets]
    shapes = {
        t.name: t.module.weight.numel() for t in make_plan(small_llama(), PVQConfig()).targets
    }
    layers = {name: (0.01 * shapes[name] / 4096,) for name in names}
    allocation = allocate(
        small_llama(),
        "3.5bpw",
        Sensitivity("kl", "", 1, (0.01,), layers, dict.fromkeys(names, 0.0)),
    )
    rates = [layer.config.bits for layer in allocation.layers]
    assert max(rates) - min(rates) <= 0.25


def test_layers_named_by_overrides_keep_what_they_say(small_llama, sensitivity):
    model, name = small_llama(), "model.layers.0.mlp.up_proj"
    allocation = allocate(
        *(model, "3.25bpw", sensitivity), overrides={"*0.mlp.up_proj": {"bits": 6.0}}
    )
    assert allocation.overrides[name].bits == 6.0
    assert allocation.bits_per_weight <= 3.25
    assert allocation.uniform is None


def test_a_budget_that_cannot_be_met_names_the_nearest_that_can(small_llama, sensitivity):
    model = small_llama()
    with pytest.raises(ValueError, match=r"cannot be met: the least settings take") as error:
        allocate(model, "1bpw", sensitivity)
    least = str(error.value).split("least settings take ")[1].split(" bits")[0]
    allocation = allocate(model, f"{float(least) + 1e-4}bpw", sensitivity)
    assert {layer.config.bits for layer in allocation.layers} == {1.0}
    with pytest.raises(ValueError, match="cannot be met"):
        allocate(model, "1kB", sensitivity)
    rich = allocate(model, "1GB", sensitivity)
    assert {layer.config.bits for layer in rich.layers} == {8.0}


def test_allocation_refuses(small_llama, sensitivity):
    model = small_llama()
    with pytest.raises(ValueError, match="lm_head is missing, 1 of 15 are"):
        allocate(model, "3bpw", sensitivity, head=True)
    with pytest.raises(ValueError, match="no setting from 5 to 6 bits"):
        allocate(model, "3bpw", sensitivity, PVQConfig(3, code="table"), low=5, high=6)


# --- commands -------------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    file, out = tmp_path / "layers.json", tmp_path / "out"
    command = ["sensitivity", TINY, file, "--windows", 1, "--length", 48, "--levels", 0.02]
    assert main([str(word) for word in command]) == 0
    assert "random tokens" in capsys.readouterr().out
    sensitivity = Sensitivity.load(file)
    assert len(sensitivity.layers) == 28
    assert all(sensitivity.slope(name) > 0 for name in sensitivity.layers)
    command = ["quantize", TINY, out, "--budget", "3.25bpw", "--sensitivity", file]
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    assert "predicted kl" in printed
    assert "from errors" in printed
    assert "budget          3.24" in printed or "budget          3.25" in printed
    model = AutoModelForCausalLM.from_pretrained(out)
    assert len({module.config.bits for module in model.modules() if hasattr(module, "config")
                and isinstance(module, pvq.PVQLinear)}) > 3  # fmt: skip


def test_sensitivities_of_the_windows_that_are_scored(tmp_path, monkeypatch):
    """The first tokens of a text, all of them, as ``pvq eval --tokens`` takes them."""
    seen = []

    def measure(model, tokens, **options):
        seen.append(tokens)
        return Sensitivity("kl", options["source"], 1, (1.0,), {"a": (1.0,)}, {"a": 1.0})

    monkeypatch.setattr("pvq.cli.sensitivity.measure_sensitivity", measure)
    file = tmp_path / "layers.json"
    command = ["sensitivity", TINY, file, "--text", DATA / "books.txt", "--tokens", 150]
    command += ["--windows", 3, "--length", 48]
    assert main([str(word) for word in command]) == 0
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenize(tokenizer, (DATA / "books.txt").read_text(encoding="utf-8"))
    assert torch.equal(seen[0], ids[:144].view(3, 48))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["quantize", "m", "o", "--budget", "3bpw"], "--budget and --sensitivity FILE go together"),
        (["quantize", "m", "o", "--sensitivity", "f"], "go together"),
        (["quantize", "m", "o", "--budget", "3bpw", "--bits", "3"], "not allowed with"),
        (["sensitivity", "m", "o", "--loss", "nll"], "--loss nll needs --text"),
        (["sensitivity", "m", "o", "--tokens", "9"], "--tokens needs --text"),
    ],
)
def test_command_line_refuses(capsys, arguments, text):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
