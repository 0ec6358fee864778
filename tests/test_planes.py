"""Planes, the CPU's run-time layout: what they hold, and products from them."""

from __future__ import annotations

import numpy as np
import products
import pytest
import torch
from products import CASES, OPS, Case

from pvq import _core

CODE = Case(16, 27, 40, 12, power=5)


@pytest.fixture(scope="module")
def planes() -> tuple:
    return *OPS.to_planes(*CODE.code(), CODE.cols), CODE.rows, CODE.dim


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    return products.dense(CODE)


# --- layout ---------------------------------------------------------------------------------------


def _integers(planes: torch.Tensor, cols: int) -> np.ndarray:
    """int [panels, cols, 16], read nibble by nibble."""
    if planes.dtype == torch.int8:
        return planes.numpy().astype(np.int64)
    words = planes.numpy().view(np.uint32).astype(np.int64)
    out = np.empty((words.shape[0], cols, 16), dtype=np.int64)
    for column in range(cols):
        nibble = words[:, column // 8] >> (4 * (column % 8)) & 15
        out[:, column] = np.where(nibble > 7, nibble - 16, nibble)
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planes_hold_the_matrix_as_documented(case: Case) -> None:
    code = case.code()
    planes, scale, start, place, value = OPS.to_planes(*code, case.cols)
    panels = -(-case.rows // 16)
    bits = 4 if planes.dtype == torch.int32 else 8
    assert bits == _core.plane_bits(case.dim, case.pulses)
    assert planes.shape == (panels, -(-case.cols // 8) if bits == 4 else case.cols, 16)
    assert scale.shape == (panels, case.groups, 16)
    assert scale.dtype == value.dtype == torch.float32
    assert start.dtype == place.dtype == torch.int32
    assert start.shape == (panels + 1,)
    assert start[0] == 0
    assert start[-1] == len(place) == len(value)

    y = np.zeros((panels * 16, case.cols), dtype=np.int64)
    y[: case.rows] = OPS.decode(code[0], case.dim, case.pulses, case.groups).reshape(
        case.rows, case.cols
    )
    y = y.reshape(panels, 16, case.cols).transpose(0, 2, 1)
    low, high = (-8, 7) if bits == 4 else (-128, 127)
    np.testing.assert_array_equal(_integers(planes, case.cols), y.clip(low, high))

    wide_scale = scale.numpy().repeat(case.dim, axis=1)
    excess = y - y.clip(low, high)
    for panel in range(panels):
        entries = slice(int(start[panel]), int(start[panel + 1]))
        expected = np.flatnonzero(excess[panel])
        np.testing.assert_array_equal(place[entries].numpy(), expected)
        expected_value = (wide_scale * excess)[panel].reshape(-1)[expected]
        np.testing.assert_allclose(value[entries].numpy(), expected_value, rtol=1e-6)

    w = np.zeros((panels * 16, case.cols))
    w[: case.rows] = products.dense(case)
    w = w.reshape(panels, 16, case.cols).transpose(0, 2, 1)
    np.testing.assert_allclose(wide_scale * y, w, rtol=1e-6)


def test_padding_beyond_the_matrix_is_zero() -> None:
    case = Case(3, 5, 17, 3)  # 9 columns, 17 rows
    planes, scale, *_ = OPS.to_planes(*case.code(), case.cols)
    assert not planes[1, :, 1:].any()
    assert not scale[1, :, 1:].any()
    assert not (planes[:, 1] & ~15).any()


def test_cases_have_outliers_in_both_widths() -> None:
    seen = {}
    for case in CASES:
        planes, *_, place, _ = OPS.to_planes(*case.code(), case.cols)
        seen[planes.dtype] = max(seen.get(planes.dtype, 0), len(place) / (case.rows * case.cols))
    assert seen[torch.int32] > 0.02
    assert seen[torch.int8] > 0.02


@pytest.mark.parametrize(
    ("dim", "pulses", "bits"), [(16, 27, 4), (16, 37, 4), (16, 38, 8), (2, 7, 4), (2, 8, 8)]
)
def test_width_follows_from_dim_and_pulses(dim: int, pulses: int, bits: int) -> None:
    assert _core.plane_bits(dim, pulses) == bits


def test_planes_of_an_empty_matrix() -> None:
    index, gain, row_scale, *numbers = CODE.code()
    planes = OPS.to_planes(index[:0], gain[:0], row_scale[:0], *numbers, CODE.cols)
    assert OPS.matmul_planes(torch.ones(3, CODE.cols), *planes, 0, 16).shape == (3, 0)
    out = OPS.matmul_planes_transposed(torch.ones(3, 0), *planes, 0, 16)
    assert torch.equal(out, torch.zeros(3, CODE.cols))
    planes = OPS.to_planes(index[:, :0], gain[:, :0], row_scale, *numbers, 0)
    for tokens in (1, 20):
        out = OPS.matmul_planes(torch.ones(tokens, 0), *planes, CODE.rows, 16)
        assert torch.equal(out, torch.zeros(tokens, CODE.rows))


# --- products (accuracy is tested in test_matmul.py, on every instruction set) --------------------


def test_any_shape_of_activations(planes: tuple) -> None:
    x = products.activations(24, CODE.cols, torch.float32)
    flat = OPS.matmul_planes(x, *planes)
    assert torch.equal(OPS.matmul_planes(x.view(2, 3, 4, -1), *planes), flat.view(2, 3, 4, -1))
    assert torch.equal(OPS.matmul_planes(x.T.contiguous().T, *planes), flat)
    assert OPS.matmul_planes(x[0], *planes).shape == (CODE.rows,)
    assert OPS.matmul_planes(x[:0], *planes).shape == (0, CODE.rows)


def test_planes_need_not_be_contiguous(planes: tuple) -> None:
    x = products.activations(3, CODE.cols, torch.float32)
    strided = [t.repeat_interleave(2, dim=-1)[..., ::2] for t in planes[:5]]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(OPS.matmul_planes(x, *strided, *planes[5:]), OPS.matmul_planes(x, *planes))


def test_matmul_planes_names_the_argument_at_fault(planes: tuple) -> None:
    x = torch.zeros(2, CODE.cols)
    small, scale, start, place, value, rows, dim = planes

    def refused(message: str, *arguments) -> None:
        with pytest.raises(RuntimeError, match=f"matmul_planes: {message}"):
            OPS.matmul_planes(*arguments)

    refused(r"x has dtype float64", x.double(), *planes)
    refused(r"x has shape \[2, 191\], expected \[..., 192\]", x[:, 1:], *planes)
    refused(r"x has shape \[\], expected", torch.tensor(1.0), *planes)
    refused(r"planes has dtype int16, expected int32 or int8", x, small.short(), *planes[1:])
    refused(r"planes has shape \[3, 24, 16\], expected \[3, 192, 16\]", x, small.to(torch.int8),
            *planes[1:])  # fmt: skip
    refused(r"scale has shape \[3, 12\], expected 3 dimensions", x, small, scale[..., 0],
            *planes[2:])  # fmt: skip
    refused(r"scale has shape \[3, 12, 16\], expected \[4, 12, 16\]", x, *planes[:5], 50, dim)
    refused(r"outlier_start has shape \[3\], expected \[4\]", x, small, scale, start[1:],
            *planes[3:])  # fmt: skip
    refused(r"outlier_value has shape", x, small, scale, start, place, value[1:], rows, dim)
    refused(r"dim is 0, expected 1 to 256", x, *planes[:6], 0)
    refused(r"rows is -1, expected 0 or more", x, *planes[:5], -1, dim)
    refused(r"block is 5", x, *planes, 5, 0)


@pytest.mark.parametrize("tokens", [1, 20])
def test_damaged_outliers_are_refused_not_followed(planes: tuple, tokens: int) -> None:
    small, scale, start, place, value, *size = planes
    assert start[2] > start[1] + 2
    x = products.activations(tokens, CODE.cols, torch.bfloat16)
    g = products.activations(tokens, CODE.rows, torch.bfloat16)

    def refused(bad_start: torch.Tensor, bad_place: torch.Tensor) -> None:
        arguments = (small, scale, bad_start, bad_place, value, *size)
        for op, a in ((OPS.matmul_planes, x), (OPS.matmul_planes_transposed, g)):
            with pytest.raises(RuntimeError, match="outliers of row 16 or the 15 after it"):
                op(a, *arguments)

    beyond = start.clone()
    beyond[2:] = len(place) + 1
    refused(beyond, place)
    backwards = start.clone()
    backwards[2] = start[1] - 1
    refused(backwards, place)


@pytest.mark.parametrize("bad", [-1, -(2**31), 16 * CODE.cols, 2**31 - 1])
def test_an_outlier_outside_the_matrix_is_never_read(planes: tuple, bad: int) -> None:
    small, scale, start, place, value, *size = planes
    ends = start[1:] - 1 if bad > 0 else start[:-1]
    outside = place.clone()
    outside[ends.long()] = bad
    without = value.clone()
    without[ends.long()] = 0
    for tokens in (1, 20):
        x = products.activations(tokens, CODE.cols, torch.float32)
        assert torch.equal(
            OPS.matmul_planes(x, small, scale, start, outside, value, *size),
            OPS.matmul_planes(x, small, scale, start, place, without, *size),
        )


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (0,), (2, 5), ()])
def test_opcheck(planes: tuple, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(*shape, CODE.cols).to(dtype).requires_grad_()
    torch.library.opcheck(OPS.matmul_planes.default, (x, *planes, 64, 3))
    g = torch.randn(*shape, CODE.rows).to(dtype).requires_grad_()
    torch.library.opcheck(OPS.matmul_planes_transposed.default, (g, *planes, 64, 3))


@pytest.mark.parametrize("case", [CODE, Case(16, 58, 50, 13), Case(16, 27, 1, 1)], ids=str)
def test_opcheck_of_to_planes(case: Case) -> None:
    torch.library.opcheck(OPS.to_planes.default, (*case.code(), case.cols))


@pytest.mark.parametrize("block", [0, 64])
def test_gradient_is_that_of_the_dense_product(planes: tuple, w: np.ndarray, block: int) -> None:
    x = products.activations(6, CODE.cols, torch.float32).requires_grad_()
    y = OPS.matmul_planes(x, *planes, block, 5)
    upstream = products.activations(6, CODE.rows, torch.float32)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    if block:  # the same gradient in rotated coordinates
        gradient = OPS.hadamard(gradient, block, 5)
    products.assert_as_good_as_torch(gradient, upstream, w.T)


def test_gradient_of_the_gradient(planes: tuple, w: np.ndarray) -> None:
    g = products.activations(6, CODE.rows, torch.float32).requires_grad_()
    y = OPS.matmul_planes_transposed(g, *planes)
    upstream = products.activations(6, CODE.cols, torch.float32)
    (gradient,) = torch.autograd.grad(y, g, upstream)
    products.assert_as_good_as_torch(gradient, upstream, w)


def test_compiles_as_one_graph(planes: tuple) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return OPS.matmul_planes(x * 2, *planes, 64, 1).sin().sum()

    x = products.activations(7, CODE.cols, torch.float32).requires_grad_()
    expected = torch.autograd.grad(loss(x), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)
