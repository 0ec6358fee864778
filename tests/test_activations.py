"""Activations as points of pyramids: the rounding, the integer product, layers and checkpoints."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn
from transformers import AutoModelForCausalLM

import pvq
from pvq.activations import activation_code, decoded

OPS = torch.ops.pvq
INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def normal(*shape: int, seed: int = 0, power: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) ** power


def all_points(dim: int, pulses: int) -> torch.Tensor:
    values = range(-pulses, pulses + 1)
    points = (p for p in itertools.product(values, repeat=dim) if sum(map(abs, p)) == pulses)
    return torch.tensor(list(points), dtype=torch.float64)


def awkward_groups(count: int, dim: int, seed: int) -> torch.Tensor:
    """Groups [count, dim] with ties, zeros, one value only, heavy tails, and large and tiny ones.

    In float16 some of them would overflow, so they are kept below its largest number.
    """
    x = torch.cat([normal(-(-count // 3), dim, seed=seed, power=power) for power in (1, 3, 7)])
    x = x[:count]
    x[0] = 1.5  # ties everywhere
    x[1] = 0
    x[2, 1:] = 0
    x[3] = x[3].sign() * x[3].round()
    x[4] *= 1e-7
    return x.clamp(-6e4, 6e4)


# --- the rounding ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "pulses"), [(8, 1), (8, 50), (16, 27), (64, 7), (128, 353)])
@pytest.mark.parametrize("power", [1, 3])
def test_points_are_those_of_the_pyramid_and_amplitudes_fit_best(dim, pulses, power):
    x = normal(9, 5 * dim, power=power)
    point, amplitude = OPS.activation_points(x, dim, pulses)
    assert point.dtype == torch.int16
    assert point.shape == x.shape
    assert amplitude.dtype == torch.bfloat16
    assert amplitude.shape == (9, 5)
    y, groups = point.view(9, 5, dim).double(), x.view(9, 5, dim).double()
    assert (y.abs().sum(-1) == pulses).all()
    assert (y * groups >= 0).all()
    best = (y * groups).sum(-1) / y.square().sum(-1)
    assert ((amplitude.double() - best).abs() <= best / 256).all()


@pytest.mark.parametrize(("dim", "pulses"), [(2, 5), (3, 4), (4, 3), (4, 6)])
def test_points_are_the_nearest_at_the_scale_that_fits_by_exhaustion(dim, pulses):
    x = normal(200, dim, seed=dim).double()
    points = all_points(dim, pulses)

    def nearest(unit: torch.Tensor) -> torch.Tensor:
        return points[torch.cdist(x * unit[:, None], points).argmin(1)]

    y = nearest(pulses / x.abs().sum(1))
    y = nearest(y.square().sum(1) / (x * y).sum(1))
    point, amplitude = OPS.activation_points(x.float(), dim, pulses)
    assert torch.equal(point.double(), y)
    best = (x * y).sum(1) / y.square().sum(1)
    assert torch.equal(amplitude[:, 0], best.float().bfloat16())


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_error_is_nearly_that_of_the_search(bits):
    code = activation_code(f"pyramid{bits}", 4096)
    x = normal(64, 4096)
    error = (decoded(*code.round(x)) - x).square().sum()
    groups = x.view(-1, code.dim)
    y = OPS.nearest(groups, code.pulses, 1).float()
    exact = (groups * y).sum(1, keepdim=True) / y.square().sum(1, keepdim=True)
    assert error < 1.015 * (exact * y - groups).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_takes_any_dtype_strides_and_sizes(dtype):
    x = normal(6, 4, 64).to(dtype)
    expected = OPS.activation_points(x.float(), 32, 50)
    for got in (
        OPS.activation_points(x, 32, 50),
        OPS.activation_points(x.transpose(0, 1).contiguous().transpose(0, 1), 32, 50),
    ):
        assert all(map(torch.equal, got, expected))
    empty = OPS.activation_points(x[:0], 32, 50)
    assert [list(t.shape) for t in empty] == [[0, 4, 64], [0, 4, 2]]
    single = OPS.activation_points(x[0, 0], 64, 50)
    assert torch.equal(single[0], OPS.activation_points(x[:1, 0], 64, 50)[0][0])


def test_zeros_and_extremes():
    x = torch.zeros(5, 16)
    x[1, 3] = -1e38
    x[2, :] = 1e-38
    x[3, :2] = torch.tensor([3e38, 3e38])
    x[4, 7] = 1e-44
    point, amplitude = OPS.activation_points(x, 16, 20)
    assert point[0].abs().sum() == 0
    assert amplitude[0] == 0
    assert point[1:].abs().sum(1).tolist() == [20] * 4
    assert point[1, 3] == -20
    for row in (1, 3):
        assert torch.allclose(decoded(point, amplitude)[row], x[row], rtol=2**-8)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    x = normal(3, 32)
    x[2, 31] = bad
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        OPS.activation_points(x, 16, 20)


@pytest.mark.parametrize(
    ("x", "dim", "pulses", "text"),
    [
        (normal(2, 30), 16, 20, "multiple of dim = 16"),
        (normal(2, 32).double(), 16, 20, "float64"),
        (normal(2, 32), 0, 20, "dim is 0"),
        (normal(2, 512), 512, 20, "dim is 512"),
        (normal(2, 32), 16, 0, "pulses is 0"),
        (normal(2, 32), 16, 5000, "pulses is 5000"),
        (torch.tensor(1.0), 1, 1, "shape"),
    ],
)
def test_rounding_refuses_bad_arguments(x, dim, pulses, text):
    with pytest.raises(RuntimeError, match=text):
        OPS.activation_points(x, dim, pulses)


# --- the product -------------------------------------------------------------------------------

# (weights' dim, pulses, rows, cols, power of the weights: high ones have outliers, points' dim)
MATRICES = [
    (16, 27, 130, 640, 1, 128),
    (16, 27, 17, 256, 5, 64),  # 4-bit planes with many outliers
    (16, 58, 33, 256, 1, 128),  # 8-bit planes
    (16, 1000, 16, 128, 5, 32),  # 8-bit planes with many outliers
    (8, 10, 5, 72, 1, 8),
    (64, 96, 31, 192, 1, 64),
    (24, 40, 15, 240, 1, 120),
]


def matrix(dim, pulses, rows, cols, power):
    w = 0.02 * normal(rows, cols, seed=rows, power=power)
    w[rows // 2] = 0
    code = (*OPS.quantize(w, dim, pulses, 4, "lloyd"), dim, pulses, 4, "lloyd", cols)
    return OPS.dequantize(*code, torch.float32).double(), (*OPS.to_planes(*code), rows, dim)


def products() -> dict[tuple[int, ...], torch.Tensor]:
    """Every product of MATRICES by its number, pulses and number of tokens."""
    results = {}
    for number, (dim, pulses, rows, cols, power, points_dim) in enumerate(MATRICES):
        _, planes = matrix(dim, pulses, rows, cols, power)
        for activation_pulses in (100, 4096):  # integers of one and of two bytes
            for tokens in (1, 3, 8, 9, 20):
                x = normal(tokens, cols, seed=tokens, power=3)
                point, amplitude = OPS.activation_points(x, points_dim, activation_pulses)
                key = (number, activation_pulses, tokens)
                results[key] = OPS.matmul_planes_points(point, amplitude, *planes, torch.float32)
                results[(*key, 0)] = point
    return results


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("activation_pulses", [100, 4096])
@pytest.mark.parametrize(("dim", "pulses", "rows", "cols", "power", "points_dim"), MATRICES)
def test_the_product_is_that_of_what_the_points_stand_for(
    dim, pulses, rows, cols, power, points_dim, activation_pulses, tokens
):
    w, planes = matrix(dim, pulses, rows, cols, power)
    x = normal(tokens, cols, seed=tokens, power=3)
    point, amplitude = OPS.activation_points(x, points_dim, activation_pulses)
    got = OPS.matmul_planes_points(point, amplitude, *planes, torch.float32)
    values = point.double() * amplitude.double().repeat_interleave(points_dim, 1)
    assert got.shape == (tokens, rows)
    # Integer sums are exact; what rounds is one product and one sum a group of weights.
    bound = (cols / dim + 4) * 2**-24 * (values.abs() @ w.abs().T)
    assert ((got.double() - values @ w.T).abs() <= bound).all()


def test_integer_sums_are_exact():
    """One group with scales that are powers of two: no rounding at all may happen."""
    dim, rows = 16, 16
    index = OPS.encode(OPS.nearest(normal(rows, 1, dim), 27, 1), 27)
    code = (index, torch.zeros(rows, 0, dtype=torch.uint8), torch.ones(rows, dtype=torch.bfloat16))
    code = (*code, dim, 27, 0, "lloyd", dim)
    planes, scale, *outliers = OPS.to_planes(*code)
    y = OPS.decode(index, dim, 27, 1)[:, 0].double()
    x = torch.from_numpy(np.random.default_rng(0).integers(-4096, 4097, (40, dim))).to(torch.int16)
    ones = torch.ones(40, 1, dtype=torch.bfloat16)
    lists = [torch.zeros_like(outliers[0]), outliers[1][:0], outliers[2][:0]]
    got = OPS.matmul_planes_points(
        x, ones, planes, torch.ones_like(scale), *lists, rows, dim, torch.float32
    )
    assert torch.equal(got.double(), x.double() @ y.clamp(-8, 7).T)


def test_every_instruction_set_rounds_alike_and_multiplies_as_well(tmp_path):
    results = {}
    for name in INSTRUCTION_SETS:
        file = tmp_path / name
        subprocess.run(
            [sys.executable, __file__, file], check=True,
            env={**os.environ, "PVQ_CPU": name},
        )  # fmt: skip
        results[name] = torch.load(file)
    for name in INSTRUCTION_SETS[1:]:
        for key, got in results[name].items():
            expected = results["portable"][key]
            if got.dtype == torch.int16:
                assert torch.equal(got, expected)
            else:
                assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_the_product_takes_any_shape_and_dtype():
    w, planes = matrix(16, 27, 20, 256, 1)
    x = normal(2, 3, 256)
    point, amplitude = OPS.activation_points(x, 128, 300)
    expected = decoded(point, amplitude).double() @ w.T
    for dtype, eps in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)):
        got = OPS.matmul_planes_points(point, amplitude, *planes, dtype)
        assert got.dtype == dtype
        assert (got.double() - expected).abs().max() <= eps * expected.abs().max()
    strided = point.transpose(0, 1).contiguous().transpose(0, 1)
    again = OPS.matmul_planes_points(strided, amplitude, *planes, torch.float32)
    assert torch.equal(again, OPS.matmul_planes_points(point, amplitude, *planes, torch.float32))
    one = OPS.matmul_planes_points(point[0, 0], amplitude[0, 0], *planes, torch.float32)
    assert one.shape == (20,)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_the_product_of_no_columns_and_of_no_rows():
    layer = layer_of(5, 0, pvq.PVQConfig()).prepare("planes", "pyramid4")
    assert torch.equal(layer(torch.zeros(3, 0)), layer.bias.expand(3, 5))
    layer = layer_of(0, 64, pvq.PVQConfig()).prepare("planes", "pyramid4")
    assert layer(normal(3, 64)).shape == (3, 0)


def test_the_product_refuses_what_does_not_fit():
    _, planes = matrix(16, 27, 20, 256, 1)
    point, amplitude = OPS.activation_points(normal(3, 256), 128, 300)
    cases = [
        ((point[:, :128], amplitude), "expected \\[..., 256\\]"),
        ((point.int(), amplitude), "int32"),
        ((point, amplitude.float()), "float32"),
        ((point, amplitude[:2]), "amplitude has shape"),
        ((point, amplitude[:, :0]), "amplitude has shape"),
        ((point.sign() * 5000, amplitude), "most pulses, 4096"),
        ((point, amplitude.repeat_interleave(16, 1)), "multiple of dim = 16"),
    ]
    for arguments, text in cases:
        with pytest.raises(RuntimeError, match=text):
            OPS.matmul_planes_points(*arguments, *planes, torch.float32)
    with pytest.raises(RuntimeError, match="int64"):
        OPS.matmul_planes_points(point, amplitude, *planes, torch.int64)
    damaged = list(planes)
    damaged[2] = damaged[2] + 1000  # outlier_start
    if planes[3].numel():
        with pytest.raises(RuntimeError, match="damaged"):
            OPS.matmul_planes_points(point, amplitude, *damaged, torch.float32)


# --- layers ------------------------------------------------------------------------------------


def layer_of(rows: int, cols: int, config: pvq.PVQConfig) -> pvq.PVQLinear:
    torch.manual_seed(rows)
    return pvq.PVQLinear.from_linear(nn.Linear(cols, rows), config)


CONFIGS = [
    (pvq.PVQConfig(3.25), "stored"),
    (pvq.PVQConfig(3.25), "planes"),
    (pvq.PVQConfig(4.25, dim=8), "planes"),
    (pvq.PVQConfig(dim=12, pulses=20), "planes"),  # no integer product
    (pvq.PVQConfig(3.25, rotation="none"), "planes"),
    (pvq.PVQConfig(code="table", bits=4), "stored"),
    (pvq.PVQConfig(code="uniform", bits=4), "stored"),
]


@pytest.mark.parametrize(("config", "layout"), CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_multiplies_rounded_activations(config, layout, dtype):
    cols = 384
    layer = layer_of(40, cols, config).prepare(layout, "pyramid4")
    x = normal(2, 5, cols).to(dtype)
    code = activation_code("pyramid4", cols)
    block = layer.config.hadamard_block
    rotated = pvq.rotation.rotate(x.float(), block, 0) if block else x.float()
    values = decoded(*code.round(rotated))
    if block:
        values = pvq.rotation.rotate(values, block, 0, inverse=True)
    expected = values.double() @ layer.dequantize().double().T + layer.bias.double()
    exact = x.double() @ layer.dequantize().double().T + layer.bias.double()
    got = layer(x)
    assert got.dtype == dtype
    eps = 1e-5 if dtype == torch.float32 else 2**-6
    assert (got.double() - expected).abs().max() <= eps * expected.abs().max()
    error = (expected - exact).square().sum() / exact.square().sum()
    assert 1e-3 < error < 0.02  # and it is rounding, not nothing
    assert layer.bits_per_activation == code.bits


def test_the_error_falls_four_times_with_every_bit():
    layer = layer_of(64, 512, pvq.PVQConfig(4.25)).prepare("planes")
    x = normal(100, 512)
    exact = layer(x)
    errors = []
    for bits in range(2, 8):
        layer.prepare("planes", f"pyramid{bits}")
        errors.append(((layer(x) - exact).square().sum() / exact.square().sum()).item())
    for coarse, fine in itertools.pairwise(errors):
        assert 3.6 < coarse / fine < 4.4
    layer.prepare("planes", "float")
    assert torch.equal(layer(x), exact)
    assert layer.bits_per_activation is None


@pytest.mark.parametrize(("config", "layout"), CONFIGS)
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_have_a_product_and_a_gradient(config, layout, shape, dtype):
    layer = layer_of(40, 384, config).prepare(layout, "pyramid4")
    x = torch.zeros(*shape, 384, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        assert layer(x).shape == (*shape, 40)
    y = layer(x)
    assert y.shape == (*shape, 40)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_gradients_take_the_rounding_for_the_identity(layout):
    layer = layer_of(24, 128, pvq.PVQConfig(3.25)).prepare(layout)
    x = normal(3, 128).requires_grad_()
    g = normal(3, 24, seed=1)
    (expected,) = torch.autograd.grad(layer(x), x, g)
    with torch.no_grad():
        rounded = layer.prepare(layout, "pyramid3")(x)
    y = layer(x)
    assert torch.allclose(y, rounded, rtol=1e-4, atol=1e-5)
    (got,) = torch.autograd.grad(y, x, g)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_layer_does_the_same():
    layer = layer_of(24, 128, pvq.PVQConfig(3.25)).prepare("planes", "pyramid4")
    x = normal(3, 128)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), layer(x))


def test_operators_have_fake_rules():
    point, amplitude = OPS.activation_points(normal(3, 256), 128, 300)
    _, planes = matrix(16, 27, 20, 256, 1)
    torch.library.opcheck(OPS.activation_points, (normal(3, 256), 128, 300))
    torch.library.opcheck(OPS.matmul_planes_points, (point, amplitude, *planes, torch.bfloat16))


def test_tied_heads_round_their_activations(small_llama):
    model = small_llama(tie_word_embeddings=True)
    config = pvq.PVQConfig(4.25, activations="pyramid4")
    pvq.quantize_model(model, config, embeddings=True, head=True, progress=False)
    x = normal(3, 64)
    table = model.get_input_embeddings()
    values = decoded(*activation_code("pyramid4", 64).round(pvq.rotation.rotate(x, 64, 0)))
    expected = pvq.rotation.rotate(values, 64, 0, inverse=True) @ table.dequantize().T
    assert torch.allclose(model.lm_head(x), expected, rtol=1e-4, atol=1e-5)


# --- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cols", [32, 96, 576, 4096, 11008])
@pytest.mark.parametrize("bits", [2, 2.5, 3, 4, 6, 8])
def test_the_rate_is_what_was_asked_for(bits, cols):
    code = activation_code(f"pyramid{bits}", cols)
    assert cols % code.dim == 0
    assert bits - 0.5 * (cols < 128) - 0.05 < code.bits <= bits
    count = pvq.count(code.dim, code.pulses)
    assert code.bits == (count.bit_length() + 16) / code.dim


@pytest.mark.parametrize(
    "name", ["pyramid", "pyramid1", "pyramid9", "pyramid-4", "int4", "", None, 4]
)
def test_what_is_no_choice_is_refused(name):
    layer = layer_of(8, 64, pvq.PVQConfig())
    for refused in (
        lambda: pvq.PVQConfig(activations=name) if name is not None else activation_code(name, 64),
        lambda: layer.prepare(activations=name if name is not None else "None"),
    ):
        with pytest.raises(ValueError, match=r"activations is .*such as 'pyramid4'"):
            refused()


def test_columns_without_groups_are_refused():
    config = pvq.PVQConfig(dim=5, pulses=9, rotation="none", activations="pyramid4")
    with pytest.raises(ValueError, match=r"no groups for 35 columns.*activations='float'"):
        config.for_cols(35)
    model = nn.Sequential(nn.Linear(35, 4))
    with pytest.raises(ValueError, match="no groups for 35 columns"):
        pvq.quantize_model(model, config, progress=False)
    assert type(model[0]) is nn.Linear


def test_a_configuration_keeps_its_activations():
    config = pvq.PVQConfig(3.25, activations="pyramid4")
    assert pvq.PVQConfig.from_dict(config.to_dict()) == config
    assert config.replace(bits=2.25).activations == "pyramid4"
    assert config.replace(code="table", bits=2).activations == "pyramid4"
    assert config.replace(activations=None) == pvq.PVQConfig(3.25)
    assert "activations" not in pvq.PVQConfig(3.25).to_dict()


def test_checkpoints_record_activations_and_loading_may_change_them(tmp_path, tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = pvq.PVQConfig(4.25, activations="pyramid4")
    overrides = {"*.down_proj": {"activations": "pyramid8"}, "*.layers.0.*": {"activations": None}}
    report = pvq.quantize_model(model, config, overrides=overrides, progress=False)
    assert "activations     4, 8 bits" in report.summary()
    assert {layer.bits_per_activation for layer in report.layers} == {None, 4.0, 8.0}
    pvq.save_checkpoint(model, report, tmp_path / "out", source=TINY)
    ids = tokens[None, :40]
    with torch.no_grad():
        expected = pvq.prepare(model)(ids).logits
        loaded = pvq.load(tmp_path / "out", dtype=torch.float32)
        assert loaded.model.layers[1].mlp.up_proj.activations == "pyramid4"
        assert loaded.model.layers[1].mlp.down_proj.activations == "pyramid8"
        assert loaded.model.layers[0].mlp.down_proj.activations == "int8"
        assert torch.equal(loaded(ids).logits, expected)
        same = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(same(ids).logits, loaded(ids).logits)
        unrounded = pvq.load(tmp_path / "out", activations="float", dtype=torch.float32)
        assert (unrounded(ids).logits - expected).abs().max() > 0.1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "activations pyramid4" in card


if __name__ == "__main__":
    torch.save(products(), Path(sys.argv[1]))
