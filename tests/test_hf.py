import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)
from transformers.quantizers import auto

import pvq
from pvq import PVQConfig, PVQEmbedding, PVQLinear, hf
from pvq.config import FORMAT_VERSION
from pvq.embedding import PVQTiedHead

IDS = torch.arange(3, 40)[None]


def quantized(model: nn.Module, config: PVQConfig | None = None, **options):
    pvq.quantize_model(model, config, progress=False, **options)
    return model


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(
        a_state[k].dtype == b_state[k].dtype and torch.equal(a_state[k], b_state[k])
        for k in a_state
    )


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_importing_registers_the_format():
    assert auto.AUTO_QUANTIZER_MAPPING["pvq"] is hf.PVQQuantizer
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["pvq"] is hf.PVQQuantizationConfig
    hf.register()


def test_round_trip_is_bit_exact(small_llama, tmp_path):
    model = quantized(small_llama(), overrides={"*.o_proj": {"bits": 4.25}})
    model.save_pretrained(tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert same_state(model, loaded)
    assert loaded.model.layers[0].self_attn.o_proj.config.code.pulses == 58
    assert loaded.model.layers[0].self_attn.q_proj.config.code.pulses == 28
    loaded.save_pretrained(tmp_path / "b")  # from planes: the index is made again
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert same_state(model, again)
    assert torch.equal(logits(loaded), logits(again))
    a, b = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("code", "bits"), [("table", 2), ("table", 3), ("table", 4), ("overlap", 2.5), ("overlap", 4)]
)
def test_round_trip_of_codes_in_bytes(small_llama, tmp_path, code, bits):
    model = quantized(small_llama(tie_word_embeddings=True), PVQConfig(bits, code=code),
                      embeddings=True, head=True)  # fmt: skip
    expected = logits(model)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["default"]["code"] == code
    assert "model.layers.0.mlp.up_proj.code" in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_state(model, loaded)
    assert torch.equal(logits(loaded), expected)


def test_codes_may_differ_from_layer_to_layer(small_llama, tmp_path):
    model = quantized(
        small_llama(),
        PVQConfig(2, code="table", seed=3),
        overrides={
            "*.v_proj": {"bits": 4},
            "*.o_proj": {"code": "pyramid", "bits": 3.25, "dim": 8},
            "*.layers.1.mlp.*": PVQConfig(2.25),
        },
    )
    model.save_pretrained(tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert same_state(model, loaded)
    layers = loaded.model.layers
    assert layers[0].self_attn.q_proj.config == PVQConfig(2, code="table", seed=3).for_cols(64)
    assert layers[0].self_attn.v_proj.config.bits == 4
    assert layers[0].self_attn.o_proj.config.code == PVQConfig(3.25, dim=8).code
    assert layers[0].self_attn.o_proj.config.seed == 3
    assert layers[1].mlp.up_proj.config == PVQConfig(2.25).for_cols(64)
    assert layers[1].mlp.up_proj.layout == "planes"
    assert layers[1].self_attn.q_proj.layout == "stored"
    assert torch.allclose(logits(model), logits(loaded), atol=1e-5)
    loaded.save_pretrained(tmp_path / "b")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "b"))


def test_checkpoints_without_a_code_are_pyramids(small_llama, tmp_path):
    model = quantized(small_llama())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["default"].pop("code") == "pyramid"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path))


def test_loaded_model_is_the_saved_model(small_llama, tmp_path):
    model = quantized(small_llama())
    model.save_pretrained(tmp_path)
    expected = logits(model)
    token = hf.run_time_when_loaded.set(hf.RunTime("stored"))
    try:
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    finally:
        hf.run_time_when_loaded.reset(token)
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-5
    )


def test_the_config_determines_every_shape(small_llama, tmp_path):
    model = quantized(small_llama(), PVQConfig(2.25), overrides={"*.v_proj": {"dim": 8, "seed": 5}})
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "pvq"
    assert stored["format_version"] == FORMAT_VERSION
    assert len(stored["layers"]) == 14
    configs = hf.PVQQuantizationConfig.from_dict(stored).layer_configs()
    for name, module in model.named_modules():
        if isinstance(module, PVQLinear):
            assert configs[name] == module.config
            assert configs[name].block is not None, "the block may be chosen otherwise one day"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_model_leaves_the_codes_alone(small_llama, tmp_path, dtype):
    model = quantized(small_llama())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for key, tensor in model.state_dict().items():
        if key.rpartition(".")[2] in ("index", "gain", "row_scale"):
            assert torch.equal(loaded.state_dict()[key], tensor)
    assert loaded.model.norm.weight.dtype == dtype
    assert loaded.to(torch.bfloat16).model.layers[0].mlp.up_proj.row_scale.dtype == torch.bfloat16


