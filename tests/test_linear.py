import copy
import io

import pytest
import torch
from torch import nn

from pvq import PVQConfig, PVQEmbedding, PVQLinear, quantize_tensor
from pvq.codes import empty_stored
from pvq.codes.planes import Planes
from pvq.embedding import PVQTiedHead

SHAPES = [
    (64, 48, PVQConfig()),
    (96, 17, PVQConfig(2.25)),
    (48, 1, PVQConfig(4.25, rotation="none")),
    (36, 33, PVQConfig(dim=12, pulses=9, gain_bits=0)),
    (60, 20, PVQConfig(dim=6, pulses=90)),
    (32, 5, PVQConfig(dim=2, pulses=300)),
    (256, 16, PVQConfig(dim=256, pulses=7, gain_bits=8)),
]


def dense_layer(cols: int, rows: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(cols * 1000 + rows)
    return nn.Linear(cols, rows, bias=bias)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(
        torch.equal(a_state[key], b_state[key]) for key in a_state
    )


@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cols", "rows", "config"), SHAPES)
def test_forward_is_the_product_with_the_decoded_weight(cols, rows, config, dtype, layout):
    dense = dense_layer(cols, rows)
    layer = PVQLinear.from_linear(dense, config).prepare(layout)
    assert layer.layout == layout
    x = torch.randn(2, 3, cols).to(dtype)
    weight = quantize_tensor(dense.weight, config).dequantize().double()
    expected = x.double() @ weight.T + dense.bias.double()
    got = layer(x)
    assert got.dtype == dtype
    # In bfloat16 the rotated input and the result are rounded; each costs half a unit of 2^-8.
    bound = (2e-6 if dtype == torch.float32 else 2**-7) * (x.double().abs() @ weight.abs().T)
    rotated = x.double().norm(dim=-1, keepdim=True) * weight.norm(dim=-1)
    slack = (1e-6 if dtype == torch.float32 else 2**-7) * (rotated + expected.abs())
    assert ((got.double() - expected).abs() <= bound + slack).all()


@pytest.mark.parametrize(("cols", "rows", "config"), SHAPES)
def test_planes_give_the_index_back_bit_for_bit(cols, rows, config):
    layer = PVQLinear.from_linear(dense_layer(cols, rows), config)
    before = copy.deepcopy(layer)
    layer.prepare("planes")
    assert layer.index is None
    assert same_state(layer, before)
    assert layer.prepare("index").layout == "stored"
    assert torch.equal(layer.index, before.index)


def test_planes_of_a_layer_with_zeros_and_outliers():
    w = torch.randn(40, 64)
    w[3] = 0
    w[:, 16:32] = 0
    w[5, 0], w[6, 63] = 40.0, -40.0
    for pulses in (27, 400):
        config = PVQConfig(pulses=pulses, rotation="none")
        layer = PVQLinear.from_tensor(quantize_tensor(w, config))
        index = layer.index
        assert layer.prepare("planes").outlier_value.numel() > 0
        assert torch.equal(layer.state_dict()["index"], index)


def test_planes_that_would_lose_the_index_are_not_made():
    w = torch.randn(8, 64) * 1e-36
    w[0, 0] = 1e-34
    layer = PVQLinear.from_tensor(quantize_tensor(w, PVQConfig(rotation="none")))
    assert layer.prepare("planes").layout == "stored"


def test_prepare_refuses_what_it_cannot_do():
    layer = PVQLinear.from_linear(dense_layer(64, 8), PVQConfig())
    with pytest.raises(ValueError, match="layout is 'fast', expected one of 'auto', 'stored'"):
        layer.prepare("fast")
    with pytest.raises(ValueError, match="no planes on device meta"):
        layer.to("meta").prepare("planes")
    assert layer.to("meta").prepare().layout == "stored"


def test_sizes_are_those_of_the_tensors():
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig())
    stored = sum(t.nbytes for name, t in layer.state_dict().items() if name != "bias")
    assert layer.nbytes == layer.resident_nbytes == stored
    layer.prepare("planes")
    assert layer.nbytes == stored
    assert layer.resident_nbytes == sum(b.nbytes for b in layer.buffers())
    assert layer.resident_nbytes < 48 * 64 * 2


@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize(
    "config",
    [PVQConfig(), PVQConfig(code="nf4"), PVQConfig(code="outliers")],
    ids=lambda config: config.code.name,
)
def test_layers_of_every_other_row_are_cast_and_shared(config, layout):
    codes = quantize_tensor(dense_layer(64, 48).weight, config).rows(slice(0, None, 2))
    expected = {name: tensor.clone() for name, tensor in codes.stored.items()}
    layer = PVQLinear.from_tensor(codes).half().prepare("auto" if layout == "planes" else layout)
    layer.share_memory()
    state = layer.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ layer.dequantize().T, atol=1e-4)


