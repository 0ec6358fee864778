"""The GPU's codes are the CPU's, bit for bit; and what only a GPU has: streams, graphs, devices.

The CPU's operators, which other tests hold against the slow reference, are the reference here.
"""

import itertools

import numpy as np
import pytest
import reference
import torch

from pvq import _core

ops = torch.ops.pvq
GPU = torch.device("cuda")

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)

# Every kernel: one thread a vector (8, 16, 32), half a warp with 1 to 16 slots; indices of one word
# in fixed and free sizes, of up to 4, 16 and 52 limbs; leaves beyond the table (over 32 pulses).
PYRAMIDS = [
    (1, 5), (2, 9), (2, 4096), (3, 5), (4, 30), (4, 4096), (5, 7), (6, 700), (8, 6), (8, 36),
    (8, 300), (8, 865), (8, 866), (12, 20), (16, 12), (16, 27), (16, 28), (16, 58), (16, 59),
    (16, 1136), (17, 40), (24, 30), (31, 300), (32, 22), (32, 23), (32, 56), (48, 70), (64, 14),
    (64, 96), (100, 80), (127, 11), (128, 187), (255, 40), (256, 8), (256, 369), (256, 4096),
]  # fmt: skip
# dim, pulses, gain_bits
CODES = [
    (1, 5, 1), (2, 9, 8), (3, 5, 1), (5, 7, 4), (8, 6, 2), (8, 16, 3), (12, 20, 5), (16, 27, 4),
    (16, 28, 3), (16, 58, 0), (24, 30, 7), (32, 22, 6), (32, 56, 3), (64, 96, 0), (128, 187, 4),
    (256, 369, 2),
]  # fmt: skip


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(count, dim, seed=0):
    """Gaussian, heavy-tailed, with ties, and of all magnitudes that float32 has."""
    x = gaussian(count, dim, seed=seed)
    rng = np.random.default_rng(seed)
    kind = torch.from_numpy(rng.integers(0, 10, size=count))
    x[kind == 0] = 0
    x[kind == 1] = -0.0
    x[kind == 2] *= 1e-40  # denormal
    x[kind == 3] *= 1e36
    x[kind == 4] = x[kind == 4].sign()
    x[kind == 5] = x[kind == 5] ** 9
    x[kind == 6] = (2 * x[kind == 6]).round()
    single = torch.nonzero(kind == 1).flatten()
    x[single, torch.from_numpy(rng.integers(0, dim, size=len(single)))] = -1.0
    return x


def bits(t):
    """The bytes of a tensor on the CPU, so that NaN equals NaN and -0 differs from 0."""
    return t.cpu().contiguous().flatten().view(torch.uint8)


def assert_same(gpu, cpu):
    gpu, cpu = (t if isinstance(t, tuple) else (t,) for t in (gpu, cpu))
    for got, expected in zip(gpu, cpu, strict=True):
        assert got.device.type == GPU.type
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(bits(got), bits(expected))


def stored(dim, pulses, gain_bits, rows=3, groups=7, law="lloyd"):
    return ops.quantize(vectors(rows * groups, dim).view(rows, -1), dim, pulses, gain_bits, law)


def to_gpu(code):
    return tuple(t.to(GPU) for t in code)


@pytest.mark.parametrize("quality", [0, 1, 2])
@pytest.mark.parametrize(("dim", "pulses"), PYRAMIDS)
def test_nearest(dim, pulses, quality):
    x = vectors(333, dim, seed=dim + pulses)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        if dtype == torch.float16:
            x = x.clamp(-6e4, 6e4)
        converted = x.to(dtype)
        assert_same(
            ops.nearest(converted.to(GPU), pulses, quality), ops.nearest(converted, pulses, quality)
        )