def test_shards(small_llama, tmp_path):
    model = quantized(small_llama())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path))


def test_tied_embeddings_stay_tied(small_llama, tmp_path):
    model = quantized(small_llama(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert same_state(model, loaded)


def test_quantized_tied_embeddings_are_stored_once(small_llama, tmp_path):
    model = quantized(small_llama(tie_word_embeddings=True), embeddings=True, head=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.embed_tokens.index" in stored
    assert not [key for key in stored if key.startswith("lm_head")]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded.lm_head, PVQTiedHead)
    assert same_state(model, loaded)
    assert torch.allclose(logits(model), logits(loaded), atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "again"))


def test_quantized_embeddings_and_head_of_their_own(small_llama, tmp_path):
    model = quantized(small_llama(), embeddings=True, head=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(loaded.model.embed_tokens, PVQEmbedding)
    assert isinstance(loaded.lm_head, PVQLinear)
    assert loaded.model.embed_tokens.dtype == torch.bfloat16
    assert torch.isfinite(logits(loaded)).all()


def test_no_dense_copy_is_made_while_loading(small_llama, tmp_path, monkeypatch):
    shapes = {
        tuple(m.weight.shape)
        for m in small_llama().model.layers[0].mlp.children()
        if hasattr(m, "weight")
    }
    quantized(small_llama()).save_pretrained(tmp_path)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # threads would escape the mode
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, tuple | list) else [result]:
                if (
                    isinstance(t, torch.Tensor)
                    and t.is_floating_point()
                    and t.device.type != "meta"
                ):
                    made.append(tuple(t.shape))
            return result

    with Watch():
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (80, 64) in made, "the embedding is dense and must have been seen"
    assert shapes == {(96, 64), (64, 96)}
    assert not shapes & set(made)


def test_generate_and_compile_flags(quantized_tiny):
    model = AutoModelForCausalLM.from_pretrained(quantized_tiny)
    tokenizer = AutoTokenizer.from_pretrained(quantized_tiny)
    prompt = tokenizer("It was a dark and", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert out.shape == (1, prompt["input_ids"].shape[1] + 12)
    assert torch.equal(out, model.generate(**prompt, max_new_tokens=12, do_sample=False))
    assert model.hf_quantizer.is_trainable
    assert model.hf_quantizer.is_compileable
    assert model.hf_quantizer.is_serializable()


def test_headless_model_loads(small_llama, tmp_path):
    model = quantized(small_llama())
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded.layers[0].mlp.up_proj, PVQLinear)
    assert same_state(loaded, model.model)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_another_head_loads(small_llama, tmp_path, tied):
    model = quantized(small_llama(tie_word_embeddings=tied), embeddings=True, head=True)
    model.save_pretrained(tmp_path / "a")
    classifier = LlamaForSequenceClassification.from_pretrained(tmp_path / "a", pad_token_id=0)
    assert same_state(classifier.model, model.model)
    classifier.save_pretrained(tmp_path / "b")
    again = LlamaForSequenceClassification.from_pretrained(tmp_path / "b")
    assert torch.equal(logits(again), logits(classifier))
    AutoModel.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    head = AutoModelForCausalLM.from_pretrained(tmp_path / "c").lm_head
    assert isinstance(head, PVQTiedHead if tied else nn.Linear)


def test_another_class_has_the_layers_that_the_config_names(small_llama, tmp_path):
    quantized(small_llama(), head=True).save_pretrained(tmp_path)
    for name in ("model.layers.0.mlp.upp", "layers.0.mlp.upp"):
        edit_config(tmp_path, lambda q, name=name: q["layers"].update({name: {}}))
        for kind in (AutoModel, LlamaForSequenceClassification, AutoModelForCausalLM):
            with pytest.raises(ValueError, match=f"names {name}, which Llama"):
                kind.from_pretrained(tmp_path)
        edit_config(tmp_path, lambda q, name=name: q["layers"].pop(name))
    edit_config(tmp_path, lambda q: q["layers"].update(lm_hed={}))
    with pytest.raises(ValueError, match="names lm_hed, which LlamaForCausalLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bias_of_a_quantized_head_stays_tied(tmp_path, tied):
    config = BertConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    nn.init.normal_(model.cls.predictions.decoder.bias)
    quantized(model, embeddings=True, head=True)
    model.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    head = loaded.cls.predictions
    assert isinstance(head.decoder, PVQTiedHead if tied else PVQLinear)
    assert (head.bias is head.decoder.bias) == tied
    assert torch.allclose(logits(model), logits(loaded), atol=1e-5)


def test_a_model_without_a_parameter_left(tmp_path):
    config = OlmoConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OlmoForCausalLM(config).bfloat16().eval()
    quantized(model, embeddings=True, head=True)
    model.save_pretrained(tmp_path / "a")
    assert len(load_file(tmp_path / "a/model.safetensors")) == 3 * 9, "codes and nothing else"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert same_state(model, loaded)
    loaded.load_state_dict(model.state_dict())
    for module in (model, loaded, loaded.model, copy.deepcopy(loaded)):
        assert (module.dtype, module.device.type) == (torch.bfloat16, "cpu")
    assert loaded.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, IDS.shape[1] + 3)
    assert pvq.load(tmp_path / "a", dtype=torch.float32, device="cpu").dtype == torch.float32
    loaded.save_pretrained(tmp_path / "b")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "b"))
    dense = loaded.dequantize()
    assert {name.rpartition(".")[2] for name, _ in dense.named_parameters()} == {"weight"}


