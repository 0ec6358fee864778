import json

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

import pvq
from pvq import PVQConfig, PVQEmbedding, PVQLinear, quantize_model, quantize_tensor
from pvq.embedding import PVQTiedHead
from pvq.modules import quantized_modules

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantize(model: nn.Module, config: PVQConfig | None = None, **options):
    return quantize_model(model, config, progress=False, **options)


def quantized_names(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, PVQLinear | PVQEmbedding)}


def test_default_is_every_linear_layer_of_the_decoder(small_llama):
    model = small_llama()
    report = quantize(model)
    names = quantized_names(model)
    assert len(names) == 14
    assert {name.rpartition(".")[2] for name in names} == set(PROJECTIONS)
    assert [layer.name for layer in report.layers] == [
        name for name, _ in model.named_modules() if name in names
    ]
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding
    assert [(left.name, left.reason) for left in report.left_dense] == [
        ("lm_head", "output head (pass head=True to quantize it)")
    ]
    assert report.config == PVQConfig()


def test_records_are_what_an_independent_computation_gives(small_llama):
    model = small_llama()
    weights = {
        n: m.weight.detach().clone() for n, m in model.named_modules() if type(m) is nn.Linear
    }
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    report = quantize(model, PVQConfig(2.25))
    for layer in report.layers:
        w = weights[layer.name].double()
        module = model.get_submodule(layer.name)
        stored = [module.index, module.gain, module.row_scale]
        nbytes = sum(t.numel() * t.element_size() for t in stored)
        error = (w - module.dequantize().double()).square().sum() / w.square().sum()
        assert layer.relative_error == pytest.approx(error.item(), rel=1e-6)
        assert layer.nbytes == nbytes
        assert layer.bits_per_weight == 8 * nbytes / w.numel()
        assert layer.shape == tuple(w.shape)
        assert layer.seconds > 0
        assert layer.original_nbytes == 4 * w.numel()
    assert report.quantized_nbytes == sum(layer.nbytes for layer in report.layers)
    assert report.original_nbytes == whole
    assert report.dense_nbytes == whole - sum(layer.original_nbytes for layer in report.layers)
    assert report.bits_per_weight == pytest.approx(
        8 * report.quantized_nbytes / sum(w.numel() for n, w in weights.items() if n != "lm_head")
    )
    assert 0.06 < report.relative_error < 0.09
    json.dumps(report.to_dict())
    assert "14 layers" in report.summary()
    assert str(report) == report.summary()
    assert repr(report).startswith("Report(config=PVQConfig(")
    assert report.table().count("\n") == 15


def test_reports_give_bytes_on_disk_and_in_memory(small_llama):
    model = small_llama()
    report = quantize(model)
    assert {layer.layout for layer in report.layers} == {"stored"}
    assert report.resident_nbytes == report.nbytes
    assert f"in memory       {report.nbytes / 1e6:.2f} MB, layout stored" in report.summary()
    pvq.prepare(model)
    after = report.remeasured(model)
    sizes = {name: module.resident_nbytes for name, module in quantized_modules(model)}
    assert {layer.name: layer.resident_nbytes for layer in after.layers} == sizes
    assert after.resident_nbytes == sum(sizes.values()) + report.dense_nbytes > report.nbytes
    assert after.to_dict()["layers"][0]["layout"] == "planes"
    assert after.to_dict()["totals"]["resident_nbytes"] == after.resident_nbytes
    assert f"| {after.layers[0].resident_nbytes} (planes) |" in after.table()


def test_layers_hold_the_codes_of_their_weights(small_llama):
    dense, model = small_llama(), small_llama()
    quantize(model, PVQConfig(seed=3))
    name = "model.layers.1.mlp.down_proj"
    expected = quantize_tensor(dense.get_submodule(name).weight, PVQConfig(seed=3))
    for key, tensor in expected.stored.items():
        assert torch.equal(getattr(model.get_submodule(name), key), tensor)


def test_quantized_model_is_the_model_of_the_decoded_weights(small_llama):
    model, dense = small_llama(), small_llama()
    quantize(model)
    for name in quantized_names(model):
        dense.get_submodule(name).weight.data = model.get_submodule(name).dequantize()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        a, b = model(ids).logits, dense(ids).logits
    assert torch.allclose(a, b, atol=1e-4)


