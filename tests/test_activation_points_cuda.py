"""Activation points on the GPU: the rounding, products with table codes, layers."""

import numpy as np
import pytest
import torch
from test_activations import awkward_groups, layer_of, normal
from test_overlap_fragments import random_overlap_code
from test_table_matmul_cuda import random_code

import pvq
from pvq.activations import activation_code, decoded
from pvq.codes.overlap import trellis
from pvq.codes.overlap_fragments import OverlapFragments

ops = torch.ops.pvq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# --- the rounding ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pulses", [1, 2, 75, 353, 2817, 4096])
@pytest.mark.parametrize("dim", [1, 2, 5, 8, 12, 16, 31, 32, 64, 100, 128, 129, 256])
def test_the_gpu_finds_the_points_of_the_cpu(dim, pulses, dtype):
    x = awkward_groups(3001, dim, pulses).to(dtype)
    expected = ops.activation_points(x, dim, pulses)
    found = ops.activation_points(x.cuda(), dim, pulses)
    assert all(torch.equal(f.cpu(), e) for f, e in zip(found, expected, strict=True))


def test_any_shape_and_strides():
    x = normal(6, 4, 64).cuda()
    expected = ops.activation_points(x.cpu(), 32, 50)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    unaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    for given in (x, strided, unaligned):
        found = ops.activation_points(given, 32, 50)
        assert all(torch.equal(f.cpu(), e) for f, e in zip(found, expected, strict=True))
    empty = ops.activation_points(x[:0], 32, 50)
    assert [list(t.shape) for t in empty] == [[0, 4, 64], [0, 4, 2]]
    assert [list(t.shape) for t in ops.activation_points(x[0, 0], 64, 5)] == [[64], [1]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_groups_that_are_not_finite_become_zeros(bad):
    x = normal(30, 256)
    expected = ops.activation_points(x, 32, 50)
    x[7, 100] = bad
    expected[0][7, 96:128] = 0
    expected[1][7, 3] = 0
    found = ops.activation_points(x.cuda(), 32, 50)
    assert all(torch.equal(f.cpu(), e) for f, e in zip(found, expected, strict=True))


def test_bad_arguments_are_refused():
    x = normal(2, 30).cuda()
    for arguments, text in (
        ((x, 16, 20), "multiple of dim = 16"),
        ((x.double(), 15, 20), "float64"),
        ((x, 0, 20), "dim is 0"),
        ((x, 15, 5000), "pulses is 5000"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ops.activation_points(*arguments)


# --- the product -------------------------------------------------------------------------------


def points_and_values(tokens, cols, dim, pulses, seed=0):
    """Points, and the matrix that they mean, float64."""
    point, amplitude = ops.activation_points(normal(tokens, cols, seed=seed), dim, pulses)
    return point, amplitude, point.double() * amplitude.double().repeat_interleave(dim, 1)


def multiply(point, amplitude, code, table, scale, bits, pulses, dtype=torch.float16):
    fragments = ops.table_fragments(code.cuda(), table, bits)
    operands = (point.cuda(), amplitude.cuda(), fragments, scale.cuda())
    return ops.table_matmul_points(*operands, bits, pulses, dtype)


def overlap_fragments(code, bits, cols):
    form = OverlapFragments(trellis(bits))
    return form.of_stored({"code": code.cuda()}, (len(code), cols))["fragments"]


@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.5, 4])
@pytest.mark.parametrize("tokens", [1, 4, 5, 9, 33, 100])
@pytest.mark.parametrize(
    ("rows", "cols", "dim", "pulses"),
    [(40, 256, 128, 75), (300, 1280, 128, 353), (64, 8192, 128, 4096), (48, 640, 32, 79)],
)
def test_products_with_overlapping_codes(bits, tokens, rows, cols, dim, pulses):
    code, scale, w = random_overlap_code(rows, cols, bits, seed=rows)
    point, amplitude, values = points_and_values(tokens, cols, dim, pulses)
    found = ops.overlap_matmul_points(
        *(point.cuda(), amplitude.cuda(), overlap_fragments(code, bits, cols), scale.cuda()),
        *(round(2 * bits), pulses, torch.float16),
    )
    exact = values @ w.T
    summed = w.abs() + 128 * scale.double()[:, None]  # with the bias of its bytes
    bound = 2**-11 * exact.abs() + 2**-20 * (values.abs() @ summed.T) + 2**-24
    if dim < 128 or tokens > 4:
        bound += 2**-15 * values.abs().amax() * w.abs().sum(1)
    assert ((found.double().cpu() - exact).abs() <= bound).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 8, 9, 17, 33, 64, 65, 300])