def test_dequantize_gives_a_dense_model(small_llama, tmp_path):
    model = quantized(small_llama(tie_word_embeddings=True), embeddings=True, head=True)
    expected = logits(model)
    model.save_pretrained(tmp_path)  # after which the dtype of its config is a name
    dense = copy.deepcopy(model).dequantize()
    assert not [m for m in dense.modules() if isinstance(m, PVQLinear | PVQEmbedding | PVQTiedHead)]
    assert dense.lm_head.weight is dense.model.embed_tokens.weight
    assert torch.allclose(logits(dense), expected, atol=1e-4)
    dense.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(dense))


def test_load_chooses_device_and_layout(quantized_tiny):
    for layout in ("stored", "planes"):
        model = pvq.load(quantized_tiny, device="cpu", layout=layout)
        assert model.model.layers[0].mlp.up_proj.layout == layout
    assert pvq.prepare(model, "index").model.layers[0].mlp.up_proj.layout == "stored"


@pytest.mark.parametrize("device", [None, "cpu"])
def test_load_takes_the_arguments_of_from_pretrained(quantized_tiny, device):
    model, info = pvq.load(
        quantized_tiny.parent,
        subfolder=quantized_tiny.name,
        output_loading_info=True,
        layout="planes",
        device=device,
    )
    assert model.model.layers[0].mlp.up_proj.layout == "planes"
    assert info["missing_keys"] == set()
    with pytest.raises(FileNotFoundError, match="missing is no model folder"):
        pvq.load(quantized_tiny.parent, subfolder="missing")


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_maps(small_llama, tmp_path, device_map):
    pytest.importorskip("accelerate")
    model = quantized(small_llama())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    assert same_state(model, loaded.cpu())


def test_models_whose_tensors_have_other_names_in_files(tmp_path):
    config = MixtralConfig(
        vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).eval()
    with pytest.warns(UserWarning, match="stacks of experts"):
        quantized(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not stored.keys() <= model.state_dict().keys(), "experts are stored one by one"
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path))
    del stored["model.layers.1.self_attn.q_proj.gain"]
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its code tensors are not those that it lists"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_tied_weight_that_is_missing_at_both_ends(small_llama, tmp_path):
    quantized(small_llama(tie_word_embeddings=True)).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"missing embed_tokens\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_dense_models_are_not_quantized_while_loading():
    config = hf.PVQQuantizationConfig.of_layers(PVQConfig(), {}, {})
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(TINY, quantization_config=config)


