"""Pyramid-table codes: tables, the quantizer, the stored form, products, and the Python code."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import products
import pytest
import torch

import pvq
from pvq import PVQConfig, PVQLinear, _core, quantize_tensor
from pvq.rotation import hadamard_matrix

ops = torch.ops.pvq
WIDTHS = (2, 3, 4)
ERROR_BOUNDS = {2: 0.0972, 3: 0.0262, 4: 0.0079}


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def values(bits: int) -> np.ndarray:
    """What a byte means, float64 [256, 4 or 2]; magnitudes at 3 bits."""
    table = _core.code_table(bits).astype(np.float64)
    return 2 * table + 1 if bits == 3 else table


def integers(code: np.ndarray, bits: int, cols: int) -> np.ndarray:
    """The weights in units of the row scale by the definition of the stored form, float64."""
    table = values(bits)
    dim = table.shape[1]
    y = table[code[:, : cols // dim]].reshape(len(code), cols)
    if bits == 3:
        signs = np.unpackbits(code[:, cols // 4 :], axis=1, bitorder="little")
        y = y * (1 - 2.0 * signs)
    return y


def decoded(code: torch.Tensor, row_scale: torch.Tensor, bits: int, cols: int) -> np.ndarray:
    return row_scale.double().numpy()[:, None] * integers(code.numpy(), bits, cols)


def random_code(
    rows: int, cols: int, bits: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Any bytes are a code; scales of both signs and zero among them."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 256, (rows, cols * bits // 8)).astype(np.uint8)
    scale = torch.from_numpy(rng.normal(size=rows)).bfloat16() / 64
    scale[1 :: max(2, rows // 3)] = 0
    return torch.from_numpy(code), scale


def on_every_instruction_set(script: str) -> dict[str, str]:
    """What a script prints when pvq may use each instruction set that this machine has."""
    results = {}
    for isa in _core.build_info()["cpu_instruction_sets"]:
        done = subprocess.run(
            [sys.executable, "-c", f"import torch, pvq\nops = torch.ops.pvq\n{script}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PVQ_CPU": isa},
            cwd=Path(__file__).parent,
        )
        assert done.returncode == 0, done.stderr
        results[isa] = done.stdout
    return results


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_tables_are_unions_of_permutation_codes(bits):
    table = _core.code_table(bits)
    assert table.dtype == np.int8
    assert table.shape == (256, 2 if bits == 4 else 4)
    points = {tuple(map(int, p)) for p in table}
    assert len(points) == 256, "all distinct"
    if bits == 3:
        assert table.min() >= 0
    for p in points:
        assert all(q in points for q in itertools.permutations(p))
        if bits != 3:
            for signs in itertools.product((1, -1), repeat=len(p)):
                assert tuple(s * v for s, v in zip(signs, p, strict=True)) in points


@pytest.mark.parametrize("bits", WIDTHS)
def test_leaders_are_trained(bits):
    """Every point is near the mean of the Gaussian samples that it stands for."""
    table, dim = values(bits), values(bits).shape[1]
    x = gaussian(1, 1 << 18, seed=1).view(-1, dim).double().numpy()
    if bits == 3:
        x = np.abs(x)
    scale = ops.table_quantize(gaussian(1, 1 << 16), bits)[1]
    points = float(scale) * table
    nearest = (x @ points.T - 0.5 * (points**2).sum(1)).argmax(1)
    count = np.bincount(nearest, minlength=256)
    assert (count > 0).all()
    means = np.stack([np.bincount(nearest, c, 256) / count for c in x.T], axis=1)
    gain = (count[:, None] * (means - points) ** 2).sum() / x.size
    error = ((x - points[nearest]) ** 2).mean()
    assert gain < 0.015 * error, "moving every point to its mean would gain more than 1.5 %"


def test_there_is_no_table_of_another_width():
    for bits in (1, 5):
        with pytest.raises(ValueError, match=f"bits is {bits}, expected 2, 3 or 4"):
            _core.code_table(bits)


# --- quantize -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("cols", [8, 64, 136, 1000, 4096])
def test_every_group_gets_the_nearest_point(bits, cols):
    w = gaussian(5, cols, seed=bits)
    code, row_scale = ops.table_quantize(w, bits)
    scale = row_scale.double().numpy()[:, None]
    found = decoded(code, row_scale, bits, cols)
    table = values(bits)
    dim = table.shape[1]
    x = w.double().numpy().reshape(5, -1, 1, dim)
    if bits == 3:
        table = np.concatenate([table * s for s in itertools.product((1, -1), repeat=4)])
    best = ((x - scale[..., None, None] * table) ** 2).sum(-1).min(-1)
    error = ((x[:, :, 0] - found.reshape(5, -1, dim)) ** 2).sum(-1)
    # Two points at nearly the same distance may change places in float32.
    assert (error <= best + 1e-5 * (x[:, :, 0] ** 2).sum(-1)).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("law", ["gaussian", "laplace", "uniform", "sparse", "outlier", "signs"])
def test_no_scale_on_a_fine_grid_is_much_better(bits, law):
    rng = np.random.default_rng(7)
    w = {
        "gaussian": lambda: rng.standard_normal((4, 512)),
        "laplace": lambda: rng.laplace(size=(4, 512)),
        "uniform": lambda: rng.uniform(-1, 1, (4, 512)),
        "sparse": lambda: rng.standard_normal((4, 512)) * (rng.random((4, 512)) < 0.05),
        "outlier": lambda: rng.standard_normal((4, 512)) + 60 * np.eye(4, 512),
        "signs": lambda: rng.choice([-1.0, 1.0], (4, 512)),
    }[law]()
    w = w.astype(np.float32).astype(np.float64)
    code, row_scale = ops.table_quantize(torch.from_numpy(w).float(), bits)
    error = ((w - decoded(code, row_scale, bits, 512)) ** 2).sum(1)
    table = values(bits)
    x = (np.abs(w) if bits == 3 else w).reshape(4, -1, table.shape[1])
    best = np.full(4, np.inf)
    top = np.abs(w).max(1) / table.max()
    rms = np.sqrt((w**2).mean(1))
    for factor in np.geomspace(0.02, 1.5, 150):
        for scale in (factor * top, factor * rms / 10):
            scaled = scale[:, None, None] * table
            score = np.einsum("rgd,rpd->rgp", x, scaled) - 0.5 * (scaled**2).sum(-1)[:, None]
            best = np.minimum(best, (w**2).sum(1) - 2 * score.max(-1).sum(-1))
    assert (error <= 1.05 * best + 1e-4 * (w**2).sum(1)).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_error_on_a_gaussian_source(bits):
    w = gaussian(64, 4096)
    code, row_scale = ops.table_quantize(w, bits)
    back = ops.table_dequantize(code, row_scale, bits, 4096, torch.float32)
    assert float(((back - w) ** 2).sum() / (w**2).sum()) < ERROR_BOUNDS[bits]


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_instruction_set_gives_the_same_codes(bits):
    script = f"""
