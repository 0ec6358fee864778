"""quantize and dequantize as operators: stored form, error, special values, compiler rules."""

import numpy as np
import pytest
import reference
import torch

from pvq import _core
from pvq.rotation import hadamard_matrix

ops = torch.ops.pvq

CODES = [(16, 27, 4), (16, 28, 3), (8, 6, 2), (3, 5, 1), (32, 56, 3), (64, 96, 0), (2, 9, 8)]


def gaussian(rows, cols, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def decoded(index, gain, row_scale, dim, pulses, gain_bits, law, cols):
    """Weights in float64 from the bytes, with the reference's packing and arithmetic."""
    groups, bits = cols // dim, _core.index_bits(dim, pulses)
    y = np.zeros((len(row_scale), groups, dim), np.int64)
    ranks = [reference.unpack(row, bits, groups) for row in index.numpy()]
    points = ops.decode(index, dim, pulses, groups).numpy()
    for r, row in enumerate(ranks):
        for g, value in enumerate(row):
            if value != reference.count(dim, pulses):
                assert reference.rank(points[r, g]) == value
                y[r, g] = points[r, g]
    codes = [
        reference.unpack(row, gain_bits, groups) if gain_bits else [0] * groups for row in gain
    ]
    levels = _core.gain_levels(dim, cols, gain_bits, law)
    scale = row_scale.double().numpy()
    return reference.dequantize(y, np.array(codes, dtype=np.int64), scale, levels)


@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), CODES)
@pytest.mark.parametrize("law", ["lloyd", "beta"])
def test_dequantize_reads_the_stored_form(dim, pulses, gain_bits, law):
    cols = 12 * dim
    code = ops.quantize(gaussian(5, cols), dim, pulses, gain_bits, law)
    w = ops.dequantize(*code, dim, pulses, gain_bits, law, cols, torch.float64)
    expected = decoded(*code, dim, pulses, gain_bits, law, cols)
    # float32 arithmetic of three factors and a root
    assert np.allclose(w.numpy(), expected, rtol=4 * np.finfo(np.float32).eps, atol=0)


@pytest.mark.parametrize("block", [16, 64, 48, 192])
def test_dequantize_undoes_the_rotation(block):
    cols, seed = 192, 7
    w = gaussian(6, cols)
    code = ops.quantize(ops.hadamard(w, block, seed), 16, 27, 4, "lloyd")
    flat = ops.dequantize(*code, 16, 27, 4, "lloyd", cols, torch.float64)
    plain = ops.dequantize(*code, 16, 27, 4, "lloyd", cols, torch.float32, block, seed)
    signs = ops.hadamard(torch.ones(cols, dtype=torch.float64), 1, seed).numpy()
    h = hadamard_matrix(block).astype(np.float64) / np.sqrt(block)
    expected = (flat.numpy().reshape(6, -1, block) @ h).reshape(6, cols) * signs
    assert np.allclose(plain.numpy(), expected, rtol=0, atol=1e-5)
    assert np.linalg.norm(plain.numpy() - w.numpy()) < 0.16 * np.linalg.norm(w.numpy())


@pytest.mark.parametrize(
    ("dim", "pulses", "gain_bits", "bound"),
    [(16, 27, 4, 0.0195), (16, 14, 1, 0.082), (16, 58, 4, 0.0047), (64, 111, 3, 0.0176)],
)
def test_error_on_a_gaussian_source(dim, pulses, gain_bits, bound):
    w = gaussian(64, 4096)
    code = ops.quantize(w, dim, pulses, gain_bits, "lloyd")
    back = ops.dequantize(*code, dim, pulses, gain_bits, "lloyd", 4096, torch.float32)
    assert float(((back - w) ** 2).sum() / (w**2).sum()) < bound


