"""Projections that share one product: what is grouped, and that results stay the same."""

import copy
import gc
import io
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import pvq
from pvq import PVQConfig, PVQLinear, _core
from pvq.activations import ActivationCode, decoded
from pvq.codes.joined import JoinedForm
from pvq.codes.table import TableCode
from pvq.modules import quantized_modules

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)

HEADER = 100


@dataclass(frozen=True)
class Plain:
    """A form that can be joined: a header, then the rows of the code. Counts kernel products."""

    bits: int
    calls: ClassVar[list[int]] = []

    layout: ClassVar[str] = "fragments"
    tensors: ClassVar[tuple[str, ...]] = ("fragments",)
    replaces: ClassVar[tuple[str, ...]] = ("code",)
    header: ClassVar[int] = HEADER

    def of_stored(self, stored, shape):
        header = torch.full((HEADER,), 77, dtype=torch.uint8)
        return {"fragments": torch.cat([header, stored["code"].flatten()])}

    def to_stored(self, held, shape):
        assert torch.compiler.is_compiling() or (held["fragments"][:HEADER] == 77).all()
        return {"code": held["fragments"][HEADER:].view(shape[0], -1).clone()}

    def fuses(self, x, activations):
        return activations == "int8" and x.dtype == torch.float32

    def matmul(self, x, held, rows, block, seed, activations):
        self.calls.append(rows)
        code = self.to_stored(held, (rows, x.shape[-1]))["code"]
        return torch.ops.pvq.table_matmul(x, code, held["row_scale"], self.bits, block, seed)

    def takes_points(self, dim, dtype):
        return dtype == torch.float32

    def matmul_points(self, point, amplitude, pulses, held, rows, dtype):
        assert (point.view(*amplitude.shape, -1).abs().sum(-1) == pulses).all()
        values = decoded(point, amplitude).to(dtype)
        return self.matmul(values, held, rows, 0, 0, "points")


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(
        TableCode, "run_time", lambda self, device: Plain(self.bits)
        if device.type == "cpu" else None
    )  # fmt: skip
    monkeypatch.setattr(Plain, "calls", [])
    return Plain


class Block(nn.Module):
    """Attention and MLP of no use, with the names that are grouped."""

    def __init__(self, cols=64, rows=(48, 32, 32), up=(96, 96), bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(cols, n, bias=bias) for n in rows)
        self.gate_proj, self.up_proj = (nn.Linear(cols, n, bias=bias) for n in up)
        self.down_proj = nn.Linear(up[0], cols, bias=bias)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        h = x + q.mean(-1, True) - k.mean(-1, True) + v.mean(-1, True)
        return self.down_proj(self.gate_proj(h).sigmoid() * self.up_proj(h))


def block(bits=3, overrides=None, code="table", **sizes):
    model = nn.Sequential(Block(**sizes))
    config = PVQConfig(bits, code=code)
    pvq.quantize_model(model, config, overrides=overrides, progress=False)
    return model


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key].cpu(), b[key].cpu()) for key in a)


def joined(model):
    return {n for n, m in quantized_modules(model) if isinstance(m._form, JoinedForm)}


def test_groups_compute_once_and_change_nothing_else(plain):
    model = pvq.prepare(block())
    before, x = copy.deepcopy(model), torch.randn(3, 64)
    known = model(x)
    plain.calls.clear()
    assert pvq.group_projections(model) == 2
    assert joined(model) == {f"0.{n}_proj" for n in ("q", "k", "v", "gate", "up")}
    with torch.no_grad():
        assert torch.allclose(model(x), known, atol=1e-5)
    assert len(plain.calls) == 3
    assert same_state(model, before)
    assert pvq.group_projections(model) == 0, "once"
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    layer = model[0].k_proj
    assert layer.layout == "fragments"
    assert torch.equal(layer.dequantize(), before[0].k_proj.dequantize())
    gradient = torch.randn(3, 64, requires_grad=True)
    model(gradient).sum().backward()
    reference = gradient.detach().clone().requires_grad_()
    before(reference).sum().backward()
    assert torch.allclose(gradient.grad, reference.grad, atol=1e-4)


def test_loads_dissolve_a_group_only_where_they_bring_codes(plain):
    model, x = pvq.prepare(block()), torch.randn(3, 64)
    pvq.group_projections(model)
    before = copy.deepcopy(model.state_dict())
    bias = {key: torch.ones_like(t) for key, t in before.items() if key.endswith("bias")}
    model.load_state_dict(bias, strict=False)
    assert len(joined(model)) == 5
    scale = 2 * before["0.k_proj.row_scale"]
    model.load_state_dict({"0.k_proj.row_scale": scale}, strict=False)
    assert joined(model) == {f"0.{n}_proj" for n in ("q", "v", "gate", "up")}
    assert model[0].k_proj.layout == "fragments"
    state = model.state_dict()
    expected = {**before, **bias, "0.k_proj.row_scale": scale}
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    with torch.no_grad():
        for layer in (model[0].q_proj, model[0].k_proj, model[0].v_proj):
            assert torch.allclose(layer(x), x @ layer.dequantize().T + 1, atol=1e-4)