def test_skip_and_overrides_by_pattern(small_llama):
    model = small_llama()
    report = quantize(
        model,
        PVQConfig(pulses=12),
        skip=["*.layers.0.*", "*.k_proj"],
        overrides={
            "*_proj": {"seed": 4},
            "*.down_proj": {"bits": 3.25},
            "*.q_proj": PVQConfig(4.25),
        },
    )
    configs = {layer.name: layer.config for layer in report.layers}
    assert set(configs) == {f"model.layers.1.{p}" for p in _paths() if "k_proj" not in p}
    assert configs["model.layers.1.mlp.down_proj"].code.pulses == 28
    assert configs["model.layers.1.mlp.down_proj"].seed == 4, "overrides stack"
    assert configs["model.layers.1.self_attn.q_proj"].code.pulses == 58
    assert configs["model.layers.1.self_attn.q_proj"].seed == 0, "a whole config replaces"
    assert configs["model.layers.1.mlp.up_proj"].code.pulses == 12
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    skipped = {left.name for left in report.left_dense if left.reason == "skipped as asked"}
    assert skipped == {f"model.layers.0.{p}" for p in _paths()} | {
        "model.layers.1.self_attn.k_proj"
    }


def _paths() -> list[str]:
    attention = [f"self_attn.{p}" for p in PROJECTIONS[:4]]
    return attention + [f"mlp.{p}" for p in PROJECTIONS[4:]]


@pytest.mark.parametrize("option", ["skip", "overrides"])
def test_a_pattern_that_matches_nothing_is_an_error(small_llama, option):
    value = ["*.q_porj"] if option == "skip" else {"*.q_porj": {"bits": 4.25}}
    with pytest.raises(ValueError, match=r"'\*\.q_porj' matches no layer .* such as 'model"):
        quantize(small_llama(), **{option: value})


def test_a_bad_override_is_named(small_llama):
    with pytest.raises(ValueError, match=r"override '\*\.q_proj': unknown choice 'bit'"):
        quantize(small_llama(), overrides={"*.q_proj": {"bit": 4.25}})


def test_biases_are_kept():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    attention = model.model.layers[0].self_attn
    nn.init.normal_(attention.q_proj.bias)
    bias = attention.q_proj.bias
    x = torch.zeros(1, 64)
    quantize(model)
    assert attention.q_proj.bias is bias
    assert torch.equal(attention.q_proj(x)[0], bias)
    assert attention.o_proj.bias is None


def test_embeddings_and_head_on_request(small_llama):
    model = small_llama()
    report = quantize(model, embeddings=True, head=True)
    assert isinstance(model.model.embed_tokens, PVQEmbedding)
    assert isinstance(model.lm_head, PVQLinear)
    assert {layer.kind for layer in report.layers} == {"linear", "embedding"}
    assert not report.left_dense
    assert torch.isfinite(model(torch.arange(9)[None]).logits).all()


@pytest.mark.parametrize("options", [{"head": True}, {"embeddings": True}])
def test_half_of_a_tied_weight_is_refused(small_llama, options):
    model = small_llama(tie_word_embeddings=True)
    with pytest.raises(ValueError, match="one tied weight: pass embeddings and head together"):
        quantize(model, **options)
    assert not quantized_names(model)


