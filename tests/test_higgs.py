"""HIGGS grids against theory and published errors; its search and scales against brute force."""

import functools
import math

import numpy as np
import pytest
import torch

from pvq import PVQConfig, quantize_tensor
from pvq.codes.higgs import HiggsCode, grids, nearest_points, sizes
from pvq.codes.radix import word_shape

# Mean square error of the best scalar quantizers of a standard normal (Max 1960).
LLOYD_MAX = {2: 0.3634, 4: 0.1175, 8: 0.03455, 16: 0.009501, 32: 0.002505, 64: 0.000644}
# Larger grids, k-means on a million samples, measured independently: allowed errors.
MEASURED = {(2, 16): 0.1086, (2, 64): 0.0299, (2, 256): 0.0078, (3, 64): 0.1015, (3, 512): 0.0272,
            (4, 16): 0.3460, (4, 256): 0.0969, (4, 4096): 0.0263}  # fmt: skip
# Least normalised second moments: interval, hexagon; bounds from the sphere for 3 and 4.
SECOND_MOMENT = {1: 1 / 12, 2: 5 / (36 * math.sqrt(3))}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sphere_moment(p: int) -> float:
    """Normalised second moment of a ball, which no cell of p dimensions is below."""
    volume = math.pi ** (p / 2) / math.gamma(p / 2 + 1)
    return 1 / ((p + 2) * volume ** (2 / p))


def zador(p: int, n: int) -> float:
    """Error a weight of many points: G * (integral of f^(p/(p+2)))^((p+2)/p) * n^(-2/p)."""
    shape = 2 * math.pi * ((p + 2) / p) ** ((p + 2) / 2)
    return SECOND_MOMENT.get(p, sphere_moment(p)) * shape * n ** (-2 / p)


@functools.cache
def error(p: int, n: int) -> float:
    grid = grids()[p, n]
    x = gaussian(1 << 16, p, seed=11)
    quantized = grid[nearest_points(x, grid, None)[:, 0]]
    return float((x - quantized).square().mean() / x.square().mean())


@pytest.mark.parametrize("n", sizes(1))
def test_scalar_grids_are_lloyd_max(n):
    grid = grids()[1, n].double().numpy()[:, 0]
    assert (np.diff(grid) > 0).all()
    np.testing.assert_allclose(grid, -grid[::-1], atol=1e-6)
    # Every level is the mean of its cell: 2^-11 is the rounding of the file.
    edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    mass = np.diff([0.5 * (1 + math.erf(e / math.sqrt(2))) for e in edges])
    np.testing.assert_allclose(grid, -np.diff(density) / mass, rtol=2e-3, atol=1e-6)
    if n in LLOYD_MAX:
        means = -np.diff(density) / mass
        assert 1 - (means**2 * mass).sum() == pytest.approx(LLOYD_MAX[n], rel=3e-3)


@pytest.mark.parametrize(("p", "n"), [key for key in grids() if key[0] > 1])
def test_grids_are_trained(p, n):
    grid = grids()[p, n]
    assert grid.shape == (n, p)
    assert len({tuple(point) for point in grid.tolist()}) == n
    assert grid.mean(0).norm() < 0.25
    if n > 100:  # the asymptotic law is within some per cent, from above and from below
        assert 0.9 < error(p, n) / zador(p, n) < 1.25
    if (p, n) in MEASURED:
        assert error(p, n) < 1.015 * MEASURED[p, n]


@pytest.mark.parametrize("p", [2, 3, 4])
def test_more_points_and_dimensions_are_better(p):
    errors = [error(p, n) for n in sizes(p)]
    assert errors == sorted(errors, reverse=True)
    ratios = [e * n ** (2 / p) for e, n in zip(errors, sizes(p), strict=True)]
    assert ratios[-1] < 0.0095 * 4**4, "less than a scalar grid of 4 bits wastes"


