"""Bad input of every kind gives one clear error; more is in the tests of each module."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import pvq
from pvq import PVQConfig, quantize_model, quantize_tensor
from pvq.instruction_sets import INSTRUCTION_SETS, VARIABLE, check_limit

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
        (
            W[:, :60],
            ValueError,
            "^weight does not fit: 60 columns are not a multiple of dim=16, .*pass dim=15",
        ),
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
    with pytest.raises(
        ValueError, match=r"1 layer cannot be quantized.*: weight has NaN or infinite .*: bad$"
    ):
        quantize_model(model, progress=False)


def test_float64_beyond_float32_is_refused_as_such():
    w = W.double()
    w[5, 7] = 1e200
    with pytest.raises(
        ValueError, match=r"too large for float32 \(the first at \[5, 7\] is 1e\+200\)"
    ):
        quantize_tensor(w, PVQConfig())


def test_layers_with_one_problem_are_told_once():
    model = nn.Sequential(*[nn.Linear(50, 50) for _ in range(200)])
    with pytest.raises(ValueError, match=r"^200 layers cannot be quantized") as error:
        quantize_model(model, progress=False)
    text = str(error.value)
    assert text.count("50 columns are not a multiple") == 1
    assert text.endswith("leave this layer dense: 0, 1, 10 and 197 more")
    assert len(text) < 250
    with pytest.raises(ValueError, match=r"leave this layer dense: 0, 1, 2$"):
        quantize_model(model[:3], progress=False)


def test_many_problems_are_not_all_told():
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)])
    for i, layer in enumerate(model):
        layer.weight.data[i, i] = torch.nan
    with pytest.raises(ValueError, match=r"^20 layers cannot .* and 16 other causes$") as error:
        quantize_model(model, progress=False)
    assert str(error.value).count("the first at") == 4


def test_a_single_layer_is_refused():
    for layer in (nn.Linear(64, 64), nn.Embedding(64, 64)):
        before = layer.weight.detach().clone()
        with pytest.raises(
            ValueError, match=r"single layer.*PVQLinear\.from_linear, or pvq\.PVQEmb"
        ):
            quantize_model(layer, progress=False)
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda m: quantize_tensor(W, 3.25),
            r"config is 3\.25, expected a .*: PVQConfig\(3\.25\)$",
        ),
        (lambda m: quantize_tensor(W, "pyramid"), "config is a str, expected a PVQConfig"),
        (lambda m: quantize_model(m, 3), r"config is 3, expected a PVQConfig: PVQConfig\(3\)$"),
        (lambda m: quantize_model("folder"), "model is the name 'folder'.* load it first.*Causal"),
        (lambda m: quantize_model(Path("folder")), "model is the name 'folder'"),
        (lambda m: quantize_model([m]), "model is a list, expected an nn.Module"),
        (
            lambda m: quantize_model(m, skip="*.layers.0.*"),
            r"skip is a str, expected a sequence of patterns: \['\*\.layers\.0\.\*'\]",
        ),
        (
            lambda m: quantize_model(m, overrides={"0": 4.25}),
            r"overrides\['0'\] is 4\.25, expected a PVQConfig or a mapping",
        ),
        (lambda m: quantize_model(m, overrides=["0"]), "overrides is a list, expected a mapping"),
        (lambda m: pvq.prepare("folder"), "model is the name 'folder'"),
        (lambda m: pvq.allocate(m, 3.25, None), r"budget is 3\.25, expected a text such as"),
        (lambda m: pvq.allocate(m, "3bpw", "f.json"), "sensitivity is a str, expected a pvq.Sens"),
        (lambda m: pvq.allocate(m, "3bpw", None, 3), "config is 3, expected a PVQConfig"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(call, text):
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(TypeError, match=text):
        call(model)
    assert type(model[0]) is nn.Linear


def test_an_unknown_limit_of_instruction_sets_is_told():
    command = [sys.executable, "-c", "import pvq"]
    environment = {**os.environ, VARIABLE: "AVX2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    sets = "portable, avx2, avx512, avx512vbmi, amx"
    assert f"PVQ_CPU is 'AVX2', expected one of {sets}: ignored" in done.stderr


def test_limits_of_instruction_sets_that_the_kernels_know(monkeypatch):
    source = Path(__file__).parent.parent / "csrc/cpu/isa.cpp"
    known = re.findall(r'return "(\w+)";', source.read_text(encoding="utf-8"))
    assert set(known) == set(INSTRUCTION_SETS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("", *INSTRUCTION_SETS):
            monkeypatch.setenv(VARIABLE, name)
            check_limit()
        monkeypatch.delenv(VARIABLE)
        check_limit()


@pytest.mark.parametrize("arguments", [{"pulses": 0}, {"dim": 1}, {"dim": 300}, {"pulses": 5000}])
def test_pyramids_that_do_not_exist(arguments):
    with pytest.raises(ValueError, match=r"is \d+, expected \d+ to \d+"):
        PVQConfig(**arguments)


def test_nothing_is_padded_silently():
    model = nn.Sequential(nn.Linear(50, 8))
    with pytest.raises(ValueError, match="pvq never pads: pass dim=10 or leave this layer dense"):
        quantize_model(model, progress=False)
    quantize_model(model, PVQConfig(dim=10), progress=False)
    assert model[0].config.code.dim == 10


def test_indices_out_of_range_are_refused_in_every_use():
    q = quantize_tensor(W, PVQConfig())
    q.stored["index"][3].fill_(255)
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
