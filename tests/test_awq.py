"""Column scales: exact where they are absorbed, better for the output, kept when a run stops."""

from contextlib import nullcontext

import pytest
import torch
from conftest import TINY
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from pvq import PVQConfig, PVQLinear, layerwise, quantize_model, quantize_tensor
from pvq.calibration import walk
from pvq.calibration.absorb import divide_outputs, find_source, scale_columns
from pvq.rounding.awq import AWQ
from pvq.rounding.gptq import GPTQ
from pvq.rounding.nearest import Nearest
from pvq.rounding.quantease import QuantEase
from pvq.rounding.registry import make_rounding
from pvq.rounding.tesseraq import TesseraQ

SIZES = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {**SIZES, "intermediate_size": 96}


def llama(heads: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**GATED, num_key_value_heads=heads))
    for layer in model.model.layers:  # inputs of very unequal size, as trained models have them
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data = torch.logspace(-1.5, 1.5, 64)[torch.randperm(64)]
    return model.eval()


@pytest.fixture
def samples():
    return torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))


def sources_of(model: nn.Module, samples: torch.Tensor) -> dict[str, str | None]:
    """What makes the input of each stage of the first layer."""
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n]
    sources = {}
    with torch.no_grad():
        for stage in walk(
            *(model, names, samples),
            device=torch.device("cpu"),
            restore=lambda unit, inside: False,
            leave=lambda unit: None,
        ):
            before = [p.clone() for p in model.parameters()]
            consumers = {name: model.get_submodule(name) for name in stage.names}
            modules = {n: m for n, m in stage.layer.named_modules() if n}
            tokens = next(iter(stage.statistics.values())).tokens
            assert tokens == samples.numel()
            probed = set()

            def probe(number, stage=stage, probed=probed):
                probed.add(number)
                return stage.probe(number)

            found = find_source(modules, consumers, probe, stage.samples, tokens)
            assert all(map(torch.equal, before, model.parameters())), "nothing is changed"
            assert probed == {0}, "one sample is enough where all tokens go through all layers"
            sources.setdefault(stage.names[0].rpartition(".")[2], found)
    return sources


def test_sources_are_found_without_knowing_the_architecture(samples):
    expected = {
        "q_proj": "input_layernorm",
        "o_proj": "self_attn.v_proj",
        "gate_proj": "post_attention_layernorm",
        "down_proj": "mlp.up_proj",
    }
    assert sources_of(llama(), samples) == expected
    # Queries share values: one value channel reaches several inputs of o_proj.
    assert sources_of(llama(heads=2), samples) == {**expected, "o_proj": None}
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**GATED, num_key_value_heads=4, head_dim=16)).eval()
    assert sources_of(gemma, samples) == {
        "q_proj": None, "o_proj": "self_attn.v_proj", "gate_proj": None, "down_proj": "mlp.up_proj",
    }, "a norm that multiplies by 1 + weight cannot divide by a power of two"  # fmt: skip
    opt = OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64)).eval()
    assert sources_of(opt, samples) == {
        "q_proj": "self_attn_layer_norm", "out_proj": "self_attn.v_proj",
        "fc1": "final_layer_norm", "fc2": "fc1",
    }  # fmt: skip


def test_an_input_that_others_read_too_is_left_alone():
    class Layer(nn.Module):
        def __init__(self, shared: bool):
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.a, self.other = nn.Linear(16, 8), nn.Linear(16, 8)
            self.shared = shared

        def forward(self, x):
            x = self.norm(x)
            return self.a(x) + self.other(x if self.shared else x.sign())

    torch.manual_seed(0)
    x = torch.randn(5, 16)
    for shared in (False, True):
        layer = Layer(shared)
        modules = {name: module for name, module in layer.named_modules() if name}
        probe = lambda _, layer=layer: layer(x).detach()  # noqa: E731
        found = find_source(modules, {"a": layer.a}, probe, 1, 5)
        assert found == (None if shared else "norm")


