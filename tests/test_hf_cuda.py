"""Loading, saving and generating with transformers on the GPU."""

from pathlib import Path

import pytest
import torch
from test_hf import quantized, same_state
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig
from pvq.codes.joined import JoinedForm
from pvq.modules import quantized_modules

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and pvq.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)


@pytest.fixture
def table_checkpoint(small_llama, tmp_path) -> Path:
    """Table codes, tied embeddings, and a pyramid layer, with columns that fit fragments."""
    model = small_llama(hidden_size=128, intermediate_size=256, tie_word_embeddings=True)
    overrides = {"*.o_proj": {"code": "pyramid", "bits": 3.25}}
    config = PVQConfig(4, code="table")
    quantized(model, config, overrides=overrides, embeddings=True, head=True)
    model.save_pretrained(tmp_path / "table")
    return tmp_path / "table"


@pytest.mark.parametrize("way", ["device_map", "load", "cuda"])
def test_loading_on_the_gpu_takes_the_fastest_forms(table_checkpoint, tmp_path, way):
    here = AutoModelForCausalLM.from_pretrained(table_checkpoint)
    if way == "device_map":
        pytest.importorskip("accelerate")
        model = AutoModelForCausalLM.from_pretrained(table_checkpoint, device_map="cuda")
    elif way == "load":
        model = pvq.load(table_checkpoint, device="cuda")
    else:
        model = AutoModelForCausalLM.from_pretrained(table_checkpoint).cuda()
    layer = model.model.layers[0]
    assert layer.mlp.up_proj.layout == "fragments"
    assert layer.self_attn.o_proj.layout != "planes"
    grouped = [isinstance(m._form, JoinedForm) for m in layer.mlp.children() if hasattr(m, "_form")]
    assert grouped == ([False] * 3 if way == "cuda" else [True, True, False])
    assert model.model.embed_tokens.layout == "fragments", "the head multiplies from it"
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cuda"}
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = here(ids).logits
        exact = model(ids.cuda()).logits.cpu()
        model.save_pretrained(tmp_path / "again")
        rounded = model.to(torch.float16)(ids.cuda()).logits.float().cpu()
    assert (exact - expected).norm() < 1e-4 * expected.norm()
    assert (rounded - expected).norm() < 0.05 * expected.norm()
    assert same_state(here, AutoModelForCausalLM.from_pretrained(tmp_path / "again"))


def test_layout_and_activations_are_chosen_on_loading(table_checkpoint):
    stored = pvq.load(table_checkpoint, device="cuda", layout="stored")
    assert {m.layout for _, m in quantized_modules(stored)} == {"stored"}
    alone = pvq.load(table_checkpoint, device="cuda", group=False)
    assert not [m for _, m in quantized_modules(alone) if isinstance(m._form, JoinedForm)]
    exact = pvq.load(table_checkpoint, device="cuda", activations="float").to(torch.float16)
    assert {m.activations for _, m in quantized_modules(exact)} == {"float"}
    ids = torch.tensor([[1, 2, 3, 4]], device="cuda")
    with torch.no_grad():
        a, b = stored.to(torch.float16)(ids).logits.float(), exact(ids).logits.float()
    assert (a - b).norm() < 5e-3 * b.norm()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_generating_on_the_gpu(table_checkpoint, mode):
    model = pvq.load(table_checkpoint, device="cuda").to(torch.float16)
    ids = torch.tensor([[1, 2, 3]], device="cuda")
    with mode():
        out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert out.shape == (1, 11)
        again = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(again, out)
