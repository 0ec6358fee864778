"""Fragments of overlapping-pyramid codes: their layout, and fused products on the GPU."""

import numpy as np
import pytest
import torch
from test_table_matmul_cuda import activations, relative_error, rotate

import pvq
from pvq.codes.overlap import trellis
from pvq.codes.overlap_fragments import OverlapFragments, pack, table_bytes, unpack

ops = torch.ops.pvq
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
BITS = [2, 2.5, 3, 3.5, 4]


def random_overlap_code(rows, cols, bits, seed=0):
    """Stored code, row scales, and the matrix that they mean, float64."""
    numbers = trellis(bits)
    random = torch.Generator().manual_seed(seed)
    code = torch.randint(0, 256, (rows, round(cols * bits) // 8), generator=random).byte()
    scale = (2.0 ** torch.randint(-8, -4, (rows,), generator=random)).bfloat16()
    w = ops.overlap_dequantize(code, scale, numbers.table, *numbers.numbers, cols, torch.float64)
    return code, scale, w


def fragments_of(code, bits, cols, device="cpu"):
    return OverlapFragments(trellis(bits)).of_stored({"code": code.to(device)}, (len(code), cols))[
        "fragments"
    ]


def run(x, code, scale, bits, block=0, seed=0, residual=False):
    fragments = fragments_of(code, bits, x.shape[-1], "cuda")
    return ops.overlap_matmul_fragments(
        x.cuda(), fragments, scale.cuda(), round(2 * bits), block, seed, residual
    )


@pytest.mark.parametrize("bits", BITS)
def test_the_layout_is_the_documented_one(bits):
    """csrc/cuda/overlap_decode.cuh, a lane at a time."""
    rows, chunks, step = 40, 3, round(2 * bits)
    code = random_overlap_code(rows, 128 * chunks, bits)[0]
    tiles = pack(code, step)
    assert tiles.shape == (3, chunks, 128 * step)
    padded = torch.cat([code, code.new_zeros(8, code.shape[1])])
    for row in range(48):
        for chunk in range(chunks):
            for quarter in range(4):
                lane, upper = row % 8 * 4 + quarter, row % 16 // 8
                at = chunk * 8 * step + quarter * 2 * step
                own = padded[row, at : at + 2 * step]
                there = tiles[row // 16, chunk]
                words = step // 2
                for i in range(words):
                    alone = words % 2 == 1 and i == words - 1
                    place = (
                        256 * i + 8 * lane if alone else 256 * (i & ~1) + 16 * lane + 8 * (i & 1)
                    )
                    place += 4 * upper
                    assert torch.equal(there[place : place + 4], own[4 * i : 4 * i + 4])
                if step % 2:
                    place = 256 * words + 4 * lane + 2 * upper
                    assert torch.equal(there[place : place + 2], own[4 * words :])


def test_lanes_have_symbols_and_further_bits_apart():
    """With a spread: of 32 columns eight symbols, then four bytes of a bit for each group."""
    random = torch.Generator().manual_seed(0)
    symbol = torch.randint(0, 1 << 12, (5, 16), generator=random)
    bits = (symbol[..., None] >> torch.arange(12) & 1).flatten(1).view(5, 24, 8)
    code = (bits << torch.arange(8)).sum(2).byte()
    form = OverlapFragments(trellis(3))
    lanes = form._lanes_of(code).view(5, 2, 12)
    for row in range(5):
        for lane in range(2):
            groups = symbol[row, 8 * lane : 8 * lane + 8]
            assert lanes[row, lane, :8].tolist() == (groups & 255).tolist()
            for k in range(4):
                above = groups >> (8 + k) & 1
                assert int(lanes[row, lane, 8 + k]) == int((above << torch.arange(8)).sum())
    assert torch.equal(form._stored_of(lanes.view(5, 24)), code)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_the_way_back_is_exact(bits, rows):
    code = random_overlap_code(rows, 384, bits)[0]
    form = OverlapFragments(trellis(bits))
    fragments = {"fragments": fragments_of(code, bits, 384)}
    assert fragments["fragments"].numel() == form.header + -(-rows // 16) * 3 * 256 * bits
    assert torch.equal(form.to_stored(fragments, (rows, 384))["code"], code)
    assert torch.equal(unpack(pack(code, round(2 * bits)), round(2 * bits))[:rows], code)
    assert form.of_stored({"code": code}, (rows, 400)) is None


@pytest.mark.parametrize("bits", BITS)
def test_words_of_the_table_add_up_without_carries(bits):
    table, spread = trellis(bits).table, trellis(bits).spread
    words = table_bytes(table, spread)
    assert words.shape == (len(table), 4)
    if spread:
        every = words[:, None].int() + 12 * (words[None].int() & 7) + spread
        assert int(every.min()) - spread >= 0
        assert int(every.max()) + spread <= 255
    elif table.shape[2] == 4:
        word = words.numpy().view("<u4").astype(np.int64)[:, 0]
        sums = word[:, None] + (word[None] << 4 & 0xFFFFFFFF)
        assert sums.max() < 1 << 32
        every = torch.from_numpy(sums.astype("<u4").view(np.uint8).reshape(*sums.shape, 4)).int()
    else:
        every = words[:, None, :2].int() + words[None, :, 2:].int()
        assert every.max() <= 255
    exact = table[:, None, 0].int() + table[None, :, 1].int()
    assert torch.equal(every - 128, exact)


def tied_table() -> torch.Tensor:
    """Groups of four whose points fit, int8 [256, 2, 4]."""
    words = torch.randint(0, 8, (256, 2, 4), generator=torch.Generator().manual_seed(1)).byte()
    first = 16 * words[:, 0] + words[:, 1]
    second = torch.from_numpy((first.numpy().view("<u4") << 4).view(np.uint8))
    return torch.stack([first, second], 1).short().sub(64).to(torch.int8)


def test_a_table_that_does_not_fit_is_refused():
    table = torch.zeros(256, 2, 2, dtype=torch.int8)
    table[0, 0], table[1, 1] = 100, 60
    with pytest.raises(ValueError, match="table"):
        table_bytes(table)
    table = tied_table()
    assert torch.equal(table_bytes(table).short(), table[:, 0].short() + 64)
    table[3, 1, 2] += 1
    with pytest.raises(ValueError, match="second points"):
        table_bytes(table)
    table = torch.full((256, 2, 4), -64, dtype=torch.int8)
    table[0, 0, 3], table[0, 1, 3] = 0x7B - 64, 0xB0 - 64  # 0x7B + 0xB0 is no byte
    with pytest.raises(ValueError, match="do not fit a byte"):
        table_bytes(table)


def test_a_table_that_does_not_fit_its_spread_is_refused():
    table = trellis(3).table.clone()
    with pytest.raises(ValueError, match="spread is 20, expected 24"):
        table_bytes(table, 20)
    table[3, 0, 2], table[3, 1, 2] = 67, 40  # bytes 127 and 84
    with pytest.raises(ValueError, match="sums with the bias of 128 and the spread"):
        table_bytes(table, 24)
    table[3, 1, 2] += 1
    with pytest.raises(ValueError, match="second points that are not 12 times"):
        table_bytes(table, 24)


@gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 9, 16, 17, 33, 64, 150])
@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [
        (16, 128, 0), (40, 256, 128), (300, 1024, 1024), (2304, 512, 512), (4096, 4096, 256),
        (64, 14336, 1024), (48, 28672, 512), (24, 11008, 256), (530, 640, 32),
    ],
)  # fmt: skip
def test_products(bits, tokens, rows, cols, block):
    code, scale, w = random_overlap_code(rows, cols, bits, seed=rows)
    x = activations(tokens, cols)
    expected = rotate(x.double(), block, 7) @ w.T
    # 0.7 % as a rule, more or less where there are few outputs.
    allowed = 1e-2 if rows * tokens > 100 else 2e-2
    assert relative_error(run(x, code, scale, bits, block, 7), expected) < allowed
    assert relative_error(run(x, code, scale, bits, block, 7, residual=True), expected) < 1e-3


@gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [40, 64])
def test_long_groups_are_cut_between_blocks(bits, tokens):
    code, scale, w = random_overlap_code(2112, 24576, bits, seed=1)
    x = activations(tokens, 24576)
    expected = rotate(x.double(), 256, 7) @ w.T
    assert relative_error(run(x, code, scale, bits, 256, 7), expected) < 1e-2


@gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expansion_is_exact(bits, dtype):
    code, scale, w = random_overlap_code(300, 1024, bits)
    fragments = fragments_of(code, bits, 1024, "cuda")
    found = ops.overlap_expand(fragments, scale.cuda(), round(2 * bits), dtype)
    assert torch.equal(found.cpu(), w.to(dtype))


@gpu
@pytest.mark.parametrize("bits", BITS)
def test_a_layer_takes_fragments_and_gives_its_code_back(bits):
    w = torch.randn(300, 1024, generator=torch.Generator().manual_seed(3))
    config = pvq.PVQConfig(code="overlap", bits=bits)
    layer = pvq.PVQLinear.from_tensor(pvq.quantize_tensor(w, config))
    stored = {name: t.clone() for name, t in layer.state_dict().items()}
    dense = layer.dequantize()
    layer = layer.cuda()
    assert layer.layout == "fragments"
    for tokens in (1, 5, 40):
        x = activations(tokens, 1024)
        for activation, allowed in (("int8", 1e-2), ("int8x2", 2e-3), ("float", 2e-3)):
            layer.prepare(activations=activation)
            y = layer(x.cuda())
            assert relative_error(y, x.double() @ dense.double().T) < allowed
        assert relative_error(layer(x.float().cuda()), x.double() @ dense.double().T) < 1e-4
    held = layer.state_dict()
    assert set(held) == set(stored)
    assert all(torch.equal(held[name].cpu(), stored[name]) for name in stored)


