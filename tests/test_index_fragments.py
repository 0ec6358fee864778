"""Exact indices as fragments: words of regions, the layout by its definition, GPU products."""

import functools

import numpy as np
import pytest
import torch
from test_table_matmul_cuda import activations, relative_error, rotate

import pvq
from pvq import PVQConfig, PVQLinear, _core, quantize_tensor
from pvq.codes import regions
from pvq.codes.bits import pack
from pvq.codes.index_fragments import IndexFragments, pack_numbers, unpack_numbers

ops = torch.ops.pvq
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SIZES = [(1, 128), (16, 256), (37, 384), (300, 1024)]
# D, K, gain bits: 2.25 and 3.25 bits a weight, the least and the most of everything; at D = 8 and
# K = 32 every other group has leaves that are not in shared memory.
CODES = [(16, 13, 2), (16, 28, 3), (8, 6, 3), (8, 14, 3), (16, 1, 0), (8, 1, 8), (16, 32, 8),
         (8, 32, 0)]  # fmt: skip


def extreme_points(dim, pulses):
    """All pulses in one coordinate, in one leaf, in two leaves, and none at all."""
    y = torch.zeros(4 * dim + 1, dim, dtype=torch.int8)
    for i in range(dim):
        y[4 * i, i] = pulses
        y[4 * i + 1, i] = -pulses
        y[4 * i + 2, i] = pulses // 2
        y[4 * i + 2, i ^ 1] += pulses // 2 - pulses
        y[4 * i + 3, i] = -(pulses // 3)
        y[4 * i + 3, (i + 4) % dim] = pulses - pulses // 3
    return y


def random_points(count, dim, pulses, seed=0):
    """Points of a pyramid, from groups with evenly spread energy to such that have few peaks."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(count, dim, generator=generator)
    w *= w.abs() ** torch.randint(0, 5, (count, 1), generator=generator)
    y = ops.nearest(w, pulses).to(torch.int8)
    extremes = extreme_points(dim, pulses)
    place = torch.randperm(count, generator=generator)[: len(extremes)]
    y[place] = extremes[: len(place)]
    return y


@functools.cache
def matrix(rows, cols, dim, pulses, gain_bits, seed=0):
    """The stored form of such points with random gains, and the float64 matrix that it means."""
    groups = cols // dim
    generator = torch.Generator().manual_seed(seed)
    y = random_points(rows * groups, dim, pulses, seed).view(rows, groups, dim)
    gain = torch.randint(0, 1 << gain_bits, (rows, groups), generator=generator)
    row_scale = (torch.randn(rows, generator=generator) / 64).bfloat16()
    stored = {
        "index": ops.encode(y.to(torch.int16), pulses),
        "gain": pack(gain, gain_bits),
        "row_scale": row_scale,
    }
    level = torch.from_numpy(_core.gain_levels(dim, cols, gain_bits, "lloyd")).double()
    norm = y.double().norm(dim=-1, keepdim=True).clamp(min=1)
    w = row_scale.double()[:, None, None] * level[gain][..., None] * y.double() / norm
    return stored, w.view(rows, cols)


def fragments_of(stored, dim, pulses, gain_bits, shape):
    form = IndexFragments(dim, pulses, gain_bits, "lloyd")
    held = form.of_stored(stored, shape)
    assert held is not None
    return form, held["fragments"]


@pytest.mark.parametrize(("dim", "pulses"), [(8, 1), (8, 2), (8, 5), (16, 1), (16, 2), (16, 3)])
def test_words_of_all_points(dim, pulses):
    count = _core.count(dim, pulses)
    stream = pack(torch.arange(count)[:, None], _core.index_bits(dim, pulses))
    y = ops.decode(stream, dim, pulses, 1).view(count, dim).to(torch.int8)
    y = torch.cat([y, torch.zeros(1, dim, dtype=torch.int8)])
    for gain_bits in (0, 3):
        gain = torch.arange(len(y)) % (1 << gain_bits)
        numbers = regions.encode(y, gain, pulses, gain_bits)
        assert len(numbers.unique()) == count + 1
        assert numbers.min() >= 0
        assert numbers.max() < 1 << regions.number_bits(dim, pulses, gain_bits)
        found, codes = regions.decode(numbers, dim, pulses, gain_bits)
        assert torch.equal(found, y)
        assert torch.equal(codes, gain)


@pytest.mark.parametrize("dim", [8, 16])
def test_words_of_every_size_are_hardly_wider_than_the_index(dim):
    for pulses in range(4, 33):
        more = regions.number_bits(dim, pulses, 0) - _core.index_bits(dim, pulses)
        assert more <= (0 if pulses in (13, 28) else 1 if pulses >= 7 else 2)
        y = torch.cat([random_points(2000, dim, pulses), extreme_points(dim, pulses)])
        for gain_bits in (0, 8):
            gain = torch.randint(0, 1 << gain_bits, y.shape[:1])
            numbers = regions.encode(y, gain, pulses, gain_bits)
            assert numbers.max() < 1 << regions.number_bits(dim, pulses, gain_bits)
            found, codes = regions.decode(numbers, dim, pulses, gain_bits)
            assert torch.equal(found, y)
            assert torch.equal(codes, gain)


def test_there_are_no_words_of_other_sizes():
    assert not regions.has_regions(12, 10)
    assert not regions.has_regions(16, 33)
    with pytest.raises(ValueError, match="not for dim 16 and 33"):
        _core.regions(16, 33)


def number_at(fragments, dim, bits, chunks, row, group):
    """The number of one group, by the definition in csrc/cuda/index_matmul.h."""
    col = group * dim
    tile, chunk = row // 16, col // 128
    sets = 16 // dim
    u, g = row % 16 // 8, row % 8
    b, t, h = col % 128 // 64, col % 64 // 16, col % 16 // dim
    s, i = (0, 2 * b + u) if dim == 16 else (b, 2 * u + h)
    lane = 4 * g + t
    data = fragments[((tile * chunks + chunk) * sets + s) * 16 * bits :][: 16 * bits]
    number, begin = 0, 0
    for width in (32, 16, 8, 4, 2, 1):
        if not bits & width:
            continue
        if width == 1:
            field = int(data[begin + lane // 2]) >> (4 * (lane % 2)) >> i & 1
        else:
            held = data[begin + lane * width // 2 :][: width // 2].tobytes()
            field = int.from_bytes(held, "little") >> (width * i) & ((1 << width) - 1)
        number = number << width | field
        begin += 16 * width
    return number


@pytest.mark.parametrize("dim", [8, 16])
@pytest.mark.parametrize("bits", [6, 17, 25, 26, 31, 32, 33, 36, 47, 52, 60])
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_layout_is_as_defined_and_unpacks(dim, bits, rows, cols):
    rng = np.random.default_rng(bits)
    groups = cols // dim
    numbers = torch.from_numpy(rng.integers(0, 1 << bits, (rows, groups)))
    packed = pack_numbers(numbers, dim, bits)
    tiles = -(-rows // 16)
    assert packed.numel() == tiles * 16 * groups * bits // 8
    assert torch.equal(unpack_numbers(packed.view(tiles, -1), groups, dim, bits)[:rows], numbers)
    for row, group in zip(rng.integers(0, rows, 50), rng.integers(0, groups, 50), strict=True):
        found = number_at(packed.numpy(), dim, bits, cols // 128, int(row), int(group))
        assert found == numbers[row, group]


@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), CODES)
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_index_and_gains_survive(dim, pulses, gain_bits, rows):
    stored, _ = matrix(rows, 384, dim, pulses, gain_bits)
    form, fragments = fragments_of(stored, dim, pulses, gain_bits, (rows, 384))
    back = form.to_stored({"fragments": fragments}, (rows, 384))
    assert back.keys() == {"index", "gain"}
    for name, tensor in back.items():
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize(("bits", "dim"), [(2.25, 16), (3.25, 16), (2.25, 8), (3.25, 8)])
def test_memory_is_that_of_the_file(bits, dim):
    code = quantize_tensor(torch.randn(64, 1024), PVQConfig(bits, dim=dim))
    form = IndexFragments(dim, code.config.code.pulses, code.config.code.gain_bits, "lloyd")
    fragments = form.of_stored(code.stored, (64, 1024))["fragments"]
    assert fragments.nbytes == 64 * 1024 * bits / 8
    assert fragments.nbytes == code.stored["index"].nbytes + code.stored["gain"].nbytes


@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), [(8, 24, 3), (16, 28, 3)])
@pytest.mark.parametrize("block", [0, 128])
def test_rows_are_those_of_the_matrix(dim, pulses, gain_bits, block):
    rotation = {"block": block, "seed": 3} if block else {"rotation": "none"}
    config = PVQConfig(dim=dim, pulses=pulses, gain_bits=gain_bits, **rotation)
    code = quantize_tensor(torch.randn(37, 384), config)
    form, fragments = fragments_of(code.stored, dim, pulses, gain_bits, (37, 384))
    held = {"fragments": fragments, "row_scale": code.stored["row_scale"]}
    ids = torch.tensor([0, 36, 5, 5, -1, -37, 16], dtype=torch.int32)
    for dtype in (torch.float32, torch.float16):
        found = form.dequantize_rows(held, ids, (37, 384), dtype, block, 3)
        assert torch.equal(found, code.dequantize(dtype)[ids])
    none = form.dequantize_rows(held, ids[:0], (37, 384), torch.float32, block, 3)
    assert none.shape == (0, 384)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_damaged_indices_are_refused(device):
    code = quantize_tensor(torch.randn(37, 384), PVQConfig(3.25))
    stored = {name: tensor.to(device) for name, tensor in code.stored.items()}
    stored["index"][20] = 255
    with pytest.raises(RuntimeError, match="index of row 20 names no point"):
        IndexFragments(16, 28, 3, "lloyd").of_stored(stored, (37, 384))


@pytest.mark.parametrize(("rows", "cols"), [(0, 128), (3, 0), (3, 64)])
def test_what_does_not_fit_stays_stored(rows, cols):
    code = quantize_tensor(torch.zeros(rows, cols), PVQConfig(3.25))
    assert IndexFragments(16, 28, 3, "lloyd").of_stored(code.stored, (rows, cols)) is None


def test_products_in_float32_are_exact():
    code = quantize_tensor(torch.randn(37, 384), PVQConfig(3.25, seed=3))
    form, fragments = fragments_of(code.stored, 16, 28, 3, (37, 384))
    held = {"fragments": fragments, "row_scale": code.stored["row_scale"]}
    x = torch.randn(5, 384)
    y = form.matmul(x, held, 37, code.config.hadamard_block, 3, "int8")
    assert relative_error(y, x.double() @ code.dequantize(torch.float64).T) < 1e-6


def test_the_index_of_other_devices_is_what_is_stored():
    layer = PVQLinear.from_linear(torch.nn.Linear(256, 32), PVQConfig(3.25))
    assert layer.prepare("index").layout == "stored"
    layer.prepare("planes")
    assert layer.layout == "planes"
    assert layer.prepare("index").layout == "stored"


class Pretended:
    """Gives the pyramid code its index form on the CPU."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(
            pvq.codes.pyramid.PyramidCode, "index_form",
            lambda self, device: IndexFragments(
                self.dim, self.pulses, self.gain_bits, self.gain_law
            ) if device.type == "cpu" else None,
        )  # fmt: skip