def test_groups_round_their_activations_once(plain, monkeypatch):
    model = pvq.prepare(block(), activations="pyramid4")
    alone, x = copy.deepcopy(model), torch.randn(3, 64)
    assert pvq.group_projections(model) == 2
    rounded = []
    kept = ActivationCode.round
    monkeypatch.setattr(ActivationCode, "round", lambda *a: rounded.append(1) or kept(*a))
    plain.calls.clear()
    with torch.no_grad():
        found = model(x)
        assert plain.calls == [144, 208, 64]
        assert len(rounded) == 3
        assert torch.allclose(found, alone(x), atol=1e-5)
        # The values of points are not what this form's product reads its tiles for.
        plain.calls.clear()
        model[0].k_proj(x.bfloat16())
        assert plain.calls == [32]
        model[0].k_proj.prepare(activations="pyramid5")
        model[0].q_proj(x)
        model[0].k_proj(x)
        assert plain.calls[1:] == [144, 144]
    z, y = (x.clone().requires_grad_() for _ in range(2))
    assert torch.allclose(model[0].v_proj(z), alone[0].v_proj(x), atol=1e-5)
    model(z).sum().backward()
    alone[0].k_proj.prepare(activations="pyramid5")
    alone(y).sum().backward()
    assert torch.allclose(z.grad, y.grad, atol=1e-4)


def test_sizes_of_groups_are_those_of_their_memory(plain):
    model = pvq.prepare(block())
    pvq.group_projections(model)
    layers = [model[0].q_proj, model[0].k_proj, model[0].v_proj]
    memory = layers[0]._form.memory
    assert {layer._form.memory.data_ptr() for layer in layers} == {memory.data_ptr()}
    row = 64 * 3 // 8  # a tile is 16 rows of 24 bytes, more than the header
    assert memory.nbytes == HEADER + (48 + 16 + 32 + 16 + 32) * row
    rows = (48 + 32 + 32) + (48 + 16 + 32 + 16 + 32)  # scales: the members' and the group's
    assert sum(layer.resident_nbytes for layer in layers) == memory.nbytes + 2 * rows


def test_short_tiles_leave_room_for_the_header(plain):
    model = pvq.prepare(block(cols=8, up=(16, 32)))  # a tile is 48 bytes, the header 100
    known = copy.deepcopy(model)
    x = torch.randn(2, 8)
    expected = [getattr(model[0], name)(x) for name in ("q_proj", "k_proj", "v_proj")]
    assert pvq.group_projections(model) == 2
    assert model[0].q_proj._form.memory.nbytes == HEADER + (48 + 48 + 32 + 48 + 32) * 3
    found = [getattr(model[0], name)(x) for name in ("q_proj", "k_proj", "v_proj")]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert same_state(model, known)


def test_only_layers_that_are_alike_are_joined(plain):
    overrides = {"*.v_proj": {"bits": 4}, "*.up_proj": {"seed": 5}}
    model = pvq.prepare(block(overrides=overrides))
    assert pvq.group_projections(model) == 1
    assert joined(model) == {"0.q_proj", "0.k_proj"}
    model = pvq.prepare(block(rows=(48, 40, 32)))
    model[0].gate_proj.prepare(activations="float")
    assert pvq.group_projections(model) == 1
    assert joined(model) == {"0.q_proj", "0.v_proj"}, "40 rows are no multiple of 16"
    model = block()
    assert pvq.group_projections(model) == 0, "the stored form is not joined"
    assert pvq.group_projections(pvq.prepare(model), [("q_proj", "v_proj")]) == 1
    assert joined(model) == {"0.q_proj", "0.v_proj"}
    twice = pvq.prepare(block())
    twice[0].k_proj = twice[0].q_proj
    assert pvq.group_projections(twice) == 2
    assert joined(twice) == {"0.q_proj", "0.v_proj", "0.gate_proj", "0.up_proj"}
    x = torch.randn(2, 64)
    assert torch.equal(twice[0].k_proj(x), twice[0].q_proj(x))


