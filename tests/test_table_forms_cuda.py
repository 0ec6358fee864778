"""Table codes on the GPU: the stored form is the CPU's bit for bit, and fragments give it back.

The CPU's operators, which test_table_codes.py holds against the definition, are the reference.
"""

import numpy as np
import pytest
import torch

from pvq import _core

ops = torch.ops.pvq
WIDTHS = (2, 3, 4)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of_all_kinds(rows, cols, seed=0):
    """Gaussian, heavy-tailed, sparse, with ties and outliers, of all magnitudes of float32."""
    w = gaussian(rows, cols, seed=seed)
    changes = [
        lambda r: r * 0,
        lambda r: r * 1e-40,
        lambda r: r * 1e-44,
        lambda r: r.sign(),
        lambda r: r**9,
        lambda r: r * (3e38 / r.abs().max()),
        lambda r: r.round(),
        lambda r: torch.where(torch.arange(cols) % 3 == 0, r, -0.0),
        lambda r: torch.where(torch.arange(cols) == cols // 2, 60.0, r),
    ]
    for i, change in enumerate(changes[: max(0, rows - 1)]):
        w[i] = change(w[i])
    return w


def random_code(rows, cols, bits, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 256, (rows, cols * bits // 8)).astype(np.uint8)
    scale = torch.from_numpy(rng.normal(size=rows)).bfloat16() / 64
    scale[1 :: max(2, rows // 3)] = 0
    return torch.from_numpy(code), scale


def table(bits):
    return torch.from_numpy(_core.code_table(bits))


def same_bits(a, b):
    """NaN equals NaN, and -0 differs from 0."""
    a, b = a.cpu(), b.cpu()
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))


# --- the stored form ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 8), (14, 64), (13, 136), (40, 1000), (12, 4096), (3, 28672)]
)
def test_quantize_gives_the_bits_of_the_cpu(bits, rows, cols):
    for w in (gaussian(rows, cols), rows_of_all_kinds(rows, cols, seed=cols)):
        found = ops.table_quantize(w.cuda(), bits)
        for got, expected in zip(found, ops.table_quantize(w, bits), strict=True):
            assert got.is_cuda
            assert same_bits(got, expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 8), (5, 136), (33, 256), (700, 1032)])
def test_dequantize_gives_the_bits_of_the_cpu(bits, rows, cols):
    code, scale = random_code(rows, cols, bits)
    for dtype in DTYPES:
        found = ops.table_dequantize(code.cuda(), scale.cuda(), bits, cols, dtype)
        assert same_bits(found, ops.table_dequantize(code, scale, bits, cols, dtype))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", [8, 64, 48, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dequantize_undoes_the_rotation(bits, block, dtype):
    code, scale = random_code(6, 192, bits)
    found = ops.table_dequantize(code.cuda(), scale.cuda(), bits, 192, dtype, block, 7)
    expected = ops.table_dequantize(code, scale, bits, 192, torch.float64, block, 7)
    tolerance = 4e-6 if dtype == torch.float32 else 1e-3  # sums of up to 192 terms
    assert torch.allclose(
        found.cpu().double(), expected, rtol=0, atol=tolerance * expected.abs().max()
    )


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", [0, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_from_the_stored_form(bits, block, dtype):
    code, scale = random_code(40, 192, bits)
    w = ops.table_dequantize(code, scale, bits, 192, torch.float64, block, 5)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    stored = (code.cuda(), scale.cuda(), bits)
    for shape in [(1,), (3,), (2, 9), ()]:
        x, g = gaussian(*shape, 192).to(dtype), gaussian(*shape, 40).to(dtype)
        y = ops.table_matmul(x.cuda(), *stored, block, 5)
        z = ops.table_matmul_transposed(g.cuda(), *stored, 192, block, 5)
        for found, exact in ((y, x.double() @ w.T), (z, g.double() @ w)):
            assert found.dtype == dtype
            assert found.shape == exact.shape
            assert (found.cpu().double() - exact).norm() <= tolerance * exact.norm()
    first = ops.table_matmul(x.cuda(), *stored, block, 5)
    assert torch.equal(first, ops.table_matmul(x.cuda(), *stored, block, 5))


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_of_products_from_the_stored_form(bits):
    code, scale = random_code(12, 64, bits)
    w = ops.table_dequantize(code, scale, bits, 64, torch.float64, 32, 1)
    x = gaussian(4, 64).cuda().requires_grad_()
    ops.table_matmul(x, code.cuda(), scale.cuda(), bits, 32, 1).square().sum().backward()
    expected = 2 * (x.detach().cpu().double() @ w.T) @ w
    assert torch.allclose(x.grad.cpu().double(), expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_values_that_are_not_finite_are_refused():
    for value in (float("nan"), float("inf"), float("-inf")):
        w = gaussian(5, 64)
        w[2, 5] = w[4, 63] = value
        with pytest.raises(RuntimeError, match="row 2 of w holds NaN or infinity"):
            ops.table_quantize(w.cuda(), 2)


@pytest.mark.parametrize("bits", WIDTHS)
def test_stored_form_in_a_graph(bits):
    w = gaussian(6, 256).cuda()
    x = gaussian(2, 256).half().cuda()

    def around():
        code, scale = ops.table_quantize(w, bits)
        y = ops.table_matmul(x, code, scale, bits, 64, 1)
        fragments = ops.table_fragments(code, table(bits), bits)
        back = ops.table_codes(fragments, 6, 256, bits)
        return code, scale, back, ops.table_dequantize(code, scale, bits, 256, torch.float16), y

    around()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code, scale, back, dense, y = around()
    w.copy_(rows_of_all_kinds(6, 256))
    w[5, 3] = float("inf")
    graph.replay()
    clean = w.cpu()
    clean[5] = 0
    expected_code, expected_scale = ops.table_quantize(clean, bits)
    assert same_bits(code, expected_code)
    assert same_bits(back, expected_code)
    assert same_bits(scale[:5], expected_scale[:5])
    assert torch.isnan(scale[5])
    assert torch.isnan(y[:, 5]).all()
    expected = ops.table_dequantize(expected_code, expected_scale, bits, 256, torch.float16)
    assert same_bits(dense[:5], expected[:5])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("rows", "cols"), [(0, 128), (3, 0), (0, 0)])