def test_a_layer_holds_fragments_and_saves_what_it_stored(monkeypatch):
    Pretended(monkeypatch)
    layer = PVQLinear.from_linear(torch.nn.Linear(256, 40), PVQConfig(3.25))
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = torch.randn(3, 256)
    expected = layer(x)
    for other in ("planes", "stored", "index"):
        layer.prepare(other).prepare("index")
        assert layer.layout == "index"
        assert layer.index is None
        assert layer.gain is None
        assert {name for name, _ in layer.named_buffers()} == {"fragments", "row_scale"}
        assert layer.state_dict().keys() == state.keys()
        assert all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())
        assert relative_error(layer(x).detach(), expected.detach().double()) < 1e-6
    layer.load_state_dict(state)
    assert layer.layout == "index"
    assert all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())
    there = layer.to("meta")
    assert there.layout == "stored"


@needs_gpu
@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), CODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expansion_is_within_rounding(dim, pulses, gain_bits, dtype):
    for rows, cols in SIZES:
        stored, w = matrix(rows, cols, dim, pulses, gain_bits)
        _, fragments = fragments_of(stored, dim, pulses, gain_bits, (rows, cols))
        numbers = (dim, pulses, gain_bits, "lloyd")
        found = ops.index_expand(
            fragments.cuda(), stored["row_scale"].cuda(), *numbers, cols, dtype
        )
        half_ulp = 2.0**-11 if dtype == torch.float16 else 2.0**-8
        bound = w.abs() * half_ulp * 1.01 + 2.0**-25
        assert ((found.cpu().double() - w).abs() <= bound).all()