def test_report_and_card_lie_beside_the_weights(quantized_tiny):
    report = json.loads((quantized_tiny / "pvq_report.json").read_text())
    assert len(report["layers"]) == 28
    assert report["totals"]["bits_per_weight"] == pytest.approx(3.30, abs=0.01)
    assert report["config"]["pulses"] == 28
    assert "version" in report["build"]
    card = (quantized_tiny / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "import pvq" in card
    assert str(TINY) not in card
    assert (quantized_tiny / "tokenizer.json").read_bytes() == (
        TINY / "tokenizer.json"
    ).read_bytes()


# --- checkpoints that are not what they say -------------------------------------------------------


@pytest.fixture
def checkpoint(small_llama, tmp_path) -> Path:
    quantized(small_llama()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(checkpoint: Path, change) -> None:
    """Applies `change` to the tensors of the only weight file, without checksums."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def edit_config(checkpoint: Path, change) -> None:
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


NAME = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{NAME}.index"), "missing layers.0.mlp.up_proj.index"),
        (lambda t: t.pop("model.norm.weight"), "missing norm.weight"),
        (lambda t: t.update(extra=torch.zeros(3)), "unexpected extra"),
        (
            lambda t: t.update({f"{NAME}.gain": t[f"{NAME}.gain"][:5].clone()}),
            r"layers.0.mlp.up_proj.gain is U8 \[5, 2\], expected U8 \[96, 2\]",
        ),
        (
            lambda t: t.update({f"{NAME}.row_scale": t[f"{NAME}.row_scale"].float()}),
            r"up_proj.row_scale is F32 \[96\], expected BF16 \[96\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(65)}),
            r"norm.weight is F32 \[65\], expected F32 \[64\]",
        ),
    ],
)
def test_tensors_that_do_not_match_the_config(checkpoint, change, text):
    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=f"does not match its config.json: .*{text}"):
        AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda q: q["layers"].pop(NAME),
            "does not match its config.json: missing layers.0.mlp.up",
        ),
        (lambda q: q["default"].update(pulses=40), r"index is U8 \[\d+, \d+\], expected U8"),
        (
            lambda q: q["layers"].update({"model.layers.9.q": {}}),
            "names model.layers.9.q, which Llama",
        ),
        (lambda q: q["layers"].update({"model.norm": {}}), "model.norm, which is a LlamaRMSNorm"),
        (lambda q: q["layers"][NAME].update(dim=10), "does not fit model.layers.0.mlp.up_proj: 64"),
        (lambda q: q.update(format_version=99), "format_version 99.* upgrade pvq"),
        (
            lambda q: (
                q.update(format_version=1),
                q["layers"].update({NAME: {"code": "overlap", "bits": 3}}),
            ),
            "format_version 1, and overlap 3 bits has other tables since 2",
        ),
        (lambda q: q.pop("layers"), "'layers' in the quantization_config .* is None"),
        (lambda q: q.update(layers=[]), r"'layers' in .* is \[\], expected an object"),
        (lambda q: q["layers"].update({NAME: 5}), f"'layers' of '{NAME}' in .* is 5, expected an"),
        (lambda q: q.update(tied={"lm_head": 5}), "'tied' of 'lm_head' in .* is 5, expected a na"),
        (lambda q: q["default"].update(pulses=0), "pulses is 0, expected 1 to 4096"),
        (lambda q: q["default"].update(twist=1), "does not know: twist"),
    ],
)
def test_configs_that_do_not_match_the_tensors(checkpoint, change, text):
    edit_config(checkpoint, change)
    with pytest.raises(ValueError, match=text):
        AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_weights(checkpoint, keep):
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    file.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"damaged or truncated.*copy it again"):
        pvq.load(checkpoint)


@pytest.mark.parametrize("tensor", [f"{NAME}.index", f"{NAME}.gain", "model.norm.weight"])
def test_a_flipped_bit_is_noticed(checkpoint, tensor):
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + header])[tensor]["data_offsets"][0]
    data[8 + header + begin + 3] ^= 4
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match=f"altered after it was saved: checksum of {tensor} differs"
    ):
        pvq.load(checkpoint)


def test_an_index_beyond_the_pyramid_is_refused_not_decoded(checkpoint):
    def overflow(tensors):
        tensors[f"{NAME}.index"][2] = 255

    rewrite(checkpoint, overflow)
    with pytest.raises(RuntimeError, match="names no point of the pyramid"):
        AutoModelForCausalLM.from_pretrained(checkpoint)


def test_a_header_that_is_no_json(checkpoint):
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[20:24] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or truncated"):
        pvq.load(checkpoint)


def test_load_says_that_there_is_no_checkpoint(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unreachable)
    for name in (str(tmp_path / "missing"), "./missing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no model folder, and no hub name"):
            pvq.load(name)
    with pytest.raises(
        FileNotFoundError, match=r"^owner/missing is no folder here, nor on the hub"
    ):
        pvq.load("owner/missing")


def test_load_says_what_a_folder_is_not(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is no model folder"):
        pvq.load(tmp_path)
    with pytest.raises(ValueError, match=r"is not a pvq checkpoint .* AutoModelForCausalLM"):
        pvq.load(TINY)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON .* copy it again"):
        pvq.load(checkpoint)


def test_a_missing_shard(small_llama, tmp_path):
    quantized(small_llama()).save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(OSError, match="model-00002"):
        pvq.load(tmp_path)


def test_checkpoints_move_between_folders(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert same_state(pvq.load(checkpoint), pvq.load(tmp_path / "copy"))