def test_amplitudes_are_the_nearest_levels_and_the_scale_is_fitted():
    dim, pulses, cols = 16, 27, 1024
    w = gaussian(8, cols).double()
    index, gain, row_scale = ops.quantize(w.float(), dim, pulses, 4, "lloyd")
    y = ops.decode(index, dim, pulses, cols // dim).double()
    amplitude = (w.view(8, -1, dim) * y).sum(-1) / y.norm(dim=-1)
    levels = torch.from_numpy(_core.gain_levels(dim, cols, 4, "lloyd")).double()
    chosen = torch.tensor([reference.unpack(row.numpy(), 4, cols // dim) for row in gain])
    target = amplitude / row_scale.double()[:, None]
    assert torch.equal(chosen, (target[..., None] - levels).abs().argmin(-1))
    fitted = (amplitude * levels[chosen]).sum(1) / (levels[chosen] ** 2).sum(1)
    assert torch.allclose(fitted, row_scale.double(), rtol=2**-8)  # bfloat16


@pytest.mark.parametrize("gain_bits", [0, 1, 4])
def test_zero_rows_and_groups_decode_to_zero(gain_bits):
    w = gaussian(4, 64)
    w[1] = 0
    w[2, 16:48] = 0
    code = ops.quantize(w, 16, 27, gain_bits, "lloyd")
    back = ops.dequantize(*code, 16, 27, gain_bits, "lloyd", 64, torch.float32)
    assert (back[1] == 0).all()
    assert (back[2, 16:48] == 0).all()
    assert (back[0].view(4, 16).norm(dim=1) > 0).all()
    assert back[2, :16].norm() > 0
    assert back[2, 48:].norm() > 0


def test_a_group_too_weak_for_the_lowest_level_becomes_zero():
    w = gaussian(2, 256)
    w[0, :16] *= 1e-3
    code = ops.quantize(w, 16, 27, 3, "lloyd")
    back = ops.dequantize(*code, 16, 27, 3, "lloyd", 256, torch.float32)
    assert (back[0, :16] == 0).all()
    assert ((back - w)[0, :16] ** 2).sum() <= (w[0, :16] ** 2).sum()


@pytest.mark.parametrize("factor", [1e-36, 1e-30, 65504.0, 1e34])
def test_extreme_magnitudes(factor):
    w = gaussian(3, 128)
    w = (w / w.abs().max()).double()
    scaled = (w * factor).float()
    code = ops.quantize(scaled, 16, 27, 4, "lloyd")
    back = ops.dequantize(*code, 16, 27, 4, "lloyd", 128, torch.float32).double() / factor
    assert torch.isfinite(back).all()
    assert float(((back - w) ** 2).sum() / (w**2).sum()) < 0.03


def test_rows_below_the_smallest_scale_decode_to_zero():
    w = gaussian(2, 64)
    w[1] *= 1e-42  # bfloat16 ends at 9.2e-41
    code = ops.quantize(w, 16, 27, 4, "lloyd")
    back = ops.dequantize(*code, 16, 27, 4, "lloyd", 64, torch.float32)
    assert (back[1] == 0).all()
    assert back[0].norm() > 0


def test_threads_do_not_change_the_codes():
    w = gaussian(64, 512)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(ops.quantize(w, 16, 27, 4, "lloyd"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("rows", "cols"), [(0, 64), (3, 0), (0, 0)])
def test_empty_matrices(rows, cols):
    code = ops.quantize(torch.zeros(rows, cols), 16, 27, 4, "lloyd")
    assert ops.dequantize(*code, 16, 27, 4, "lloyd", cols, torch.float32).shape == (rows, cols)


def test_bad_arguments_are_named():
    w = gaussian(3, 64)
    cases = [
        ((w.double(), 16, 27, 4, "lloyd"), "w has dtype float64, expected float32"),
        ((w[0], 16, 27, 4, "lloyd"), "w has shape .*, expected 2 dimensions"),
        ((w[:, :60], 16, 27, 4, "lloyd"), "60 columns, expected a multiple of dim = 16"),
        ((w, 0, 27, 4, "lloyd"), "dim is 0"),
        ((w, 16, 0, 4, "lloyd"), "pulses is 0"),
        ((w, 16, 27, 9, "lloyd"), "gain_bits is 9"),
        ((w, 16, 27, 4, "gauss"), "gain_law is 'gauss'"),
        ((w, 16, 27, 4, "lloyd", 7), "quality is 7"),
    ]
    for arguments, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.quantize(*arguments)
    for value in (float("nan"), float("inf")):
        bad = w.clone()
        bad[2, 5] = value
        with pytest.raises(RuntimeError, match="row 2 of w holds NaN or infinity"):
            ops.quantize(bad, 16, 27, 4, "lloyd")

    index, gain, scale = ops.quantize(w, 16, 27, 4, "lloyd")
    tail = (16, 27, 4, "lloyd", 64, torch.float32)
    cases = [
        ((index.short(), gain, scale, *tail), "index has dtype int16"),
        ((index[:2], gain, scale, *tail), r"index has shape \[2, 24\], expected \[3, 24\]"),
        ((index, gain[:, :1], scale, *tail), r"gain has shape \[3, 1\], expected \[3, 2\]"),
        ((index, gain, scale.float(), *tail), "row_scale has dtype float32, expected bfloat16"),
        ((index, gain, scale, 16, 27, 4, "lloyd", 60, torch.float32), "cols is 60"),
        ((index, gain, scale, 16, 27, 4, "lloyd", 64, torch.int32), "dtype is int32"),
        ((index, gain, scale, *tail, 11), "block is 11"),
        ((index, gain, scale, *tail, 128), "block is 128, which does not divide the 64 columns"),
    ]
    for arguments, message in cases:
        with pytest.raises(RuntimeError, match=message):
            ops.dequantize(*arguments)


def test_damaged_codes_are_refused():
    index, gain, scale = ops.quantize(gaussian(3, 64), 16, 27, 4, "lloyd")
    index[1, :6] = 255
    with pytest.raises(RuntimeError, match="index of row 1 names no point"):
        ops.dequantize(index, gain, scale, 16, 27, 4, "lloyd", 64, torch.float32)


@pytest.mark.parametrize("rows", [0, 5])
def test_operators_pass_opcheck(rows):
    w = gaussian(rows, 64)
    code = ops.quantize(w, 16, 27, 4, "lloyd")
    y = ops.decode(code[0], 16, 27, 4)
    torch.library.opcheck(ops.nearest.default, (w.view(rows, 4, 16), 27))
    torch.library.opcheck(ops.encode.default, (y, 27))
    torch.library.opcheck(ops.decode.default, (code[0], 16, 27, 4))
    torch.library.opcheck(ops.check_codes.default, (code[0], 16, 27, 4))
    torch.library.opcheck(ops.quantize.default, (w, 16, 27, 4, "lloyd"))
    tail = (16, 27, 4, "lloyd", 64, torch.bfloat16, 32, 3)
    torch.library.opcheck(ops.dequantize.default, (*code, *tail))


def test_operators_compile_in_one_graph():
    def around(w):
        code = ops.quantize(ops.hadamard(w, 32, 3), 16, 27, 4, "lloyd")
        return ops.dequantize(*code, 16, 27, 4, "lloyd", 64, torch.float32, 32, 3) + 1

    w = gaussian(4, 64)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w), around(w))
