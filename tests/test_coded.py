"""Forms of quantized modules: on the CPU one made for the test, on the GPU the real ones."""

import copy
import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import pvq
from pvq import PVQConfig, PVQEmbedding, PVQLinear, _core, quantize_tensor
from pvq.codes.table import TableCode
from pvq.embedding import PVQTiedHead

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)


@dataclass(frozen=True)
class Backwards:
    """A run-time form for the CPU: the bytes of each row in reverse; remembers what it is asked."""

    bits: int
    asked: ClassVar[list[str]] = []

    layout: ClassVar[str] = "fragments"
    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    replaces: ClassVar[tuple[str, ...]] = ("code",)

    def of_stored(self, stored, shape):
        return {"fragments": stored["code"].flip(1)} if shape[1] % 64 == 0 else None

    def to_stored(self, held, shape):
        return {"code": held["fragments"].flip(1)}

    def matmul(self, x, held, rows, block, seed, activations):
        self.asked.append(activations)
        code = held["fragments"].flip(1)
        return torch.ops.pvq.table_matmul(x, code, held["row_scale"], self.bits, block, seed)

    def dequantize_rows(self, held, ids, shape, dtype, block, seed):
        code, scale = held["fragments"][ids].flip(1), held["row_scale"][ids]
        return torch.ops.pvq.table_dequantize(code, scale, self.bits, shape[1], dtype, block, seed)


@pytest.fixture
def backwards(monkeypatch):
    """Gives table codes that form on the CPU."""
    monkeypatch.setattr(
        TableCode, "run_time", lambda self, device: Backwards(self.bits)
        if device.type == "cpu" else None
    )  # fmt: skip
    monkeypatch.setattr(Backwards, "asked", [])
    return Backwards


def table_layer(cols=128, rows=40, bits=3):
    torch.manual_seed(cols + rows)
    return PVQLinear.from_linear(nn.Linear(cols, rows), PVQConfig(bits, code="table"))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key].cpu(), b[key].cpu()) for key in a)


def test_a_prepared_layer_holds_one_form_and_saves_the_other(backwards):
    layer = table_layer()
    stored = copy.deepcopy(layer)
    x = torch.randn(5, 128)
    expected = layer(x)
    assert layer.prepare() is layer
    assert layer.layout == "fragments"
    assert layer.code is None
    assert {name for name, _ in layer.named_buffers()} == {"fragments", "row_scale"}
    assert layer.resident_nbytes == layer.fragments.nbytes + layer.row_scale.nbytes == layer.nbytes
    assert same_state(layer, stored)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.dequantize(), stored.dequantize())
    assert layer.half().layout == "fragments"
    assert same_state(layer, stored.half())
    assert layer.prepare("stored").layout == "stored"
    assert torch.equal(layer.code, stored.code)
    assert layer.prepare("index").layout == "stored"


def test_layers_that_do_not_fit_the_form_stay_stored(backwards):
    layer = table_layer(cols=96).prepare("fragments")
    assert layer.layout == "stored"
    assert torch.isfinite(layer(torch.ones(1, 96))).all()


def test_activations_are_a_choice_of_the_layer(backwards):
    layer = table_layer().prepare()
    x = torch.ones(1, 128)
    layer(x)
    layer.prepare(activations="float")(x)
    layer.prepare("auto")(x)
    copy.deepcopy(layer)(x)
    layer.prepare(activations="int8")(x)
    assert backwards.asked == ["int8", "float", "float", "float", "int8"]
    with pytest.raises(ValueError, match="activations is 'int4', expected one of 'int8', 'int8x2'"):
        layer.prepare("stored", activations="int4")
    assert layer.layout == "fragments", "nothing was changed"


def test_prepared_layers_are_copied_saved_and_loaded(backwards):
    layer = table_layer().prepare()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert twin.layout == "fragments"
        assert same_state(layer, twin)
    other = PVQLinear(128, 40, True, layer.config)
    for target in (other, copy.deepcopy(other).prepare()):
        layout = target.layout
        target.load_state_dict(layer.state_dict())
        assert target.layout == layout
        assert same_state(layer, target)


def test_a_table_with_a_head_keeps_codes_that_a_load_leaves_out(backwards):
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 128), PVQConfig(3, code="table"))
    model = pvq.prepare(nn.ModuleList([table, PVQTiedHead(table, nn.Parameter(torch.ones(50)))]))
    weight, scale = table.dequantize(), table.row_scale.clone()
    model.load_state_dict({"1.bias": torch.zeros(50)}, strict=False)
    assert torch.equal(table.dequantize(), weight)
    model.load_state_dict({"0.row_scale": 2 * scale}, strict=False)
    assert torch.equal(table.dequantize(), 2 * weight)
    assert table.layout == "fragments"