@pytest.mark.parametrize("groups", [1, 5, 8, 64, 65, 300])
@pytest.mark.parametrize(("dim", "pulses"), PYRAMIDS)
def test_encode_and_decode(dim, pulses, groups):
    rows = 3 if groups > 8 else 90
    y = ops.nearest(vectors(rows * groups, dim, seed=groups), pulses, 0).view(rows, groups, dim)
    y[0, 0] = 0
    y[0, 0, 0] = pulses  # the ends of the order
    y[-1, -1] = 0
    y[-1, -1, -1] = -pulses
    index = ops.encode(y, pulses)
    assert_same(ops.encode(y.to(GPU), pulses), index)
    assert_same(ops.decode(index.to(GPU), dim, pulses, groups), y)
    ops.check_codes(index.to(GPU), dim, pulses, groups)


@pytest.mark.parametrize("quality", [0, 1, 2])
@pytest.mark.parametrize("law", ["lloyd", "beta"])
@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), CODES)
def test_quantize_and_dequantize(dim, pulses, gain_bits, law, quality):
    for rows, groups in [(1, 1), (70, 3), (5, 33), (2, 300)]:
        cols = groups * dim
        for w in (gaussian(rows, cols), vectors(rows * groups, dim, seed=groups).view(rows, cols)):
            code = ops.quantize(w, dim, pulses, gain_bits, law, quality)
            assert_same(ops.quantize(w.to(GPU), dim, pulses, gain_bits, law, quality), code)
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
                options = (dim, pulses, gain_bits, law, cols, dtype)
                got = ops.dequantize(*to_gpu(code), *options)
                assert_same(got, ops.dequantize(*code, *options))


@pytest.mark.parametrize(("dim", "pulses", "gain_bits"), [(8, 16, 3), (16, 28, 3), (32, 56, 3)])
def test_real_layer(dim, pulses, gain_bits):
    w = gaussian(512, 4096)
    code = ops.quantize(w, dim, pulses, gain_bits, "lloyd")
    assert_same(ops.quantize(w.to(GPU), dim, pulses, gain_bits, "lloyd"), code)
    options = (dim, pulses, gain_bits, "lloyd", 4096, torch.bfloat16)
    assert_same(ops.dequantize(*to_gpu(code), *options), ops.dequantize(*code, *options))