import hashlib
w = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
w[2, 5] = 40; w[3] *= 1e-40; w[4, ::3] = 0; w[5] = w[5].sign()
for cols in (1000, 8, 264):
    code, scale = ops.table_quantize(w[:, :cols].contiguous(), {bits})
    print(hashlib.sha256(code.numpy().tobytes() + scale.float().numpy().tobytes()).hexdigest())
"""
    results = on_every_instruction_set(script)
    assert len(set(results.values())) == 1, results


@pytest.mark.parametrize("bits", WIDTHS)
def test_zeros_get_scale_zero_and_decode_to_zero(bits):
    w = gaussian(4, 64)
    w[1] = 0
    w[3] *= 1e-44  # the scale is below bfloat16's smallest number
    code, row_scale = ops.table_quantize(w, bits)
    assert (row_scale[[1, 3]] == 0).all()
    assert not code[[1, 3]].any()
    back = ops.table_dequantize(code, row_scale, bits, 64, torch.float32)
    assert (back[[1, 3]] == 0).all()
    assert (back[[0, 2]].norm(dim=1) > 1).all()
    assert not ops.table_quantize(torch.zeros(2, 8), bits)[1].any()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("factor", [2.0**-110, 2.0**-20, 2.0**14, 2.0**120])
def test_powers_of_two_change_nothing_but_the_scale(bits, factor):
    w = gaussian(3, 128)
    code, row_scale = ops.table_quantize(w, bits)
    other, other_scale = ops.table_quantize(w * factor, bits)
    assert torch.equal(code, other)
    assert torch.equal(row_scale.double() * factor, other_scale.double())


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("largest", [1e-35, 1e-30, 65504.0, 3.4e38])
def test_extreme_magnitudes(bits, largest):
    w = gaussian(3, 256)
    w = (w * (largest / w.abs().max())).float()
    code, row_scale = ops.table_quantize(w, bits)
    back = ops.table_dequantize(code, row_scale, bits, 256, torch.float32).double()
    assert torch.isfinite(back).all()
    error = ((back - w.double()) ** 2).sum() / (w.double() ** 2).sum()
    assert error < 1.2 * ERROR_BOUNDS[bits]


def test_strides_and_threads_do_not_change_the_codes():
    w = gaussian(64, 96)
    strided = w.T.contiguous().T
    assert not strided.is_contiguous()
    threads = torch.get_num_threads()
    try:
        for bits in WIDTHS:
            results = []
            for n in (1, 2):
                torch.set_num_threads(n)
                results += [ops.table_quantize(w, bits), ops.table_quantize(strided, bits)]
            for code, scale in results[1:]:
                assert torch.equal(code, results[0][0])
                assert torch.equal(scale, results[0][1])
    finally:
        torch.set_num_threads(threads)


# --- dequantize -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 8), (5, 136), (33, 256)])
def test_dequantize_is_exact(bits, rows, cols):
    code, row_scale = random_code(rows, cols, bits)
    expected = torch.from_numpy(decoded(code, row_scale, bits, cols))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        back = ops.table_dequantize(code, row_scale, bits, cols, dtype)
        assert torch.equal(back, expected.to(torch.float32).to(dtype))
    assert torch.equal(ops.table_dequantize(code, row_scale, bits, cols, torch.float64), expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", [8, 64, 48, 192])
def test_dequantize_undoes_the_rotation(bits, block):
    code, row_scale = random_code(6, 192, bits)
    flat = decoded(code, row_scale, bits, 192)
    signs = ops.hadamard(torch.ones(192, dtype=torch.float64), 1, 7).numpy()
    h = hadamard_matrix(block).astype(np.float64) / np.sqrt(block)
    expected = (flat.reshape(6, -1, block) @ h).reshape(6, 192) * signs
    plain = ops.table_dequantize(code, row_scale, bits, 192, torch.float32, block, 7).numpy()
    assert np.allclose(plain, expected, rtol=0, atol=2e-6 * np.abs(flat).max() * np.sqrt(block))


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 6, 7, 16, 33])
@pytest.mark.parametrize(("rows", "cols"), [(1, 8), (17, 64), (70, 264), (33, 1160)])
@pytest.mark.parametrize("dtype", products.DTYPES)
def test_products_are_as_good_as_torch(bits, tokens, rows, cols, dtype):
    code, row_scale = random_code(rows, cols, bits, seed=cols)
    w = decoded(code, row_scale, bits, cols)
    x = products.activations(tokens, cols, dtype)
    y = ops.table_matmul(x, code, row_scale, bits)
    products.assert_as_good_as_torch(y, x, w)
    g = products.activations(tokens, rows, dtype)
    z = ops.table_matmul_transposed(g, code, row_scale, bits, cols)
    products.assert_as_good_as_torch(z, g, w.T)


@pytest.mark.parametrize("bits", WIDTHS)
def test_products_with_a_long_row(bits):
    """More columns than one block of activations has, and not a multiple of it."""
    code, row_scale = random_code(5, 9 * 1024 + 8, bits)
    w = decoded(code, row_scale, bits, 9 * 1024 + 8)
    for tokens in (1, 3, 6, 20):
        x = products.activations(tokens, w.shape[1], torch.float32)
        products.assert_as_good_as_torch(ops.table_matmul(x, code, row_scale, bits), x, w)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_products_rotate(bits, tokens):
    code, row_scale = random_code(40, 192, bits)
    w = ops.table_dequantize(code, row_scale, bits, 192, torch.float64, 64, 5)
    x, g = gaussian(tokens, 192), gaussian(tokens, 40)
    y = ops.table_matmul(x, code, row_scale, bits, 64, 5)
    assert torch.allclose(y.double(), x.double() @ w.T, rtol=0, atol=1e-4)
    z = ops.table_matmul_transposed(g, code, row_scale, bits, 192, 64, 5)
    assert torch.allclose(z.double(), g.double() @ w, rtol=0, atol=1e-4)


def test_products_on_every_instruction_set():
    script = """