def test_a_model_keeps_codes_that_a_load_leaves_out(quantized_tiny, tokens):
    model = pvq.load(quantized_tiny)
    assert model.model.layers[0].mlp.up_proj.layout == "planes"
    with torch.no_grad():
        expected = model(tokens[None, :40]).logits
    norms = {key: tensor for key, tensor in model.state_dict().items() if "norm" in key}
    assert norms
    model.load_state_dict(norms, strict=False)
    with torch.no_grad():
        assert torch.equal(model(tokens[None, :40]).logits, expected)


def test_moving_to_the_meta_device_and_back_needs_no_values(backwards):
    layer = table_layer().prepare()
    expected = {name: (t.shape, t.dtype) for name, t in layer.state_dict().items()}
    there = layer.to("meta")
    assert there.layout == "stored"
    back = there.to_empty(device="cpu")
    assert back.layout == "stored", "memory without values is not converted"
    assert {name: (t.shape, t.dtype) for name, t in back.state_dict().items()} == expected


def test_a_table_takes_the_form_only_for_its_head(backwards):
    dense = nn.Embedding(50, 128)
    table = PVQEmbedding.from_embedding(dense, PVQConfig(3, code="table"))
    stored = copy.deepcopy(table)
    ids = torch.tensor([[3, 49], [-1, 0]], dtype=torch.int32)
    assert table.prepare().layout == "stored"
    assert table.prepare("fragments").layout == "stored"
    head = PVQTiedHead(table)
    model = pvq.prepare(nn.ModuleList([table, head]), "auto")
    assert table.layout == "fragments"
    assert table.code is None
    assert torch.equal(table(ids), stored(ids))
    assert same_state(table, stored)
    x = torch.randn(4, 128)
    assert torch.allclose(head(x), x @ stored.dequantize().T, atol=1e-4)
    twin = copy.deepcopy(model)
    assert torch.equal(twin[0](ids), stored(ids))
    assert torch.equal(twin[1](x), head(x))
    assert model.half()[0](ids).dtype == torch.float16
    assert table.prepare("stored").layout == "stored"


def test_a_table_whose_form_gives_no_rows_stays_stored():
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig())
    head = PVQTiedHead(table)
    for layout in ("auto", "planes"):
        pvq.prepare(nn.ModuleList([table, head]), layout)
        assert table.layout == "stored"


def test_repr_gives_both_sizes():
    layer = PVQLinear.from_linear(nn.Linear(4096, 1000, bias=False), PVQConfig(pulses=27))
    stored = "layout=stored, 1.67 MB on disk, 1.67 MB in memory"
    assert stored in repr(layer)
    layer.prepare("planes")
    memory = f"{layer.resident_nbytes / 1e6:.2f} MB in memory"
    assert f"layout=planes, 1.67 MB on disk, {memory}" in repr(layer)
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig())
    assert "layout=stored, 0.00 MB on disk, 0.00 MB in memory" in repr(table)


# --- on the GPU -----------------------------------------------------------------------------------


def relative_error(found, expected):
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@needs_gpu
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("cols", "layout"), [(1024, "fragments"), (640, "fragments"), (192, "stored")]
)
def test_layers_take_their_fastest_form_on_the_gpu(bits, cols, layout):
    layer = table_layer(cols, 72, bits)
    before, weight = copy.deepcopy(layer), layer.dequantize(torch.float64)
    layer.cuda()
    assert layer.layout == layout
    assert all(buffer.is_cuda for buffer in layer.buffers())
    assert (layer.code is None) == (layout == "fragments")
    assert same_state(layer, before)
    padding = 8 * cols * bits // 8 + 1024 if layout == "fragments" else 0  # 72 rows are 80 in tiles
    assert layer.resident_nbytes == layer.nbytes + padding
    for dtype, int8, exact in [
        (torch.float16, 0.01, 1.5e-3),
        (torch.bfloat16, 0.015, 1.2e-2),
        (torch.float32, 3e-6, 3e-6),
    ]:
        x = torch.randn(2, 3, cols, device="cuda").to(dtype)
        expected = x.double().cpu() @ weight.T + layer.bias.double().cpu()
        assert layer(x).dtype == dtype
        assert relative_error(layer(x), expected) < int8
        for activations in ("int8x2", "float"):
            assert relative_error(layer.prepare(activations=activations)(x), expected) < exact
        layer.prepare(activations="int8")
    assert layer.cpu().layout == "stored"
    assert same_state(layer, before)


