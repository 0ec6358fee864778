"""``weight`` of quantized modules, which models read from outside."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    JambaConfig,
    Mamba2Config,
    MambaConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import pvq
from pvq import PVQConfig, PVQEmbedding, PVQLinear, quantize_tensor
from pvq.decoded_weight import DecodedWeight
from pvq.embedding import PVQTiedHead


def layer_of(bias: bool = True, layout: str = "stored") -> PVQLinear:
    torch.manual_seed(0)
    return PVQLinear.from_linear(nn.Linear(64, 48, bias=bias), PVQConfig()).prepare(layout)


def head_of(bias: nn.Parameter | None = None) -> PVQTiedHead:
    torch.manual_seed(0)
    return PVQTiedHead(PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig()), bias)


MODULES = {
    "linear": layer_of,
    "planes": lambda: layer_of(layout="planes"),
    "table": lambda: head_of()._table[0],
    "head": head_of,
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_weight_is_what_the_codes_stand_for_and_nobody_holds_it(kind):
    module = MODULES[kind]()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weight = module.weight
    assert torch.equal(weight, module.dequantize())
    assert not weight.requires_grad
    weight.zero_()
    assert torch.equal(module.weight, module.dequantize()), "what is written into it is lost"
    assert module.weight.abs().sum() > 0
    tensors = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    assert "weight" not in tensors
    assert module.state_dict().keys() == state.keys()
    assert "weight" not in state
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)
    assert torch.equal(copy.deepcopy(module).weight, module.weight)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(
    "value", [nn.Parameter(torch.ones(48, 64)), torch.ones(48, 64), None], ids=type
)
def test_the_weight_cannot_be_set(kind, value):
    module = MODULES[kind]()
    text = rf"weight of a {type(module).__name__} is decoded .* make the model dense first"
    with pytest.raises(AttributeError, match=text):
        module.weight = value
    with pytest.raises(AttributeError, match=text):
        module.register_parameter("weight", None)
    assert "weight" not in module._parameters
    assert torch.equal(module.weight, module.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_of_the_model(dtype):
    for bias in (True, False):
        dense = nn.Linear(64, 48, bias=bias).to(dtype)
        assert PVQLinear.from_linear(dense, PVQConfig()).weight.dtype == dtype
        assert layer_of(bias).to(dtype).weight.dtype == dtype
        assert layer_of(bias, "planes").to(dtype).weight.dtype == dtype
        made = PVQLinear(64, 48, bias, PVQConfig(), device="meta", dtype=dtype)
        assert made.weight.dtype == dtype
        assert made.weight.is_meta
    codes = quantize_tensor(torch.ones(48, 64), PVQConfig())
    assert PVQLinear.from_tensor(codes, dtype=dtype).weight.dtype == dtype
    assert PVQLinear.from_tensor(codes, nn.Parameter(torch.ones(48, dtype=dtype))).weight.dtype == (
        dtype
    )
    head = head_of()
    nn.ModuleList([head._table[0], head]).to(dtype)
    assert head.weight.dtype == head._table[0].weight.dtype == dtype
    assert head_of(nn.Parameter(torch.ones(50, dtype=dtype))).weight.dtype == dtype


def test_damaged_codes_are_not_taken_for_a_missing_weight():
    layer = layer_of()
    layer.index[2] = 255
    with pytest.raises(RuntimeError, match="names no point of the pyramid"):
        hasattr(layer, "weight")


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_products_with_the_weight_have_a_gradient(layout):
    layer = layer_of(layout=layout)
    x = torch.randn(64, 3, requires_grad=True)
    (layer.weight @ x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantize().sum(0)[:, None].expand(64, 3), atol=1e-5)


class Outside(nn.Module):
    def __init__(self, layer: PVQLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.weight @ x.to(self.layer.weight.dtype)


def test_models_that_read_it_compile_without_graph_breaks():
    model, x = Outside(layer_of()), torch.randn(64, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))


# --- models of transformers -----------------------------------------------------------------------

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
T5_SIZES = {
    "vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
READERS = {
    "Mamba": lambda: MambaConfig(
        **SIZES, state_size=16, time_step_rank=16, tie_word_embeddings=True
    ),
    "Mamba2": lambda: Mamba2Config(
        **SIZES, num_heads=8, head_dim=16, state_size=16, n_groups=1, chunk_size=16
    ),
    "FalconMamba": lambda: FalconMambaConfig(**SIZES, state_size=16, time_step_rank=16),
    "Jamba": lambda: JambaConfig(
        **SIZES, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=16,
    ),
    "T5": lambda: T5Config(**T5_SIZES),
    "MT5": lambda: MT5Config(**T5_SIZES),
}  # fmt: skip
CLASSES = {"T5": T5ForConditionalGeneration, "MT5": MT5ForConditionalGeneration}
IDS = torch.arange(3, 15)[None]


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = READERS[name]()
    model = CLASSES[name](config) if name in CLASSES else AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # so that no part of the model is nearly without effect
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(IDS, **decoder).logits.float()


@pytest.fixture
def decodes(monkeypatch):
    """What `weight` has given out, with the number of writes into it until then."""
    given: list[tuple[torch.Tensor, int]] = []

    def weight(module):
        tensor = kept.fget(module)
        given.append((tensor, tensor._version))
        return tensor

    kept = DecodedWeight.weight
    monkeypatch.setattr(DecodedWeight, "weight", property(weight, kept.fset))
    return given


@pytest.mark.parametrize(
    ("name", "whole"),
    # With the table and the head too, where encoder and decoder do not share the table.
    [(name, False) for name in READERS] + [(name, True) for name in READERS if name not in CLASSES],
)
@pytest.mark.filterwarnings("ignore:.*stacks of experts")
def test_models_that_read_weights(name, whole, tmp_path, decodes):
    model = model_of(name)
    pvq.quantize_model(model, PVQConfig(3.25), progress=False, embeddings=whole, head=whole)
    model.save_pretrained(tmp_path / "a")
    decodes.clear()
    loaded = type(model).from_pretrained(tmp_path / "a")
    assert all(tensor._version == writes for tensor, writes in decodes), "nothing is initialised"
    assert decodes or name == "Jamba", "the other classes look when they are loaded"
    decodes.clear()
    assert any(m.layout == "planes" for m in loaded.modules() if isinstance(m, PVQLinear))
    expected, state = logits(model), model.state_dict()
    assert decodes or name == "Mamba2", "which looks when it is loaded"
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    assert (logits(loaded) - expected).norm() < 1e-4 * expected.norm()
    out = loaded.generate(IDS, max_new_tokens=6, do_sample=False)
    loaded.save_pretrained(tmp_path / "b")
    dense = type(model).from_pretrained(tmp_path / "b").dequantize()
    assert not [m for m in dense.modules() if isinstance(m, DecodedWeight)]
    assert (logits(dense) - expected).norm() < 1e-4 * expected.norm()
    assert torch.equal(dense.generate(IDS, max_new_tokens=6, do_sample=False), out)


@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba", "T5", "MT5"])
@pytest.mark.filterwarnings("ignore:.*stacks of experts")
def test_models_that_read_weights_in_bfloat16(name, tmp_path):
    model = model_of(name)
    pvq.quantize_model(model, PVQConfig(3.25), progress=False)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    for there in (model.bfloat16(), type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)):
        layers = [m for m in there.modules() if isinstance(m, PVQLinear)]
        assert layers
        assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
        error = (logits(there) - expected).norm()
        dense = there.dequantize(torch.bfloat16)
        assert error <= 2 * (logits(dense) - expected).norm()


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_tables_refuse_to_be_resized(small_llama, tied):
    model = small_llama(tie_word_embeddings=tied)
    pvq.quantize_model(model, progress=False, embeddings=True, head=True)
    expected, keys = logits(model), model.state_dict().keys()
    for size in (79, 90):
        with pytest.raises(TypeError, match=r"PVQEmbedding.* not an instance of .*Embedding"):
            model.resize_token_embeddings(size)
    assert model.resize_token_embeddings(80) is model.model.embed_tokens, "its size already"
    assert model.config.vocab_size == 80
    assert model.state_dict().keys() == keys
    assert torch.equal(logits(model), expected)


def test_ties_do_not_replace_a_quantized_head(small_llama):
    model = small_llama(tie_word_embeddings=True)
    pvq.quantize_model(model, progress=False, embeddings=True, head=True)
    expected = logits(model)
    model.tie_weights()
    assert torch.equal(logits(model), expected)
    assert not [key for key in model.state_dict() if key.startswith("lm_head")]


@pytest.mark.parametrize("name", ["T5", "MT5"])
def test_what_models_keep_in_float32_are_not_codes(name, tmp_path):
    model = model_of(name)
    dense = "encoder.block.0.layer.1.DenseReluDense.wo"
    pvq.quantize_model(model, PVQConfig(3.25), progress=False, skip=[dense])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.get_submodule(dense).weight.dtype == torch.float32
    layers = [module for module in loaded.modules() if isinstance(module, PVQLinear)]
    assert {module.row_scale.dtype for module in layers} == {torch.bfloat16}
    assert {module.weight.dtype for module in layers} == {torch.float16}
    assert loaded.shared.weight.dtype == torch.float16
    assert (logits(loaded) - logits(model)).norm() < 0.15 * logits(model).norm()