def test_a_tied_weight_stays_tied(small_llama):
    model = small_llama(tie_word_embeddings=True)
    quantize(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model = small_llama(tie_word_embeddings=True)
    report = quantize(model, embeddings=True, head=True)
    assert isinstance(model.lm_head, PVQTiedHead)
    assert len(report.layers) == 15, "one set of codes for both"
    x = torch.randn(2, 64)
    table = model.model.embed_tokens.dequantize()
    assert torch.allclose(model.lm_head(x), x @ table.T, atol=1e-4)
    model.tie_weights()
    assert isinstance(model.lm_head, PVQTiedHead)


def test_tied_weights_that_cannot_be_quantized_are_refused(small_llama):
    class Scaled(nn.Embedding):
        pass

    model = small_llama(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head and model\.embed_tokens are one tied weight"):
        quantize(model, embeddings=True, head=True, skip=["lm_head"])
    model.model.embed_tokens.__class__ = Scaled
    with pytest.raises(ValueError, match="are a Scaled and a Linear, not a plain"):
        quantize(model, embeddings=True, head=True)
    assert not quantized_names(model)


class SharedWeights(nn.Module):
    """Linear layers a0, b0, a1, b1, ... of which b reads the weight of a, and one layer alone."""

    def __init__(self, pairs: int):
        super().__init__()
        torch.manual_seed(0)
        for i in range(pairs):
            a, b = nn.Linear(64, 64), nn.Linear(64, 64)
            b.weight = a.weight
            setattr(self, f"a{i}", a)
            setattr(self, f"b{i}", b)
        self.alone = nn.Linear(64, 64)


@pytest.mark.parametrize(
    ("skip", "text"),
    [
        ([], r"^2 layers cannot .* nothing was changed: weight is shared .*, or untie them: a0 wi"),
        (["a0"], r"^1 layer cannot .* pass all such layers in skip, or untie them: b0 with a0$"),
        (["b0"], r"^1 layer cannot .* pass all such layers in skip, or untie them: a0 with b0$"),
    ],
)
def test_layers_with_one_weight_are_refused(skip, text):
    model = SharedWeights(1)
    before = model.a0.weight.detach().clone()
    with pytest.raises(ValueError, match=text):
        quantize(model, skip=skip)
    assert not quantized_names(model)
    assert torch.equal(model.a0.weight, before)


def test_layers_with_one_weight_can_be_skipped_or_untied():
    model = SharedWeights(1)
    before = model.a0.weight.detach().clone()
    quantize(model, skip=["[ab]0"])
    assert quantized_names(model) == {"alone"}
    assert model.a0.weight is model.b0.weight
    assert torch.equal(model.a0.weight, before)
    model = SharedWeights(1)
    model.b0.weight = nn.Parameter(before.clone())
    quantize(model)
    expected = quantize_tensor(before, PVQConfig()).dequantize()
    assert torch.equal(model.a0.dequantize(), expected)
    assert torch.equal(model.b0.dequantize(), expected)


def test_many_shared_weights_are_one_error():
    model = SharedWeights(20)
    model.a19.weight = model.b19.weight = model.a18.weight
    with pytest.raises(ValueError, match=r"^40 layers cannot be quantized") as error:
        quantize(model)
    text = str(error.value)
    assert text.endswith(": a0 with b0, a1 with b1, a10 with b10 and 16 more")
    assert len(text) < 250
    with pytest.raises(ValueError, match=r"^4 layers cannot .*: a18 with b18 and 2 more$"):
        quantize(model, skip=["[ab]?", "[ab]1[0-7]"])


def test_a_weight_that_no_layer_holds_too_is_refused():
    model = SharedWeights(0)
    model.embed = nn.Embedding(64, 64)
    model.embed.weight = model.alone.weight
    with pytest.raises(ValueError, match=r"^1 layer cannot .*: alone with embed$"):
        quantize(model)
    model = SharedWeights(0)
    model.again = model.alone.weight
    with pytest.raises(ValueError, match=r"^1 layer cannot .*: alone with the model itself$"):
        quantize(model)


def test_a_tied_weight_with_a_third_holder_is_refused(small_llama):
    model = small_llama(tie_word_embeddings=True)
    model.extra = nn.Linear(64, 80, bias=False)
    model.extra.weight = model.lm_head.weight
    quantize(model)
    model = small_llama(tie_word_embeddings=True)
    model.extra = nn.Linear(64, 80, bias=False)
    model.extra.weight = model.lm_head.weight
    with pytest.raises(ValueError, match=r"^1 layer cannot .*: model\.embed_tokens with extra$"):
        quantize(model, embeddings=True, head=True)
    assert not quantized_names(model)


def test_blocks_that_transformers_shares_are_skipped(tmp_path):
    torch.manual_seed(0)
    config = Zamba2Config(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, mamba_d_state=8, mamba_headdim=16,
        n_mamba_heads=8, mamba_ngroups=1, num_mem_blocks=1, adapter_rank=4, chunk_size=16,
        layers_block_type=["mamba", "hybrid", "hybrid"], max_position_embeddings=64,
    )  # fmt: skip
    model = Zamba2ForCausalLM(config).eval()
    name = "shared_transformer.self_attn.q_proj"
    assert model.model.layers[1].get_submodule(name).weight is (
        model.model.layers[2].get_submodule(name).weight
    )
    with pytest.raises(ValueError, match=r"in skip: model\.layers\.1\.shared_") as error:
        quantize(model, PVQConfig(3.25, dim=4))
    assert "untie" not in str(error.value), "transformers would tie them again"
    assert not quantized_names(model)
    quantize(model, PVQConfig(3.25, dim=4), skip=["*.shared_transformer.*"])
    ids = torch.arange(16)[None]
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(pvq.load(tmp_path)(ids).logits, model(ids).logits)


def test_any_module_can_be_quantized():
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    model = nn.Sequential(
        shared, nn.ReLU(), nn.Sequential(shared, nn.Linear(64, 3)), nn.Conv1d(3, 3, 1)
    )
    report = quantize(model)
    assert [layer.name for layer in report.layers] == ["0", "2.1"]
    assert model[0] is model[2][0], "a module used twice stays one module"
    assert isinstance(model[0], PVQLinear)
    assert not report.left_dense


def test_head_needs_a_model_that_has_one():
    with pytest.raises(ValueError, match="no output embeddings"):
        quantize(nn.Sequential(nn.Linear(64, 64)), head=True)


def test_subclasses_of_linear_and_routers_stay_dense():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {"own": Own(64, 64), "router": nn.Linear(64, 4), "plain": nn.Linear(64, 64)}
    )
    report = quantize(model)
    assert [layer.name for layer in report.layers] == ["plain"]
    assert {left.name: left.reason for left in report.left_dense} == {
        "own": "Own is not a plain nn.Linear",
        "router": "router of experts",
    }


def test_stacks_of_experts_are_reported():
    config = MixtralConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    with pytest.warns(UserWarning, match=r"2 stacks of experts .* stay dense"):
        report = quantize(model)
    experts = [left for left in report.left_dense if "experts" in left.name]
    assert {left.name.rpartition(".")[2] for left in experts} == {"gate_up_proj", "down_proj"}
    assert sum(left.nbytes for left in experts) == 4 * (4 * 192 * 64 + 4 * 64 * 96)
    assert len(report.layers) == 4


def test_conv1d_is_refused_with_the_remedy():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=80, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    )
    with pytest.raises(
        ValueError,
        match=r"4 layers cannot .*transformers Conv1D .* skip: transformer\.h\.0\.attn\.c_attn",
    ):
        quantize(model)


