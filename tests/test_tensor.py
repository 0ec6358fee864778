import math

import numpy as np
import pytest
import torch
from reference import count, dequantize, unpack

import pvq
from pvq import PVQConfig, PVQTensor, _core, quantize_tensor, tensor
from pvq.rotation import hadamard_matrix
from pvq.rounding.registry import make_rounding

NO_ROTATION = {"rotation": "none"}


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def signs(cols: int, seed: int) -> np.ndarray:
    """Bit c % 64 of the splitmix64 hash number c // 64 of the seed; 1 means -1."""
    mask = 2**64 - 1
    out = []
    for word in range(-(-cols // 64)):
        z = (seed + (word + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        out += [-1.0 if z >> bit & 1 else 1.0 for bit in range(64)]
    return np.array(out[:cols])


def decoded(q: PVQTensor) -> np.ndarray:
    """Float64 weights of the stored bytes by the definition of the format."""
    config, code, (rows, cols) = q.config, q.config.code, q.shape
    groups = cols // code.dim
    y = torch.ops.pvq.decode(q.stored["index"], code.dim, code.pulses, groups).numpy()
    gains = np.array([unpack(row, code.gain_bits, groups) for row in q.stored["gain"].numpy()])
    levels = _core.gain_levels(code.dim, cols, code.gain_bits, code.gain_law)
    w = dequantize(y, gains, q.stored["row_scale"].float().numpy(), levels)
    if config.hadamard_block:
        block = config.hadamard_block
        h = hadamard_matrix(block).astype(np.float64) / math.sqrt(block)
        w = (w.reshape(rows, -1, block) @ h).reshape(rows, cols) * signs(cols, config.seed)
    return w


def test_a_tensor_says_what_it_is_in_one_line():
    text = repr(quantize_tensor(gaussian(512, 256), PVQConfig(3.25)))
    assert text == "PVQTensor([512, 256], pyramid D=16 K=28 gain 3, 3.3125 bits a weight, cpu)"


@pytest.mark.parametrize("name", ["nearest", "gptq"])
def test_rounding_methods_by_name(name):
    w, x = gaussian(8, 64), gaussian(256, 64, seed=1) * torch.logspace(0, -2, 64)
    hessian = x.T @ x
    named = quantize_tensor(w, PVQConfig(), rounding=name, hessian=hessian)
    made = quantize_tensor(w, PVQConfig(), rounding=make_rounding(name), hessian=hessian)
    assert all(torch.equal(named.stored[key], made.stored[key]) for key in made.stored)
    nearest = quantize_tensor(w, PVQConfig())
    same = all(torch.equal(named.stored[key], nearest.stored[key]) for key in made.stored)
    assert same == (name == "nearest")
    with pytest.raises(ValueError, match="rounding is 'gtpq', expected one of 'nearest', 'gptq'"):
        quantize_tensor(w, PVQConfig(), rounding="gtpq")


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((5, 64), PVQConfig()),
        ((3, 96), PVQConfig(2.25, seed=7)),
        ((4, 48), PVQConfig(pulses=5, dim=4, gain_bits=3, rotation="none", gain_law="beta")),
        ((2, 130), PVQConfig(pulses=3, dim=10, gain_bits=0)),
        ((2, 120), PVQConfig(dim=12, pulses=9, block=12)),
        ((1, 256), PVQConfig(dim=256, pulses=40, gain_bits=8)),
        ((3, 2), PVQConfig(dim=2, pulses=4096)),
    ],
)
def test_dequantize_follows_the_format(shape, config):
    q = quantize_tensor(gaussian(*shape), config)
    expected = decoded(q)
    got = q.dequantize(torch.float32).double().numpy()
    assert np.abs(got - expected).max() <= 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("rows", "cols", "config"),
    [
        (7, 64, PVQConfig()),
        (3, 96, PVQConfig(2.25)),
        (2, 30, PVQConfig(dim=6, pulses=5, gain_bits=3)),
    ],
)
def test_bytes_are_those_of_the_bits(rows, cols, config):
    q = quantize_tensor(gaussian(rows, cols), config)
    code = config.code
    groups = cols // code.dim
    index_bytes = math.ceil(groups * count(code.dim, code.pulses).bit_length() / 8)
    gain_bytes = math.ceil(groups * code.gain_bits / 8)
    assert q.stored["index"].shape == (rows, index_bytes)
    assert q.stored["gain"].shape == (rows, gain_bytes)
    assert q.nbytes == rows * (index_bytes + gain_bytes + 2)
    assert q.bits_per_weight == 8 * q.nbytes / (rows * cols)
    assert q.shape == (rows, cols)


@pytest.mark.parametrize(("bits", "bound"), [(4.25, 0.0053), (3.25, 0.0200), (2.25, 0.084)])
def test_error_on_a_gaussian_source(bits, bound):
    w = gaussian(64, 1024)
    q = quantize_tensor(w, PVQConfig(bits))
    error = ((w - q.dequantize()).double() ** 2).sum() / (w.double() ** 2).sum()
    assert 0.5 * bound < error < bound
    assert q.relative_error(w) == pytest.approx(error.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_dtype_is_quantized_in_float32(dtype):
    w = gaussian(4, 64).to(dtype)
    a, b = quantize_tensor(w, PVQConfig()), quantize_tensor(w.float(), PVQConfig())
    for name in a.stored:
        assert torch.equal(a.stored[name], b.stored[name])


def test_strides_do_not_matter():
    w = gaussian(64, 48)
    strided = w.T.contiguous().T[:, :].expand(64, 48)
    assert not strided.is_contiguous()
    a, b = quantize_tensor(strided, PVQConfig()), quantize_tensor(w, PVQConfig())
    assert torch.equal(a.stored["index"], b.stored["index"])
    assert torch.equal(w, gaussian(64, 48)), "the input was changed"


def test_slabs_do_not_matter(monkeypatch):
    w = gaussian(9, 64)
    whole = quantize_tensor(w, PVQConfig())
    monkeypatch.setattr(tensor, "SLAB_WEIGHTS", 128)
    assert len(list(tensor.row_slabs(9, 64))) == 5
    slabs = quantize_tensor(w, PVQConfig())
    for name in whole.stored:
        assert torch.equal(whole.stored[name], slabs.stored[name])
    assert slabs.relative_error(w) == pytest.approx(whole.relative_error(w), rel=1e-12)


def test_zero_rows_and_groups_decode_to_zero():
    w = gaussian(4, 64)
    w[1] = 0
    q = quantize_tensor(w, PVQConfig())
    assert (q.dequantize()[1] == 0).all()
    w[2, 16:32] = 0
    q = quantize_tensor(w, PVQConfig(**NO_ROTATION))
    assert (q.dequantize()[2, 16:32] == 0).all()
    assert (q.dequantize()[2, :16] != 0).any()
    zeros = quantize_tensor(torch.zeros(3, 32), PVQConfig())
    assert (zeros.dequantize() == 0).all()
    assert zeros.relative_error(torch.zeros(3, 32)) == 0


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_empty_matrices(shape):
    q = quantize_tensor(torch.zeros(shape), PVQConfig())
    assert q.dequantize().shape == shape
    assert q.bits_per_weight == 0 or shape[0] == 0


@pytest.mark.parametrize("scale", [65504 / 5, 1e-7, 1e-30, 1e30])
def test_scale_of_the_weights_does_not_matter(scale):
    w = gaussian(8, 256).clamp(-5, 5) * scale
    assert quantize_tensor(w, PVQConfig()).relative_error(w) < 0.021


def test_weights_at_the_fp16_limit_and_denormals():
    w = torch.full((2, 64), 65504.0, dtype=torch.float16)
    w[1, ::2] = -65504.0
    assert quantize_tensor(w, PVQConfig()).relative_error(w) < 0.3  # far from Gaussian, but finite
    w = (gaussian(4, 64) * 2e-6).half()
    assert quantize_tensor(w, PVQConfig()).relative_error(w) < 0.03
    w = gaussian(4, 64) * 1e-41  # denormal in float32 and in the bfloat16 row scale
    back = quantize_tensor(w, PVQConfig()).dequantize()
    assert torch.isfinite(back).all()
    assert (back - w).abs().max() < 1e-39


def test_rows_are_taken_without_decoding():
    q = quantize_tensor(gaussian(6, 64), PVQConfig())
    dense = q.dequantize()
    assert torch.equal(q.rows(slice(2, 5)).dequantize(), dense[2:5])
    picked = torch.tensor([5, 0, 0])
    assert torch.equal(q.rows(picked).dequantize(), dense[picked])


def test_to_moves_the_codes():
    q = quantize_tensor(gaussian(6, 64), PVQConfig())
    assert q.to("cpu").device.type == "cpu"
    assert q.to("meta").shape == (6, 64)
    assert q.to("meta").nbytes == q.nbytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_codes_are_the_same_on_the_gpu():
    w = gaussian(32, 256)
    a, b = quantize_tensor(w, PVQConfig()), quantize_tensor(w.cuda(), PVQConfig())
    assert b.device.type == "cuda"
    assert torch.allclose(a.dequantize(), b.dequantize().cpu(), rtol=1e-3, atol=1e-3)


def test_tensor_checks_its_parts():
    q = quantize_tensor(gaussian(4, 64), PVQConfig(pulses=27))
    stored = q.stored
    with pytest.raises(ValueError, match=r"index is torch.uint8 \[3, 24\], expected"):
        PVQTensor({**stored, "index": stored["index"][:3]}, q.shape, q.config)
    with pytest.raises(ValueError, match=r"row_scale is torch.float32"):
        PVQTensor({**stored, "row_scale": stored["row_scale"].float()}, q.shape, q.config)
    with pytest.raises(ValueError, match="stored has index, gain, expected index, gain, row_scale"):
        PVQTensor({k: stored[k] for k in ("index", "gain")}, q.shape, q.config)


def test_public_count_is_exact():
    assert pvq.count(16, 27) == count(16, 27)
    assert pvq.count(256, 300) == count(256, 300)