@needs_gpu
@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), CODES)
@pytest.mark.parametrize("tokens", [1, 8, 9, 16, 17, 64, 65, 150])
@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [(16, 128, 0), (40, 256, 128), (300, 1024, 1024), (2304, 512, 256), (33, 5120, 512)],
)
@pytest.mark.parametrize("outliers", [False, True])
def test_product_is_within_a_thousandth(
    dim, pulses, gain_bits, tokens, rows, cols, block, outliers
):
    stored, w = matrix(rows, cols, dim, pulses, gain_bits, seed=rows)
    _, fragments = fragments_of(stored, dim, pulses, gain_bits, (rows, cols))
    x = activations(tokens, cols, outliers=outliers)
    found = ops.index_matmul(
        x.cuda(), fragments.cuda(), stored["row_scale"].cuda(), dim, pulses, gain_bits, "lloyd",
        block, 5,
    )  # fmt: skip
    assert found.shape == (tokens, rows)
    assert relative_error(found, rotate(x.double(), block, 5) @ w.T) < 1e-3


@needs_gpu
@pytest.mark.parametrize("tokens", [1, 30])
def test_large_and_infinite_activations(tokens):
    stored, w = matrix(64, 1024, 16, 28, 3)
    _, fragments = fragments_of(stored, 16, 28, 3, (64, 1024))
    operands = (fragments.cuda(), stored["row_scale"].cuda(), 16, 28, 3, "lloyd", 256, 1)
    x = activations(tokens, 1024).bfloat16() * 2.0**30
    found = ops.index_matmul(x.cuda(), *operands)
    assert relative_error(found, rotate(x.double(), 256, 1) @ w.T) < 4e-3  # y is bfloat16
    for poison in (float("nan"), float("inf")):
        x = activations(tokens + 1, 1024)
        x[tokens, 700] = poison
        y = ops.index_matmul(x.cuda(), *operands)
        assert not y[-1].isfinite().any()
        assert y[:-1].isfinite().all()


