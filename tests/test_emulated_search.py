"""The GPU's search of overlapping-pyramid codes on the CPU, as C++ over tests/emulation.

Its kernels run as they are, and find what the CPU's search finds, bit for bit.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_emulated_products import ROOT, cuda_headers

SOURCES = (
    "overlap_beam", "overlap_search", "overlap_search_1", "overlap_search_2", "overlap_search_3",
)  # fmt: skip
# Groups, step bits, window bits, lag, weights of a group: the library's codes, and every number of
# weights, size of a tile and kind of word otherwise: windows that overlap, meet and leave bits out.
FAMILY = [(20, 4, 8, 2, 2), (9, 5, 8, 2, 2), (7, 7, 9, 1, 2), (5, 8, 9, 1, 2)]
OTHERS = [
    (9, 2, 2, 1, 2), (13, 2, 3, 1, 1), (14, 2, 4, 3, 1), (10, 3, 5, 1, 3), (25, 3, 3, 2, 4),
    (12, 4, 4, 1, 1), (31, 4, 4, 2, 1), (8, 4, 7, 1, 4), (6, 2, 6, 1, 8), (7, 3, 4, 1, 5),
    (5, 2, 8, 1, 6), (4, 2, 4, 2, 7), (11, 6, 9, 1, 2),
]  # fmt: skip
# The same with terms and beam.
BEAMS = [
    (6, 2, 2, 1, 1, 3, 7), (5, 2, 3, 1, 2, 3, 100), (4, 3, 3, 2, 1, 2, 64), (3, 4, 6, 1, 3, 2, 30),
    (4, 8, 8, 1, 4, 3, 50), (5, 3, 3, 1, 8, 3, 1), (4, 4, 4, 2, 2, 3, 400),
]  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program of tests/emulation/search.cpp."""
    headers, compiler = cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs the headers of the CUDA toolkit and g++")
    folder = tmp_path_factory.mktemp("emulation")
    flags = [
        "-std=c++20", "-O2", "-w", "-ffp-contract=off", "-include", "machine.h",
        f"-I{ROOT}/tests/emulation", f"-I{ROOT}/csrc", "-isystem", str(headers),
    ]  # fmt: skip

    def compile_one(name: str) -> None:
        source = str(ROOT / "csrc/cuda" / f"{name}.cu")
        command = [compiler, *flags, "-x", "c++", "-c", source, "-o", f"{folder}/{name}.o"]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, SOURCES))
    objects = [f"{folder}/{name}.o" for name in SOURCES]
    main, out = str(ROOT / "tests/emulation/search.cpp"), folder / "search"
    subprocess.run([compiler, *flags, main, *objects, "-o", str(out)], check=True)
    return out


def emulate(
    program, x, table, step, lag, weight, start, end, ring, beam, spread, processors, shared=227
):
    """Symbols, states and costs as the operator gives them."""
    rows, dim = len(x), table.shape[2]
    groups, window = x.shape[1] // dim, len(table).bit_length() - 1
    optional = {"w": weight, "s": start, "e": end}
    given = "".join(letter for letter, t in optional.items() if t is not None) + "r" * ring
    operands = b"".join(
        t.contiguous().numpy().tobytes() for t in (x, table, *optional.values()) if t is not None
    )
    numbers = (rows, groups, dim, step, window, lag, table.shape[1], beam)
    done = subprocess.run(
        [str(program), *map(str, numbers), given or "-", str(processors), str(shared), str(spread)],
        input=operands,
        capture_output=True,
        check=True,
    )
    found = torch.from_numpy(np.frombuffer(done.stdout, dtype=np.uint8).copy())
    began, cost, symbol = found.split([4 * rows, 4 * rows, rows * groups])
    return symbol.view(rows, groups), began.view(torch.int32), cost.view(torch.float32)


def compare(
    program,
    rows,
    groups,
    step,
    window,
    lag,
    dim,
    given,
    processors=2,
    whole=False,
    terms=2,
    beam=0,
    shared=227,
    spread=0.0,
):
    rng = torch.Generator().manual_seed(rows + groups)

    def normal(*shape):
        drawn = torch.randn(*shape, generator=rng)
        return (3 * drawn).round() if whole else drawn * 20

    states = 1 << (window + ((terms - 1) * lag - 1) * step)
    x, table = normal(rows, groups * dim), normal(1 << window, terms, dim)
    weight, start, end = None, None, None
    if "w" in given:
        weight = torch.rand(groups * dim, generator=rng)
    if "s" in given:
        start = torch.randint(-1, states, (rows,), generator=rng, dtype=torch.int32)
    if "e" in given:
        end = torch.randint(-1, states, (rows,), generator=rng, dtype=torch.int32)
    arguments = (x, table, step, lag, weight, start, end, "r" in given, beam, spread)
    expected = torch.ops.pvq.overlap_search(*arguments)
    found = emulate(program, *arguments, processors, shared)
    for name, a, b in zip(("symbol", "start", "cost"), found, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("groups", "step", "window", "lag", "dim"), FAMILY)
