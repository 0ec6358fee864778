"""Column scales: exact where they are absorbed, better for the output, kept when a run stops."""

from functools import partial

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
            found = find_source(modules, consumers, partial(stage.probe, 0))
            assert all(map(torch.equal, before, model.parameters())), "nothing is changed"
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
        probe = lambda layer=layer: layer(x).detach()  # noqa: E731
        found = find_source(modules, {"a": layer.a}, probe)
        assert found == (None if shared else "norm")


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


def test_clipping_never_raises_the_loss_of_a_row():
    torch.manual_seed(0)
    w = torch.randn(40, 96)
    w[:, 5] *= 6
    x = torch.randn(500, 96) @ (torch.eye(96) + 0.1 * torch.randn(96, 96))
    config = PVQConfig(code="table", bits=2, rotation="none")
    losses = []
    for clips in (1, 6):
        tensor = quantize_tensor(w, config, rounding=AWQ(clips=clips), hessian=x.T @ x)
        losses.append(((w - tensor.dequantize()) @ x.T).square().sum(1))
    assert (losses[1] <= losses[0] * (1 + 1e-4)).all()
    assert losses[1].sum() < losses[0].sum()
    plain = quantize_tensor(w, config)
    first = quantize_tensor(w, config, rounding=AWQ(clips=1), hessian=x.T @ x)
    assert all(torch.equal(plain.stored[name], first.stored[name]) for name in plain.stored)


@pytest.mark.parametrize("rounding", [AWQ(), AWQ(then=GPTQ())])
def test_a_scaled_model_is_nearer_to_the_dense_one(samples, rounding):
    with torch.no_grad():
        expected = llama()(samples).logits
        error = {}
        for method in ("nearest" if rounding.then is None else "gptq", rounding):
            model = llama()
            config = PVQConfig(2.25, rotation="none")
            quantize_model(model, config, rounding=method, calibration=samples, progress=False)
            error[isinstance(method, AWQ)] = (model(samples).logits - expected).square().sum()
    assert error[True] < 0.9 * error[False]
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