class Experts(nn.Module):
    """A norm, then for each token x the expert number int(x[0])."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))

    def forward(self, x):
        out = torch.zeros(len(x), 24)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows = x[:, 0].int() == number
            out[rows] = down(up(self.norm(x[rows])))
        return out


def test_a_sample_that_does_not_reach_an_expert_says_nothing_of_its_source():
    torch.manual_seed(0)
    layer = Experts()
    modules = {name: module for name, module in layer.named_modules() if name}
    before = [parameter.clone() for parameter in layer.parameters()]

    def source(experts: list[list[int]], consumer: str) -> str | None:
        """Of one consumer, where the tokens of each sample go to these experts."""
        xs = torch.randn(len(experts), len(experts[0]), 16)
        xs[..., 0] = torch.tensor(experts) + 0.5
        tokens = sum(sample.count(int(consumer[-1])) for sample in experts)
        consumers = {consumer: layer.get_submodule(consumer)}
        probe = lambda number: layer(xs[number]).detach()  # noqa: E731
        found = find_source(modules, consumers, probe, len(experts), tokens)
        assert all(map(torch.equal, before, layer.parameters())), "nothing is changed"
        return found

    assert source([[0, 0, 0]], "down.2") is None
    assert source([[0, 0, 0], [0, 2, 0]], "down.2") == "up.2"
    assert source([[0, 0, 0]] * 5 + [[0, 1, 2]] * 9, "down.2") == "up.2"
    assert source([[2, 2, 2]], "down.2") == "up.2"
    # All tokens of one sample go to an expert, so the norm is its own there, but not elsewhere.
    assert source([[0, 0, 0], [2, 2, 2]], "up.2") is None
    assert source([[2, 2, 2], [0, 0, 0]], "up.2") is None
    assert source([[2, 2, 2], [2, 2, 2]], "up.2") == "norm"


def test_values_too_small_to_be_halved_survive_the_search():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)).half()
    layer[1].weight.data *= 1e-5
    before = [parameter.clone() for parameter in layer.parameters()]
    assert not torch.equal(before[2] / 2 * 2, before[2])
    x = torch.randn(5, 16).half()
    find_source({"norm": layer[0]}, {"a": layer[1]}, lambda _: layer(x).detach(), 1, 5)
    assert all(map(torch.equal, before, layer.parameters()))


def test_experts_that_few_samples_reach_are_not_spoilt():
    """Their inputs are those of all experts: nothing can be divided, so nothing may be scaled."""

    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = (nn.Linear(64, 32, bias=False) for _ in range(2))
            self.down_proj = nn.Linear(32, 64, bias=False)

        def forward(self, x):
            return self.down_proj(self.gate_proj(x).sigmoid() * self.up_proj(x))

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(64, 8, bias=False)
            self.experts = nn.ModuleList(Expert() for _ in range(8))

        def forward(self, x):
            flat = x.flatten(0, -2)
            chosen, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
            for number, expert in enumerate(self.experts):
                rows = chosen == number
                out[rows] = expert(flat[rows])
            return out.view_as(x)

    def mixture():
        model = llama()
        torch.manual_seed(1)
        model.model.layers = model.model.layers[:1]
        model.model.layers[0].mlp = Mixture().eval()
        return model

    samples = torch.randint(0, 80, (20, 3), generator=torch.Generator().manual_seed(0))
    config = PVQConfig(code="uniform", bits=8, group=32)
    error = {}
    with torch.no_grad():
        expected = mixture()(samples).logits
        for rounding in ("nearest", "awq"):
            model = mixture()
            with pytest.warns() if rounding == "awq" else nullcontext():  # of few tokens
                quantize_model(
                    model, config, rounding=rounding, skip=["*.down_proj", "*.router"],
                    calibration=None if rounding == "nearest" else samples, progress=False,
                )  # fmt: skip
            error[rounding] = (model(samples).logits - expected).square().sum()
    dense = mixture().state_dict()
    for name, parameter in model.named_parameters():
        if "mlp" in name or "post_attention" in name:
            assert torch.equal(parameter, dense[name]), name
    assert error["awq"] < 2 * error["nearest"]


def test_scaling_there_and_back_is_exact():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        norm, linear = nn.LayerNorm(16).to(dtype), nn.Linear(16, 8).to(dtype)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x = torch.randn(5, 16, dtype=dtype)
        before = linear(norm(x))
        scale = torch.tensor([0.25, 1, 2, 8] * 4)
        divide_outputs(norm, scale)
        assert not torch.equal(linear(norm(x)), before)
        scale_columns({"linear": linear}, scale)
        assert torch.equal(linear(norm(x)), before)


def test_scales_follow_the_inputs_and_lower_the_error():
    torch.manual_seed(0)
    w = torch.randn(48, 64)
    size = torch.logspace(-1, 1, 64)
    x = torch.randn(500, 64) * size
    h = x.T @ x
    config = PVQConfig(2.25).for_cols(64)
    scale = AWQ().column_scales([w], [config], h)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert (scale.diff() >= 0).all()
    assert scale[-1] > scale[0]

    def error(s: torch.Tensor) -> float:
        rounded = quantize_tensor(w * s, config).dequantize() / s
        return ((w - rounded) @ x.T).square().sum().item()

    assert error(scale) < 0.8 * error(torch.ones(64))
    assert AWQ().column_scales([w], [config], torch.eye(64)) is None, "all alike"
    assert AWQ(grid=1).column_scales([w], [config], h) is None


def clipping_case() -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with a column of large weights, and inputs that are correlated."""
    torch.manual_seed(0)
    w = torch.randn(40, 96)
    w[:, 5] *= 6
    return w, torch.randn(500, 96) @ (torch.eye(96) + 0.1 * torch.randn(96, 96))


