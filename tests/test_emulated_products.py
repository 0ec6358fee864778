"""The GPU products on the CPU: their kernels, compiled as C++ over tests/emulation.

They run as they are but for the instructions that only a GPU has, so that indexing, barriers, and
the order of asynchronous copies are tested where there is no GPU too.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_activation_points_cuda import cancelling
from test_activations import awkward_groups
from test_index_fragments import CODES, fragments_of, matrix
from test_overlap_fragments import random_overlap_code
from test_plane_fragments import random_planes
from test_table_matmul_cuda import activations, random_code, relative_error, rotate

from pvq import _core
from pvq.activations import decoded
from pvq.codes.fragments import pack_planes
from pvq.codes.overlap import OverlapCode, trellis
from pvq.codes.overlap_fragments import OverlapFragments

ROOT = Path(__file__).parents[1]
SOURCES = (
    "activation_points", "activation_rows", "activations", "index_expand", "index_matmul",
    "index_narrow_16", "index_narrow_8", "index_tables", "index_wide_16", "index_wide_8",
    "overlap_dequantize", "overlap_product_4", "overlap_product_5", "overlap_product_6",
    "overlap_product_7", "overlap_product_8", "overlap_wide_4", "overlap_wide_5",
    "overlap_wide_6", "overlap_wide_7", "overlap_wide_8",
    "plane_expand", "plane_matmul", "plane_wide_4", "plane_wide_6", "plane_wide_8", "table_matmul",
    "table_points", "table_product_2", "table_product_3", "table_product_4", "table_wide_2",
    "table_wide_3", "table_wide_4", "wide_plan",
)  # fmt: skip
HOST_SOURCES = ("tests/emulation/products.cpp", "csrc/core/count.cpp", "csrc/core/regions.cpp")


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime.h: the toolkit's, asked from nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    tops = [line.split("=", 1)[1] for line in dry.stderr.splitlines() if "#$ TOP=" in line]
    places = ("targets/x86_64-linux/include", "include")
    folders = [Path(top) / place for top in tops for place in places]
    return next((folder for folder in folders if (folder / "cuda_runtime.h").exists()), None)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """The program of tests/emulation/products.cpp."""
    headers, compiler = cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs the headers of the CUDA toolkit and g++")
    folder = tmp_path_factory.mktemp("emulation")
    flags = [
        "-std=c++20", "-O1", "-w", "-fno-strict-aliasing", "-include", "machine.h",
        f"-I{ROOT}/tests/emulation", f"-I{ROOT}/csrc", "-isystem", str(headers),
    ]  # fmt: skip

    def compile_one(name: str) -> None:
        source = ROOT / "csrc/cuda" / f"{name}.cu"
        command = [compiler, *flags, "-x", "c++", "-c", str(source), "-o", f"{folder}/{name}.o"]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, SOURCES))
    objects = [f"{folder}/{name}.o" for name in SOURCES]
    program = folder / "products"
    rest = [str(ROOT / name) for name in HOST_SOURCES]
    subprocess.run([compiler, *flags, *rest, *objects, "-o", str(program)], check=True)
    return program


def run(program, kind, fragments, row_scale, x, bits, block, option, processors):
    tokens, cols = x.shape
    rows = len(row_scale)
    numbers = (rows, cols, tokens, bits, block, 5, int(option), processors)
    out = call(program, kind, numbers, (fragments, row_scale, x))
    return out.view(torch.float16).view(tokens, rows)


def call(program, kind, numbers, operands) -> torch.Tensor:
    """What the program writes, bytes, given the bytes of some tensors."""
    done = subprocess.run(
        [str(program), kind, *map(str, numbers)],
        input=b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in operands),
        capture_output=True,
        check=True,
    )
    return torch.from_numpy(np.frombuffer(done.stdout, dtype=np.uint8).copy())


def table_fragments(code, table, bits):
    """csrc/cuda/table_decode.cuh, a byte at a time."""
    rows, tiles, chunks = len(code), -(-len(code) // 16), code.shape[1] * 8 // bits // 128
    cols, per_byte = chunks * 128, 2 if bits == 4 else 4
    padded = np.zeros((tiles * 16, code.shape[1]), dtype=np.uint8)
    padded[:rows] = code.numpy()
    out = np.zeros((tiles, chunks, 2048 * bits // 8), dtype=np.uint8)
    for row in range(tiles * 16):
        for col in range(0, cols, per_byte):
            lane = (row & 7) * 4 + col % 128 // 32
            step, reg, item = col % 32 // 8, col % 8 // 4 * 2 + row % 16 // 8, col % 4
            chunk = out[row // 16, col // 128]
            if bits == 4:
                chunk[step // 2 * 512 + lane * 16 + step % 2 * 8 + reg * 2 + item // 2] = padded[
                    row, col // 2
                ]
                continue
            chunk[lane * 16 + step * 4 + reg] = padded[row, col // 4]
            if bits == 3:
                for i in range(4):
                    sign = padded[row, cols // 4 + (col + i) // 8] >> ((col + i) % 8) & 1
                    byte = 512 + lane * 8 + step // 2 * 4 + i
                    chunk[byte] |= sign << (7 - 4 * (step & 1) - reg)
    words = np.zeros((256, 4), dtype=np.int8)
    words[:, : table.shape[1]] = table.numpy()
    return torch.from_numpy(np.concatenate([words.view(np.uint8).ravel(), out.ravel()]))


# Rows, columns, tokens, block, processors: one launch and two, narrow and wide, groups that are cut
# between two and more blocks, whole groups between them, tokens and rows that fill no group;
# activations narrowed beside products, one or two pieces a warp, and between them; several scales
# of 1024 columns, of which blocks begin and end with parts; many tiles a block, so that places of
# partial sums are used again.
TABLE_CASES = [
    (40, 256, 1, 128, 3), (20, 1280, 2, 0, 2), (300, 1024, 2, 1024, 3), (100, 512, 5, 256, 3),
    (40, 256, 12, 128, 3), (300, 640, 20, 0, 5), (700, 384, 9, 128, 4), (530, 256, 70, 256, 7),
    (16, 128, 33, 64, 132), (200, 8320, 2, 128, 2), (100, 8320, 4, 0, 1),
    (64, 8320, 40, 128, 6), (100, 1024, 4, 512, 3), (150, 2048, 12, 1024, 3),
    (300, 2432, 50, 128, 3), (200, 2432, 100, 128, 3), (640, 256, 6, 128, 3),
]  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("rows", "cols", "tokens", "block", "processors"), TABLE_CASES)
def test_table_products(products, bits, residual, rows, cols, tokens, block, processors):
    code, table, scale, w = random_code(rows, cols, bits, seed=rows)
    x = activations(tokens, cols)
    fragments = table_fragments(code, table, bits)
    found = run(products, "table", fragments, scale, x, bits, block, residual, processors)
    expected = rotate(x.double(), block, 5) @ w.T
    assert relative_error(found, expected) < (1e-3 if residual else 1e-2)


@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.5, 4])
@pytest.mark.parametrize(("rows", "cols", "tokens", "block", "processors"), TABLE_CASES)
def test_overlap_products(products, bits, rows, cols, tokens, block, processors):
    code, scale, w = random_overlap_code(rows, cols, bits, seed=rows)
    x = activations(tokens, cols)
    form = OverlapFragments(trellis(bits))
    fragments = form.of_stored({"code": code}, (rows, cols))["fragments"]
    expected = rotate(x.double(), block, 5) @ w.T
    for residual, allowed in ((False, 1e-2), (True, 1e-3))[: 2 if bits in (2, 3) else 1]:
        pair_bits = round(2 * bits)
        found = run(products, "lapped", fragments, scale, x, pair_bits, block, residual, processors)
        assert relative_error(found, expected) < allowed


def test_long_groups_are_cut_between_blocks(products):
    rows, cols, bits = 128, 9216, 4
    code, scale, w = random_overlap_code(rows, cols, bits, seed=1)
    fragments = OverlapFragments(trellis(bits)).of_stored({"code": code}, (rows, cols))["fragments"]
    x = activations(40, cols)
    found = run(products, "lapped", fragments, scale, x, 2 * bits, 128, False, 3)
    assert relative_error(found, rotate(x.double(), 128, 5) @ w.T) < 1e-2


def test_warps_that_narrow_several_tokens(products):
    code, table, scale, w = random_code(33, 8320, 2, seed=1)
    x = activations(130, 8320)
    found = run(products, "table", table_fragments(code, table, 2), scale, x, 2, 128, False, 6)
    assert relative_error(found, rotate(x.double(), 128, 5) @ w.T) < 1e-2


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize(
    ("rows", "cols", "tokens", "block", "processors"),
    [
        (40, 256, 1, 128, 3),
        (530, 512, 12, 512, 5),
        (300, 640, 8, 0, 4),
        (700, 256, 40, 256, 7),
        (700, 256, 70, 256, 7),
        (130, 1024, 150, 1024, 4),
        (300, 640, 65, 0, 2),
    ],
)
def test_plane_products(products, bits, group, rows, cols, tokens, block, processors):
    y, scale = random_planes(rows, cols, bits, group, seed=rows)
    row_scale = (torch.randn(rows, generator=torch.Generator().manual_seed(1)) / 64).bfloat16()
    w = y.double() * scale.double().repeat_interleave(group, 1) * row_scale.double()[:, None]
    x = activations(tokens, cols)
    fragments = pack_planes(y, scale, bits)
    found = run(products, "plane", fragments, row_scale, x, bits, block, group, processors)
    assert relative_error(found, rotate(x.double(), block, 5) @ w.T) < 1e-3


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize(("rows", "cols"), [(16, 128), (37, 1280), (210, 256)])
def test_planes_become_the_same_weights(products, bits, group, rows, cols):
    y, scale = random_planes(rows, cols, bits, group, seed=rows)
    row_scale = (torch.randn(rows, generator=torch.Generator().manual_seed(1)) / 64).bfloat16()
    w = y.double() * scale.double().repeat_interleave(group, 1) * row_scale.double()[:, None]
    fragments = pack_planes(y, scale, bits)
    out = call(products, "plane_expand", (rows, cols, bits, group), (fragments, row_scale))
    found = out.view(torch.float16).view(rows, cols).double()
    assert ((found - w).abs() <= w.abs() * 2.0**-11 * 1.01 + 2.0**-25).all()


def run_index(program, kind, code, shape, fragments, row_scale, x, rest):
    """float16 results of `products index` or `index_expand`; shape: rows, columns and tokens."""
    _, _, gain_bits = code
    levels = torch.from_numpy(_core.gain_levels(code[0], shape[1], gain_bits, "lloyd"))
    operands = b"".join(
        t.contiguous().view(torch.uint8).numpy().tobytes()
        for t in (levels, fragments, row_scale, *x)
    )
    done = subprocess.run(
        [str(program), kind, *map(str, (*shape, *code, *rest))],
        input=operands, capture_output=True, check=True,
    )  # fmt: skip
    return torch.from_numpy(np.frombuffer(done.stdout, dtype=np.float16).copy())


# Widths that the compiler knows with every number of columns, all codes with one of each.
INDEX_CASES = [
    (code, shape)
    for i, code in enumerate(CODES)
    for j, shape in enumerate(
        [
            (40, 256, 1, 128, 3), (530, 512, 12, 512, 5), (300, 640, 8, 0, 4),
            (130, 256, 70, 256, 3), (40, 5120, 2, 1024, 4), (300, 640, 1, 0, 3),
            (1000, 128, 2, 128, 2), (40, 256, 4, 128, 3),
        ]
    )
    if i < 4 or j % 4 == i % 4
]  # fmt: skip


@pytest.mark.parametrize(("code", "shape"), INDEX_CASES)
def test_index_products(products, code, shape):
    rows, cols, tokens, block, processors = shape
    stored, w = matrix(rows, cols, *code, seed=rows)
    _, fragments = fragments_of(stored, *code, (rows, cols))
    x = activations(tokens, cols)
    found = run_index(
        products, "index", code, (rows, cols, tokens), fragments, stored["row_scale"], [x],
        (block, 5, processors),
    )  # fmt: skip
    expected = rotate(x.double(), block, 5) @ w.T
    assert relative_error(found.view(tokens, rows), expected) < 1e-3


@pytest.mark.parametrize("code", CODES)
def test_indices_become_the_same_weights(products, code):
    rows, cols = 37, 384
    stored, w = matrix(rows, cols, *code)
    _, fragments = fragments_of(stored, *code, (rows, cols))
    found = run_index(
        products, "index_expand", code, (rows, cols), fragments, stored["row_scale"], [], ()
    ).view(rows, cols)
    assert ((found.double() - w).abs() <= w.abs() * 2.0**-11 * 1.01 + 2.0**-25).all()


def test_what_is_not_finite_stays_so(products):
    code, table, scale, _ = random_code(64, 512, 2)
    for poison in (float("nan"), float("inf")):
        for tokens in (2, 12):
            x = activations(tokens, 512)
            x[-1, 300] = poison
            fragments = table_fragments(code, table, 2)
            y = run(products, "table", fragments, scale, x, 2, 256, False, 3)
            assert not y[-1].isfinite().any()
            assert y[:-1].isfinite().all()


@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.5, 4])
@pytest.mark.parametrize("cols", [16, 128, 304])
def test_overlap_codes_become_the_same_weights(products, bits, cols):
    code, numbers = OverlapCode(bits), trellis(bits)
    w = torch.randn(5, cols, generator=torch.Generator().manual_seed(cols))
    w[2] = 0
    stored = code.quantize(w)
    table = numbers.table
    window_bits = len(table).bit_length() - 1
    shape = (5, cols, numbers.dim, numbers.step_bits, window_bits, numbers.lag, numbers.spread)
    out = call(products, "overlap", shape, (stored["code"], stored["row_scale"], table))
    found = out.view(torch.float32).view(5, cols)
    assert torch.equal(found, code.dequantize(stored, cols, torch.float32))


@pytest.mark.parametrize("pulses", [1, 2, 75, 353, 4096])
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [(dim, torch.float32) for dim in (1, 3, 8, 12, 16, 32, 64, 100, 128, 255, 256)]
    + [(dim, dtype) for dim in (8, 100, 128) for dtype in (torch.float16, torch.bfloat16)],
)
def test_activation_points_are_those_of_the_cpu(products, dim, pulses, dtype):
    x = awkward_groups(11, dim, pulses).to(dtype)
    y, amplitude, values = rounded_points(products, x, pulses)
    expected = torch.ops.pvq.activation_points(x, dim, pulses)
    assert torch.equal(y, expected[0])
    assert torch.equal(amplitude, expected[1])
    assert torch.equal(values, decoded(*expected).to(dtype))


@pytest.mark.parametrize("dim", [8, 128])
def test_activation_points_of_what_is_not_finite_are_zeros(products, dim):
    """And the groups beside them, which the same warp rounds, are none the worse."""
    x = awkward_groups(20, dim, 0)
    expected = torch.ops.pvq.activation_points(x, dim, 50)
    for row, bad in ((3, torch.nan), (7, torch.inf), (19, -torch.inf)):
        x[row, row % dim] = bad
        for tensor in expected:
            tensor[row] = 0
    assert all(map(torch.equal, rounded_points(products, x, 50)[:2], expected))


def rounded_points(program, x, pulses):
    count, dim = x.shape
    number = (torch.float32, torch.float16, torch.bfloat16).index(x.dtype)
    out = call(program, "points", (count, dim, pulses, number), (x,))
    y, amplitude, values = out.split([2 * count * dim, 2 * count, x.nbytes])
    return (
        y.view(torch.int16).view(count, dim),
        amplitude.clone().view(torch.bfloat16).view(count, 1),
        values.clone().view(x.dtype).view(count, dim),
    )


# Rows, columns, tokens, columns of a group, processors: narrow products of one group of rows and of
# more, wide ones, the last piece of 256 columns half empty.
POINT_CASES = [
    (40, 256, 1, 128, 3), (300, 1280, 4, 128, 2), (33, 384, 8, 128, 3), (20, 640, 12, 128, 9),
    (40, 384, 3, 32, 3), (24, 256, 5, 8, 4), (16, 128, 2, 64, 4), (300, 640, 20, 128, 5),
    (64, 384, 40, 16, 6),
]  # fmt: skip


KINDS = [("table", 2), ("table", 3), ("table", 4), ("overlap", 2), ("overlap", 3.5)]


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("case", range(len(POINT_CASES)))
def test_products_of_points(products, kind, case):
    pulses = (75, 353, 4096)[(kind + case) % 3]
    (kind, bits), (rows, cols, tokens, dim, processors) = KINDS[kind], POINT_CASES[case]
    if kind == "table":
        code, table, scale, w = random_code(rows, cols, bits, seed=rows)
        fragments = table_fragments(code, table, bits)
        summed = w.abs()
    else:
        code, scale, w = random_overlap_code(rows, cols, bits, seed=rows)
        form = OverlapFragments(trellis(bits))
        fragments = form.of_stored({"code": code}, w.shape)["fragments"]
        summed = w.abs() + 128 * scale.double()[:, None]  # with the bias of its bytes
    x = activations(tokens, cols).float()
    point, amplitude = torch.ops.pvq.activation_points(x, dim, pulses)
    width = bits if kind == "table" else round(2 * bits)
    out = call(
        products,
        "table_points" if kind == "table" else "lapped_points",
        (rows, cols, tokens, width, dim, pulses, processors),
        (fragments, scale, point, amplitude),
    )
    found = out.view(torch.float16).view(tokens, rows).double()
    values = point.double() * amplitude.double().repeat_interleave(dim, 1)
    # Of the result in float16, of the sums, and of the integers of 15 bits if they are used.
    bound = 2**-11 * (values @ w.T).abs() + 2**-20 * (values.abs() @ summed.T) + 2**-24
    groups = -(-tokens * (1 if pulses <= 127 else 2) // 8)  # of rows of the narrow product
    if dim < 128 or (groups > 1 and (groups > 4 or groups * -(-rows // 16) > processors)):
        bound += 2**-15 * values.abs().amax() * w.abs().sum(1)
    assert ((found - values @ w.T).abs() <= bound).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("largest", [127, 4096])
def test_points_are_multiplied_as_they_are(products, bits, largest):
    code, table, scale, point, amplitude, expected = cancelling(20, bits, largest)
    operands = (table_fragments(code, table, bits), scale, point, amplitude)
    (tokens, cols), rows = point.shape, len(code)
    numbers = (rows, cols, tokens, bits, 128, largest, 3)
    out = call(products, "table_points", numbers, operands)
    assert torch.equal(out.view(torch.float16).view(tokens, rows).double(), expected)
