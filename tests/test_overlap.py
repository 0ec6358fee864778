"""Overlapping-pyramid codes: tables, the stored form, products, and the Python code."""

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import products
import pytest
import torch

import pvq
from pvq import PVQConfig, PVQLinear, quantize_tensor
from pvq.codes.overlap import WIDTHS, OverlapCode, trellis
from pvq.codes.overlap_trellis import Trellis
from pvq.rotation import hadamard_matrix

ops = torch.ops.pvq
# Mean square errors on a Gaussian source, as multiples of 4^-R with R read off the bytes.
ERROR_RATIOS = {2: 1.2, 2.5: 1.2, 3: 1.25, 3.5: 1.22, 4: 1.22}
widths = pytest.mark.parametrize("bits", WIDTHS)
# Others that the operators decode: weights of a group, bits of a symbol and of a window, lag, and
# the spread if there is one. Rings
# of 16 columns may have fewer bits than a window, and fewer groups than the lag.
OTHERS = [(2, 4, 8, 2), (2, 3, 12, 1), (2, 2, 2, 8), (2, 7, 9, 2), (4, 2, 2, 8), (4, 2, 12, 3),
          (4, 4, 8, 3), (4, 6, 10, 2), (4, 8, 12, 1), (4, 8, 8, 2),
          (4, 8, 8, 1, 9), (4, 8, 8, 2, 1)]  # fmt: skip


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def integers(code: np.ndarray, numbers: Trellis, cols: int) -> np.ndarray:
    """The weights in units of the row scale by the definition of the stored form, bit by bit."""
    table = numbers.table.numpy().astype(np.int64)
    step, window, dim = numbers.stored_bits, numbers.window_bits, numbers.dim
    spread = numbers.spread
    y = np.empty((len(code), cols), dtype=np.int64)
    for row, stream in enumerate(np.unpackbits(code, axis=1, bitorder="little")):
        for begin in range(0, cols, 128):
            groups = (min(begin + 128, cols) - begin) // dim
            ring = stream[begin // dim * step :][: groups * step].astype(np.int64)
            at = []
            for i in range(groups):
                first = step * i + numbers.step_bits - window
                places = (first + np.arange(window)) % len(ring)
                at.append(int((ring[places] << np.arange(window)).sum()))
            for i in range(groups):
                point = table[at[i], 0] + table[at[(i - numbers.lag) % groups], 1]
                if spread:
                    above = ring[step * i + numbers.step_bits :][:dim]
                    point = point + spread * (2 * above - 1)
                y[row, begin + dim * i : begin + dim * (i + 1)] = point
    return y


def other_trellis(dim: int, step_bits: int, window_bits: int, lag: int, spread: int = 0) -> Trellis:
    rng = np.random.default_rng(0)
    most = (127 - spread) // 2
    drawn = rng.integers(-most, most + 1, (1 << window_bits, 2, dim))
    table = torch.from_numpy(drawn.astype(np.int8))
    return Trellis(step_bits, window_bits, lag, table, 1.0, spread)


def decoded(code: torch.Tensor, row_scale: torch.Tensor, numbers: Trellis, cols: int) -> np.ndarray:
    return row_scale.double().numpy()[:, None] * integers(code.numpy(), numbers, cols)


def matrix(rows: int, cols: int, bits: float | Trellis, seed: int = 0) -> tuple:
    """Any bytes are a code; scales of both signs and zero among them. With table and numbers."""
    rng = np.random.default_rng(seed)
    numbers = bits if isinstance(bits, Trellis) else trellis(bits)
    row_bytes = cols * numbers.stored_bits // (8 * numbers.dim)
    code = rng.integers(0, 256, (rows, row_bytes)).astype(np.uint8)
    scale = torch.from_numpy(rng.normal(size=rows)).bfloat16() / 64
    scale[1 :: max(2, rows // 3)] = 0
    return torch.from_numpy(code), scale, numbers.table, *numbers.numbers


# --- the tables -----------------------------------------------------------------------------------


@widths
def test_sums_of_points_are_int8(bits):
    numbers = trellis(bits)
    assert numbers.table.dtype == torch.int8
    assert numbers.table.shape == (1 << numbers.window_bits, 2, 4 if bits in (2, 3) else 2)
    assert numbers.stored_bits == numbers.dim * bits
    assert int(numbers.table.int().amin((0, 2)).sum()) - numbers.spread >= -128
    assert int(numbers.table.int().amax((0, 2)).sum()) + numbers.spread <= 127


def test_groups_of_four_have_tied_points():
    """csrc/core/overlap.h: with 64 on top, the second points are 16 times the first ones' words."""
    table = trellis(2.0).table.numpy().astype(np.int64) + 64
    assert 0 <= table.min() < table.max() <= 127
    words = (table << [0, 8, 16, 24]).sum(2)
    assert np.array_equal(words[:, 1], 16 * words[:, 0] % (1 << 32))


def test_with_a_spread_second_points_are_multiples_of_lower_bits():
    """csrc/core/overlap.h: of bytes less 60, twelve times the lower three bits, less 44."""
    table = trellis(3.0).table.numpy().astype(np.int64)
    byte = table[:, 0] + 60
    assert 0 <= byte.min() < byte.max() < 120
    assert np.array_equal(table[:, 1], 12 * (byte & 7) - 44)


@widths
def test_points_are_trained(bits):
    """Moving a point to the mean of what it stands for, given the others, would gain little."""
    numbers = trellis(bits)
    x = gaussian(256, 128, seed=1) / numbers.unit
    symbol = numbers.nearest(x)
    y = numbers.integers(symbol)
    groups = 128 // numbers.dim
    error = (x - y).view(256, groups, numbers.dim).double()
    total = float(error.square().sum())
    # windows of all groups, newest bits on top, around the rings
    window = torch.zeros(256, groups, dtype=torch.int64)
    for back in range(-(-numbers.window_bits // numbers.step_bits)):
        shift = numbers.window_bits - (back + 1) * numbers.step_bits
        older = torch.roll(symbol.long() & ((1 << numbers.step_bits) - 1), back, 1)
        window |= older << shift if shift >= 0 else older >> -shift
    for used in (window, torch.roll(window, numbers.lag, 1)):
        flat, rows = used.flatten(), len(numbers.table)
        count = torch.bincount(flat, minlength=rows)
        assert (count > 0).all(), "every point is used"
        mean = torch.zeros(rows, numbers.dim, dtype=torch.float64)
        mean.index_add_(0, flat, error.flatten(0, 1))
        gain = float((mean.square() / count[:, None]).sum())
        # With so few samples the means of errors that are pure noise gain rows / groups.
        assert gain / total < rows / flat.numel() + 0.01


# --- quantize -------------------------------------------------------------------------------------


@widths
def test_error_on_a_gaussian_source(bits):
    tensor = quantize_tensor(gaussian(8, 4096), PVQConfig(bits, code="overlap", rotation="none"))
    error = float(tensor.relative_error(gaussian(8, 4096)))
    assert error * 4**tensor.bits_per_weight < ERROR_RATIOS[bits]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("law", ["gaussian", "laplace", "uniform", "sparse", "outlier", "signs"])
def test_no_scale_on_a_grid_is_much_better(bits, law):
    rng = np.random.default_rng(7)
    w = {
        "gaussian": lambda: rng.standard_normal((2, 512)),
        "laplace": lambda: rng.laplace(size=(2, 512)),
        "uniform": lambda: rng.uniform(-1, 1, (2, 512)),
        "sparse": lambda: rng.standard_normal((2, 512)) * (rng.random((2, 512)) < 0.05),
        "outlier": lambda: rng.standard_normal((2, 512)) + 40 * np.eye(2, 512),
        "signs": lambda: rng.choice([-1.0, 1.0], (2, 512)),
    }[law]()
    x = torch.from_numpy(w).float()
    numbers, code = trellis(bits), OverlapCode(bits)
    back = code.dequantize(code.quantize(x), 512)
    error = (x - back).double().square().sum(1)
    best = torch.full((2,), torch.inf, dtype=torch.float64)
    for factor in np.geomspace(0.7, 12, 24):
        y = numbers.integers(numbers.nearest(x / (factor * x.std(1, keepdim=True) * numbers.unit)))
        y = y.double()
        left = x.double().square().sum(1) - (x * y).sum(1).square() / y.square().sum(1)
        best = torch.minimum(best, left)
    # Weights of one magnitude fit some scales by chance.
    assert (error <= (1.2 if law == "signs" else 1.1) * best).all(), error / best


@widths
def test_zeros_get_scale_zero_and_decode_to_zero(bits):
    w = gaussian(4, 64)
    w[1] = 0
    w[3] *= 1e-44  # the scale is below bfloat16's smallest number
    code = OverlapCode(bits)
    stored = code.quantize(w)
    assert (stored["row_scale"][[1, 3]] == 0).all()
    assert not stored["code"][[1, 3]].any()
    back = code.dequantize(stored, 64)
    assert (back[[1, 3]] == 0).all()
    assert (back[[0, 2]].norm(dim=1) > 1).all()


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("factor", [2.0**-110, 2.0**-20, 2.0**14, 2.0**120])
def test_powers_of_two_change_nothing_but_the_scale(bits, factor):
    w, code = gaussian(3, 128), OverlapCode(bits)
    one, other = code.quantize(w), code.quantize(w * factor)
    assert torch.equal(one["code"], other["code"])
    assert torch.equal(one["row_scale"].double() * factor, other["row_scale"].double())


@pytest.mark.parametrize("largest", [1e-35, 65504.0, 3e37])
def test_extreme_magnitudes(largest):
    w = gaussian(3, 256)
    w = (w * (largest / w.abs().max())).float()
    code = OverlapCode(3)
    back = code.dequantize(code.quantize(w), 256).double()
    assert torch.isfinite(back).all()
    assert ((back - w.double()) ** 2).sum() / (w.double() ** 2).sum() < 0.023


def test_blocks_are_rings_of_their_own():
    """What one block holds does not change the code of another."""
    code, w = OverlapCode(3), gaussian(4, 272)
    changed = w.clone()
    changed[:, :128] = gaussian(4, 128, seed=9)
    codes = []
    for target in (w, changed):
        rounder = code.rounder(w)
        rounder.round(target, 0)
        codes.append(rounder.stored()["code"])
    assert torch.equal(codes[0][:, 48:], codes[1][:, 48:])
    assert not torch.equal(codes[0][:, :48], codes[1][:, :48])


# --- dequantize -----------------------------------------------------------------------------------


@widths
@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (5, 144), (7, 256), (2, 32)])
def test_dequantize_is_exact(bits, rows, cols):
    stored = matrix(rows, cols, bits)
    assert stored[0].shape == (rows, int(cols * bits) // 8)
    expected = torch.from_numpy(decoded(*stored[:2], trellis(bits), cols))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        back = ops.overlap_dequantize(*stored, cols, dtype)
        assert torch.equal(back, expected.float().to(dtype))


def decoded_as_the_readme_says(code: np.ndarray, bits: float, cols: int) -> np.ndarray:
    """The weights in units of the row scale, from the text of README.md and the file of tables."""
    with np.load(Path(pvq.__file__).parent / "codes/overlap_tables.npz") as file:
        table = file[f"{bits:g}"].astype(np.int64)
    dim = 4 if bits in (2, 3) else 2
    b, v, lag = int(dim * bits), 8 if bits == 2.5 else 9, 2 if bits == 2.5 else 1
    y = np.empty((len(code), cols), dtype=np.int64)
    for row, stream in enumerate(code):
        number = int.from_bytes(stream.tobytes(), "little")
        symbols = [number >> b * i & (1 << b) - 1 for i in range(cols // dim)]
        for begin in range(0, cols, 128):
            s = symbols[begin // dim : (begin + 128) // dim]
            if bits == 3:
                window = [symbol & 255 for symbol in s]
            else:
                window = [(s[i] << v - b) + (s[i - 1] >> 2 * b - v) for i in range(len(s))]
            for i, symbol in enumerate(s):
                point = table[window[i]][0] + table[window[i - lag]][1]
                if bits == 3:
                    point = point + [24 if symbol >> 8 + k & 1 else -24 for k in range(4)]
                y[row, begin + dim * i : begin + dim * (i + 1)] = point
    return y


@widths
@pytest.mark.parametrize("cols", [16, 128, 272])
def test_the_readme_says_how_to_decode(bits, cols):
    stored = matrix(4, cols, bits, seed=cols)
    y = decoded_as_the_readme_says(stored[0].numpy(), bits, cols)
    expected = torch.from_numpy(y) * stored[1].double()[:, None]
    assert torch.equal(ops.overlap_dequantize(*stored, cols, torch.float64), expected)


@pytest.mark.parametrize("shape", OTHERS)
@pytest.mark.parametrize("cols", [16, 112, 272])
def test_dequantize_is_exact_with_any_table(shape, cols):
    numbers = other_trellis(*shape)
    stored = matrix(5, cols, numbers, seed=cols)
    expected = torch.from_numpy(decoded(*stored[:2], numbers, cols)).float()
    assert torch.equal(ops.overlap_dequantize(*stored, cols, torch.float32), expected)
    if torch.cuda.is_available():
        there = tuple(t.cuda() if isinstance(t, torch.Tensor) else t for t in stored)
        assert torch.equal(ops.overlap_dequantize(*there, cols, torch.float32).cpu(), expected)


@widths
@pytest.mark.parametrize("block", [8, 64, 48])
def test_dequantize_undoes_the_rotation(bits, block):
    stored = matrix(6, 192, bits)
    flat = decoded(*stored[:2], trellis(bits), 192)
    signs = ops.hadamard(torch.ones(192, dtype=torch.float64), 1, 7).numpy()
    h = hadamard_matrix(block).astype(np.float64) / np.sqrt(block)
    expected = (flat.reshape(6, -1, block) @ h).reshape(6, 192) * signs
    plain = ops.overlap_dequantize(*stored, 192, torch.float32, block, 7).numpy()
    assert np.allclose(plain, expected, rtol=0, atol=2e-6 * np.abs(flat).max() * np.sqrt(block))


# --- products -------------------------------------------------------------------------------------


@widths
@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 16, 33])
@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (17, 64), (70, 272), (33, 1168)])
@pytest.mark.parametrize("dtype", products.DTYPES)
def test_products_are_as_good_as_torch(bits, tokens, rows, cols, dtype):
    stored = matrix(rows, cols, bits, seed=cols)
    w = ops.overlap_dequantize(*stored, cols, torch.float64).numpy()
    x = products.activations(tokens, cols, dtype)
    products.assert_as_good_as_torch(ops.overlap_matmul(x, *stored), x, w)
    g = products.activations(tokens, rows, dtype)
    products.assert_as_good_as_torch(ops.overlap_matmul_transposed(g, *stored, cols), g, w.T)


@widths
@pytest.mark.parametrize("tokens", [1, 20])
def test_products_rotate(bits, tokens):
    stored = matrix(40, 192, bits)
    w = ops.overlap_dequantize(*stored, 192, torch.float64, 64, 5)
    x, g = gaussian(tokens, 192), gaussian(tokens, 40)
    y = ops.overlap_matmul(x, *stored, 64, 5)
    assert torch.allclose(y.double(), x.double() @ w.T, rtol=0, atol=1e-4)
    z = ops.overlap_matmul_transposed(g, *stored, 192, 64, 5)
    assert torch.allclose(z.double(), g.double() @ w, rtol=0, atol=1e-4)


def test_products_on_every_instruction_set():
    script = """
import hashlib, torch, pvq
from pvq.codes.overlap import WIDTHS, trellis
from test_overlap import OTHERS, matrix, other_trellis
digest = hashlib.sha256()
ops = torch.ops.pvq
g = torch.Generator().manual_seed(0)
for bits in WIDTHS:
    numbers = trellis(bits)
    for rows, cols in ((37, 400), (16, 16)):
        code = torch.randint(0, 256, (rows, int(cols * bits) // 8), generator=g, dtype=torch.uint8)
        scale = torch.rand(rows, generator=g).bfloat16()
        stored = (code, scale, numbers.table, *numbers.numbers)
        w = ops.overlap_dequantize(*stored, cols, torch.float64)
        for tokens in (1, 2, 3, 4, 5, 6, 7, 20):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(tokens, cols, generator=g).to(dtype)
                y = ops.overlap_matmul(x, *stored)
                z = torch.randn(tokens, rows, generator=g).to(dtype)
                v = ops.overlap_matmul_transposed(z, *stored, cols)
                for out, a, m in ((y, x, w.T), (v, z, w)):
                    exact = a.double() @ m
                    bound = 2e-6 if dtype == torch.float32 else 2e-2
                    assert (out - exact).abs().max() <= bound * (a.double().abs() @ m.abs()).max()
    digest.update(w.numpy().tobytes())
for shape in OTHERS:
    for cols in (16, 272):
        w = ops.overlap_dequantize(*matrix(3, cols, other_trellis(*shape)), cols, torch.float32)
        digest.update(w.numpy().tobytes())
print(digest.hexdigest())
"""
    results = set()
    for isa in pvq.build_info()["cpu_instruction_sets"]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PVQ_CPU": isa},
            cwd=Path(__file__).parent,
        )
        assert done.returncode == 0, done.stderr
        results.add(done.stdout)
    assert len(results) == 1


@pytest.mark.parametrize("bits", [2.5, 4])
def test_products_do_not_depend_on_threads_strides_or_shape(bits):
    code, scale, *rest = matrix(200, 272, bits)
    x = gaussian(6, 272)
    threads = torch.get_num_threads()
    try:
        for tokens in (1, 6):
            results = []
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(ops.overlap_matmul(x[:tokens], code, scale, *rest))
            assert torch.equal(*results)
    finally:
        torch.set_num_threads(threads)
    y = ops.overlap_matmul(x, code, scale, *rest)
    whole = ops.overlap_matmul(x.view(2, 3, 272), code, scale, *rest)
    assert torch.equal(whole, y.view(2, 3, 200))
    assert torch.equal(ops.overlap_matmul(x.T.contiguous().T, code, scale, *rest), y)
    assert ops.overlap_matmul(x[0], code, scale, *rest).shape == (200,)
    assert torch.equal(ops.overlap_matmul(x, code.T.contiguous().T, scale, *rest), y)


@widths
@pytest.mark.parametrize(("rows", "cols"), [(0, 64), (3, 0), (0, 0)])
def test_empty_matrices(bits, rows, cols):
    code = OverlapCode(bits)
    stored = code.quantize(torch.zeros(rows, cols))
    assert stored["code"].shape == (rows, int(cols * bits) // 8)
    assert code.dequantize(stored, cols).shape == (rows, cols)
    for tokens in (0, 1, 20):
        y = code.matmul(torch.ones(tokens, cols), stored)
        assert torch.equal(y, torch.zeros(tokens, rows))


# --- bad input ------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    code, scale, table, step, lag, spread = matrix(3, 64, other_trellis(2, 6, 9, 1))
    x, g = torch.ones(2, 64), torch.ones(2, 3)
    to32 = torch.float32

    def back(code=code, scale=scale, table=table, cols=64, dtype=to32, block=0):
        return ops.overlap_dequantize(code, scale, table, step, lag, spread, cols, dtype, block)

    cases = [
        (lambda: back(code=code.short()), "code has dtype int16"),
        (lambda: back(code=code[:2]), r"code has shape \[2, 24\], expected \[3, 24\]"),
        (lambda: back(scale=scale.float()), "row_scale has dtype"),
        (lambda: back(scale=scale[None]), "row_scale has shape"),
        (lambda: back(table=table.float()), "table has dtype float32, expected int8"),
        (lambda: back(table=table[:500]), r"table has shape \[500, 2, 2\]"),
        (
            lambda: back(table=table[:, :, :1]),
            r"\[512, 2, 1\] .*expected groups .*of 2 weights, or",
        ),
        (
            lambda: back(table=table.repeat(1, 1, 4)[:, :, :3]),
            r"table has shape \[512, 2, 3\] with",
        ),
        (lambda: back(table=table.repeat(1, 1, 4)), r"table has shape \[512, 2, 8\] with"),
        (lambda: back(table=table.repeat(1, 1, 2)), r"\[3, 24\], expected \[3, 12\]"),
        (
            lambda: ops.overlap_matmul(x, code, scale, table.repeat(1, 1, 2), 7, lag, 0),
            "with step_bits = 7, .*or of 4 with even step_bits",
        ),
        (lambda: back(cols=60), "cols is 60, expected a multiple of 16"),
        (lambda: back(cols=48), r"expected \[3, 18\]"),
        (lambda: back(dtype=torch.int32), "dtype is int32"),
        (lambda: back(block=11), "block is 11"),
        (
            lambda: ops.overlap_matmul(x.long(), code, scale, table, step, lag, 0),
            "x has dtype int64",
        ),
        (lambda: ops.overlap_matmul(x[:, :48], code, scale, table, step, lag, 0), "code has shape"),
        (lambda: ops.overlap_matmul(x[0, 0], code, scale, table, step, lag, 0), "no dimensions"),
        (lambda: ops.overlap_matmul(x, code, scale, table, 9, lag, 0), "step_bits is 9"),
        (lambda: ops.overlap_matmul(x, code, scale, table, step, lag, 0, 128), "block is 128"),
        (lambda: ops.overlap_matmul(x, code, scale, table, step, lag, -1), "spread is -1"),
        (lambda: ops.overlap_matmul(x, code, scale, table, step, lag, 200), "spread is 200"),
        (
            lambda: ops.overlap_matmul(x, code, scale, table, step, lag, 5),
            r"spread with a table of shape \[512, 2, 2\], expected \[2\^step_bits, 2, dim\]",
        ),
        (
            lambda: ops.overlap_matmul_transposed(x, code, scale, table, step, lag, 0, 64),
            r"expected \[..., 3\]",
        ),
        (
            lambda: ops.overlap_matmul_transposed(g, code, scale, table, step, lag, 0, 63),
            "cols is 63",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_tensor(torch.full((2, 64), torch.nan), PVQConfig(2, code="overlap"))


# --- compiler and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 2.5, 3, 4])
@pytest.mark.parametrize("rows", [0, 5])
def test_operators_pass_opcheck(bits, rows):
    stored = matrix(rows, 64, bits)
    x = gaussian(3, 64).requires_grad_()
    g = gaussian(3, rows).requires_grad_()
    check = torch.library.opcheck
    check(ops.overlap_dequantize.default, (*stored, 64, torch.bfloat16, 32, 3))
    check(ops.overlap_matmul.default, (x, *stored, 32, 3))
    check(ops.overlap_matmul_transposed.default, (g, *stored, 64, 32, 3))


@widths
def test_gradients_are_those_of_the_dense_product(bits):
    stored = matrix(12, 64, bits)
    w = ops.overlap_dequantize(*stored, 64, torch.float64, 32, 1)
    x = gaussian(4, 64).requires_grad_()
    y = ops.overlap_matmul(x, *stored, 32, 1)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dense = 2 * (x.detach().double() @ w.T) @ w
    assert torch.allclose(gradient.double(), dense, rtol=0, atol=1e-4 * dense.abs().max())
    (second,) = torch.autograd.grad(gradient.sum(), x)
    expected = 2 * (torch.ones(4, 64, dtype=torch.float64) @ w.T) @ w
    assert torch.allclose(second.double(), expected, rtol=0, atol=1e-4 * expected.abs().max())


# --- the code in configurations, tensors and layers -----------------------------------------------


def test_config_knows_what_the_code_can_do():
    config = PVQConfig(2.5, code="overlap", seed=3)
    assert config.bits == 2.5
    assert config.rotation == "hadamard"
    assert config.code.describe() == "overlap 2.5 bits"
    assert PVQConfig(2, code="overlap") == PVQConfig(code="overlap", bits=2.0)
    assert PVQConfig.from_dict(config.to_dict()) == config
    assert config.replace(bits=4).code.bits == 4
    assert config.replace(code="pyramid") == PVQConfig(2.5, seed=3)
    assert PVQConfig(4, code="table", seed=3).replace(code="overlap").code == OverlapCode(4)
    assert [code.bits for code in OverlapCode.ladder(2.2, 3.5)] == [2.5, 3, 3.5]
    cases = [
        (lambda: PVQConfig(2.25, code="overlap"), r"bits=2\.25 is out of reach .* 3\.5 or 4"),
        (lambda: PVQConfig(5, code="overlap"), "bits=5 is out of reach with code='overlap'"),
        (lambda: PVQConfig(code="overlap"), "needs bits: choose 2, 2.5, 3, 3.5 or 4"),
        (lambda: PVQConfig(2, code="overlap", pulses=3), "unknown choice 'pulses'"),
        (lambda: config.for_cols(72), "72 columns are not a multiple of 16.*code='pyramid'"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="bits is 'two'"):
        PVQConfig("two", code="overlap")


@widths
def test_tensor_and_layer(bits):
    dense = torch.nn.Linear(96, 40)
    config = PVQConfig(bits, code="overlap")
    q = quantize_tensor(dense.weight, config)
    assert set(q.stored) == {"code", "row_scale"}
    assert q.bits_per_weight == bits + 16 / 96
    assert q.relative_error(dense.weight) < 1.5 * 4**-bits
    assert torch.equal(q.rows(torch.tensor([7, 7])).dequantize(), q.dequantize()[[7, 7]])
    layer = PVQLinear.from_linear(dense, config)
    assert torch.equal(layer.dequantize(), q.dequantize())
    x = gaussian(3, 96).requires_grad_()
    expected = x.double() @ q.dequantize(torch.float64).T + dense.bias.double()
    assert torch.allclose(layer(x).double(), expected, rtol=0, atol=1e-5)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, q.dequantize().sum(0).expand(3, 96), atol=1e-4)
    assert layer.prepare("auto").layout == "stored"
    assert f"code=overlap {bits:g} bits, layout=stored" in repr(layer)
    twin = PVQLinear(96, 40, True, config)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_one_graph_after_another_for_two_rates():
    x = gaussian(2, 64)
    for bits in (2, 3, 3.5):
        layer = PVQLinear.from_linear(torch.nn.Linear(64, 8), PVQConfig(bits, code="overlap"))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), layer(x))


def test_state_dicts_of_codes_that_have_changed_are_refused():
    for bits in (2, 3):
        layer = PVQLinear.from_linear(
            torch.nn.Linear(64, 8), PVQConfig(bits, code="overlap", rotation="none")
        )
        state = layer.state_dict()
        state._metadata[""]["version"] = 1
        if bits == 2:
            layer.load_state_dict(state)
        else:
            with pytest.raises(ValueError, match="format_version 1, and overlap 3 bits has other"):
                layer.load_state_dict(state)
            layer.load_state_dict(dict(state))  # of no module: nothing is known


@pytest.mark.parametrize("lag", [1, 2])
def test_further_bits_bring_weights_next_to_what_they_stand_for(lag):
    numbers = other_trellis(4, 8, 8, lag, 20)
    x = 40 * gaussian(6, 128)
    for settings in ({"ring": True}, {"start": torch.full((6,), 77, dtype=torch.int32)}):
        symbol = numbers.search(x, **settings)
        *_, cost = ops.overlap_search(
            x, numbers.points, 8, lag, None, settings.get("start"), None, "ring" in settings, 0, 20
        )
        y = numbers.integers(symbol)
        if "start" in settings:
            y, _ = numbers.walk(settings["start"], symbol)
        assert torch.allclose((x - y).square().sum(1), cost, rtol=1e-4)


def test_embedding_and_tied_head():
    config = PVQConfig(3, code="overlap")
    table = pvq.PVQEmbedding.from_embedding(torch.nn.Embedding(50, 64), config)
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.equal(table(ids), table.dequantize()[ids])
    head = pvq.embedding.PVQTiedHead(table)
    x = gaussian(4, 64)
    assert torch.allclose(head(x), x @ table.dequantize().T, atol=1e-4)


def test_the_metric_of_a_block_is_served():
    """Feedback inside a ring costs less, in the metric, than the nearest points do."""
    code, w = OverlapCode(2), gaussian(24, 128)
    mix = torch.linalg.qr(gaussian(128, 128, seed=2).double()).Q
    metric = ((mix * torch.logspace(0, -2, 128, dtype=torch.float64)) @ mix.T).float()
    costs = []
    for given in (None, metric):
        error = (w - code.rounder(w).round(w, 0, given)).double()
        costs.append(float(((error @ metric.double()) * error).sum()))
    assert costs[1] < 0.8 * costs[0]
    rounder = code.rounder(w)
    plain, seen_in_parts = (
        float((w - rounder.round(w, 0, given)).square().sum()) for given in (None, torch.eye(128))
    )
    assert seen_in_parts < 1.03 * plain, "looking no further ahead than a few columns costs little"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("cols", [16, 128, 304, 1024])
def test_the_gpu_decodes_the_same(bits, cols):
    code = OverlapCode(bits)
    w = torch.randn(37, cols, generator=torch.Generator().manual_seed(cols))
    stored = code.quantize(w)
    there = {name: tensor.cuda() for name, tensor in stored.items()}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        here = code.dequantize(stored, cols, dtype)
        assert torch.equal(code.dequantize(there, cols, dtype).cpu(), here)
    x = torch.randn(3, cols, generator=torch.Generator().manual_seed(1))
    y, expected = code.matmul(x.cuda(), there, 16, 5).cpu(), code.matmul(x, stored, 16, 5)
    assert (y - expected).norm() < 1e-3 * expected.norm()
    on_gpu = code.dequantize(code.quantize(w.cuda()), cols, torch.float32).cpu()
    found = (on_gpu - w).square().sum() / (code.dequantize(stored, cols) - w).square().sum()
    assert found == pytest.approx(1, rel=1e-2)


def test_a_trellis_is_copied_to_a_device_once():
    numbers, meta = trellis(2), torch.device("meta")
    assert numbers.to(numbers.table.device) is numbers
    assert numbers.to(meta) is numbers.to(meta)
    assert numbers.to(meta).table.device == numbers.to(meta).points.device == meta
    assert torch.equal(numbers.points, numbers.table.float())
    fresh = dataclasses.replace(numbers)
    size = len(pickle.dumps(fresh))
    fresh.to(meta)
    assert len(pickle.dumps(fresh)) == size, "copies are not saved"