def test_what_cannot_share_multiplies_by_itself(plain):
    model = pvq.prepare(block())
    pvq.group_projections(model)
    layer, x = model[0].k_proj, torch.randn(3, 64)
    weight = layer.dequantize()

    def alone(y, x=x):
        assert torch.allclose(y.float(), x.float() @ weight.T + layer.bias.float(), atol=0.05)
        assert plain.calls[-1] == 32
        assert len(plain.calls) == 1
        plain.calls.clear()

    plain.calls.clear()
    with torch.inference_mode():
        alone(layer(x.clone()))
    alone(layer(x.bfloat16()))
    layer.prepare(activations="float")
    alone(layer(x))
    layer.prepare(activations="int8")
    layer(x)
    assert plain.calls.pop() == 144
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("way", ["stored", "meta", "state", "empty"])
def test_members_leave_and_the_others_stay(plain, way):
    model = pvq.prepare(block())
    before = copy.deepcopy(model)
    pvq.group_projections(model)
    layer, state = model[0].q_proj, model.state_dict()
    memory = weakref.ref(layer._form.memory)
    if way == "stored":
        layer.prepare("stored")
    elif way == "meta":
        layer.to("meta")
        model[0].q_proj = before[0].q_proj
    elif way == "state":
        layer.load_state_dict(before[0].q_proj.state_dict())
    else:
        layer.to_empty(device="cpu").load_state_dict(before[0].q_proj.state_dict())
    assert joined(model) == {f"0.{n}_proj" for n in ("k", "v", "gate", "up")}
    x = torch.randn(3, 64)
    assert torch.allclose(model(x), before(x), atol=1e-5)
    assert same_state(model, before)
    model.load_state_dict(state)
    assert not joined(model)
    gc.collect()
    assert memory() is None, "nothing holds the memory of a group that all have left"
    assert pvq.group_projections(pvq.prepare(model)) == 2


def test_a_buffer_that_was_exchanged_is_noticed(plain):
    model = pvq.prepare(block())
    pvq.group_projections(model)
    layer, x = model[0].k_proj, torch.randn(3, 64)
    known = layer(x)
    layer.fragments = layer.fragments.clone()
    plain.calls.clear()
    assert torch.allclose(layer(x), known, atol=1e-6)
    assert plain.calls == [32]


def test_casts_copies_and_files_keep_the_group(plain):
    model = pvq.prepare(block())
    pvq.group_projections(model)
    model.to(torch.float64).to(torch.float32)
    assert len(joined(model)) == 5
    x = torch.randn(3, 64)
    with torch.no_grad():
        known = model(x)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert len(joined(twin)) == 5
        layers = (twin[0].q_proj, twin[0].v_proj)
        assert layers[0]._form.shared is layers[1]._form.shared
        assert layers[0]._form.memory.data_ptr() != model[0].q_proj._form.memory.data_ptr()
        plain.calls.clear()
        with torch.no_grad():
            assert torch.equal(twin(x), known)
        assert len(plain.calls) == 3
        assert same_state(twin, model)


# --- on the GPU -----------------------------------------------------------------------------------


def relative_error(found, expected):
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def gpu_block(bits=3, dtype=torch.float16, code="table", **sizes):
    sizes = {"cols": 256, "rows": (512, 128, 128), "up": (640, 640), **sizes}
    return block(bits, code=code, **sizes).to(dtype).cuda()


@needs_gpu
@pytest.mark.parametrize(
    ("code", "bits"), [("table", 2), ("table", 3), ("table", 4), ("pyramid", 3)]
)
@pytest.mark.parametrize("cols", [128, 256, 2048])
@pytest.mark.parametrize("tokens", [(1,), (2,), (5,), (2, 9), (40,), (300,)])
def test_groups_give_the_products_of_their_members(code, bits, cols, tokens):
    model = gpu_block(bits, code=code, cols=cols, rows=(48, 16, 32), up=(96, 96))
    alone = copy.deepcopy(model)
    # Planes of matrices whose largest integers need other widths are not joined.
    assert pvq.group_projections(model) == 2 or code == "pyramid"
    x = torch.randn(*tokens, cols, device="cuda").half()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            y = getattr(model[0], name)(x)
            assert y.shape == (*tokens, getattr(alone[0], name).out_features)
            assert relative_error(y, getattr(alone[0], name)(x)) < 2e-3
    if code == "table":
        assert model[0].q_proj._form.shared._waiting is None
    assert same_state(model, alone)
    assert relative_error(model(x), alone(x)) < 0.01