@gpu
def test_products_are_captured_in_graphs_and_deterministic():
    code, scale, _ = random_overlap_code(4096, 4096, 2.5)
    fragments, scale = fragments_of(code, 2.5, 4096, "cuda"), scale.cuda()
    for tokens in (1, 4, 40, 200):
        x = activations(tokens, 4096).cuda()
        first = ops.overlap_matmul_fragments(x, fragments, scale, 5, 128, 1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = ops.overlap_matmul_fragments(x, fragments, scale, 5, 128, 1)
        for _ in range(5):
            graph.replay()
            assert torch.equal(y, first)


@gpu
def test_gradients_are_those_of_the_dense_product():
    code, scale, w = random_overlap_code(96, 256, 3)
    fragments = fragments_of(code, 3, 256, "cuda")
    x = activations(5, 256).cuda().requires_grad_()
    y = ops.overlap_matmul_fragments(x, fragments, scale.cuda(), 6, 128, 3)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).half().cuda()
    y.backward(g)
    dense = rotate(torch.eye(256).double(), 128, 3) @ w.T
    assert relative_error(x.grad, g.double().cpu() @ dense.T) < 5e-3


@gpu
def test_bad_input():
    code, scale, _ = random_overlap_code(40, 256, 2)
    fragments, scale = fragments_of(code, 2, 256, "cuda"), scale.cuda()
    x = activations(2, 256).cuda()
    with pytest.raises(RuntimeError, match="pair_bits"):
        ops.overlap_matmul_fragments(x, fragments, scale, 9)
    with pytest.raises(RuntimeError, match="fragments has"):
        ops.overlap_matmul_fragments(x, fragments[:-16], scale, 4)
    with pytest.raises(RuntimeError, match="x has shape"):
        ops.overlap_matmul_fragments(x[:, :128], fragments, scale, 4)
    with pytest.raises(RuntimeError, match="x has dtype float32"):
        ops.overlap_matmul_fragments(x.float(), fragments, scale, 4)
    with pytest.raises(RuntimeError, match="row_scale"):
        ops.overlap_matmul_fragments(x, fragments, scale.float(), 4)
    assert ops.overlap_matmul_fragments(x[:0], fragments, scale, 4).shape == (0, 40)