@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize(
    "cast",
    [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), lambda m: m.to("cpu")],
)
def test_casts_leave_the_codes_alone(cast, layout):
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).prepare(layout)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    y = layer(torch.ones(1, 64))
    cast(layer)
    for name, buffer in layer.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    assert layer(torch.ones(1, 64)).allclose(y, atol=1e-2)
    assert layer.layout == layout


def test_casts_reach_the_bias():
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    assert layer.row_scale.dtype == torch.bfloat16


def test_to_empty_and_meta_keep_shapes_and_dtypes():
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig())
    expected = {name: (t.shape, t.dtype) for name, t in layer.state_dict().items()}
    moved = layer.to("meta").to_empty(device="cpu")
    assert {name: (t.shape, t.dtype) for name, t in moved.state_dict().items()} == expected


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_state_dict_loads_into_either_layout(layout):
    source = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).prepare("planes")
    target = PVQLinear.from_linear(nn.Linear(64, 48), PVQConfig()).prepare(layout)
    target.load_state_dict(source.state_dict())
    assert same_state(source, target)
    assert target.layout == layout
    x = torch.randn(3, 64)
    assert target(x).allclose(source(x), atol=1e-5)


@pytest.fixture
def used_memory(monkeypatch):
    """Uninitialised codes are zeros, which decode to something: no chance leaves the old ones."""

    def zeros(*arguments):
        return {name: tensor.zero_() for name, tensor in empty_stored(*arguments).items()}

    monkeypatch.setattr("pvq.coded.empty_stored", zeros)


def prepared(layout: str) -> tuple[PVQLinear, torch.Tensor]:
    """A layer and the weight that it stands for."""
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).prepare(layout)
    assert layer.layout == layout
    return layer, layer.dequantize()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_a_load_without_codes_leaves_them(layout, assign, used_memory):
    layer, weight = prepared(layout)
    found = layer.load_state_dict({"bias": torch.ones(48)}, strict=False, assign=assign)
    assert sorted(found.missing_keys) == ["gain", "index", "row_scale"]
    assert not found.unexpected_keys
    assert torch.equal(layer.dequantize(), weight)
    assert layer.layout == layout
    assert (layer.bias == 1).all()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*index"):
        layer.load_state_dict({"bias": torch.zeros(48)}, assign=assign)
    assert torch.equal(layer.dequantize(), weight)
    assert layer.layout == layout


def test_loads_make_no_index_that_they_do_not_keep(monkeypatch):
    layer, weight = prepared("planes")
    state = layer.state_dict()
    made = []
    kept = Planes.to_stored
    monkeypatch.setattr(Planes, "to_stored", lambda *a: made.append(1) or kept(*a))
    layer.load_state_dict(state)
    layer.load_state_dict({"bias": state["bias"]}, strict=False)
    assert not made
    layer.load_state_dict({"row_scale": state["row_scale"]}, strict=False)
    assert made == [1]
    assert torch.equal(layer.dequantize(), weight)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize(
    "name", ["index", "gain", "row_scale", "bias"], ids=lambda name: f"without_{name}"
)
def test_a_load_takes_the_codes_that_there_are(name, layout, assign, used_memory):
    layer, _ = prepared(layout)
    other = PVQLinear.from_linear(nn.Linear(64, 48), PVQConfig())
    expected = layer.state_dict() | {k: v for k, v in other.state_dict().items() if k != name}
    given = {key: tensor.clone() for key, tensor in other.state_dict().items() if key != name}
    assert layer.load_state_dict(given, strict=False, assign=assign).missing_keys == [name]
    state = layer.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert layer.layout == layout


@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:5],
        lambda t: t.to("meta"),
        lambda t: t.tolist(),
        lambda t: t.to_sparse(),
    ],
    ids=["shape", "meta", "list", "sparse"],
)
def test_a_refused_index_leaves_the_old_one(change, layout, used_memory):
    layer, weight = prepared(layout)
    state = layer.state_dict()
    state["index"] = change(state["index"])
    with pytest.raises(RuntimeError, match="index"):
        layer.load_state_dict(state)
    assert torch.equal(layer.dequantize(), weight)
    assert layer.layout == layout


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_codes_are_loaded_beside_a_parameter_that_is_refused(layout, used_memory):
    layer, _ = prepared(layout)
    other = PVQLinear.from_linear(nn.Linear(64, 48), PVQConfig())
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        layer.load_state_dict({**other.state_dict(), "bias": torch.ones(3)})
    assert torch.equal(layer.dequantize(), other.dequantize())
    assert torch.equal(layer.bias, dense_layer(64, 48).bias)
    assert layer.layout == layout