@pytest.mark.parametrize(("rows", "given"), [(3, "r"), (1, "wr"), (5, "wse")])
def test_the_library_s_codes(program, groups, step, window, lag, dim, rows, given):
    compare(program, rows, groups, step, window, lag, dim, given)


@pytest.mark.parametrize(
    ("groups", "step", "lag"), [(5, 8, 1), (9, 4, 1), (11, 2, 3), (9, 6, 1), (7, 3, 2)]
)
@pytest.mark.parametrize(("rows", "given"), [(1, "-"), (6, "wse"), (3, "wr")])
@pytest.mark.parametrize("whole", [False, True])
def test_codes_with_a_spread(program, groups, step, lag, rows, given, whole):
    numbers = (rows, groups, step, step, lag, 4, given)
    compare(program, *numbers, whole=whole, spread=2.0 if whole else 15.5)


@pytest.mark.parametrize(("groups", "step", "window", "lag", "dim"), OTHERS)
@pytest.mark.parametrize(("rows", "given"), [(1, "-"), (7, "ws"), (4, "e"), (18, "wr")])
def test_other_codes(program, groups, step, window, lag, dim, rows, given):
    compare(program, rows, groups, step, window, lag, dim, given)


@pytest.mark.parametrize("given", ["-", "se", "r"])
def test_among_equal_costs_the_same_one_is_chosen(program, given):
    """Points and targets of few values: most minima are met by several transitions."""
    for groups, step, window, lag, dim in OTHERS[:6]:
        compare(program, 21, groups, step, window, lag, dim, given, whole=True)


@pytest.mark.parametrize(("groups", "step", "window", "lag", "dim", "terms", "beam"), BEAMS)
@pytest.mark.parametrize(
    ("rows", "given", "whole"), [(3, "-", True), (2, "wse", False), (1, "wr", False)]
)
def test_beams(program, groups, step, window, lag, dim, terms, beam, rows, given, whole):
    numbers = (groups, step, window, lag, dim)
    compare(program, rows, *numbers, given, processors=1, whole=whole, terms=terms, beam=beam)


def test_blocks_take_one_quad_after_another(program):
    compare(program, 700, 6, 2, 3, 1, 2, "wr", processors=1)
    compare(program, 30, 5, 6, 9, 1, 2, "w", processors=1)


def test_sequences_are_of_any_length(program):
    for groups in (1, 2, 3, 4, 200):
        compare(program, 3, groups, 4, 4, 2, 1, "ws")
        if groups > 1:
            compare(program, 3, groups, 4, 4, 2, 1, "r")


def test_gpus_with_less_shared_memory(program):
    """Costs that do not fit stay in global memory; blocks of fewer quads where those fit."""
    compare(program, 9, 9, 5, 8, 2, 2, "wr", processors=1, shared=99)
    compare(program, 5, 9, 5, 8, 2, 1, "wse", processors=1, shared=99)
    compare(program, 30, 4, 8, 9, 1, 2, "-", processors=1, shared=48)


def test_rings_of_the_library_s_size(program):
    compare(program, 4, 64, 4, 8, 2, 2, "r")


@pytest.mark.parametrize("beam", [0, 5])
def test_states_that_are_none_count_modulo_their_number(program, beam):
    x, table = torch.randn(4, 20), torch.randn(8, 2, 2)
    states = torch.tensor([9, 15, -7, 8], dtype=torch.int32)
    inside = torch.tensor([1, 7, -1, 0], dtype=torch.int32)
    expected = torch.ops.pvq.overlap_search(x, table, 2, 1, None, inside, inside, beam=beam)
    found = emulate(program, x, table, 2, 1, None, states, states, False, beam, 0.0, 1)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("beam", [0, 5])
def test_what_is_not_finite_ends(program, value, beam):
    """Symbols are some symbols; those of other sequences are not disturbed."""
    x, table = torch.randn(4, 12), torch.randn(8, 2, 2)
    expected = torch.ops.pvq.overlap_search(x, table, 2, 1, ring=True, beam=beam)
    x[2, 5] = value
    symbol, began, cost = emulate(program, x, table, 2, 1, None, None, None, True, beam, 0.0, 1)
    assert (symbol < 4).all()
    assert ((began >= 0) & (began < 8)).all()
    others = torch.arange(4) != 2
    for a, b in zip((symbol, began, cost), expected, strict=True):
        assert torch.equal(a[others], b[others])