@needs_gpu
@pytest.mark.parametrize(("bits", "dim"), [(2.25, 16), (3.25, 16), (3.25, 8)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_layer_on_the_gpu(bits, dim, tokens):
    linear = torch.nn.Linear(1024, 200, bias=True)
    bias = linear.bias.detach().double().clone()  # the layer shares it and moves it
    layer = PVQLinear.from_linear(linear, PVQConfig(bits, dim=dim)).prepare("index").cuda()
    assert layer.layout == "index"
    stored = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = activations(tokens, 1024)
    w = layer.weight_codes.dequantize(torch.float64).cpu()
    expected = x.double() @ w.T + bias
    assert relative_error(layer(x.cuda()), expected) < 1e-3
    assert layer.prepare("fragments").layout == "fragments"
    assert layer.prepare("index").layout == "index"
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    assert layer.cpu().layout == "stored"


@needs_gpu
def test_projections_share_one_product():
    layers = torch.nn.ModuleDict({
        name: PVQLinear.from_linear(torch.nn.Linear(512, rows, bias=False), PVQConfig(3.25))
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32))
    }).cuda()  # fmt: skip
    pvq.prepare(layers, "index")
    x = activations(2, 512).cuda()
    with torch.no_grad():
        expected = [layer(x) for layer in layers.values()]
        pvq.group_projections(layers)
        found = [layer(x) for layer in layers.values()]
    for layer, y, z in zip(layers.values(), found, expected, strict=True):
        assert layer.layout == "index"
        assert relative_error(y, z.double().cpu()) < 1e-3


