"""Products from the stored form, and what both layouts share: accuracy on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import products
import pytest
import reference
import torch
from products import CASES, OPS, Case

from pvq import build_info

CODE = Case(16, 27, 40, 12)


@pytest.fixture(scope="module")
def code() -> tuple:
    return CODE.code()


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    return products.dense(CODE)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=build_info()["cpu_instruction_sets"])
def every_product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("products") / f"{request.param}.pt"
    environment = os.environ | {"PVQ_CPU": request.param}
    program = Path(products.__file__)
    subprocess.run([sys.executable, program, file], env=environment, check=True)
    saved = torch.load(file, weights_only=False)
    assert saved["instruction_set"] == request.param
    return dict(zip(CASES, saved["results"], strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_are_as_accurate_as_torch(every_product, case: Case) -> None:
    w = products.dense(case)
    assert len(every_product[case]) == 4 * (2 * len(products.TOKENS) + 2)
    for (op, dtype, tokens), result in every_product[case]:
        transposed = op.endswith("transposed")
        x = products.activations(tokens, case.rows if transposed else case.cols, dtype)
        products.assert_as_good_as_torch(result, x, w.T if transposed else w)


def test_long_sums_are_as_accurate_as_torch() -> None:
    case = Case(16, 27, 24, 14336 // 16)
    code = case.code()
    w = products.dense(case)
    planes = OPS.to_planes(*code, case.cols)
    for tokens in (1, 16, 40):
        for dtype in products.DTYPES:
            x = products.activations(tokens, case.cols, dtype)
            products.assert_as_good_as_torch(OPS.matmul(x, *code), x, w)
            result = OPS.matmul_planes(x, *planes, case.rows, case.dim)
            products.assert_as_good_as_torch(result, x, w)


@pytest.mark.parametrize("tokens", [1, 4, 16, 40])
@pytest.mark.parametrize("dtype", products.DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(tokens: int, dtype: torch.dtype) -> None:
    case = Case(16, 27, 500, 60)
    code = case.code()
    planes = (*OPS.to_planes(*code, case.cols), case.rows, case.dim)
    x = products.activations(tokens, case.cols, dtype)
    g = products.activations(tokens, case.rows, dtype)

    def run() -> list[torch.Tensor]:
        return [
            OPS.matmul(x, *code, 64, 1),
            OPS.matmul_planes(x, *planes, 64, 1),
            OPS.matmul_transposed(g, *code, case.cols, 64, 1),
            OPS.matmul_planes_transposed(g, *planes, 64, 1),
        ]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        together = run()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_infinite_activations_give_what_float64_gives(code: tuple, w: np.ndarray) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (1, 16):
            x = products.activations(tokens, CODE.cols, dtype)
            x[-1, 3] = float("inf")
            result = OPS.matmul(x, *code).double().numpy()
            with np.errstate(invalid="ignore"):
                expected = np.where(w[:, 3] == 0, np.nan, np.sign(w[:, 3]) * np.inf)
            np.testing.assert_array_equal(result[-1], expected)
            assert np.isfinite(result[:-1]).all()


# --- rotation -------------------------------------------------------------------------------------


def _rotation(cols: int, block: int, seed: int) -> np.ndarray:
    """The matrix Q of rotate(v) = Q v, from the definition."""
    mask = (1 << 64) - 1

    def word(q: int) -> int:
        z = (seed + (q + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    signs = [1 - 2 * (word(c // 64) >> (c % 64) & 1) for c in range(cols)]
    hadamard = np.ones((1, 1))
    while len(hadamard) < block:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    return np.kron(np.eye(cols // block), hadamard / np.sqrt(block)) * np.array(signs)


@pytest.mark.parametrize("block", [1, 16, 64])
@pytest.mark.parametrize("tokens", [1, 20])
def test_activations_are_rotated(code: tuple, w: np.ndarray, block: int, tokens: int) -> None:
    seed = 0x123456789ABCDEF
    q = _rotation(CODE.cols, block, seed)
    planes = (*OPS.to_planes(*code, CODE.cols), CODE.rows, CODE.dim)
    x = products.activations(tokens, CODE.cols, torch.float32)
    before = x.clone()
    for result in (OPS.matmul(x, *code, block, seed), OPS.matmul_planes(x, *planes, block, seed)):
        products.assert_as_good_as_torch(result, x, w @ q)
    assert torch.equal(x, before)
    g = products.activations(tokens, CODE.rows, torch.float32)
    for result in (
        OPS.matmul_transposed(g, *code, CODE.cols, block, seed),
        OPS.matmul_planes_transposed(g, *planes, block, seed),
    ):
        products.assert_as_good_as_torch(result, g, (w @ q).T)


def test_rotation_in_bfloat16_and_by_an_odd_factor() -> None:
    case = Case(16, 27, 40, 15)
    code = case.code()
    w = products.dense(case)
    q = OPS.hadamard(torch.eye(case.cols, dtype=torch.float64), 48, 7).numpy().T
    for tokens in (1, 20):
        x = products.activations(tokens, case.cols, torch.bfloat16)
        products.assert_as_good_as_torch(OPS.matmul(x, *code, 48, 7), x, w @ q)


# --- shapes ---------------------------------------------------------------------------------------


def test_any_leading_dimensions(code: tuple) -> None:
    x = products.activations(24, CODE.cols, torch.float32)
    flat = OPS.matmul(x, *code)
    assert torch.equal(OPS.matmul(x.view(2, 3, 4, -1), *code), flat.view(2, 3, 4, -1))
    one = OPS.matmul(x[0], *code)
    assert one.shape == (CODE.rows,)
    assert torch.equal(one, OPS.matmul(x[:1], *code)[0])


def test_no_tokens_no_rows_no_columns(code: tuple) -> None:
    for dtype in products.DTYPES:
        x = torch.zeros(3, 0, CODE.cols, dtype=dtype)
        assert OPS.matmul(x, *code).shape == (3, 0, CODE.rows)
        assert OPS.matmul(x, *code).dtype == dtype
    index, gain, row_scale, *numbers = code
    empty = (index[:0], gain[:0], row_scale[:0], *numbers)
    assert OPS.matmul(torch.ones(4, CODE.cols), *empty).shape == (4, 0)
    zero = OPS.matmul_transposed(torch.ones(4, 0), *empty, CODE.cols)
    assert torch.equal(zero, torch.zeros(4, CODE.cols))
    narrow = (index[:, :0], gain[:, :0], row_scale, *numbers)
    assert torch.equal(OPS.matmul(torch.ones(20, 0), *narrow), torch.zeros(20, CODE.rows))
    assert OPS.matmul_transposed(torch.ones(4, CODE.rows), *narrow, 0).shape == (4, 0)


def test_inputs_need_not_be_contiguous(code: tuple) -> None:
    x = products.activations(9, CODE.cols, torch.float32)
    expected = OPS.matmul(x, *code, 64, 1)
    index, gain, row_scale, *numbers = code
    strided = (
        index.T.contiguous().T,
        gain.T.contiguous().T,
        row_scale.repeat_interleave(2)[::2],
        *numbers,
    )
    assert not any(t.is_contiguous() for t in strided[:3])
    assert torch.equal(OPS.matmul(x.T.contiguous().T, *strided, 64, 1), expected)
    every_other = torch.zeros(9, 2 * CODE.cols)
    every_other[:, ::2] = x
    assert torch.equal(OPS.matmul(every_other[:, ::2], *code, 64, 1), expected)
    g = products.activations(9, CODE.rows, torch.float32)
    assert torch.equal(
        OPS.matmul_transposed(g.T.contiguous().T, *strided, CODE.cols),
        OPS.matmul_transposed(g, *code, CODE.cols),
    )


# --- refusals -------------------------------------------------------------------------------------


def test_matmul_names_the_argument_at_fault(code: tuple) -> None:
    x = torch.zeros(2, CODE.cols)
    index, gain, row_scale, *numbers = code

    def refused(message: str, op, *arguments) -> None:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)

    refused(r"matmul: x has dtype float64, expected float32 or bfloat16", OPS.matmul,
            x.double(), *code)  # fmt: skip
    refused(r"matmul: x has no dimensions", OPS.matmul, torch.tensor(1.0), *code)
    refused(r"index has shape \[40, 72\], expected \[40, 78\]", OPS.matmul,
            torch.zeros(2, CODE.cols + 16), *code)  # fmt: skip
    refused(r"not a multiple|expected a multiple of dim", OPS.matmul, torch.zeros(2, 15), *code)
    refused(r"index has dtype int64, expected uint8", OPS.matmul, x, index.long(), gain, row_scale,
            *numbers)  # fmt: skip
    refused(r"row_scale has dtype float32, expected bfloat16", OPS.matmul, x, index, gain,
            row_scale.float(), *numbers)  # fmt: skip
    refused(r"block is 128, which does not divide the 192 columns", OPS.matmul, x, *code, 128, 0)
    refused(r"block is 7, for which there is no Hadamard matrix", OPS.matmul, x, *code, 7, 0)
    refused(r"block is -16, for which there is no", OPS.matmul, x, *code, -16, 0)
    refused(r"g has shape \[2, 192\], expected \[..., 40\]", OPS.matmul_transposed, x, *code,
            CODE.cols)  # fmt: skip
    refused(r"g has dtype int32", OPS.matmul_transposed, torch.zeros(2, 40).int(), *code, CODE.cols)


@pytest.mark.parametrize("tokens", [1, 20])
def test_an_index_that_names_no_point_is_refused(code: tuple, tokens: int) -> None:
    index = code[0].clone()
    index[23, 6 * 5 : 6 * 6] = 0xFF
    damaged = (index, *code[1:])
    for dtype in (torch.float32, torch.bfloat16):
        x = products.activations(tokens, CODE.cols, dtype)
        with pytest.raises(RuntimeError, match="matmul: index of row 23 names no point"):
            OPS.matmul(x, *damaged)
        g = products.activations(tokens, CODE.rows, dtype)
        with pytest.raises(RuntimeError, match="matmul_transposed: index of row 23 names no"):
            OPS.matmul_transposed(g, *damaged, CODE.cols)
    with pytest.raises(RuntimeError, match="to_planes: index of row 23 names no point"):
        OPS.to_planes(*damaged, CODE.cols)


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 5), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(code: tuple, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(*shape, CODE.cols).to(dtype).requires_grad_()
    torch.library.opcheck(OPS.matmul.default, (x, *code, 64, 3))
    g = torch.randn(*shape, CODE.rows).to(dtype).requires_grad_()
    torch.library.opcheck(OPS.matmul_transposed.default, (g, *code, CODE.cols, 64, 3))


@pytest.mark.parametrize("block", [0, 64])
def test_gradient_is_that_of_the_dense_product(code: tuple, w: np.ndarray, block: int) -> None:
    q = _rotation(CODE.cols, block, 5) if block else np.eye(CODE.cols)
    x = products.activations(6, CODE.cols, torch.float32).requires_grad_()
    y = OPS.matmul(x.view(2, 3, -1), *code, block, 5)
    upstream = products.activations(6, CODE.rows, torch.float32)
    (gradient,) = torch.autograd.grad(y, x, upstream.view(2, 3, -1), create_graph=True)
    products.assert_as_good_as_torch(gradient.detach(), upstream, (w @ q).T)


def test_gradient_of_the_gradient(code: tuple, w: np.ndarray) -> None:
    g = products.activations(6, CODE.rows, torch.float32).requires_grad_()
    y = OPS.matmul_transposed(g, *code, CODE.cols)
    upstream = products.activations(6, CODE.cols, torch.float32)
    (gradient,) = torch.autograd.grad(y, g, upstream)
    products.assert_as_good_as_torch(gradient, upstream, w)


def test_compiles_as_one_graph(code: tuple) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return OPS.matmul(x * 2, *code, 64, 1).sin().sum()

    x = products.activations(7, CODE.cols, torch.float32).requires_grad_()
    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


def test_reference_decodes_as_the_operator_does(code: tuple, w: np.ndarray) -> None:
    """Guards the tests' own reference: its integers are those of the index, point by point."""
    index, _, _, dim, pulses, _, _ = code
    y = OPS.decode(index, dim, pulses, CODE.groups).numpy()
    width = 8 * index.shape[1] // CODE.groups
    for row in (0, 7):
        names = reference.unpack(index[row].numpy(), width, CODE.groups)
        for group in range(CODE.groups):
            if y[row, group].any():
                assert reference.rank(y[row, group]) == names[group]
            else:
                assert names[group] == reference.count(dim, pulses)
                assert not w[row, group * dim : (group + 1) * dim].any()