def test_integers_of_another_dtype_are_loaded(used_memory):
    layer, _ = prepared("planes")
    other = PVQLinear.from_linear(nn.Linear(64, 48), PVQConfig())
    state = other.state_dict()
    layer.load_state_dict({**state, "index": state["index"].long()})
    assert same_state(layer, other)
    assert layer.layout == "planes"


def test_damaged_codes_are_an_error_of_the_load_and_stay_refused():
    layer, _ = prepared("planes")
    model = nn.Sequential(layer, nn.Linear(48, 2), prepared("planes")[0])
    good = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bad = {**good, "1.bias": torch.full((2,), 5.0), "2.bias": torch.full((48,), 5.0)}
    bad["0.index"] = good["0.index"].clone().fill_(255)
    with pytest.raises(RuntimeError, match=r"for Sequential:\s+0: .*names no point of the pyramid"):
        model.load_state_dict(bad)
    assert (model[1].bias == 5).all(), "what follows is loaded"
    assert (model[2].bias == 5).all()
    assert torch.equal(layer.state_dict()["index"], bad["0.index"])
    with pytest.raises(RuntimeError, match="names no point of the pyramid"):
        layer(torch.ones(1, 64))
    model.load_state_dict(good)
    assert torch.equal(layer.prepare("planes").dequantize(), model[2].dequantize())
    assert layer.layout == "planes"


def test_codes_without_values_are_assigned_as_they_are():
    layer, _ = prepared("planes")
    layer.load_state_dict(
        {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}, assign=True
    )
    assert layer.layout == "stored"
    assert all(tensor.is_meta for tensor in layer.state_dict().values())


def test_layers_survive_copy_and_pickle():
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).prepare("planes")
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert same_state(layer, twin)


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_gradient_of_the_input_is_that_of_the_dense_layer(layout):
    dense = dense_layer(64, 48)
    layer = PVQLinear.from_linear(dense, PVQConfig()).prepare(layout)
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).square().sum().backward()
    weight = layer.dequantize().double()
    z = x.detach().double().requires_grad_()
    (z @ weight.T + dense.bias.detach().double()).square().sum().backward()
    assert torch.allclose(x.grad.double(), z.grad, rtol=1e-4, atol=1e-4 * z.grad.abs().max())


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_layers_compile_without_graph_breaks(layout):
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig()).prepare(layout)
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig())
    model = nn.Sequential(table, layer)
    ids = torch.tensor([[3, 4, 5]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids), model(ids))


def test_linear_refuses_a_config_that_does_not_fit():
    with pytest.raises(ValueError, match="100 columns are not a multiple of dim=16"):
        PVQLinear(100, 4, False, PVQConfig())


def test_repr_says_what_it_is():
    layer = PVQLinear.from_linear(dense_layer(64, 48), PVQConfig(pulses=27))
    assert "in_features=64, out_features=48, bias=True, code=pyramid D=16 K=27 gain 4" in repr(
        layer
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embedding_decodes_the_rows_asked_for(dtype):
    torch.manual_seed(0)
    table = nn.Embedding(50, 64).to(dtype)
    quantized = PVQEmbedding.from_embedding(table, PVQConfig())
    ids = torch.tensor([[0, 49, 7], [7, 7, 3]])
    rows = quantized(ids)
    assert rows.dtype == dtype
    assert rows.shape == (2, 3, 64)
    expected = quantize_tensor(table.weight, PVQConfig()).dequantize(dtype)[ids]
    assert torch.equal(rows, expected)
    assert (rows.float() - table(ids).float()).square().sum() < 0.03 * table(
        ids
    ).float().square().sum()
    assert quantized(torch.zeros(0, dtype=torch.int64)).shape == (0, 64)


def test_embedding_follows_casts_in_its_output_only():
    quantized = PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig())
    before = quantized.row_scale.clone()
    quantized.half()
    assert quantized(torch.tensor([1])).dtype == torch.float16
    assert quantized.row_scale.dtype == torch.bfloat16
    assert torch.equal(quantized.row_scale, before)


def test_tied_head_multiplies_from_the_codes_of_the_table():
    table = PVQEmbedding.from_embedding(nn.Embedding(50, 64), PVQConfig())
    head = PVQTiedHead(table)
    x = torch.randn(3, 64)
    expected = x.double() @ table.dequantize().double().T
    assert torch.allclose(head(x).double(), expected, atol=1e-4)
    assert not head.state_dict()
    assert (head.in_features, head.out_features) == (64, 50)
    both = copy.deepcopy(nn.ModuleList([table, head]))
    both[0].row_scale.zero_()
    assert (both[1](x) == 0).all(), "the copy reads another table"
