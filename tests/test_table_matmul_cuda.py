"""Fused products from table codes on the GPU, against float64."""

import numpy as np
import pytest
import torch

from pvq.rotation import hadamard_matrix

ops = torch.ops.pvq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def random_code(rows, cols, bits, seed=0):
    """Stored code, table, row scales, and the matrix they mean, float64."""
    rng = np.random.default_rng(seed)
    entries = 2 if bits == 4 else 4
    low = 0 if bits == 3 else -60
    table = rng.integers(low, 61, size=(256, entries)).astype(np.int8)
    names = rng.integers(0, 256, size=(rows, cols // entries)).astype(np.uint8)
    w = table[names].reshape(rows, cols).astype(np.float64)
    code = names
    if bits == 3:
        signs = rng.integers(0, 2, size=(rows, cols)).astype(np.uint8)
        w = (2 * w + 1) * (1 - 2.0 * signs)
        code = np.concatenate([names, np.packbits(signs, axis=1, bitorder="little")], axis=1)
    scale = torch.from_numpy(rng.uniform(0.5, 2.0, rows)).to(torch.bfloat16)
    w *= scale.double().numpy()[:, None] / 64
    scale = (scale.double() / 64).to(torch.bfloat16)  # a power of two: exact
    return torch.from_numpy(code), torch.from_numpy(table), scale, torch.from_numpy(w)


def rotate(x, block, seed):
    """rotate(x) in float64 from the definition."""
    if block == 0:
        return x
    signs = ops.hadamard(torch.ones(x.shape[-1], dtype=torch.float64), 1, seed)
    h = torch.from_numpy(hadamard_matrix(block)).double() / block**0.5
    return ((x * signs).reshape(-1, x.shape[-1] // block, block) @ h.T).reshape(x.shape)


def relative_error(found, expected):
    return float((found.double().cpu() - expected).norm() / expected.norm())


def run(x, code, table, scale, bits, block=0, seed=0, residual=False):
    fragments = ops.table_fragments(code.cuda(), table, bits)
    return ops.table_matmul_fragments(
        x.cuda(), fragments, scale.cuda(), bits, block, seed, residual
    )


def activations(tokens, cols, dtype=torch.float16, outliers=False):
    """Gaussian, or with a few columns a hundred times larger."""
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(tokens))
    if outliers:
        x[:, [3, cols // 3, cols - 1]] *= 100
    return x.to(dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 16, 37, 300])
@pytest.mark.parametrize("cols", [128, 1024])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expansion_is_exact(bits, rows, cols, dtype):
    code, table, scale, w = random_code(rows, cols, bits)
    fragments = ops.table_fragments(code.cuda(), table, bits)
    found = ops.table_expand(fragments, scale.cuda(), bits, dtype)
    assert torch.equal(found.cpu(), w.float().to(dtype))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 65, 150])
@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [
        (16, 128, 0), (40, 256, 128), (300, 1024, 1024), (2304, 512, 512), (4096, 4096, 256),
        (100, 5120, 1024), (64, 14336, 1024), (48, 28672, 512), (33, 1280, 0), (24, 11008, 256),
        (530, 640, 32), (257, 384, 2),
    ],
)  # fmt: skip
def test_product_is_within_one_per_cent(bits, tokens, rows, cols, block):
    code, table, scale, w = random_code(rows, cols, bits, seed=rows)
    x = activations(tokens, cols, torch.bfloat16 if rows % 3 else torch.float16)
    found = run(x, code, table, scale, bits, block, seed=5)
    assert found.dtype == x.dtype
    assert found.shape == (tokens, rows)
    assert relative_error(found, rotate(x.double(), block, 5) @ w.T) < 0.01


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("residual", [False, True])
def test_blocks_of_many_tiles(bits, tokens, residual):
    code, table, scale, w = random_code(20000, 256, bits, seed=tokens)
    x = activations(tokens, 256)
    found = run(x, code, table, scale, bits, 128, 5, residual)
    allowed = 1e-3 if residual else 1e-2
    assert relative_error(found, rotate(x.double(), 128, 5) @ w.T) < allowed


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 8, 20, 70])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize(("rows", "cols", "block"), [(300, 2048, 1024), (130, 8192, 256)])
def test_residual_pass_is_within_a_thousandth(bits, tokens, outliers, rows, cols, block):
    code, table, scale, w = random_code(rows, cols, bits, seed=rows)
    x = activations(tokens, cols, outliers=outliers)
    found = run(x, code, table, scale, bits, block, seed=5, residual=True)
    assert relative_error(found, rotate(x.double(), block, 5) @ w.T) < 1e-3