def test_empty_matrices(bits, rows, cols):
    code, scale = ops.table_quantize(torch.zeros(rows, cols, device="cuda"), bits)
    assert code.shape == (rows, cols * bits // 8)
    back = ops.table_dequantize(code, scale, bits, cols, torch.float16)
    assert back.shape == (rows, cols)
    for tokens in (0, 2):
        x = torch.ones(tokens, cols, device="cuda")
        y = ops.table_matmul(x, code, scale, bits)
        assert torch.equal(y, torch.zeros(tokens, rows, device="cuda"))
    fragments = ops.table_fragments(code, table(bits), bits)
    assert fragments.shape == (1024,)
    assert torch.equal(ops.table_codes(fragments, rows, cols, bits), code)
    ids = torch.zeros(0, dtype=torch.int64, device="cuda")
    found = ops.table_rows(fragments, scale, ids, bits, cols, torch.float16)
    assert found.shape == (0, cols)


def test_strides_and_alignment():
    w = gaussian(9, 256)
    for bits in WIDTHS:
        expected = ops.table_quantize(w, bits)
        strided = w.T.contiguous().T.cuda()
        shifted = torch.empty(w.numel() + 1, device="cuda")[1:].view(w.shape).copy_(w)
        assert shifted.data_ptr() % 16
        for other in (strided, shifted):
            assert all(map(same_bits, ops.table_quantize(other, bits), expected))
        code, scale = expected
        memory = torch.empty(code.numel() + 3, device="cuda", dtype=torch.uint8)
        moved = memory[3:].view(code.shape).copy_(code)
        dense = ops.table_dequantize(moved, scale.cuda(), bits, 256, torch.float32)
        assert same_bits(dense, ops.table_dequantize(code, scale, bits, 256, torch.float32))
        for other in (moved, code.cuda().T.contiguous().T):
            fragments = ops.table_fragments(other, table(bits), bits)
            copy = torch.empty(fragments.numel() + 1, device="cuda", dtype=torch.uint8)[1:]
            copy.copy_(fragments)
            assert same_bits(ops.table_codes(copy, 9, 256, bits), code)


# --- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 37, 300])
@pytest.mark.parametrize("cols", [128, 384, 512, 640, 4096])
def test_fragments_give_the_codes_back(bits, rows, cols):
    code, _ = random_code(rows, cols, bits, seed=rows)
    fragments = ops.table_fragments(code.cuda(), table(bits), bits)
    assert same_bits(ops.table_codes(fragments, rows, cols, bits), code)
    tiles = -(-rows // 16)
    assert fragments.shape == (1024 + tiles * 16 * cols * bits // 8,)
    entries = table(bits).to(torch.int8)
    words = torch.zeros(256, 4, dtype=torch.int8)
    words[:, : entries.shape[1]] = entries
    assert torch.equal(fragments[:1024].cpu(), words.flatten().view(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_tiles_of_two_matrices_one_after_the_other_are_one_matrix(bits):
    first, second = (random_code(rows, 256, bits, seed=rows)[0] for rows in (32, 21))
    parts = [ops.table_fragments(code.cuda(), table(bits), bits) for code in (first, second)]
    both = torch.cat([parts[0], parts[1][1024:]])
    assert same_bits(ops.table_codes(both, 53, 256, bits), torch.cat([first, second]))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", [0, 128, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_the_matrix(bits, block, dtype):
    code, scale = random_code(37, 384, bits)
    fragments = ops.table_fragments(code.cuda(), table(bits), bits)
    ids = torch.tensor([0, 36, 5, 5, -1, -37, 16], device="cuda")
    found = ops.table_rows(fragments, scale.cuda(), ids, bits, 384, dtype, block, 3)
    dense = ops.table_dequantize(code.cuda(), scale.cuda(), bits, 384, dtype, block, 3)
    assert same_bits(found, dense[ids])


def test_rows_that_are_not_there_are_nan():
    code, scale = random_code(20, 128, 2)
    fragments = ops.table_fragments(code.cuda(), table(2), 2)
    ids = torch.tensor([20, 3, -21, 1 << 40], device="cuda")
    for block in (0, 128):
        found = ops.table_rows(fragments, scale.cuda(), ids, 2, 128, torch.float16, block)
        assert torch.isnan(found[[0, 2, 3]]).all()
        assert torch.isfinite(found[1]).all()


def test_bad_arguments_are_named():
    code, scale = (t.cuda() for t in random_code(20, 256, 2))
    fragments = ops.table_fragments(code, table(2), 2)
    ids = torch.zeros(1, dtype=torch.int64, device="cuda")
    x = torch.zeros(1, 256, device="cuda")
    half = torch.float16
    cases = [
        (lambda: ops.table_codes(fragments, 40, 256, 2), "fragments has 3072 bytes, expected the"),
        (lambda: ops.table_codes(fragments, 20, 200, 2), "cols is 200, expected a multiple of 128"),
        (lambda: ops.table_codes(fragments, -1, 256, 2), "rows is -1"),
        (lambda: ops.table_codes(fragments, 20, 256, 6), "bits is 6"),
        (lambda: ops.table_codes(fragments.short(), 20, 256, 2), "fragments has dtype int16"),
        (lambda: ops.table_rows(fragments, scale, ids.int(), 2, 256, half), "ids has dtype int32"),
        (lambda: ops.table_rows(fragments, scale, ids[None], 2, 256, half), "ids has shape"),
        (lambda: ops.table_rows(fragments, scale, ids.cpu(), 2, 256, half), "different devices"),
        (lambda: ops.table_rows(fragments, scale, ids, 2, 256, torch.int8), "dtype is int8"),
        (lambda: ops.table_rows(fragments, scale, ids, 2, 256, half, 3), "block is 3"),
        (lambda: ops.table_fragments(code, table(2).cuda(), 2), "table is on a GPU"),
        (lambda: ops.table_quantize(x.half(), 2), "w has dtype float16"),
        (lambda: ops.table_dequantize(code, scale.cpu(), 2, 256, half), "different devices"),
        (lambda: ops.table_dequantize(code[:3], scale, 2, 256, half), r"expected \[20, 64\]"),
        (lambda: ops.table_matmul(x.double(), code, scale, 2), "x has dtype float64"),
        (lambda: ops.table_matmul(x, code, scale, 2, 11), "block is 11"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("bits", WIDTHS)
def test_operators_pass_opcheck(bits):
    code, scale = (t.cuda() for t in random_code(20, 256, bits))
    fragments = ops.table_fragments(code, table(bits), bits)
    ids = torch.tensor([1, 19], device="cuda")
    x = gaussian(3, 256).cuda().requires_grad_()
    check = torch.library.opcheck
    check(ops.table_codes.default, (fragments, 20, 256, bits))
    check(ops.table_rows.default, (fragments, scale, ids, bits, 256, torch.bfloat16, 64, 3))
    check(ops.table_quantize.default, (gaussian(5, 256).cuda(), bits))
    check(ops.table_dequantize.default, (code, scale, bits, 256, torch.bfloat16, 64, 3))
    check(ops.table_matmul.default, (x, code, scale, bits, 64, 3))