@pytest.mark.parametrize(("p", "n"), [(1, 9), (2, 86), (3, 64), (4, 256)])
@pytest.mark.parametrize("cols", [12, 13, 15, 18])
def test_the_nearest_point_by_brute_force(p, n, cols):
    grid, x = grids()[p, n].double(), gaussian(7, cols)
    number = nearest_points(x, grid.float(), None)
    assert number.shape == (7, -(-cols // p))
    for i in range(number.shape[1]):
        part = x[:, i * p : (i + 1) * p].double()
        every = (part[:, None] - grid[None, :, : part.shape[1]]).square().sum(-1)
        got = every.gather(1, number[:, i : i + 1])[:, 0]
        assert (got <= every.amin(1) + 1e-5).all()


@pytest.mark.parametrize(("p", "n"), [(2, 86), (3, 64), (4, 256)])
def test_the_nearest_point_under_a_metric_by_brute_force(p, n):
    grid, x = grids()[p, n], gaussian(50, p)
    a = gaussian(p, 2 * p, seed=3)
    metric = a @ a.T
    number = nearest_points(x, grid, metric)[:, 0]
    difference = (x[:, None] - grid).double()
    every = torch.einsum("vni,ij,vnj->vn", difference, metric.double(), difference)
    assert (every.gather(1, number[:, None])[:, 0] <= every.amin(1) * (1 + 1e-4) + 1e-5).all()
    assert (number != nearest_points(x, grid, None)[:, 0]).any()


@pytest.mark.parametrize("group", [16, 40, 96, 1024])
def test_a_scale_is_the_root_mean_square_of_its_group(group):
    w = gaussian(5, 96) * torch.arange(1, 6)[:, None]
    scale = HiggsCode(2, 16, group).quantize(w)["scale"].double().numpy()
    starts = range(0, 96, group)
    expected = [np.sqrt((w.double().numpy()[:, s : s + group] ** 2).mean(1)) for s in starts]
    np.testing.assert_allclose(scale, np.stack(expected, 1), rtol=2**-8)


def test_decoding_follows_the_definition():
    code = HiggsCode(2, 86, 64)
    w = gaussian(3, 100)
    stored = code.quantize(w)
    digits, bits = word_shape(86)
    flat = np.unpackbits(stored["code"].numpy(), axis=1, bitorder="little")
    grid, scale = grids()[2, 86].double().numpy(), stored["scale"].double().numpy()
    decoded = np.zeros((3, 100))
    for row in range(3):
        for vector in range(50):
            at = vector // digits * bits
            word = sum(int(bit) << i for i, bit in enumerate(flat[row, at : at + bits]))
            point = grid[word // 86 ** (vector % digits) % 86]
            for i in range(2):
                column = 2 * vector + i
                decoded[row, column] = point[i] * scale[row, column // 64]
    np.testing.assert_allclose(code.decode(stored, 100).numpy(), decoded, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "n", "bits"), [(1, 16, 4), (2, 256, 4), (2, 86, 45 / 14), (3, 64, 2), (4, 256, 2)]
)
def test_error_and_rate_of_a_matrix(p, n, bits):
    w = gaussian(64, 9216)
    tensor = quantize_tensor(w, PVQConfig(code="higgs", p=p, n=n))
    assert tensor.bits_per_weight == pytest.approx(bits + 16 / 1024, abs=6e-3)
    assert tensor.relative_error(w) == pytest.approx(error(p, n), rel=0.015)


def test_the_last_vector_of_a_row_is_counted_whole():
    tensor = quantize_tensor(gaussian(3, 16), PVQConfig(code="higgs", p=3, n=64, rotation="none"))
    digits, bits = word_shape(64)
    assert tensor.stored["code"].shape == (3, (-(-6 // digits) * bits + 7) // 8)


def test_bits_takes_the_largest_grid_within():
    assert PVQConfig(code="higgs") == PVQConfig(code="higgs", p=2, n=256)
    assert PVQConfig(4, code="higgs", p=1).code.n == 16
    assert PVQConfig(3.25, code="higgs").code.n == 90
    assert PVQConfig(3.25, code="higgs").replace(p=1).code.n == 9
    for p in (1, 2, 3, 4):
        codes = HiggsCode.ladder(0, 9, p=p)
        assert [code.n for code in codes] == list(sizes(p))
        assert [code.rate for code in codes] == sorted(code.rate for code in codes)
        for code in codes:
            assert math.log2(code.n) / p <= code.bits < math.log2(code.n) / p + 0.12


def test_damaged_codes_are_refused():
    code = HiggsCode(2, 86)
    stored = code.quantize(gaussian(2, 64))
    stored["code"][:] = 255
    with pytest.raises(RuntimeError, match="damaged"):
        code.dequantize(stored, 64)


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ({"p": 5}, ValueError, "p is 5, expected 1 to 4"),
        ({"p": 0}, ValueError, "p is 0, expected 1 to 4"),
        ({"p": 2.0}, TypeError, r"p is 2\.0"),
        ({"n": 257}, ValueError, "n=257 has no grid with p=2: choose one of 4, .* 256, "),
        ({"n": 256, "bits": 4}, ValueError, "both given"),
        ({"bits": 4.25, "p": 4}, ValueError, r"bits=4\.25 is out of reach .* p=4: choose from"),
        ({"bits": 0.5}, ValueError, "out of reach"),
        ({"bits": "4"}, TypeError, "bits is '4'"),
        ({"group": 0}, ValueError, "group is 0"),
        ({"gain_bits": 2}, ValueError, "unknown choice 'gain_bits'"),
    ],
)
def test_choices_are_checked(choices, error, text):
    with pytest.raises(error, match=text):
        PVQConfig(code="higgs", **choices)