@needs_gpu
def test_gradient_is_that_of_the_dense_product():
    stored, w = matrix(96, 512, 16, 28, 3)
    _, fragments = fragments_of(stored, 16, 28, 3, (96, 512))
    x = activations(5, 512).cuda().requires_grad_()
    g = activations(5, 96).cuda()
    operands = (fragments.cuda(), stored["row_scale"].cuda(), 16, 28, 3, "lloyd", 128, 3)
    ops.index_matmul(x, *operands).backward(g)
    signs_and_transform = rotate(torch.eye(512, dtype=torch.float64), 128, 3)
    assert relative_error(x.grad, g.double().cpu() @ w @ signs_and_transform.T) < 1e-3


@needs_gpu
def test_bad_arguments_are_named():
    stored, _ = matrix(64, 256, 16, 28, 3)
    fragments = fragments_of(stored, 16, 28, 3, (64, 256))[1].cuda()
    row_scale, x = stored["row_scale"].cuda(), activations(1, 256).cuda()
    code = (16, 28, 3, "lloyd")
    cases = [
        (lambda: ops.index_matmul(x.float(), fragments, row_scale, *code), "x has dtype float32"),
        (lambda: ops.index_matmul(x[:, :128], fragments, row_scale, *code), "fragments has"),
        (lambda: ops.index_matmul(x, fragments[:-1], row_scale, *code), "fragments has"),
        (lambda: ops.index_matmul(x, fragments, row_scale, *code, 100), "block is 100"),
        (lambda: ops.index_matmul(x, fragments, row_scale.cpu(), *code), "different devices"),
        (lambda: ops.index_matmul(x, fragments, row_scale, 32, *code[1:]), "dim is 32"),
        (lambda: ops.index_matmul(x, fragments, row_scale, 16, 33, 3, "lloyd"), "pulses is 33"),
        (lambda: ops.index_matmul(x, fragments, row_scale, 16, 28, 3, "best"), "gain_law is"),
        (lambda: ops.index_expand(fragments, row_scale, *code, 100, torch.float16), "cols is 100"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@needs_gpu
def test_operators_pass_opcheck():
    stored, _ = matrix(64, 256, 16, 28, 3)
    fragments = fragments_of(stored, 16, 28, 3, (64, 256))[1].cuda()
    row_scale, x = stored["row_scale"].cuda(), activations(2, 256).cuda()
    code = (16, 28, 3, "lloyd")
    torch.library.opcheck(ops.index_expand.default, (fragments, row_scale, *code, 256, x.dtype))
    torch.library.opcheck(ops.index_matmul.default, (x, fragments, row_scale, *code, 128, 1))


def test_rules_give_shapes_without_a_gpu():
    fragments = torch.empty(16 * 832, dtype=torch.uint8, device="meta")
    scale = torch.empty(16, dtype=torch.bfloat16, device="meta")
    x = torch.empty(3, 2, 2048, dtype=torch.float16, device="meta")
    code = (16, 28, 3, "lloyd")
    assert ops.index_matmul(x, fragments, scale, *code).shape == (3, 2, 16)
    assert ops.index_expand(fragments, scale, *code, 2048, x.dtype).shape == (16, 2048)
