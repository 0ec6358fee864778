"""The block Hadamard transform against its definition in float64 and exact integers."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvq import _core
from pvq.rotation import hadamard_matrix, rotate

CPU_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CUDA_DTYPES = CPU_DTYPES[:3]
ORDERS = [4 * odd for odd in range(3, 64, 2) if odd not in (47, 59)]
# Powers of two around the vector lengths and pass boundaries; odd factors with 2^k below and above.
BLOCKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
BLOCKS += [12, 20, 24, 36, 56, 112, 160, 224, 576, 28 * 64, 44 * 32, 60 * 8, 108 * 16, 172 * 4]
LARGE_BLOCKS = [16384, 32768, 28 * 512, 28 * 1024, 12 * 4096, 172 * 64, 20 * 256, 252 * 256]

needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.build_info()["cuda"]),
    reason="needs a CUDA device and kernels built for it",
)


# --- the definition -------------------------------------------------------------------------------


def signs_of(seed, cols):
    """The signs of all columns, from splitmix64 in Python integers."""
    mask = 2**64 - 1
    signs = []
    for col in range(cols):
        z = (seed + (col // 64 + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        signs.append(-1.0 if z >> (col % 64) & 1 else 1.0)
    return torch.tensor(signs, dtype=torch.float64)


def fast_product(x, factor, log2):
    """(H_m (x) H_(2^log2)) x for the last dimension, by butterflies and one product, in float64."""
    shape = x.shape
    x = x.reshape(-1, factor.shape[0], 1 << log2)
    for bit in range(log2):
        pairs = x.reshape(-1, 2, 1 << bit)
        x = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1)
    return (factor @ x.reshape(-1, factor.shape[0], 1 << log2)).reshape(shape)


def reference(x, block, seed=None, inverse=False):
    x = x.detach().cpu().double()
    odd = block
    while odd % 2 == 0:
        odd //= 2
    factor = 1 if odd == 1 else 4 * odd
    h = torch.from_numpy(hadamard_matrix(factor)).double()
    signs = torch.ones(x.shape[-1]) if seed is None else signs_of(seed, x.shape[-1])
    if not inverse:
        x = x * signs
    log2 = (block // factor).bit_length() - 1
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    y = fast_product(blocks, h.T if inverse else h, log2).reshape(x.shape) / block**0.5
    return y * signs if inverse else y


def assert_close(y, x, block, seed=None, inverse=False):
    """Within one rounding to the dtype and the float32 error of the additions.

    No intermediate value exceeds the block's norm, so each of the k + m / 4 + 3 additions (m on the
    GPU, where the tensor core's sums are truncated) and the scaling add at most an epsilon of it.
    """
    expected = reference(x, block, seed, inverse)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    y = y.cpu()
    compute = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    norm = x.detach().cpu().double().reshape(-1, block).norm(dim=1)
    norm = norm.repeat_interleave(block).reshape(x.shape)
    additions = 4 + block.bit_length() + min(block, 256) / (2 if x.is_cuda else 4)
    info = torch.finfo(x.dtype)
    bound = additions * compute * norm + expected.abs() * info.eps / 2 + info.smallest_normal
    excess = ((y.double() - expected).abs() - bound).max().item() if x.numel() else 0
    assert excess <= 0, f"block {block} {x.dtype} inverse={inverse}: over the bound by {excess}"


def random(shape, dtype, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


# --- the transform --------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("seed", [None, 7, 2**64 - 3])
@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_transform_is_its_definition(block, dtype, seed, inverse):
    x = random((3, 5 * block), dtype, block)
    assert_close(rotate(x, block, seed, inverse), x, block, seed, inverse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", LARGE_BLOCKS)
def test_large_blocks(block, dtype):
    x = random((2, block), dtype, block)
    for inverse in (False, True):
        assert_close(rotate(x, block, 5, inverse), x, block, 5, inverse)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_transforms(order):
    for block in (order, order * 16, order * 32):
        x = random((2, block), torch.float32, order)
        for inverse in (False, True):
            assert_close(rotate(x, block, 1, inverse), x, block, 1, inverse)


@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("block", [1, 4, 16, 64, 256, 1024, 4096, 16384])
def test_exact_on_integers(block, dtype):
    """With sqrt(block) a power of two nothing rounds while the integers are small."""
    generator = torch.Generator().manual_seed(block)
    x = torch.randint(-1, 2, (3, 2 * block), generator=generator).to(dtype)
    expected = reference(x, block, 3).to(dtype)
    assert torch.equal(rotate(x, block, 3), expected)


@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("block", [2, 64, 1024, 24, 28 * 32])
def test_inverse_undoes(block, dtype):
    x = random((4, 3 * block), dtype)
    for seed in (None, 11):
        y = rotate(rotate(x, block, seed), block, seed, inverse=True)
        # Two roundings, each of them of every element of a block at most by half an epsilon.
        error = (y.double() - x.double()).norm() / x.double().norm()
        assert error < 2 * torch.finfo(dtype).eps
    if block & (block - 1) == 0:
        assert torch.equal(rotate(x, block), rotate(x, block, inverse=True))


@settings(max_examples=60, deadline=None)
@given(
    block=st.sampled_from([1, 2, 8, 12, 24, 32, 36, 64, 112, 128, 256, 320]),
    blocks=st.integers(0, 6),
    rows=st.integers(0, 5),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1)),
    inverse=st.booleans(),
    dtype=st.sampled_from(CPU_DTYPES),
)
def test_any_shape(block, blocks, rows, seed, inverse, dtype):
    x = random((rows, blocks * block), dtype, rows + blocks)
    positive = seed if seed is None else seed % 2**64
    assert_close(rotate(x, block, seed, inverse), x, block, positive, inverse)


def test_signs_are_splitmix64():
    # The first outputs of splitmix64 seeded with 0, as its authors publish them.
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    signs = rotate(torch.ones(192, dtype=torch.float64), 1, seed=0)
    assert signs.tolist() == [-1.0 if words[c // 64] >> (c % 64) & 1 else 1.0 for c in range(192)]


def test_signs_count_columns_over_the_whole_row():
    x = torch.ones(4, 640)
    rows = rotate(x, 1, seed=5)
    assert torch.equal(rows, rows[:1].expand(4, -1))
    assert torch.equal(rows[0].double(), signs_of(5, 640))
    assert not torch.equal(rows[0, :128], rows[0, 128:256])


@pytest.mark.parametrize("shape", [(0,), (0, 64), (4, 0), (3, 0, 128)])
def test_empty(shape):
    x = torch.empty(shape)
    assert rotate(x, 64, 3).shape == x.shape
    torch.ops.pvq.hadamard_(x, 64, 3)


@pytest.mark.parametrize("shape", [(128,), (2, 3, 128), (1, 1, 1, 256)])
def test_leading_dimensions(shape):
    x = random(shape, torch.float32)
    assert_close(rotate(x, 128, 1), x, 128, 1)


def views(device="cpu", dtype=torch.float32):
    """Tensors of shape [6, 128] that lie unusually in memory."""
    base = random((256, 256), dtype, device=device)
    return {
        "transposed": base[:128, :6].T,
        "columns": base[:6, 64:192],
        "strided": base[:6, ::2],
        "every other row": base[:12:2, :128],
        "odd offset": base.reshape(-1)[1 : 1 + 6 * 128].view(6, 128),
        "expanded": base[:1, :128].expand(6, 128),
    }


@pytest.mark.parametrize("name", list(views()))
def test_any_strides(name):
    x = views()[name]
    before = x.clone()
    assert_close(rotate(x, 64, 9), x, 64, 9)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", [name for name in views() if name != "expanded"])
def test_in_place(name):
    x = views()[name]
    expected = rotate(x, 64, 9)
    outside = x._base.clone()
    outside.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(expected)
    torch.ops.pvq.hadamard_(x, 64, 9)
    assert torch.equal(x, expected)
    assert torch.equal(x._base, outside), "elements beside the view changed"


@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("block", [8, 128, 4096, 36, 28 * 64])
def test_in_place_equals_out_of_place(block, dtype):
    x = random((3, 2 * block), dtype)
    for inverse in (False, True):
        y = x.clone()
        torch.ops.pvq.hadamard_(y, block, 4, inverse)
        assert torch.equal(y, rotate(x, block, 4, inverse))


def test_threads_do_not_change_the_result():
    x = random((37, 4096), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(rotate(x, 256, 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_not_finite_stays_in_its_block():
    for value in (float("nan"), float("inf")):
        for dtype in CPU_DTYPES:
            x = random((2, 256), dtype)
            x[0, 70] = value
            y = rotate(x, 64, 1)
            assert not y[0, 64:128].isfinite().any()
            rest = torch.cat([y[0, :64], y[0, 128:], y[1]])
            assert rest.isfinite().all()


def test_extremes():
    info = torch.finfo(torch.float16)
    x = torch.zeros(4, 256, dtype=torch.float16)
    x[0, 3] = info.max
    x[1, 3] = info.smallest_normal / 1024  # the smallest subnormal number
    x[2] = info.max  # 16 times it after the rotation
    x[3] = 16 * info.smallest_normal / 1024
    y = rotate(x, 256)
    assert (y[0].abs() == info.max / 16).all()
    assert (y[1] == 0).all()
    assert y[2, 0] == float("inf")
    assert (y[2, 1:] == 0).all()
    assert y[3, 0] == 256 * info.smallest_normal / 1024
    # Scaled before it is summed, so float32 does not overflow on the way.
    wide = torch.full((1, 256), torch.finfo(torch.float32).max / 32)
    assert rotate(wide, 256)[0, 0] == torch.finfo(torch.float32).max / 2


FINGERPRINT = """
import hashlib, torch, pvq
from pvq.rotation import rotate
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for block in (1, 2, 4, 8, 16, 64, 256, 512, 1024, 8192, 12, 24, 48, 112, 576, 896, 172 * 32):
        generator = torch.Generator().manual_seed(block)
        x = torch.randn(3, 2 * block, generator=generator).to(dtype)
        x[0, 0] = 1e-6
        for seed, inverse in ((None, False), (3, False), (3, True)):
            y = rotate(x, block, seed, inverse)
            digest.update(y.view(torch.uint8).numpy().tobytes())