@pytest.mark.parametrize(
    "choices",
    [
        {"code": "table", "bits": 2},
        {"code": "uniform", "bits": 3, "group": 48},
        {"code": "uniform", "bits": 3, "group": 32, "fit": "minmax", "symmetric": True},
        {"code": "nf4", "block_size": 32, "double": False},
        {"code": "nf4", "block_size": 32},
        {"code": "higgs", "bits": 3},
        {"code": "outliers", "bits": 3, "inner": {"code": "uniform", "group": 32}},
    ],
    ids=str,
)
def test_clipping_never_raises_the_loss_of_a_row(choices):
    w, x = clipping_case()
    config = PVQConfig(**choices, rotation="none")
    losses = []
    for clips in (1, 6):
        tensor = quantize_tensor(w, config, rounding=AWQ(clips=clips), hessian=x.T @ x)
        losses.append(((w - tensor.dequantize()) @ x.T).square().sum(1))
    assert (losses[1] <= losses[0] * (1 + 1e-4)).all()
    assert losses[1].sum() < losses[0].sum()
    plain = quantize_tensor(w, config)
    first = quantize_tensor(w, config, rounding=AWQ(clips=1), hessian=x.T @ x)
    assert all(torch.equal(plain.stored[name], first.stored[name]) for name in plain.stored)


def test_clipping_shrinks_steps_that_were_fitted_to_the_weights():
    """Against trying each factor of each row's steps, in the uniform code's own definition."""
    w, x = clipping_case()
    config = PVQConfig(code="uniform", bits=3, group=48, fit="minmax")
    groups = w.view(40, 2, 48)
    low, high = groups.amin(2, True).clamp(max=0), groups.amax(2, True).clamp(min=0)
    step = (high / 7 - low / 7).bfloat16().float()
    zero = (-low / step).round()
    losses = []
    for factor in (1, 0.95, 0.9, 0.85, 0.8, 0.75):
        shrunk = (step * factor).bfloat16().float()
        decoded = (((groups / shrunk).round() + zero).clamp(0, 7) - zero) * shrunk
        losses.append(((w - decoded.view(40, 96)) @ x.T).square().sum(1))
    tensor = quantize_tensor(w, config, rounding=AWQ(), hessian=x.T @ x)
    got = ((w - tensor.dequantize()) @ x.T).square().sum(1)
    assert torch.allclose(got, torch.stack(losses).amin(0), rtol=1e-3)
    assert got.sum() < 0.8 * losses[0].sum()