@needs_gpu
def test_the_stored_form_stays_where_it_was_asked_for():
    layer = table_layer(256).prepare("stored").cuda()
    assert layer.layout == "stored"
    x = torch.randn(3, 256, device="cuda")
    weight = layer.dequantize(torch.float64)
    assert relative_error(layer(x), x.double() @ weight.T + layer.bias) < 3e-6
    assert layer.prepare().layout == "fragments"
    assert layer.prepare("stored").layout == "stored"


@needs_gpu
def test_pyramid_layers_move_between_planes_and_the_gpu():
    layer = PVQLinear.from_linear(nn.Linear(128, 40), PVQConfig()).prepare()
    before = copy.deepcopy(layer)
    assert layer.layout == "planes"
    layer.cuda()
    assert layer.layout != "planes"
    assert same_state(layer, before)
    with pytest.raises(ValueError, match="has no planes on device cuda"):
        layer.prepare("planes")
    x = torch.randn(4, 128)
    assert relative_error(layer(x.cuda()), before(x)) < 1e-5
    assert layer.cpu().layout == "planes"
    assert same_state(layer, before)


@needs_gpu
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("code", ["table", "pyramid"])
def test_tied_table_and_head_on_the_gpu(bits, code):
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 256), PVQConfig(bits, code=code))
    untied = copy.deepcopy(table).cuda()
    assert untied.layout == "stored"
    head = PVQTiedHead(table)
    model = nn.ModuleList([table, head]).half().cuda()
    assert table.layout == "fragments"
    ids = torch.tensor([[0, 49], [7, -1]], device="cuda")
    assert torch.equal(table(ids), untied.half()(ids))
    assert table(ids[:0]).shape == (0, 2, 256)
    weight = table.dequantize(torch.float64)
    x = torch.randn(3, 256, device="cuda").half()
    assert relative_error(head(x), x.double() @ weight.T) < 0.01
    pvq.prepare(model, activations="float")
    assert relative_error(head(x), x.double() @ weight.T) < 1.5e-3
    assert same_state(table, untied)
    assert same_state(model.cpu()[0], untied)


@needs_gpu
@pytest.mark.parametrize("activations", ["int8", "int8x2", "float"])
def test_gradient_of_the_input_on_the_gpu(activations):
    layer = table_layer(256).cuda().prepare(activations=activations)
    weight = layer.dequantize(torch.float64)
    x = torch.randn(5, 256, device="cuda").half().requires_grad_()
    layer.half()(x).float().sum().backward()
    assert relative_error(x.grad, weight.sum(0).expand(5, 256)) < 2e-3


@needs_gpu
@pytest.mark.parametrize("activations", ["int8", "int8x2", "float"])
def test_layers_compile_on_the_gpu(activations):
    layer = table_layer(256).half().cuda().prepare(activations=activations)
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 256), PVQConfig(2, code="table"))
    model = nn.Sequential(table.half().cuda(), layer)
    ids = torch.tensor([[3, 4, 5]], device="cuda")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_move_between_gpus():
    layer = table_layer(256).half().to("cuda:0")
    x = torch.randn(3, 256).half()
    expected = layer(x.to("cuda:0")).cpu()
    assert layer.to("cuda:1").layout == "fragments"
    assert torch.equal(layer(x.to("cuda:1")).cpu(), expected)


@needs_gpu
@pytest.mark.parametrize("code", ["table", "pyramid"])
def test_models_are_quantized_on_the_gpu(small_llama, code):
    config = PVQConfig(3, code=code)
    there = small_llama(hidden_size=128, intermediate_size=256).cuda()
    here = small_llama(hidden_size=128, intermediate_size=256)
    reports = [pvq.quantize_model(model, config, progress=False) for model in (there, here)]
    ours, known = (report.layers for report in reports)
    for a, b in zip(ours, known, strict=True):
        assert a.relative_error == pytest.approx(b.relative_error, rel=0.02)
        assert a.nbytes == b.nbytes
    pvq.prepare(there)
    after = reports[0].remeasured(there)
    assert {layer.layout for layer in after.layers} <= {"fragments", "stored"}
    assert code != "table" or after.layers[0].layout == "fragments"
    assert after.resident_nbytes >= after.nbytes
    q = quantize_tensor(torch.randn(40, 256, device="cuda"), config)
    assert q.device.type == "cuda"