def test_all_layers_are_checked_before_the_first_is_touched(small_llama):
    model = small_llama(intermediate_size=100)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = float("nan")
    with pytest.raises(ValueError) as error:
        quantize(model)
    text = str(error.value)
    assert "3 layers cannot be quantized, nothing was changed" in text
    assert "weight does not fit: 100 columns" in text
    names = "model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj"
    assert f"pass dim=10 or leave this layer dense: {names};" in text
    assert "weight has NaN or infinite values (the first at [3, 5] is nan)" in text
    assert text.endswith("leave this layer dense: model.layers.1.self_attn.o_proj")
    assert not quantized_names(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = 0
    quantize(model, overrides={"*.down_proj": {"dim": 10}})
    assert len(quantized_names(model)) == 14


def test_quantizing_twice_is_refused(small_llama):
    model = small_llama()
    quantize(model)
    with pytest.raises(ValueError, match="quantized by pvq already"):
        quantize(model)


def test_nothing_left_to_quantize_is_an_error(small_llama):
    with pytest.raises(ValueError, match="no layer to quantize"):
        quantize(small_llama(), skip=["*_proj"])


def test_progress_goes_to_stderr(small_llama, capsys):
    quantize_model(small_llama())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "quantizing" in captured.err
    pvq.quantize_model(small_llama(), progress=False)
    assert capsys.readouterr().err == ""
