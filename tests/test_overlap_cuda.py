"""The overlapping-pyramid code on a GPU: rounding as on the CPU, and products in graphs."""

import pytest
import torch

from pvq.codes.overlap import WIDTHS, OverlapCode, trellis

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("cols", [16, 128, 304])
def test_the_gpu_rounds_the_same(bits, cols):
    numbers = trellis(bits)
    x = gaussian(37, cols) / numbers.unit
    there = numbers.to(torch.device("cuda:0"))
    assert torch.equal(there.nearest(x.cuda()).cpu(), numbers.nearest(x))
    code, w = OverlapCode(bits), gaussian(24, 128)
    spread = torch.linalg.qr(gaussian(128, 128, seed=2).double()).Q
    metric = ((spread * torch.logspace(0, -2, 128, dtype=torch.float64)) @ spread.T).float()
    costs = []
    for device in ("cpu", "cuda"):
        on = w.to(device)
        error = (on - code.rounder(on).round(on, 0, metric.to(device))).double().cpu()
        costs.append(float(((error @ metric.double()) * error).sum()))
    assert costs[1] == pytest.approx(costs[0], rel=2e-2)


@pytest.mark.parametrize("bits", WIDTHS)
def test_products_can_be_captured_in_a_graph(bits):
    code, x = OverlapCode(bits), gaussian(3, 256).half().cuda()
    stored = code.quantize(gaussian(64, 256).cuda())
    expected = code.matmul(x, stored, 128, 5)
    graph, given = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        y = code.matmul(given, stored, 128, 5)
    given.copy_(x)
    graph.replay()
    assert torch.equal(y, expected)