import numpy as np
g = torch.Generator().manual_seed(0)
for bits in (2, 3, 4):
    for rows, cols in ((37, 392), (16, 8)):
        code = torch.randint(0, 256, (rows, cols * bits // 8), generator=g, dtype=torch.uint8)
        scale = torch.rand(rows, generator=g).bfloat16()
        w = ops.table_dequantize(code, scale, bits, cols, torch.float64)
        for tokens in (1, 2, 3, 5, 7, 20):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(tokens, cols, generator=g).to(dtype)
                y = ops.table_matmul(x, code, scale, bits)
                z = torch.randn(tokens, rows, generator=g).to(dtype)
                v = ops.table_matmul_transposed(z, code, scale, bits, cols)
                for out, a, m in ((y, x, w.T), (v, z, w)):
                    exact = a.double() @ m
                    bound = 2e-6 if dtype == torch.float32 else 2e-2
                    assert (out - exact).abs().max() <= bound * (a.double().abs() @ m.abs()).max()
print("ok")
"""
    assert set(on_every_instruction_set(script).values()) == {"ok\n"}


@pytest.mark.parametrize("bits", WIDTHS)
def test_products_do_not_depend_on_threads_strides_or_shape(bits):
    code, row_scale = random_code(200, 264, bits)
    x = gaussian(6, 264)
    threads = torch.get_num_threads()
    try:
        for tokens in (1, 6):
            results = []
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(ops.table_matmul(x[:tokens], code, row_scale, bits))
            assert torch.equal(*results)
    finally:
        torch.set_num_threads(threads)
    y = ops.table_matmul(x, code, row_scale, bits)
    assert torch.equal(
        ops.table_matmul(x.view(2, 3, 264), code, row_scale, bits), y.view(2, 3, 200)
    )
    assert torch.equal(ops.table_matmul(x.T.contiguous().T, code, row_scale, bits), y)
    assert ops.table_matmul(x[0], code, row_scale, bits).shape == (200,)
    other = ops.table_matmul(x, code.T.contiguous().T, row_scale, bits)
    assert torch.equal(other, y)


@pytest.mark.parametrize("bits", WIDTHS)
def test_huge_and_tiny_activations(bits):
    code, row_scale = random_code(20, 64, bits)
    w = ops.table_dequantize(code, row_scale, bits, 64, torch.float64)
    for factor in (1e30, 1e-25):
        x = gaussian(2, 64) * factor
        y = ops.table_matmul(x, code, row_scale, bits).double() / factor
        assert torch.allclose(y, x.double() / factor @ w.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("rows", "cols"), [(0, 64), (3, 0), (0, 0)])
def test_empty_matrices(bits, rows, cols):
    code, row_scale = ops.table_quantize(torch.zeros(rows, cols), bits)
    assert code.shape == (rows, cols * bits // 8)
    back = ops.table_dequantize(code, row_scale, bits, cols, torch.float32)
    assert back.shape == (rows, cols)
    for tokens in (0, 1, 20):
        y = ops.table_matmul(torch.ones(tokens, cols), code, row_scale, bits)
        assert torch.equal(y, torch.zeros(tokens, rows))
        z = ops.table_matmul_transposed(torch.ones(tokens, rows), code, row_scale, bits, cols)
        assert torch.equal(z, torch.zeros(tokens, cols))


# --- bad input ------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    w = gaussian(3, 64)
    code, scale = ops.table_quantize(w, 3)
    x = torch.ones(2, 64)
    g = torch.ones(2, 3)
    to32 = torch.float32
    cases = [
        (lambda: ops.table_quantize(w, 5), "bits is 5, expected 2 to 4"),
        (lambda: ops.table_quantize(w, 1), "bits is 1, expected 2 to 4"),
        (lambda: ops.table_quantize(w.double(), 2), "w has dtype float64, expected float32"),
        (lambda: ops.table_quantize(w[0], 2), r"w has shape \[64\], expected 2 dimensions"),
        (lambda: ops.table_quantize(w[:, :60], 2), "columns of w is 60, expected a multiple of 8"),
        (lambda: ops.table_dequantize(code.short(), scale, 3, 64, to32), "code has dtype int16"),
        (
            lambda: ops.table_dequantize(code[:2], scale, 3, 64, to32),
            r"code has shape \[2, 24\], expected \[3, 24\]",
        ),
        (lambda: ops.table_dequantize(code, scale, 2, 64, to32), r"expected \[3, 16\]"),
        (lambda: ops.table_dequantize(code, scale.float(), 3, 64, to32), "row_scale has dtype"),
        (lambda: ops.table_dequantize(code, scale[None], 3, 64, to32), "row_scale has shape"),
        (lambda: ops.table_dequantize(code, scale, 3, 60, to32), "cols is 60, expected a multiple"),
        (lambda: ops.table_dequantize(code, scale, 3, 64, torch.int32), "dtype is int32"),
        (lambda: ops.table_dequantize(code, scale, 3, 64, to32, 11), "block is 11"),
        (lambda: ops.table_dequantize(code, scale, 3, 64, to32, 128), "block is 128"),
        (lambda: ops.table_matmul(x.long(), code, scale, 3), "x has dtype int64"),
        (lambda: ops.table_matmul(x[:, :56], code, scale, 3), r"expected \[3, 21\]"),
        (lambda: ops.table_matmul(x[:, :57], code, scale, 3), "expected a multiple of 8"),
        (lambda: ops.table_matmul(x[0, 0], code, scale, 3), "x has no dimensions"),
        (lambda: ops.table_matmul(x, code, scale, 7), "bits is 7"),
        (lambda: ops.table_matmul(x, code, scale, 3, 128), "block is 128"),
        (lambda: ops.table_matmul_transposed(x, code, scale, 3, 64), r"expected \[..., 3\]"),
        (lambda: ops.table_matmul_transposed(g, code, scale, 3, 63), "cols is 63"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = w.clone()
        bad[2, 5] = value
        with pytest.raises(RuntimeError, match="row 2 of w holds NaN or infinity"):
            ops.table_quantize(bad, 2)


# --- compiler and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("rows", [0, 5])
def test_operators_pass_opcheck(bits, rows):
    code, scale = random_code(rows, 64, bits)
    x = gaussian(3, 64).requires_grad_()
    g = gaussian(3, rows).requires_grad_()
    check = torch.library.opcheck
    check(ops.table_quantize.default, (gaussian(rows, 64), bits))
    check(ops.table_dequantize.default, (code, scale, bits, 64, torch.bfloat16, 32, 3))
    check(ops.table_matmul.default, (x, code, scale, bits, 32, 3))
    check(ops.table_matmul_transposed.default, (g, code, scale, bits, 64, 32, 3))


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_are_those_of_the_dense_product(bits):
    code, scale = random_code(12, 64, bits)
    w = ops.table_dequantize(code, scale, bits, 64, torch.float64, 32, 1)
    x = gaussian(4, 64).requires_grad_()
    y = ops.table_matmul(x, code, scale, bits, 32, 1)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dense = 2 * (x.detach().double() @ w.T) @ w
    assert torch.allclose(gradient.double(), dense, rtol=0, atol=1e-4 * dense.abs().max())
    (second,) = torch.autograd.grad(gradient.sum(), x)
    expected = 2 * (torch.ones(4, 64, dtype=torch.float64) @ w.T) @ w
    assert torch.allclose(second.double(), expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_operators_compile_in_one_graph():
    def around(w, x):
        code, scale = ops.table_quantize(ops.hadamard(w, 32, 3), 3)
        back = ops.table_dequantize(code, scale, 3, 64, torch.float32, 32, 3)
        return ops.table_matmul(x, code, scale, 3, 32, 3) + x @ back.T

    w, x = gaussian(4, 64), gaussian(5, 64)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w, x), around(w, x))


# --- the code in configurations, tensors and layers -----------------------------------------------


def test_config_knows_what_the_code_can_do():
    config = PVQConfig(2, code="table", seed=3)
    assert config.bits == 2
    assert config.code.describe() == "table 2 bits"
    assert config == PVQConfig(code="table", bits=2.0, seed=3)
    assert config != PVQConfig(3, code="table", seed=3)
    assert PVQConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["code"] == "table"
    assert config.replace(bits=4).code.bits == 4
    assert config.replace(code="pyramid") == PVQConfig(2, seed=3)
    assert PVQConfig(4.0, seed=3).replace(code="table") == PVQConfig(4, code="table", seed=3)
    assert PVQConfig(3.25).replace(code="table", bits=3).bits == 3
    cases = [
        (lambda: PVQConfig(2.5, code="table"), r"bits=2\.5 is out of reach .* choose 2, 3 or 4"),
        (lambda: PVQConfig(5, code="table"), r"bits=5 is out of reach with code='table'"),
        (lambda: PVQConfig(code="table"), "needs bits: choose 2, 3 or 4"),
        (lambda: PVQConfig(2, code="table", pulses=3), "unknown choice 'pulses' with code='table'"),
        (lambda: PVQConfig(2, code="tabel"), "code is 'tabel', expected one of 'pyramid', 'table'"),
        (lambda: PVQConfig(2, code=["table"]), r"code is \['table'\]"),
        (lambda: config.replace(dim=8), "unknown choice 'dim' with code='table'"),
        (lambda: PVQConfig(3.25).replace(code="table"), r"bits=3\.25 is out of reach"),
        (lambda: config.for_cols(100), "100 columns are not a multiple of 8.*code='pyramid'"),
        (lambda: PVQConfig.from_dict({"code": "trellis"}), "a newer pvq or another program"),
        (lambda: PVQConfig.from_dict({**config.to_dict(), "dim": 4}), "does not know: dim"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="bits is 'two'"):
        PVQConfig("two", code="table")


@pytest.mark.parametrize("bits", WIDTHS)
def test_tensor_and_layer(bits):
    dense = torch.nn.Linear(96, 40)
    config = PVQConfig(bits, code="table")
    q = quantize_tensor(dense.weight, config)
    assert set(q.stored) == {"code", "row_scale"}
    assert q.bits_per_weight == bits + 16 / 96
    assert q.relative_error(dense.weight) < 1.6 * ERROR_BOUNDS[bits]
    assert torch.equal(q.rows(torch.tensor([7, 7])).dequantize(), q.dequantize()[[7, 7]])
    layer = PVQLinear.from_linear(dense, config)
    assert torch.equal(layer.dequantize(), q.dequantize())
    x = gaussian(3, 96).requires_grad_()
    expected = x.double() @ q.dequantize(torch.float64).T + dense.bias.double()
    assert torch.allclose(layer(x).double(), expected, rtol=0, atol=1e-5)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, q.dequantize().sum(0).expand(3, 96), atol=1e-4)
    assert layer.prepare("auto").layout == "stored", "which is the fast one here"
    with pytest.raises(ValueError, match="code='table' has no planes on device cpu"):
        layer.prepare("planes")
    assert layer.nbytes == layer.resident_nbytes == q.nbytes
    assert f"code=table {bits} bits, layout=stored" in repr(layer)
    twin = PVQLinear(96, 40, True, config)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_embedding_and_tied_head():
    table = pvq.PVQEmbedding.from_embedding(torch.nn.Embedding(50, 64), PVQConfig(3, code="table"))
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.equal(table(ids), table.dequantize()[ids])
    head = pvq.embedding.PVQTiedHead(table)
    x = gaussian(4, 64)
    assert torch.allclose(head(x), x @ table.dequantize().T, atol=1e-4)
