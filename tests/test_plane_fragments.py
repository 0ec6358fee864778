"""Fragments of planes: their layout by its definition, the way back, and products on the GPU."""

import numpy as np
import pytest
import torch
from test_table_matmul_cuda import activations, relative_error, rotate

from pvq import PVQConfig, PVQLinear, quantize_tensor
from pvq.codes.bits import unpack
from pvq.codes.fragments import PlaneFragments, fits_fragments, pack_planes, unpack_planes

ops = torch.ops.pvq
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SIZES = [(1, 128), (16, 256), (37, 384), (300, 1024)]


def random_planes(rows, cols, bits, group, seed=0):
    rng = np.random.default_rng(seed)
    limit = 1 << (bits - 1)
    y = torch.from_numpy(rng.integers(-limit, limit, (rows, cols)).astype(np.int8))
    scale = torch.from_numpy(rng.uniform(0.05, 0.5, (rows, cols // group))).half()
    return y, scale


def value_at(fragments, bits, group, chunks, row, col):
    """Integer and scale of one weight, by the definition in csrc/cuda/plane_matmul.h."""
    chunk_bytes = 16 * 128 * bits // 8 + 16 * 128 // group * 2
    tile, chunk = row // 16, col // 128
    data = fragments[(tile * chunks + chunk) * chunk_bytes :][:chunk_bytes]
    u, g = row % 16 // 8, row % 8
    b, t, q, i = col % 128 // 64, col % 64 // 16, col % 16 // 4, col % 4
    lane = 4 * g + t
    if bits == 8:
        v = data[(2 * b + u) * 512 + lane * 16 + 4 * q + i]
        sections = 4
    else:
        low = data[b * 512 + lane * 16 + 8 * u + 4 * (q // 2) + i]
        v = low >> 4 if q % 2 else low & 15
        sections = 2
        if bits == 6:
            high = data[1024 + lane * 16 + 8 * b + 4 * u + i]
            v |= (high >> (2 * q) & 3) << 4
            sections = 3
    a_lane = 4 * 16 // group
    place = lane * a_lane + (2 * b + u) * (16 // group) + col % 16 // group
    scales = data[512 * sections :].view(np.float16)
    return int(v) - (1 << (bits - 1)), scales[place]


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_layout_is_as_defined_and_unpacks(bits, group, rows, cols):
    y, scale = random_planes(rows, cols, bits, group)
    packed = pack_planes(y, scale, bits)
    tiles = -(-rows // 16)
    assert torch.equal(unpack_planes(packed.view(tiles, -1), cols)[:rows], y)
    rng = np.random.default_rng(1)
    for row, col in zip(rng.integers(0, rows, 200), rng.integers(0, cols, 200), strict=True):
        integer, s = value_at(packed.numpy(), bits, group, cols // 128, int(row), int(col))
        assert integer == y[row, col]
        assert s == scale[row, col // group].numpy()


@pytest.mark.parametrize("bits", range(9))
def test_bit_streams_unpack(bits):
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 1 << bits, (5, 37))
    planes = (words[..., None] >> np.arange(bits)) & 1
    stream = np.packbits(planes.reshape(5, -1).astype(np.uint8), axis=1, bitorder="little")
    found = unpack(torch.from_numpy(stream), bits, 37)
    assert np.array_equal(found.numpy(), words)


@pytest.mark.parametrize(
    ("dim", "pulses"), [(8, 6), (8, 24), (16, 14), (16, 28), (16, 58), (32, 60)]
)
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_index_survives(dim, pulses, rows):
    config = PVQConfig(dim=dim, pulses=pulses, gain_bits=3)
    w = torch.randn(rows, 384, generator=torch.Generator().manual_seed(rows))
    w[rows // 2, :128] = 0
    code = quantize_tensor(w, config)
    form = PlaneFragments(dim, pulses, 3, "lloyd")
    held = form.of_stored(code.stored, (rows, 384))
    assert held is not None
    assert torch.equal(form.to_stored(held, (rows, 384))["index"], code.stored["index"])


@pytest.mark.parametrize(("dim", "pulses"), [(8, 24), (16, 28)])
@pytest.mark.parametrize("block", [0, 128])
def test_rows_are_those_of_the_matrix(dim, pulses, block):
    rotation = {"block": block, "seed": 3} if block else {"rotation": "none"}
    config = PVQConfig(dim=dim, pulses=pulses, gain_bits=3, **rotation)
    code = quantize_tensor(torch.randn(37, 384), config)
    form = PlaneFragments(dim, pulses, 3, "lloyd")
    held = code.stored | form.of_stored(code.stored, (37, 384))
    del held["index"]
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
        PlaneFragments(16, 28, 3, "lloyd").of_stored(stored, (37, 384))


@pytest.mark.parametrize(("rows", "cols"), [(0, 128), (3, 0)])
def test_empty_matrices_stay_stored(rows, cols):
    code = quantize_tensor(torch.zeros(rows, cols), PVQConfig(3.25))
    form = PlaneFragments(16, 28, 3, "lloyd")
    assert form.of_stored(code.stored, (rows, cols)) is None


def test_products_in_float32_are_exact():
    config = PVQConfig(3.25, seed=3)
    code = quantize_tensor(torch.randn(37, 384), config)
    form = PlaneFragments(16, 28, 3, "lloyd")
    held = code.stored | form.of_stored(code.stored, (37, 384))
    del held["index"]
    x = torch.randn(5, 384)
    y = form.matmul(x, held, 37, code.config.hadamard_block, 3, "int8")
    assert relative_error(y, x.double() @ code.dequantize(torch.float64).T) < 1e-6


def test_what_does_not_fit_stays_as_it_is():
    assert not fits_fragments(12, 384)
    assert not fits_fragments(16, 320)
    form = PlaneFragments(16, 200, 0, "lloyd")
    y = torch.zeros(1, 8, 16, dtype=torch.int16)
    y[..., 0] = 200
    stored = {"index": ops.encode(y, 200), "gain": torch.zeros(1, 0, dtype=torch.uint8)}
    assert form.of_stored(stored, (1, 128)) is None
    assert form.of_stored(stored, (1, 64)) is None


def matrix(rows, cols, bits, group, seed=0):
    """Fragments, row scales and the float64 matrix that they mean."""
    y, scale = random_planes(rows, cols, bits, group, seed)
    row_scale = (torch.randn(rows, generator=torch.Generator().manual_seed(seed)) / 64).bfloat16()
    w = y.double() * scale.double().repeat_interleave(group, 1) * row_scale.double()[:, None]
    return pack_planes(y, scale, bits).cuda(), row_scale.cuda(), w


@needs_gpu
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expansion_rounds_once(bits, group, dtype):
    for rows, cols in SIZES:
        fragments, row_scale, w = matrix(rows, cols, bits, group)
        found = ops.plane_expand(fragments, row_scale, cols, dtype).cpu().double()
        half_ulp = 2.0**-11 if dtype == torch.float16 else 2.0**-8
        assert ((found - w).abs() <= w.abs() * half_ulp * 1.01 + 2.0**-25).all()


@needs_gpu
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("tokens", [1, 8, 9, 16, 17, 64, 65, 150])
@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [(16, 128, 0), (40, 256, 128), (300, 1024, 1024), (2304, 512, 256), (33, 5120, 512)],
)
@pytest.mark.parametrize("outliers", [False, True])
def test_product_is_within_a_thousandth(bits, group, tokens, rows, cols, block, outliers):
    fragments, row_scale, w = matrix(rows, cols, bits, group, seed=rows)
    x = activations(tokens, cols, outliers=outliers)
    found = ops.plane_matmul(x.cuda(), fragments, row_scale, block, 5)
    assert found.shape == (tokens, rows)
    assert relative_error(found, rotate(x.double(), block, 5) @ w.T) < 1e-3


@needs_gpu
@pytest.mark.parametrize(("bits", "group"), [(4, 8), (4, 16), (6, 8), (6, 16), (8, 8), (8, 16)])
@pytest.mark.parametrize(
    ("tokens", "cols", "block"),
    [(65, 256, 0), (128, 1536, 512), (150, 640, 128), (700, 1024, 1024)],
)
@pytest.mark.parametrize("outliers", [False, True])
def test_many_rows_take_more_tokens_at_a_time(bits, group, tokens, cols, block, outliers):
    rows = 12810  # of which 128 make a hundred groups and more
    fragments, row_scale, w = matrix(rows, cols, bits, group)
    x = activations(tokens, cols, outliers=outliers)
    found = ops.plane_matmul(x.cuda(), fragments, row_scale, block, 5)
    assert relative_error(found, (rotate(x.double(), block, 5).cuda() @ w.T.cuda()).cpu()) < 1e-3


@needs_gpu
@pytest.mark.parametrize("tokens", [2048, 2049])
def test_very_many_tokens(tokens):
    fragments, row_scale, w = matrix(300, 1024, 6, 16)
    x = activations(tokens, 1024)
    found = ops.plane_matmul(x.cuda(), fragments, row_scale, 256, 5)
    assert relative_error(found, rotate(x.double(), 256, 5) @ w.T) < 1e-3


@needs_gpu
def test_long_runs_are_cut_between_blocks():
    fragments, row_scale, w = matrix(4112, 16384, 6, 16)
    x = activations(150, 16384)
    found = ops.plane_matmul(x.cuda(), fragments, row_scale, 256, 5)
    assert relative_error(found, (rotate(x.double(), 256, 5).cuda() @ w.T.cuda()).cpu()) < 1e-3


@needs_gpu
@pytest.mark.parametrize(("rows", "tokens"), [(64, 3), (12810, 70)])
@pytest.mark.parametrize("power", [-40, 30])
def test_any_size_of_bfloat16_activations_is_as_good(rows, tokens, power):
    fragments, row_scale, w = matrix(rows, 1024, 6, 16)
    x = activations(tokens, 1024).bfloat16() * 2.0**power
    found = ops.plane_matmul(x.cuda(), fragments, row_scale, 256, 1)
    assert relative_error(found, rotate(x.double(), 256, 1) @ w.T) < 4e-3  # y is bfloat16


@needs_gpu
@pytest.mark.parametrize(("rows", "tokens"), [(64, 1), (64, 30), (12810, 70)])
def test_what_is_not_finite_stays_so(rows, tokens):
    fragments, row_scale, _ = matrix(rows, 1024, 6, 16)
    for poison in (float("nan"), float("inf")):
        x = activations(tokens + 1, 1024)
        x[tokens, 700] = poison
        y = ops.plane_matmul(x.cuda(), fragments, row_scale, 256, 1)
        assert not y[-1].isfinite().any()
        assert y[:-1].isfinite().all()


@needs_gpu
@pytest.mark.parametrize("bits", [2.25, 3.25, 4.25])
@pytest.mark.parametrize("tokens", [1, 40])
def test_layer_on_the_gpu(bits, tokens):
    linear = torch.nn.Linear(1024, 200, bias=True)
    bias = linear.bias.detach().double().clone()  # the layer shares it and moves it
    layer = PVQLinear.from_linear(linear, PVQConfig(bits)).cuda()
    stored = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.prepare("fragments")
    assert layer.layout == "fragments"
    x = activations(tokens, 1024)
    w = layer.weight_codes.dequantize(torch.float64).cpu()
    expected = x.double() @ w.T + bias
    assert relative_error(layer(x.cuda()), expected) < 1e-3
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


@needs_gpu
def test_gradient_is_that_of_the_dense_product():
    fragments, row_scale, w = matrix(96, 512, 6, 16)
    x = activations(5, 512).cuda().requires_grad_()
    g = activations(5, 96).cuda()
    ops.plane_matmul(x, fragments, row_scale, 128, 3).backward(g)
    signs_and_transform = rotate(torch.eye(512, dtype=torch.float64), 128, 3)
    assert relative_error(x.grad, g.double().cpu() @ w @ signs_and_transform.T) < 1e-3


@needs_gpu
def test_bad_arguments_are_named():
    fragments, row_scale, _ = matrix(64, 256, 6, 16)
    x = activations(1, 256).cuda()
    cases = [
        (lambda: ops.plane_matmul(x.float(), fragments, row_scale), "x has dtype float32"),
        (lambda: ops.plane_matmul(x[:, :128], fragments, row_scale), "fragments has"),
        (lambda: ops.plane_matmul(x, fragments[:-1], row_scale), "fragments has"),
        (lambda: ops.plane_matmul(x, fragments, row_scale, 100), "block is 100"),
        (lambda: ops.plane_matmul(x, fragments, row_scale.cpu()), "different devices"),
        (lambda: ops.plane_expand(fragments, row_scale, 100, torch.float16), "cols is 100"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@needs_gpu
def test_operators_pass_opcheck_and_compile():
    fragments, row_scale, _ = matrix(64, 256, 6, 16)
    x = activations(2, 256).cuda()
    torch.library.opcheck(ops.plane_expand.default, (fragments, row_scale, 256, torch.float16))
    torch.library.opcheck(ops.plane_matmul.default, (x, fragments, row_scale, 128, 1))


def test_rules_give_shapes_without_a_gpu():
    fragments = torch.empty(16 * 1792, dtype=torch.uint8, device="meta")
    scale = torch.empty(16, dtype=torch.bfloat16, device="meta")
    x = torch.empty(3, 2, 2048, dtype=torch.float16, device="meta")
    assert ops.plane_matmul(x, fragments, scale).shape == (3, 2, 16)
    assert ops.plane_expand(fragments, scale, 2048, torch.bfloat16).shape == (16, 2048)
