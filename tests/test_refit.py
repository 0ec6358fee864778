"""Row scales fitted again: the least error of a layer, taken only where its decoder layer gains."""

import pytest
import torch

from pvq import PVQConfig, layerwise, quantize_model, quantize_tensor
from pvq.calibration import InputStatistics
from pvq.finished import Finished, divide_rows, quantize_layer, refit_rows, scale_rows
from pvq.plan import Target
from pvq.rounding.gptq import GPTQ


@pytest.fixture
def samples():
    return torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))


def finished(config: PVQConfig) -> tuple[Finished, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    with torch.no_grad():
        linear.weight[3] = 0
    x = torch.randn(400, 96) @ torch.randn(96, 96)
    statistics = InputStatistics(96, torch.device("cpu"))
    statistics.add(x)
    target = Target("layer", linear, config.for_cols(96))
    layer = quantize_layer(target, GPTQ(), statistics, torch.device("cpu"))
    return layer, linear.weight.detach(), x


@pytest.mark.parametrize(
    "config",
    [
        PVQConfig(2.25),
        PVQConfig(code="table", bits=2, rotation="none"),
        PVQConfig(2.5, code="overlap"),
    ],
)
def test_no_other_scale_of_a_row_is_better(config):
    layer, w, x = finished(config)
    refitted = refit_rows(layer, w, x.T @ x)
    assert refitted.record.refit
    assert refitted.codes.stored.keys() == layer.codes.stored.keys()
    for name, tensor in layer.codes.stored.items():
        if name != "row_scale":
            assert torch.equal(refitted.codes.stored[name], tensor)

    def loss(factor: float) -> torch.Tensor:
        error = (w - factor * refitted.codes.dequantize()) @ x.T
        return error.double().square().sum(1)

    # A scale is kept to eight bits, so the optimum is within 2^-8 of it.
    assert (loss(1) <= loss(1 + 2**-7) + 1e-9).all()
    assert (loss(1) <= loss(1 - 2**-7) + 1e-9).all()
    before = ((w - layer.codes.dequantize()) @ x.T).double().square().sum(1)
    assert loss(1).sum() < before.sum()
    energy = (w @ x.T).double().square().sum()
    assert refitted.record.output_error == pytest.approx((loss(1).sum() / energy).item(), rel=1e-3)
    assert torch.equal(refitted.codes.dequantize()[3], torch.zeros(96))


def test_scales_that_are_the_best_stay():
    layer, w, x = finished(PVQConfig(2.25))
    exact = layer.codes.dequantize()
    assert refit_rows(layer, exact, x.T @ x) is None
    assert refit_rows(layer, w, torch.zeros(96, 96)) is None


def test_rows_are_scaled_in_units_of_their_weights():
    tensor = quantize_tensor(torch.randn(5, 64), PVQConfig(3.25))
    powers = torch.tensor([1.0, 2.0, 0.5, 4.0, 0.125])
    scaled = scale_rows(tensor, powers).dequantize()
    assert torch.equal(scaled, tensor.dequantize() * powers[:, None])
    assert torch.equal(
        divide_rows(tensor, powers).dequantize(), tensor.dequantize() / powers[:, None]
    )
    assert divide_rows(tensor, torch.full((5,), 3.0)) is None, "a third is not exact"


def test_refits_are_taken_where_the_decoder_layer_gains(small_llama, samples, monkeypatch):
    options = {"rounding": "gptq", "calibration": samples, "progress": False}
    plain = small_llama()
    quantize_model(plain, PVQConfig(2.25), **options)
    model = small_llama()
    report = quantize_model(model, PVQConfig(2.25), refit=True, **options)
    assert any(layer.refit for layer in report.layers)
    first = "model.layers.0."
    inputs = small_llama().model.embed_tokens(samples)

    def outputs(network) -> torch.Tensor:
        rotary = network.model.rotary_emb(inputs, torch.arange(32)[None])
        mask = torch.full((32, 32), float("-inf")).triu(1)[None, None]
        with torch.no_grad():
            return network.model.layers[0](inputs, attention_mask=mask, position_embeddings=rotary)

    dense = outputs(small_llama())
    assert (outputs(model) - dense).square().sum() < (outputs(plain) - dense).square().sum()
    for layer in report.layers:
        if layer.name.startswith(first) and not layer.refit:
            ours, theirs = model.get_submodule(layer.name), plain.get_submodule(layer.name)
            assert torch.equal(ours.row_scale, theirs.row_scale)

    def spoil(layer, w, hessian):
        return Finished(layer.record, scale_rows(layer.codes, torch.full((len(w),), 1.5)))

    monkeypatch.setattr(layerwise, "refit_rows", spoil)
    model = small_llama()
    quantize_model(model, PVQConfig(2.25), refit=True, **options)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "none was taken"


def test_refitting_needs_calibration(small_llama, tmp_path, capsys):
    from pvq.cli import main

    with pytest.raises(ValueError, match="refit=True needs calibration"):
        quantize_model(small_llama(), refit=True, progress=False)
    with pytest.raises(SystemExit):
        main(["quantize", "model", str(tmp_path / "out"), "--refit"])
    assert "--refit needs calibration" in capsys.readouterr().err