print(pvq._core.build_info()["cpu_instruction_set"], digest.hexdigest())
"""


def test_instruction_sets_agree_bit_for_bit():
    results = {}
    for isa in _core.build_info()["cpu_instruction_sets"]:
        run = subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PVQ_CPU": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        used, results[isa] = run.stdout.split()
        assert used == isa
    assert "portable" in results
    assert len(set(results.values())) == 1, results


# --- errors ---------------------------------------------------------------------------------------


def test_rotate_explains_errors():
    x = torch.randn(2, 96)
    with pytest.raises(TypeError, match="x is a list"):
        rotate([1.0], 1)
    with pytest.raises(TypeError, match=r"dtype torch\.int32"):
        rotate(x.int(), 32)
    with pytest.raises(ValueError, match="no dimension"):
        rotate(torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="block=0 has no Hadamard matrix"):
        rotate(x, 0)
    with pytest.raises(ValueError, match="block=6 has no Hadamard matrix"):
        rotate(x, 6)
    with pytest.raises(ValueError, match=r"96 columns, which block=64 does not divide.*block=96"):
        rotate(x, 64)
    with pytest.raises(ValueError, match="does not fit in 64 bits"):
        rotate(x, 32, seed=2**64)


@pytest.mark.parametrize("name", ["hadamard", "hadamard_"])
def test_operator_refuses(name):
    op = getattr(torch.ops.pvq, name)
    x = torch.randn(2, 96)
    for argument, block, message in [
        (x, 6, "block is 6"),
        (x, -32, "block is -32"),
        (x, 2**33, "no Hadamard matrix"),
        (x, 64, "96 columns, expected a multiple of block = 64"),
        (x.int(), 32, "dtype int32, expected float32 or float16 or bfloat16 or float64"),
        (torch.tensor(1.0), 1, "no dimension"),
    ]:
        before = argument.clone()
        with pytest.raises(RuntimeError, match=message):
            op(argument, block)
        assert torch.equal(argument, before)


# --- torch's own tools ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("shape", [(64,), (3, 128), (2, 3, 64), (0, 64), (3, 0)])
def test_opcheck(shape, dtype):
    x = random(shape, dtype)
    for args in ((64,), (64, 5), (64, 5, True)):
        torch.library.opcheck(torch.ops.pvq.hadamard.default, (x.requires_grad_(), *args))
        torch.library.opcheck(torch.ops.pvq.hadamard_.default, (x.detach().clone(), *args))
    torch.library.opcheck(torch.ops.pvq.hadamard.default, (random((64, 64), dtype).T, 64))


def test_gradient():
    for seed, inverse in ((None, False), (3, False), (3, True)):
        x = random((2, 24), torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda t, s=seed, i=inverse: rotate(t, 12, s, i), (x,))
        grad = random((2, 24), torch.float64, 1)
        (found,) = torch.autograd.grad(rotate(x, 12, seed, inverse), x, grad)
        assert torch.equal(found, rotate(grad, 12, seed, not inverse))


def test_compile():
    def two_rotations(x):
        y = torch.ops.pvq.hadamard(x * 2, 64, 3)
        z = y + 1
        torch.ops.pvq.hadamard_(z, 28, None)
        return y, z

    compiled = torch.compile(two_rotations, fullgraph=True, backend="aot_eager")
    for rows in (3, 5):  # the second compiles for any number of rows
        x = random((rows, 448), torch.float32, rows)
        for result, expected in zip(compiled(x), two_rotations(x), strict=True):
            assert torch.equal(result, expected)

    def loss(x):
        return rotate(x, 64, 3).square().sum() + rotate(x, 28, 4, inverse=True)[0, 0]

    x = random((3, 448), torch.float32).requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    assert torch.equal(found, expected)


def test_meta():
    x = torch.empty(3, 128, device="meta", dtype=torch.float16)
    y = torch.ops.pvq.hadamard(x, 64)
    assert y.device.type == "meta"
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


# --- GPU ------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize("block", BLOCKS + LARGE_BLOCKS + [60 * 1024, 61 * 1024])
def test_cuda_transform_is_its_definition(block, dtype, seed, inverse):
    x = random((3, 3 * block if block < 4096 else block), dtype, block, "cuda")
    assert_close(rotate(x, block, seed, inverse), x, block, seed, inverse)


@needs_cuda
@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize(
    "block", [2048, 4096, 8192, 16384, 32768, 14336, 28672, 12 * 2048, 12 * 4096]
)
def test_cuda_many_rows(block, dtype):
    """More blocks than the kernels for few rows take; those for m * 2^k then repeat, and in place
    what they load ahead must not have been written."""
    x = random((700, block), dtype, block, "cuda")
    for inverse in (False, True):
        y = rotate(x, block, 3, inverse)
        assert_close(y, x, block, 3, inverse)
        torch.ops.pvq.hadamard_(x, block, 3, inverse)
        assert torch.equal(x, y)


@needs_cuda
@pytest.mark.parametrize("order", ORDERS)
def test_cuda_every_order(order):
    for dtype in CUDA_DTYPES:
        for block in (order, order * 2, order * 4, order * 8, order * 64):
            x = random((5, 3 * block), dtype, order, "cuda")
            assert_close(rotate(x, block, 1), x, block, 1)


@needs_cuda
def test_cuda_odd_sizes():
    for dtype in CUDA_DTYPES:
        for rows, cols, block in [(7, 7, 1), (3, 6, 2), (33, 40, 8), (9, 48, 16), (1, 384, 128)]:
            x = random((rows, cols), dtype, 1, "cuda")
            for inverse in (False, True):
                assert_close(rotate(x, block, 3, inverse), x, block, 3, inverse)
        for shape in [(0, 64), (4, 0)]:
            assert rotate(torch.empty(shape, dtype=dtype, device="cuda"), 64).shape == shape


@needs_cuda
@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize("block", [4, 128, 1024, 4096, 16384, 24, 28 * 512])
def test_cuda_in_place(block, dtype):
    x = random((5, 2 * block), dtype, 2, "cuda")
    for inverse in (False, True):
        y = x.clone()
        torch.ops.pvq.hadamard_(y, block, 4, inverse)
        assert torch.equal(y, rotate(x, block, 4, inverse))


@needs_cuda
@pytest.mark.parametrize("dtype", CUDA_DTYPES)
def test_cuda_any_strides(dtype):
    for name in views():
        x = views("cuda", dtype)[name]
        expected = rotate(x.contiguous().clone(), 64, 9)
        assert torch.equal(rotate(x, 64, 9), expected)
        if name != "expanded":
            outside = x._base.clone()
            outside.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(expected)
            torch.ops.pvq.hadamard_(x, 64, 9)
            assert torch.equal(x._base, outside), name


@needs_cuda
@pytest.mark.parametrize("block", [128, 4096, 28 * 512])
def test_cuda_streams_and_graphs(block):
    x = random((4, block), torch.float16, 1, "cuda")
    expected = rotate(x, block, 1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert torch.equal(rotate(x, block, 1), expected)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.pvq.hadamard(x, block, 1)
    x.copy_(random((4, block), torch.float16, 2, "cuda"))
    graph.replay()
    assert torch.equal(y, rotate(x, block, 1))


@needs_cuda
def test_cuda_threads_whose_blocks_take_different_amounts_of_shared_memory():
    inputs = [random((2, block), torch.float16, 1, "cuda") for block in (28 * 512, 28 * 1024)]
    expected = [rotate(x, x.shape[1], 1) for x in inputs]

    def transform(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            return all(
                torch.equal(rotate(inputs[i], inputs[i].shape[1], 1), expected[i])
                for _ in range(300)
            )

    torch.cuda.synchronize()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(transform, [0, 1, 0, 1]))


@needs_cuda
def test_cuda_opcheck_and_compile():
    x = random((3, 256), torch.float16, 1, "cuda")
    torch.library.opcheck(torch.ops.pvq.hadamard.default, (x, 64, 5))
    torch.library.opcheck(torch.ops.pvq.hadamard_.default, (x.clone(), 64, 5))
    compiled = torch.compile(lambda t: rotate(t, 64, 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), rotate(x, 64, 3))
    with pytest.raises(RuntimeError, match="expected float32 or float16 or bfloat16"):
        rotate(x.double(), 64)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_cuda_second_device():
    x = random((3, 4096), torch.float16, 1, "cuda:1")
    y = rotate(x, 4096, 1)
    assert y.device == x.device
    assert_close(y, x, 4096, 1)