def test_weights_that_are_kept_apart_are_not_clipped():
    w, x = clipping_case()
    inner = {"code": "uniform", "group": 48, "fit": "minmax"}
    config = PVQConfig(code="outliers", bits=3, inner=inner)
    plain = quantize_tensor(w, config)
    clipped = quantize_tensor(w, config, rounding=AWQ(), hessian=x.T @ x)
    for name in ("outlier_col", "outlier_value"):
        assert torch.equal(plain.stored[name], clipped.stored[name])
    assert (clipped.stored["scale"] < plain.stored["scale"]).any()


@pytest.mark.parametrize(
    ("rounding", "unscaled"),
    [
        (AWQ(), Nearest()),
        (AWQ(then=GPTQ()), GPTQ()),
        (QuantEase(sweeps=1, start=AWQ()), QuantEase(sweeps=1, start=AWQ(grid=1))),
    ],
    ids=["awq", "awq then gptq", "quantease from awq"],
)
def test_a_scaled_model_is_nearer_to_the_dense_one(samples, rounding, unscaled):
    with torch.no_grad():
        expected = llama()(samples).logits
        error = []
        for method in (unscaled, rounding):
            model = llama()
            config = PVQConfig(2.25, rotation="none")
            quantize_model(model, config, rounding=method, calibration=samples, progress=False)
            error.append((model(samples).logits - expected).square().sum())
    assert error[1] < 0.9 * error[0]
    assert sum(isinstance(module, PVQLinear) for module in model.modules()) == 14
    assert not torch.equal(
        model.model.layers[0].input_layernorm.weight, llama().model.layers[0].input_layernorm.weight
    )


def test_scales_are_kept_when_a_run_stops(samples, tmp_path, monkeypatch):
    options = {"rounding": "awq", "calibration": samples, "progress": False}
    config = PVQConfig(3.25, rotation="none")
    expected = llama()
    quantize_model(expected, config, **options)
    original, calls = layerwise.quantize_layer, []

    def stop_in_the_second_layer(target, *arguments):
        calls.append(target.name)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return original(target, *arguments)

    monkeypatch.setattr(layerwise, "quantize_layer", stop_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(llama(), config, work=tmp_path, **options)
    model = llama()
    quantize_model(model, config, work=tmp_path, **options)
    assert len(calls) == 12 + 7
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_trained_model_gets_nearer_without_rotation(tokens):
    reference = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    calibration = tokens[1024:3072].view(16, 128)
    error = []
    for rounding in ("nearest", "awq"):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        config = PVQConfig(3.25, rotation="none")
        quantize_model(model, config, rounding=rounding, calibration=calibration, progress=False)
        with torch.inference_mode():
            ours, theirs = (
                m(tokens[None, :512]).logits.log_softmax(-1) for m in (model, reference)
            )
        error.append((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert error[1] < 0.9 * error[0]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="grid is 0"):
        AWQ(grid=0)
    with pytest.raises(ValueError, match="clips is 20"):
        AWQ(clips=20)


def test_methods_that_cannot_follow_are_refused():
    assert make_rounding("awq", then="gptq") == AWQ(then=GPTQ())
    for wrong in ("gptq", GPTQ, 3, len):
        with pytest.raises(TypeError, match=r"then is .*, expected a rounding method such as"):
            AWQ(then=wrong)
    expected = "then is 'tesseraq', .* turn it around, 'tesseraq' with start='awq'"
    with pytest.raises(ValueError, match=expected):
        AWQ(then=TesseraQ())
    with pytest.raises(ValueError, match=expected):
        make_rounding("awq", then="tesseraq")
    assert make_rounding("tesseraq", start="awq") == TesseraQ(start=AWQ())
    for scaling in (AWQ(), QuantEase(start=AWQ())):
        with pytest.raises(ValueError, match="scales columns itself: use it alone"):
            AWQ(then=scaling)