@pytest.mark.parametrize("tokens", [1, 3, 30])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(tokens, poison):
    code, table, scale, _ = random_code(64, 1024, 2)
    x = activations(tokens, 1024)
    x[tokens - 1, 700] = poison
    y = run(x, code, table, scale, 2, 256)
    assert not y[-1].isfinite().any()
    assert y[:-1].isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 3, 10, 80])
def test_product_of_exactly_representable_activations_is_exact(bits, tokens):
    """Integers up to 127 with the largest in every group: int8 holds them, so only y rounds."""
    code, table, scale, w = random_code(256, 1024, bits)
    x = torch.randint(-127, 128, (tokens, 1024), generator=torch.Generator().manual_seed(0)).half()
    x[:, ::128] = 127
    expected = x.double() @ w.T
    assert torch.allclose(run(x, code, table, scale, bits).double().cpu(), expected, rtol=2**-10)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("tokens", [2, 12, 40])
def test_rotation_tames_outliers(bits, tokens):
    code, table, scale, w = random_code(512, 4096, bits)
    x = activations(tokens, 4096, outliers=True)
    found = run(x, code, table, scale, bits, 1024, 3)
    assert relative_error(found, rotate(x.double(), 1024, 3) @ w.T) < 0.01


@pytest.mark.parametrize("tokens", [5, 16, 32, 100])
def test_results_repeat_bit_for_bit(tokens):
    code, table, scale, _ = random_code(4096, 4096, 2)
    x = activations(tokens, 4096)
    first = run(x, code, table, scale, 2, 256)
    for _ in range(5):
        assert torch.equal(run(x, code, table, scale, 2, 256), first)


@pytest.mark.parametrize("tokens", [1, 3, 12, 40, 90])
def test_products_in_a_chain_wait_for_each_other(tokens):
    """Kernels begin before those before them end, which results must not show."""
    layers = []
    for seed in range(5):
        code, table, scale, w = random_code(1024, 1024, 2, seed=seed)
        scale = (scale.double() / (32 * w.std())).to(torch.bfloat16)  # outputs as large as inputs
        layers.append((ops.table_fragments(code.cuda(), table, 2), scale.cuda()))
    x = activations(tokens, 1024).cuda()

    def chain(wait):
        y = x
        for i in range(40):
            fragments, scale = layers[i % len(layers)]
            y = ops.table_matmul_fragments(y, fragments, scale, 2, 1024 if i % 2 else 0, i)
            if wait:
                torch.cuda.synchronize()
        return y

    expected = chain(wait=True)
    assert 0.1 < float(expected.float().std()) < 10
    for _ in range(20):
        assert torch.equal(chain(wait=False), expected)


@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_graph_capture_and_side_stream(tokens):
    code, table, scale, w = random_code(512, 2048, 2)
    fragments = ops.table_fragments(code.cuda(), table, 2)
    scale = scale.cuda()
    x = torch.randn(tokens, 2048, generator=torch.Generator().manual_seed(3)).half().cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            ops.table_matmul_fragments(x, fragments, scale, 2, 256, 1)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.table_matmul_fragments(x, fragments, scale, 2, 256, 1)
    x.copy_(torch.randn(tokens, 2048, generator=torch.Generator().manual_seed(4)).half())
    graph.replay()
    torch.cuda.synchronize()
    assert relative_error(y, rotate(x.double().cpu(), 256, 1) @ w.T) < 0.01