@needs_gpu
@pytest.mark.parametrize(("code", "bits"), [("table", 2), ("table", 4), ("pyramid", 3)])
@pytest.mark.parametrize("tokens", [(1,), (2, 9), (100,)])
def test_groups_round_to_the_points_of_their_members(code, bits, tokens):
    model = pvq.prepare(gpu_block(bits, code=code), activations="pyramid4")
    alone = copy.deepcopy(model)
    assert pvq.group_projections(model) == 2 or code == "pyramid"
    x = torch.randn(*tokens, 256, device="cuda").half()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            assert relative_error(getattr(model[0], name)(x), getattr(alone[0], name)(x)) < 2e-3


@needs_gpu
def test_groups_hold_one_copy_of_the_weights():
    model = gpu_block(2, cols=4096, rows=(4096, 1024, 1024), up=(4096, 4096), bias=False)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    pvq.group_projections(model)
    x = torch.randn(1, 4096, device="cuda").half()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            getattr(model[0], name)(x)
    del x
    gc.collect()
    assert torch.cuda.memory_allocated() < before * 1.02


@needs_gpu
def test_groups_in_a_graph():
    model = gpu_block()
    alone = copy.deepcopy(model)
    pvq.group_projections(model)
    x = torch.randn(1, 256, device="cuda").half()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        model(x)
        model[0].q_proj(x)  # an output of k_proj and of v_proj wait outside of the graph
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        k = model[0].k_proj(x)
        y = model(x)
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.randn(1, 256, device="cuda"))
        graph.replay()
        with torch.no_grad():
            assert relative_error(y, alone(x)) < 0.01
            assert relative_error(k, alone[0].k_proj(x)) < 2e-3


@needs_gpu
def test_two_graphs_do_not_share_outputs():
    model = gpu_block()
    alone = copy.deepcopy(model)
    pvq.group_projections(model)
    x = torch.randn(1, 256, device="cuda").half()
    with torch.no_grad():
        model(x)
        graphs, outputs = [], []
        for name in ("q_proj", "k_proj"):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs.append(getattr(model[0], name)(x))
            graphs.append(graph)
        x.copy_(torch.randn(1, 256, device="cuda"))
        graphs[1].replay()
        assert relative_error(outputs[1], alone[0].k_proj(x)) < 2e-3
        v = model[0].v_proj(x)  # eager again
        assert relative_error(v, alone[0].v_proj(x)) < 2e-3


@needs_gpu
def test_another_stream_computes_its_own():
    model = gpu_block()
    pvq.group_projections(model)
    x = torch.randn(1, 256, device="cuda").half()
    with torch.no_grad():
        model[0].q_proj(x)
        shared = model[0].q_proj._form.shared
        waiting = shared._waiting
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model[0].k_proj(x)
        assert shared._waiting is not waiting
        torch.cuda.synchronize()


@needs_gpu
def test_gradients_through_a_group():
    model = gpu_block()
    alone = copy.deepcopy(model)
    pvq.group_projections(model)
    x = torch.randn(4, 256, device="cuda").half()
    gradients = []
    for each in (model, alone):
        z = x.clone().requires_grad_()
        each(z).float().square().sum().backward()
        gradients.append(z.grad)
    assert relative_error(*gradients) < 0.02


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_in_other_dtypes(dtype):
    model = gpu_block(dtype=dtype)
    alone = copy.deepcopy(model)
    pvq.group_projections(model)
    x = torch.randn(3, 256, device="cuda").to(dtype)
    assert relative_error(model(x), alone(x)) < (1e-5 if dtype == torch.float32 else 0.05)
    model.cpu()
    assert not joined(model)
    assert same_state(model, alone)


@needs_gpu
def test_a_model_generates_with_groups(small_llama):
    model = small_llama(hidden_size=128, intermediate_size=256)
    pvq.quantize_model(model, PVQConfig(4, code="table"), progress=False)
    model.to(torch.float16).cuda()
    ids = torch.tensor([[1, 2, 3]], device="cuda")
    with torch.no_grad():
        known = model(ids).logits
        assert pvq.group_projections(model) == 4
        assert relative_error(model(ids).logits, known) < 0.01
    out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 11)


def test_layers_of_a_real_model_are_found(plain, small_llama):
    model = small_llama(hidden_size=64, intermediate_size=96)
    pvq.quantize_model(model, PVQConfig(3, code="table"), progress=False)
    pvq.prepare(model)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        known = model(ids).logits
        plain.calls.clear()
        assert pvq.group_projections(model) == 4
        assert torch.allclose(model(ids).logits, known, atol=1e-5)
    assert len(plain.calls) == 2 * 4, "q with k and v, o, gate with up, down"
    assert isinstance(model.model.layers[0].self_attn.q_proj, PVQLinear)


def test_a_name_is_no_model():
    with pytest.raises(TypeError, match="model is the name 'out', expected a model: load it first"):
        pvq.group_projections("out")