@pytest.mark.parametrize(
    ("rows", "cols", "dim", "pulses"),
    [
        (16, 128, 128, 75), (40, 256, 128, 353), (300, 1024, 128, 1444), (4096, 4096, 128, 353),
        (64, 14336, 128, 75), (33, 1280, 128, 353), (2304, 576 * 2, 64, 166), (530, 640, 32, 79),
        (48, 384, 16, 40), (17, 256, 8, 16),
    ],
)  # fmt: skip
def test_products_are_those_of_what_the_points_stand_for(bits, tokens, rows, cols, dim, pulses):
    code, table, scale, w = random_code(rows, cols, bits, seed=rows)
    point, amplitude, values = points_and_values(tokens, cols, dim, pulses)
    found = multiply(point, amplitude, code, table, scale, bits, pulses).cpu()
    assert found.dtype == torch.float16
    assert found.shape == (tokens, rows)
    exact = values @ w.T
    # Of the result in float16, of the sums, and of the 15 bits that many tokens are rounded to.
    bound = 2**-11 * exact.abs() + 2**-20 * (values.abs() @ w.abs().T) + 2**-24
    if dim < 128 or tokens > 4:
        bound += 2**-15 * values.abs().amax() * w.abs().sum(1)
    assert ((found.double() - exact).abs() <= bound).all()


