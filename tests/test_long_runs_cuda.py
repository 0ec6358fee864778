"""Products whose blocks go round their ring of codes many times give the same bits every time.

Copies into the ring once came before the last reads of what had been there: one product in a
hundred had some rows a few per cent wrong, which no bound on the error of a whole product shows.
"""

import pytest
import torch
from test_table_matmul_cuda import relative_error

import pvq
from pvq.codes.overlap import trellis
from pvq.codes.overlap_fragments import OverlapFragments

ops = torch.ops.pvq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ROWS, COLS = 8192, 28672  # three or four tiles to a block of an H200, half a megabyte
TIMES = 200


def random_codes(cols_per_byte):
    random = torch.Generator("cuda").manual_seed(1)
    shape = (ROWS, round(COLS / cols_per_byte))
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8, device="cuda")


def check(product, weights, tokens, bound):
    """`product` of some activations is near that with the `weights`, and always the same."""
    random = torch.Generator("cuda").manual_seed(tokens)
    x = torch.randn(tokens, COLS, generator=random, device="cuda").half()
    first = product(x)
    assert relative_error(first, (x.double() @ weights.double().T).cpu()) < bound
    different = torch.zeros((), dtype=torch.long, device="cuda")
    for _ in range(TIMES):
        different += (product(x) != first).any()
    assert int(different) == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 200])
def test_tables(bits, tokens):
    low = 0 if bits == 3 else -15  # where signs are apart
    random = torch.Generator().manual_seed(bits)
    shape = (256, 2 if bits == 4 else 4)
    table = torch.randint(low, 16, shape, generator=random, dtype=torch.int8)
    fragments = ops.table_fragments(random_codes(8 / bits), table, bits)
    scale = torch.full((ROWS,), 2.0**-10, device="cuda", dtype=torch.bfloat16)
    check(
        lambda x: ops.table_matmul_fragments(x, fragments, scale, bits, 0, 0),
        ops.table_expand(fragments, scale, bits, torch.float16),
        tokens,
        0.01,
    )


@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.5, 4])
@pytest.mark.parametrize("tokens", [1, 3, 4, 6, 8, 16, 64, 200])
def test_overlapping_pyramids(bits, tokens):
    stored = {"code": random_codes(8 / bits)}
    fragments = OverlapFragments(trellis(bits)).of_stored(stored, (ROWS, COLS))["fragments"]
    scale = torch.full((ROWS,), 2.0**-10, device="cuda", dtype=torch.bfloat16)
    numbers = round(2 * bits)
    check(
        lambda x: ops.overlap_matmul_fragments(x, fragments, scale, numbers, 0, 0),
        ops.overlap_expand(fragments, scale, numbers, torch.float16),
        tokens,
        0.01,
    )


@pytest.mark.parametrize("layout", ["fragments", "index"])
@pytest.mark.parametrize("tokens", [1, 8, 16, 64])
def test_pyramids(layout, tokens):
    w = torch.randn(ROWS, COLS, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    quantized = pvq.quantize_tensor(w, pvq.PVQConfig(3.25, dim=16, rotation="none"))
    layer = pvq.PVQLinear.from_tensor(quantized).prepare(layout)
    check(layer, quantized.dequantize(), tokens, 1e-3)