def test_matrix_larger_than_one_batch():
    """Quantized in batches of 2^26 weights; rows do not depend on each other."""
    rows, cols = 8202, 8192
    w = torch.randn(rows, cols, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    code = ops.quantize(w, 16, 28, 3, "lloyd")
    for part in (slice(0, 4), slice(8186, rows)):
        expected = ops.quantize(w[part].cpu(), 16, 28, 3, "lloyd")
        assert_same(tuple(t[part] for t in code), expected)


@pytest.mark.parametrize("block", [16, 64, 48, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dequantize_undoes_the_rotation(block, dtype):
    code = stored(16, 27, 4, groups=12)
    options = (16, 27, 4, "lloyd", 192, dtype, block, 7)
    got = ops.dequantize(*to_gpu(code), *options).cpu().double()
    expected = ops.dequantize(*code, *options[:5], torch.float64, block, 7)
    scale = expected.abs().amax(1, keepdim=True)  # sums of up to 192 terms, in another order
    tolerance = 4e-6 if dtype == torch.float32 else 1e-3
    finite = torch.isfinite(expected.to(dtype)).all(1)
    assert finite.any()
    assert ((got - expected).abs() <= tolerance * scale)[finite].all()


@pytest.mark.parametrize(("rows", "groups"), [(0, 4), (3, 0), (0, 0)])
def test_empty(rows, groups):
    for dim, pulses in [(16, 27), (12, 20), (64, 96)]:
        w = torch.zeros(rows, groups * dim)
        code = ops.quantize(w, dim, pulses, 4, "lloyd")
        assert_same(ops.quantize(w.to(GPU), dim, pulses, 4, "lloyd"), code)
        options = (dim, pulses, 4, "lloyd", groups * dim, torch.float32)
        assert_same(ops.dequantize(*to_gpu(code), *options), w)
        y = torch.zeros(rows, groups, dim, dtype=torch.int16)
        assert_same(ops.nearest(w.view(rows, groups, dim).to(GPU), pulses), y)
        assert_same(ops.encode(y.to(GPU), pulses), code[0])
        assert_same(ops.decode(code[0].to(GPU), dim, pulses, groups), y)
        ops.check_codes(code[0].to(GPU), dim, pulses, groups)


@pytest.mark.parametrize("dim", [8, 12, 16, 32])
def test_strides_and_alignment(dim):
    x = gaussian(4, 6, dim + 3)
    expected = ops.nearest(x[..., 1:-2], 9)
    strided = x.to(GPU)[..., 1:-2]
    shifted = torch.empty(x[..., 1:-2].numel() + 1, device=GPU)[1:].view(4, 6, dim)
    shifted.copy_(strided)
    assert shifted.data_ptr() % 16 != 0
    index = ops.encode(expected, 9)
    for x_gpu in (strided, shifted):
        assert_same(ops.nearest(x_gpu, 9), expected)
        flat = x_gpu[:, 0]  # rows of one group
        code = ops.quantize(flat.cpu(), dim, 9, 2, "lloyd")
        assert_same(ops.quantize(flat, dim, 9, 2, "lloyd"), code)
    y = torch.empty(expected.numel() + 1, device=GPU, dtype=torch.int16)[1:].view(4, 6, dim)
    y.copy_(expected)
    assert_same(ops.encode(y, 9), index)
    assert_same(ops.encode(y.transpose(0, 1), 9), ops.encode(expected.transpose(0, 1), 9))
    for offset in (1, 2, 3):
        memory = torch.empty(index.numel() + offset, device=GPU, dtype=torch.uint8)
        moved = memory[offset:].view(index.shape).copy_(index)
        assert_same(ops.decode(moved, dim, 9, 6), expected)
    wide = torch.zeros(4, 2 * index.shape[1], dtype=torch.uint8, device=GPU)
    wide[:, ::2] = index.to(GPU)
    assert_same(ops.decode(wide[:, ::2], dim, 9, 6), expected)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [8, 16, 32, 12, 64, 200])
def test_values_that_are_not_finite(dim, value):
    w = gaussian(5, 3 * dim).to(GPU)
    for row, col in itertools.product((1, 4), (0, 2 * dim + 1)):
        bad = w.clone()
        bad[row, col] = bad[4, -1] = value
        with pytest.raises(RuntimeError, match=f"row {row} of w holds NaN or infinity"):
            ops.quantize(bad, dim, 9, 2, "lloyd")
        with pytest.raises(RuntimeError, match="x holds NaN or infinity"):
            ops.nearest(bad.view(-1, dim), 9)
    assert_same(ops.quantize(w, dim, 9, 2, "lloyd"), ops.quantize(w.cpu(), dim, 9, 2, "lloyd"))


@pytest.mark.parametrize("dim", [8, 16, 32, 12, 64])
def test_vectors_off_the_pyramid(dim):
    y = ops.nearest(gaussian(4, 40, dim), 9).to(GPU)
    y[2, 17, 3] += 1 if y[2, 17, 3] >= 0 else -1
    y[3, 1] = -32768
    with pytest.raises(RuntimeError, match=r"y\[2, 17\] is no point of the pyramid.*of 9"):
        ops.encode(y, 9)


@pytest.mark.parametrize(
    ("dim", "pulses"), [(2, 3), (8, 6), (12, 7), (16, 27), (32, 22), (32, 50), (64, 96), (256, 369)]
)
def test_indices_that_name_no_point(dim, pulses):
    """decode and dequantize do not wait for the GPU, hence do not raise; check_codes does."""
    total, width = reference.count(dim, pulses), _core.index_bits(dim, pulses)
    groups, gain_bits = 70, 2
    good = stored(dim, pulses, gain_bits, groups=groups)
    y = ops.decode(good[0], dim, pulses, groups)
    options = (dim, pulses, gain_bits, "lloyd", groups * dim, torch.float32)
    w = ops.dequantize(*good, *options)
    for illegal in {total + 1, 2**width - 1}:
        if not total < illegal < 2**width:
            continue
        fields = reference.unpack(good[0][1].numpy(), width, groups)
        fields[66] = illegal
        index = good[0].clone()
        index[1] = torch.from_numpy(reference.pack(fields, width).copy())
        y[1, 66] = 0
        w.view(3, groups, dim)[1, 66] = float("nan")
        damaged = to_gpu((index, *good[1:]))
        assert_same(ops.decode(damaged[0], dim, pulses, groups), y)
        got = ops.dequantize(*damaged, *options).cpu()
        assert torch.equal(torch.isnan(got), torch.isnan(w))
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(w))
        for device_index in (index, damaged[0]):
            with pytest.raises(RuntimeError, match="check_codes: index of row 1 names no point"):
                ops.check_codes(device_index, dim, pulses, groups)


def test_bad_arguments_are_named():
    w = gaussian(3, 64).to(GPU)
    index, gain, scale = ops.quantize(w, 16, 27, 4, "lloyd")
    y = ops.decode(index, 16, 27, 4)
    tail = (16, 27, 4, "lloyd", 64, torch.float32)
    cases = [
        (lambda: ops.quantize(w.double(), 16, 27, 4, "lloyd"), "w has dtype float64"),
        (lambda: ops.quantize(w[:, :60], 16, 27, 4, "lloyd"), "60 columns"),
        (lambda: ops.quantize(w, 16, 27, 4, "lloyd", 3), "quality is 3"),
        (lambda: ops.nearest(w.int(), 27), "x has dtype int32"),
        (lambda: ops.encode(y.int(), 27), "y has dtype int32"),
        (lambda: ops.decode(index, 16, 27, 5), r"index has shape .*, expected \[3, 30\]"),
        (lambda: ops.dequantize(index, gain, scale.float(), *tail), "row_scale has dtype float32"),
        (lambda: ops.dequantize(index, gain, scale, *tail[:5], torch.int32), "dtype is int32"),
        (lambda: ops.dequantize(index, gain, scale, *tail, 11), "block is 11"),
        (lambda: ops.dequantize(index, gain.cpu(), scale, *tail), "gain and index are on"),
        (lambda: ops.dequantize(index.cpu(), gain, scale, *tail), "on different devices"),
        (lambda: ops.dequantize(index, gain, scale.cpu(), *tail), "row_scale and index are on"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


# --- streams, graphs, devices, the compiler -------------------------------------------------------


def test_streams_run_side_by_side():
    matrices = [gaussian(200, 640, seed=s).to(GPU) for s in range(6)]
    expected = [ops.quantize(w, 16, 28, 3, "lloyd") for w in matrices]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in matrices]
    results = []
    for w, stream in zip(matrices, streams, strict=True):
        with torch.cuda.stream(stream):
            code = ops.quantize(w * 1.0, 16, 28, 3, "lloyd")
            results.append((code, ops.dequantize(*code, 16, 28, 3, "lloyd", 640, torch.float32)))
    torch.cuda.synchronize()
    for (code, w), known in zip(results, expected, strict=True):
        assert_same(code, tuple(t.cpu() for t in known))
        cpu = tuple(t.cpu() for t in known)
        assert_same(w, ops.dequantize(*cpu, 16, 28, 3, "lloyd", 640, torch.float32))


@pytest.mark.parametrize(("dim", "pulses"), [(8, 16), (16, 28), (12, 20), (32, 56), (64, 96)])
def test_graph_capture_and_replay(dim, pulses):
    cols = 40 * dim
    w = torch.empty(30, cols, device=GPU)
    options = (dim, pulses, 3, "lloyd")

    def around():
        code = ops.quantize(w, *options)
        y = ops.decode(code[0], dim, pulses, cols // dim)
        weights = ops.dequantize(*code, *options, cols, torch.float16)
        flat = ops.dequantize(*code, *options, cols, torch.float32, 4, 5)
        return code, y, ops.encode(y, pulses), ops.nearest(w.view(-1, dim), pulses), weights, flat

    w.copy_(gaussian(30, cols))
    around()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code, y, index, nearest, weights, flat = around()
    for seed in (1, 2):
        w.copy_(vectors(30 * 40, dim, seed=seed).view(30, cols))
        graph.replay()
        cpu = ops.quantize(w.cpu(), *options)
        assert_same(code, cpu)
        assert_same(index, cpu[0])
        assert_same(y, ops.decode(cpu[0], dim, pulses, cols // dim))
        assert_same(nearest, ops.nearest(w.cpu().view(-1, dim), pulses))
        assert_same(weights, ops.dequantize(*cpu, *options, cols, torch.float16))
        assert_same(flat, ops.dequantize(*code, *options, cols, torch.float32, 4, 5).cpu())


def test_what_is_refused_in_a_graph():
    """Nothing may wait there: vectors that cannot be coded become zero, and row scales NaN."""
    w = gaussian(4, 64).to(GPU)
    y = ops.nearest(w.view(4, 4, 16), 27)
    ops.encode(y, 27)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code = ops.quantize(w, 16, 27, 4, "lloyd")
        nearest = ops.nearest(w.view(4, 4, 16), 27)
        index = ops.encode(y, 27)
    w[2, 20] = float("inf")
    y[1, 3] = 0
    y[1, 3, 0] = 26
    graph.replay()
    clean = w.cpu()
    clean[2] = 0
    expected = ops.quantize(clean, 16, 27, 4, "lloyd")
    assert torch.equal(code[0].cpu(), expected[0])
    assert torch.isnan(code[2][2])
    assert torch.isfinite(code[2][[0, 1, 3]]).all()
    clean = w.cpu()
    clean[2, 16:32] = 0
    assert_same(nearest, ops.nearest(clean.view(4, 4, 16), 27))
    kept = y.cpu()
    kept[1, 3] = 0
    assert_same(index, ops.encode(kept, 27))


def test_check_codes_cannot_be_captured():
    index = stored(16, 27, 4)[0].to(GPU)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="check before the capture"), torch.cuda.graph(graph):
        ops.check_codes(index, 16, 27, 7)


def test_first_call_may_be_captured():
    """Tables of a pyramid that the device has not seen are copied beside the capture."""
    y = ops.nearest(gaussian(3, 5, 20), 23)
    index = ops.encode(y, 23).to(GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoded = ops.decode(index, 20, 23, 5)
    graph.replay()
    assert_same(decoded, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device():
    w = gaussian(30, 640)
    code = ops.quantize(w, 16, 28, 3, "lloyd")
    tail = (16, 28, 3, "lloyd", 640, torch.float32)
    for device in ("cuda:1", "cuda:0"):
        there = ops.quantize(w.to(device), 16, 28, 3, "lloyd")
        assert all(t.device == torch.device(device) for t in there)
        assert_same(there, code)
        assert_same(ops.dequantize(*there, *tail), ops.dequantize(*code, *tail))
        assert_same(ops.decode(there[0], 16, 28, 40), ops.decode(code[0], 16, 28, 40))
    index, gain, scale = to_gpu(code)
    with pytest.raises(RuntimeError, match="gain and index are on different devices"):
        ops.dequantize(index, gain.to("cuda:1"), scale, *tail)


@pytest.mark.parametrize("rows", [0, 5])
def test_operators_pass_opcheck(rows):
    w = gaussian(rows, 64).to(GPU)
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

    w = gaussian(4, 64).to(GPU)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w), around(w))