def cancelling(rows, bits, largest):
    """Weights and points with large integers that cancel, and the products, which float16 holds.

    What rounding the integers would leave of them is larger than the products.
    """
    cols, tokens = 384, 4
    code, table, scale, _ = random_code(rows, cols, bits)
    entries = table.shape[1]
    code[:, : cols // entries] = code[:, :1]  # columns alike, four apart
    w = table.double()[code[:, : cols // entries].long()].view(rows, cols)
    if bits == 3:
        code[:, cols // 4 :] = code[:, -1:] % 16 * 17  # and so their signs
        signs = np.unpackbits(code[:, cols // 4 :].numpy(), axis=1, bitorder="little")
        w = (2 * w + 1) * torch.from_numpy(1 - 2.0 * signs)
    point = torch.zeros(tokens, cols, dtype=torch.int16)
    for token in range(tokens):
        for first in range(5 * token, cols, 128):
            point[token, first] = largest - token
            point[token, first + 4] = token + 2 - largest
    expected = point.double() @ w.T
    assert expected.abs().max() <= 2048
    amplitude = torch.ones(tokens, cols // 128, dtype=torch.bfloat16)
    return code, table, torch.ones_like(scale), point, amplitude, expected


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("largest", [127, 4096])
def test_integers_that_cancel_are_multiplied_as_they_are(bits, largest):
    code, table, scale, point, amplitude, expected = cancelling(100, bits, largest)
    found = multiply(point, amplitude, code, table, scale, bits, largest)
    assert torch.equal(found.cpu().double(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_more_tokens_than_the_kernels_take(dtype):
    code, table, scale, w = random_code(16, 128, 2)
    point, amplitude, values = points_and_values(32769, 128, 128, 353)
    found = multiply(point, amplitude, code, table, scale, 2, 353, dtype)
    exact = values @ w.T
    assert (found.double().cpu() - exact).norm() < 0.01 * exact.norm()


def test_products_take_any_shape_and_strides():
    code, table, scale, _ = random_code(37, 256, 3)
    point, amplitude, _ = points_and_values(6, 256, 128, 353)
    expected = multiply(point, amplitude, code, table, scale, 3, 353)
    operands = (code, table, scale, 3, 353)
    shaped = multiply(point.view(2, 3, 256), amplitude.view(2, 3, 2), *operands)
    assert torch.equal(shaped, expected.view(2, 3, 37))
    strided = multiply(point.T.contiguous().T, amplitude.T.contiguous().T, *operands)
    assert torch.equal(strided, expected)
    single = multiply(point[0], amplitude[0], *operands)
    assert torch.equal(single, multiply(point[:1], amplitude[:1], *operands)[0])
    assert multiply(point[:0], amplitude[:0], *operands).shape == (0, 37)
    no_rows = multiply(point, amplitude, code[:0], table, scale[:0], 3, 353)
    assert no_rows.shape == (6, 0)
    brain = multiply(point, amplitude, *operands, dtype=torch.bfloat16)
    assert brain.dtype == torch.bfloat16
    assert (brain.float() - expected.float()).abs().max() <= 2**-8 * expected.float().abs().max()


def test_operands_that_do_not_fit_are_refused():
    code, table, scale, _ = random_code(37, 256, 2)
    fragments, scale = ops.table_fragments(code.cuda(), table, 2), scale.cuda()
    point, amplitude = ops.activation_points(normal(3, 256).cuda(), 128, 353)
    good = [point, amplitude, fragments, scale, 2, 353, torch.float16]
    cases = [
        (0, point.int(), "point has dtype int32"),
        (0, point[:, :200], "multiple of 128"),
        (0, point[:, :128], "fragments has"),
        (0, point.cpu(), "different devices"),
        (1, amplitude.float(), "amplitude has dtype float32"),
        (1, amplitude[:2], "amplitude has shape"),
        (1, amplitude.repeat_interleave(64, 1), "groups of 4, 8"),
        (1, amplitude[:, :1], "groups of 4, 8"),
        (2, fragments[:-1], "fragments has"),
        (3, scale.float(), "row_scale has dtype float32"),
        (4, 5, "bits is 5"),
        (5, 5000, "largest is 5000"),
        (6, torch.float32, "dtype is float32"),
    ]
    for place, value, text in cases:
        arguments = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match=text):
            ops.table_matmul_points(*arguments)


def test_operators_fit_their_rules():
    code, table, scale, _ = random_code(37, 256, 2)
    fragments = ops.table_fragments(code.cuda(), table, 2)
    x = normal(3, 256).cuda()
    torch.library.opcheck(ops.activation_points.default, (x, 128, 353))
    operands = (*ops.activation_points(x, 128, 353), fragments, scale.cuda(), 2, 353)
    torch.library.opcheck(ops.table_matmul_points.default, (*operands, torch.bfloat16))
    code, scale, _ = random_overlap_code(37, 256, 2)
    operands = (*operands[:2], overlap_fragments(code, 2, 256), scale.cuda(), 4, 353)
    torch.library.opcheck(ops.overlap_matmul_points.default, (*operands, torch.float16))


# --- layers ------------------------------------------------------------------------------------

CONFIGS = [
    {"code": "table", "bits": 2}, {"code": "table", "bits": 4}, {"code": "overlap", "bits": 2},
    {"bits": 3.25},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("activations", ["pyramid2", "pyramid4", "pyramid8"])
@pytest.mark.parametrize("tokens", [1, 20, 100])
def test_layers_multiply_what_the_cpu_multiplies(config, activations, tokens):
    layer = layer_of(64, 512, pvq.PVQConfig(**config)).prepare("auto", activations)
    x = normal(tokens, 512).half()
    expected = layer(x.float())
    found = layer.cuda()(x.cuda())
    assert found.dtype == torch.float16
    # The rotation's sums run in another order there, which moves a coordinate over the border
    # between two integers now and then.
    assert (found.float().cpu() - expected).norm() < 0.01 * expected.norm()


def test_a_layer_without_rotation_multiplies_the_very_points():
    config = pvq.PVQConfig(code="table", bits=2, rotation="none")
    layer = layer_of(64, 512, config).cuda().prepare("auto", "pyramid4")
    x = normal(3, 512).half()
    values = decoded(*activation_code("pyramid4", 512).round(x.float()))
    expected = values.double() @ layer.dequantize().double().cpu().T + layer.bias.double().cpu()
    found = layer(x.cuda()).double().cpu()
    assert (found - expected).abs().max() <= 2**-9 * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_take_the_rounding_for_the_identity(config, dtype):
    layer = layer_of(48, 256, pvq.PVQConfig(**config)).to(dtype).cuda()
    x = normal(3, 256).to(dtype).cuda().requires_grad_()
    g = normal(3, 48, seed=1).to(dtype).cuda()
    (expected,) = torch.autograd.grad(layer.prepare("auto", "float")(x), x, g)
    y = layer.prepare("auto", "pyramid4")(x)
    (found,) = torch.autograd.grad(y, x, g)
    assert (found - expected).float().norm() < 0.02 * expected.float().norm()
    with torch.no_grad():
        assert (layer(x) - y).float().norm() < 0.01 * y.float().norm()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_layers_can_be_captured_in_a_graph(config, tokens):
    layer = layer_of(64, 512, pvq.PVQConfig(**config)).half().cuda().prepare("auto", "pyramid4")
    inputs = [normal(tokens, 512, seed=seed).half().cuda() for seed in range(3)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]
        x = inputs[0].clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for given, wanted in zip(inputs, expected, strict=True):
            x.copy_(given)
            graph.replay()
            assert torch.equal(y, wanted)


def test_a_compiled_layer_does_the_same():
    config = pvq.PVQConfig(code="table", bits=2)
    layer = layer_of(64, 512, config).half().cuda().prepare("auto", "pyramid4")
    x = normal(3, 512).half().cuda()
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))
