"""Bad input of every kind gives one clear error; more is in the tests of each module."""

import pytest
import torch
from torch import nn

import pvq
from pvq import PVQConfig, quantize_model, quantize_tensor

W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        ([[1.0] * 16], TypeError, "weight is a list, expected a torch.Tensor"),
        (W.int(), TypeError, "weight has dtype torch.int32, expected a floating-point dtype"),
        (W.to(torch.complex64), TypeError, "weight has dtype torch.complex64"),
        (W.bool(), TypeError, "weight has dtype torch.bool"),
        (W[0], ValueError, r"weight has shape \[64\], expected a matrix \[rows, cols\]"),
        (W[None], ValueError, r"weight has shape \[1, 8, 64\], expected a matrix"),
        (W[:, :60], ValueError, "60 columns are not a multiple of dim=16.*pass dim=15"),
        (W.to("meta"), ValueError, "weight is on the meta device"),
    ],
)
def test_weights_of_the_wrong_kind(weight, error, text):
    with pytest.raises(error, match=text):
        quantize_tensor(weight, PVQConfig())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_located(value):
    w = W.clone()
    w[6, 33] = value
    with pytest.raises(
        ValueError, match=rf"NaN or infinite values \(the first at \[6, 33\] is {value}"
    ):
        quantize_tensor(w, PVQConfig())
    model = nn.ModuleDict({"good": nn.Linear(64, 8), "bad": nn.Linear(64, 8)})
    model["bad"].weight.data = w
    with pytest.raises(ValueError, match=r"1 layer cannot be quantized.*: bad has NaN or infinite"):
        quantize_model(model, progress=False)


def test_float64_beyond_float32_is_infinite():
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_tensor(W.double() * 1e200, PVQConfig())


@pytest.mark.parametrize("arguments", [{"pulses": 0}, {"dim": 1}, {"dim": 300}, {"pulses": 5000}])
def test_pyramids_that_do_not_exist(arguments):
    with pytest.raises(ValueError, match=r"is \d+, expected \d+ to \d+"):
        PVQConfig(**arguments)


def test_nothing_is_padded_silently():
    model = nn.Sequential(nn.Linear(50, 8))
    with pytest.raises(ValueError, match="pvq never pads: pass dim=10 or leave this layer dense"):
        quantize_model(model, progress=False)
    quantize_model(model, PVQConfig(dim=10), progress=False)
    assert model[0].config.dim == 10


def test_indices_out_of_range_are_refused_in_every_use():
    q = quantize_tensor(W, PVQConfig())
    q.index[3].fill_(255)
    layer = pvq.PVQLinear.from_tensor(q)
    table = pvq.PVQEmbedding.from_tensor(q, torch.float32)
    for use in (
        q.dequantize,
        lambda: layer(torch.ones(1, 64)),
        lambda: layer.prepare("planes"),
        lambda: table(torch.tensor([3])),
    ):
        with pytest.raises(RuntimeError, match="names no point of the pyramid"):
            use()
    assert torch.isfinite(table(torch.tensor([2]))).all(), "other rows are whole"


def test_products_refuse_inputs_that_do_not_fit():
    layer = pvq.PVQLinear.from_linear(nn.Linear(64, 8), PVQConfig())
    for layout in ("index", "planes"):
        layer.prepare(layout)
        with pytest.raises(ValueError, match=r"x has shape \[2, 63\], expected \[\.\.\., 64\]"):
            layer(torch.ones(2, 63))
        with pytest.raises(RuntimeError, match="x has dtype int64"):
            layer(torch.ones(2, 64, dtype=torch.int64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_products_refuse_inputs_on_another_device():
    layer = pvq.PVQLinear.from_linear(nn.Linear(64, 8), PVQConfig())
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.ones(2, 64, device="cuda"))


def test_zeros_decode_to_zeros():
    w = W.clone()
    w[2] = 0
    for config in (PVQConfig(), PVQConfig(rotation="none"), PVQConfig(gain_bits=0)):
        assert (quantize_tensor(w, config).dequantize()[2] == 0).all()


def test_extreme_scales_survive():
    for scale in (6e4 / W.abs().max().item(), 6e-8):
        half = (W * scale).half()
        assert torch.isfinite(half).all()
        assert torch.isfinite(quantize_tensor(half, PVQConfig()).dequantize()).all()
    assert (
        quantize_tensor((W * 6e4 / W.abs().max()).half(), PVQConfig()).relative_error(
            (W * 6e4 / W.abs().max()).half()
        )
        < 0.03
    )
