"""What the codes written in tensor operations share: bits, products, layers, files, rounding."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig, PVQLinear, quantize_tensor
from pvq.cli import main
from pvq.codes import empty_stored, stored_nbytes
from pvq.codes.bits import pack, unpack
from pvq.codes.radix import MAX_WORD_BITS, join, split, word_shape
from pvq.config import FORMAT_VERSION
from pvq.rotation import hadamard_matrix, rotate

ops = torch.ops.pvq
CONFIGS = [
    PVQConfig(4, code="uniform", group=16),
    PVQConfig(3, code="uniform", group=32, symmetric=True, rotation="hadamard", seed=3),
    PVQConfig(2, code="uniform", group=96, fit="minmax"),
    PVQConfig(code="nf4", block_size=16),
    PVQConfig(code="nf4", block_size=32, double=False, rotation="hadamard"),
    PVQConfig(code="higgs", p=1, n=9),
    PVQConfig(code="higgs", p=2, n=86),
    PVQConfig(code="higgs", p=3, n=64, group=40),
    PVQConfig(code="higgs", p=4, n=256, rotation="none"),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.code.describe())


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(numbers: np.ndarray, width: int) -> np.ndarray:
    """Bytes of rows of numbers, bit by bit."""
    bits = (numbers[:, :, None] >> np.arange(width)) & 1
    return np.packbits(bits.reshape(len(numbers), -1).astype(np.uint8), axis=1, bitorder="little")


# --- bits and words -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 13, 24, 25, 31, 32, 33, 47, 56])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63])
def test_fields_are_packed_bit_after_bit(width, count):
    rng = np.random.default_rng(width)
    numbers = rng.integers(0, 2**width, (3, count))
    if count:
        numbers[0, 0], numbers[1, -1] = 2**width - 1, 0
    packed = pack(torch.from_numpy(numbers), width)
    assert np.array_equal(packed.numpy(), stream(numbers, width))
    assert np.array_equal(unpack(packed, width, count).numpy(), numbers)


@pytest.mark.parametrize("n", [2, 3, 5, 9, 86, 256, 4096])
@pytest.mark.parametrize("count", [0, 1, 17, 100])
def test_words_of_mixed_radix(n, count):
    digits, bits = word_shape(n)
    assert bits <= MAX_WORD_BITS
    assert 2 ** (bits - 1) < n**digits <= 2**bits
    rng = np.random.default_rng(n)
    numbers = rng.integers(0, n, (2, count))
    words = join(torch.from_numpy(numbers), n)
    assert words.shape == (2, -(-count // digits))
    for row, got in zip(numbers.tolist(), words.tolist(), strict=True):
        for i, word in enumerate(got):
            part = row[i * digits : (i + 1) * digits]
            assert word == sum(digit * n**j for j, digit in enumerate(part))
    assert np.array_equal(split(words, n, count).numpy(), numbers)


def test_words_lose_the_least_that_they_can():
    for n in range(2, 300):
        digits, bits = word_shape(n)
        every = [(i * np.log2(n), i) for i in range(1, 57) if i * np.log2(n) <= MAX_WORD_BITS]
        assert bits / digits <= min(np.ceil(b - 1e-9) / i for b, i in every) + 1e-9


def test_a_word_beyond_the_digits_is_refused():
    digits, _ = word_shape(9)
    with pytest.raises(RuntimeError, match="damaged"):
        split(torch.tensor([[9**digits]]), 9, digits)


# --- stored form and products ---------------------------------------------------------------------


@every_config
@pytest.mark.parametrize(("rows", "cols"), [(0, 96), (1, 96), (5, 192)])
def test_stored_form_has_the_layout_and_counts_all_bytes(config, rows, cols):
    code = config.code
    tensor = quantize_tensor(gaussian(rows, cols), config)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensor.stored.items()} == code.layout(
        rows, cols
    )
    assert tensor.nbytes == stored_nbytes(code, rows, cols)
    assert tuple(tensor.stored) == code.tensors == tuple(empty_stored(code, rows, cols))


@every_config
def test_the_rate_is_what_wide_rows_store(config):
    code = config.code
    cols = 96 * 1280
    bits = 8 * stored_nbytes(code, 1, cols) / cols
    assert bits == pytest.approx(code.rate, rel=1e-3)


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dequantize_rotates_back(config, dtype):
    tensor = quantize_tensor(gaussian(5, 96), config)
    inner = tensor.config.code.decode(tensor.stored, 96).double()
    block = tensor.config.hadamard_block
    expected = rotate(inner, block, config.seed, inverse=True) if block else inner
    got = tensor.dequantize(dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96,), (3, 96), (2, 0, 96), (2, 3, 96)])
def test_product_is_that_with_the_decoded_weight(config, dtype, shape):
    tensor = quantize_tensor(gaussian(7, 96), config)
    x = gaussian(*shape, seed=1).to(dtype)
    layer = PVQLinear.from_tensor(tensor)
    got = layer(x)
    assert got.dtype == dtype
    assert got.shape == (*shape[:-1], 7)
    expected = x.double() @ tensor.dequantize().double().T
    epsilon = 1e-5 if dtype == torch.float32 else 2**-6
    assert (got.double() - expected).abs().max() < epsilon * 40 if x.numel() else True


@every_config
def test_gradients_are_exact_and_twice_differentiable(config):
    tensor = quantize_tensor(gaussian(4, 96), config)
    block, seed, code = tensor.config.hadamard_block, config.seed, config.code
    x = gaussian(2, 96).double().requires_grad_()
    product = lambda x: code.matmul(x, tensor.stored, block, seed)  # noqa: E731
    assert torch.autograd.gradcheck(product, x)
    assert torch.autograd.gradgradcheck(product, x)


@every_config
def test_operators_pass_opcheck(config):
    tensor = quantize_tensor(gaussian(4, 96), config)
    stored, spec = list(tensor.stored.values()), config.code.spec
    numbers = (tensor.config.hadamard_block, config.seed)
    x, g = gaussian(2, 96).requires_grad_(), gaussian(2, 4).requires_grad_()
    torch.library.opcheck(ops.decoded_matmul, (x, stored, spec, *numbers))
    torch.library.opcheck(ops.decoded_matmul_transposed, (g, stored, spec, 96, *numbers))
    torch.library.opcheck(ops.decoded_dequantize, (stored, spec, 96, torch.float32, *numbers))


@every_config
def test_a_layer_compiles_to_one_graph(config):
    layer = PVQLinear.from_linear(nn.Linear(96, 8), config)
    x = gaussian(3, 96)
    torch.compiler.reset()  # one graph for each code is meant, and there are many
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@every_config
def test_layers_on_the_meta_device(config):
    layer = PVQLinear(96, 8, True, config, device="meta")
    assert layer(torch.empty(2, 96, device="meta")).shape == (2, 8)


def test_stored_tensors_of_another_shape_are_refused():
    tensor = quantize_tensor(gaussian(4, 96), CONFIGS[0])
    with pytest.raises(RuntimeError, match=r"code is torch.uint8 \[4, 48\], expected .* \[4, 40\]"):
        CONFIGS[0].code.dequantize(tensor.stored, 80)
    with pytest.raises(RuntimeError, match="floating-point"):
        CONFIGS[0].code.matmul(torch.ones(2, 96, dtype=torch.int64), tensor.stored)


@every_config
def test_no_rows_depend_on_each_other(config):
    w = gaussian(6, 96)
    whole = quantize_tensor(w, config)
    assert torch.equal(whole.rows(slice(2, 4)).dequantize(), whole.dequantize()[2:4])
    part = quantize_tensor(w[3:4], config)
    assert torch.equal(part.dequantize(), whole.dequantize()[3:4])


@every_config
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_zeros_and_extreme_scales(config, factor):
    w = gaussian(4, 96) * factor
    w[1] = 0
    w[2, :48] = 0
    tensor = quantize_tensor(w, config)
    back = tensor.dequantize()
    assert (back[1] == 0).all()
    assert torch.isfinite(back).all()
    reference = quantize_tensor(w / factor, config)
    assert tensor.relative_error(w) == pytest.approx(reference.relative_error(w / factor), rel=0.05)


@every_config
def test_columns_without_rows_and_rows_without_columns(config):
    assert quantize_tensor(torch.empty(3, 0), config).dequantize().shape == (3, 0)
    assert quantize_tensor(torch.empty(0, 96), config).dequantize().shape == (0, 96)


# --- rounding in blocks ---------------------------------------------------------------------------


def spd(size: int, seed: int = 0) -> torch.Tensor:
    a = gaussian(size, 2 * size, seed=seed)
    a[:, : size // 2] += 2 * a[:, :1]  # correlated columns
    return a @ a.T / size + 0.05 * torch.eye(size)


@every_config
def test_rounding_without_a_metric_is_nearest(config):
    w = gaussian(5, 96)
    rounder = config.code.rounder(w)
    assert 96 % rounder.step == 0
    decoded = [rounder.round(w[:, i : i + rounder.step], i) for i in range(0, 96, rounder.step)]
    stored = rounder.stored()
    torch.testing.assert_close(torch.cat(decoded, 1), config.code.decode(stored, 96))
    nearest = config.code.quantize(w)
    assert all(torch.equal(stored[name], nearest[name]) for name in stored)


@every_config
def test_rounding_under_a_metric_costs_less(config):
    w = gaussian(32, 96)
    plain, guided = config.code.rounder(w), config.code.rounder(w)
    step = plain.step
    for first in range(0, 96, step):
        part = w[:, first : first + step].clone()
        metric = spd(step, seed=first)
        cost = {}
        for name, decoded in (
            ("plain", plain.round(part, first)),
            ("guided", guided.round(part, first, metric)),
        ):
            error = (part - decoded).double()
            cost[name] = float(((error @ metric.double()) * error).sum())
        assert torch.equal(part, w[:, first : first + step]), "the argument is not changed"
        assert step == 1 or cost["guided"] < 0.95 * cost["plain"]
    decoded = config.code.decode(guided.stored(), 96)
    torch.testing.assert_close(decoded[:, -step:], guided.round(part, 96 - step, metric))


def test_feedback_is_that_of_column_by_column_gptq():
    """Against the textbook recursion that updates the inverse after each column."""
    code = PVQConfig(3, code="uniform", group=96, fit="minmax").code
    w, metric = gaussian(8, 96), spd(96)
    decoded = code.rounder(w).round(w, 0, metric)
    scale, zero = code.fitted(w)
    values, inverse = w.double().clone(), torch.linalg.inv(metric.double())
    for i in range(96):
        q = ((values[:, i : i + 1] / scale).round() + zero).clamp(0, 7)
        expected = (q - zero) * scale
        same = torch.isclose(decoded[:, i : i + 1].double(), expected.double(), atol=1e-6)
        assert same.float().mean() > 0.99  # float32 may round a tie the other way
        error = (values[:, i : i + 1] - decoded[:, i : i + 1]) / inverse[i, i]
        values -= error * inverse[i]
        inverse -= torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1  # never read again


@every_config
def test_rescaling_multiplies_what_is_decoded(config):
    w = gaussian(6, 96)
    rounder = config.code.rounder(w)
    for first in range(0, 96, rounder.step):
        rounder.round(w[:, first : first + rounder.step], first)
    before = config.code.decode(rounder.stored(), 96)
    factor = torch.linspace(0.5, 1.5, 6)
    after = rounder.rescale(factor)
    torch.testing.assert_close(after, before * factor[:, None], rtol=2**-7, atol=0)
    assert torch.equal(after, config.code.decode(rounder.stored(), 96))


@pytest.mark.parametrize(
    "config",
    [config for config in CONFIGS if config.code.rounder(torch.ones(1, 96)).step < 96],
    ids=lambda config: config.code.describe(),
)
def test_blocks_may_be_rounded_in_any_order_and_again(config):
    w = gaussian(3, 96)
    rounder = config.code.rounder(w)
    starts = list(range(0, 96, rounder.step))
    for first in [*starts[::-1], starts[0]]:
        rounder.round(w[:, first : first + rounder.step], first)
    expected = config.code.quantize(w)
    assert all(torch.equal(rounder.stored()[name], expected[name]) for name in expected)


# --- configurations, models and files -------------------------------------------------------------


@every_config
def test_configurations_survive_json_and_replace(config):
    stored = config.to_dict()
    assert stored["format_version"] == FORMAT_VERSION
    assert PVQConfig.from_dict(stored) == config
    assert config.replace(seed=5).replace(seed=config.seed) == config
    assert hash(config) == hash(copy.deepcopy(config))


def test_codes_prefer_a_rotation():
    assert PVQConfig(4, code="uniform").rotation == "none"
    assert PVQConfig(code="nf4").rotation == "none"
    assert PVQConfig(4, code="higgs").rotation == "hadamard"
    assert PVQConfig(4, code="uniform", rotation="hadamard").rotation == "hadamard"
    changed = PVQConfig(4.0, block=64).replace(code="uniform", bits=4)
    assert (changed.rotation, changed.block) == ("none", None)
    assert PVQConfig(4).replace(code="nf4", rotation="hadamard", bits=4).rotation == "hadamard"


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[3], CONFIGS[4], CONFIGS[7]],
                         ids=lambda c: c.code.describe())  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_round_trip_bit_for_bit(small_llama, tmp_path, config, dtype):
    config = config.replace(group=32) if config.code.name == "uniform" else config
    model = small_llama().to(dtype)
    pvq.quantize_model(model, config, embeddings=True, head=True, progress=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.model.layers[0].mlp.up_proj) is PVQLinear
    a, b = model.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
    if dtype == torch.float32:  # a cast model has other rotary frequencies than a loaded one
        ids = torch.arange(12)[None]
        assert torch.equal(model(ids).logits, loaded(ids).logits)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    for key, tensor in other.model.layers[0].mlp.up_proj.state_dict().items():
        assert tensor.dtype == b[f"model.layers.0.mlp.up_proj.{key}"].dtype


@pytest.mark.parametrize(
    ("arguments", "description"),
    [
        (("--code", "uniform", "--bits", 4, "--choice", "group=64", "symmetric=true"),
         "uniform 4 bits g64 sym mse"),
        (("--code", "nf4", "--choice", "double=false"), "nf4 b64"),
        (("--code", "higgs", "--bits", 3.25, "--choice", "p=1"), "higgs p=1 n=9"),
    ],
)  # fmt: skip
def test_command_line(small_llama, tmp_path, capsys, arguments, description):
    small_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "dense")
    command = ["quantize", tmp_path / "dense", tmp_path / "out", *arguments]
    assert main([*map(str, command)]) == 0
    assert main(["info", str(tmp_path / "out"), "--layers"]) == 0
    assert description in capsys.readouterr().out


def test_command_line_refuses_choices(capsys):
    for arguments, text in (
        (("--code", "uniform", "--bits", "3.5"), "integers"),
        (("--code", "uniform", "--bits", "4", "--choice", "grup=3"), "unknown choice 'grup'"),
        (("--code", "nf4", "--choice", "double"), "'double' is not KEY=VALUE"),
        (("--code", "uniform", "--bits", "4", "--choice", "symmetric=1"), "symmetric is 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["quantize", "model", "out", *arguments])
        assert stop.value.code == 2
        assert text in capsys.readouterr().err


def test_hadamard_helps_weights_with_outliers():
    w = gaussian(32, 128)
    w[:, 5] *= 20
    block = torch.from_numpy(hadamard_matrix(128)).float()
    assert torch.equal(block @ block.T, 128 * torch.eye(128))
    plain = quantize_tensor(w, PVQConfig(3, code="uniform")).relative_error(w)
    rotated = quantize_tensor(w, PVQConfig(3, code="uniform", rotation="hadamard"))
    assert rotated.relative_error(w) < plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_config
def test_the_gpu_decodes_the_same(config):
    tensor = quantize_tensor(gaussian(7, 96), config)
    there = tensor.to("cuda")
    torch.testing.assert_close(there.dequantize().cpu(), tensor.dequantize())
    x = gaussian(3, 96)
    layer, other = PVQLinear.from_tensor(tensor), PVQLinear.from_tensor(there)
    torch.testing.assert_close(other(x.cuda()).cpu(), layer(x), rtol=1e-3, atol=1e-3)
    codes = quantize_tensor(gaussian(7, 96).cuda(), config)
    assert codes.relative_error(gaussian(7, 96).cuda()) == pytest.approx(
        tensor.relative_error(gaussian(7, 96)), rel=1e-3
    )