def test_zeros_and_empty_tensors():
    code, table, scale, _ = random_code(64, 256, 2)
    assert (run(torch.zeros(2, 256).half(), code, table, scale, 2, 128) == 0).all()
    assert run(torch.zeros(0, 256).half(), code, table, scale, 2, 128).shape == (0, 64)
    assert run(torch.zeros(3, 2, 256).half(), code, table, scale, 2).shape == (3, 2, 64)
    assert run(torch.zeros(256).half(), code, table, scale, 2).shape == (64,)


def test_strided_and_misaligned_activations():
    code, table, scale, w = random_code(64, 256, 4)
    wide = torch.randn(4, 513, generator=torch.Generator().manual_seed(6)).half().cuda()
    for x in (wide[:, 1:257], wide[:, ::2][:, :256], wide.flatten()[3:259]):
        expected = x.double().cpu() @ w.T
        assert relative_error(run(x, code, table, scale, 4), expected) < 0.01


def test_bad_arguments_are_named():
    code, table, scale, _ = random_code(64, 256, 2)
    x = torch.zeros(1, 256).half().cuda()
    fragments = ops.table_fragments(code.cuda(), table, 2)
    scale = scale.cuda()
    cases = [
        (lambda: ops.table_fragments(code.cuda(), table, 5), "bits is 5"),
        (lambda: ops.table_fragments(code.cuda()[:, :-1], table, 2), "63 bytes a row"),
        (lambda: ops.table_fragments(code.cuda(), table[:, :2], 2), "table has shape"),
        (lambda: ops.table_matmul_fragments(x.float(), fragments, scale, 2), "x has dtype float32"),
        (lambda: ops.table_matmul_fragments(x[:, 1:], fragments, scale, 2), "x has shape"),
        (lambda: ops.table_matmul_fragments(x, fragments[:-1], scale, 2), "fragments has"),
        (lambda: ops.table_matmul_fragments(x, fragments, scale, 2, 100), "block is 100"),
        (lambda: ops.table_matmul_fragments(x, fragments, scale.cpu(), 2), "different devices"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_operators_pass_opcheck_and_compile():
    code, table, scale, _ = random_code(64, 256, 3)
    fragments = ops.table_fragments(code.cuda(), table, 3)
    scale = scale.cuda()
    x = torch.randn(2, 256).half().cuda()
    torch.library.opcheck(ops.table_expand.default, (fragments, scale, 3, torch.float16))
    torch.library.opcheck(ops.table_matmul_fragments.default, (x, fragments, scale, 3, 128, 1))

    def layer(x):
        return ops.table_matmul_fragments(x, fragments, scale, 3, 128, 1) + 1

    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [0, 128, 640])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_is_that_of_the_dense_product(bits, block, dtype):
    code, table, scale, w = random_code(37, 640, bits)
    fragments, scale = ops.table_fragments(code.cuda(), table, bits), scale.cuda()
    tolerance = 2e-3 if dtype == torch.float16 else 1.6e-2
    for shape in [(1,), (2, 9), ()]:
        generator = torch.Generator().manual_seed(len(shape))
        x = torch.randn(*shape, 640, generator=generator).to(dtype).cuda().requires_grad_()
        g = torch.randn(*shape, 37, generator=generator).to(dtype)
        y = ops.table_matmul_fragments(x, fragments, scale, bits, block, 3)
        y.backward(g.cuda())
        expected = (g.double() @ w).view(-1, 640)
        if block:  # back: the transpose of the rotation, whose matrix is rotate(identity)
            expected = expected @ rotate(torch.eye(640, dtype=torch.float64), block, 3).T
        assert x.grad.dtype == dtype
        assert relative_error(x.grad.view(-1, 640), expected) < tolerance


def test_gradient_of_a_gradient():
    code, table, scale, w = random_code(16, 128, 2)
    fragments, scale = ops.table_fragments(code.cuda(), table, 2), scale.cuda()
    x = torch.randn(3, 128).half().cuda().requires_grad_()
    y = ops.table_matmul_fragments(x, fragments, scale, 2)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    expected = 2 * (torch.ones(3, 128, dtype=torch.float64) @ w.T) @ w
    assert relative_error(second, expected) < 0.02
