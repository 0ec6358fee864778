"""The code that keeps a few weights of each row apart: its form, its rounding, its whole path."""

import numpy as np
import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig, PVQLinear, quantize_model, quantize_tensor
from pvq.codes import SparseRounder
from pvq.codes.outliers import OutlierCode
from pvq.codes.pyramid import PyramidCode
from pvq.codes.table import TableCode
from pvq.rounding.gptq import GPTQ
from pvq.rounding.hessian import Hessian
from pvq.rounding.quantease import QuantEase

INNER = [PyramidCode(16, 27, 4), TableCode(3)]


def heavy_tailed(rows: int, cols: int) -> torch.Tensor:
    w = np.random.default_rng(0).standard_t(3, (rows, cols))
    return torch.from_numpy(w).float()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("cols", [16, 96, 320])
def test_the_largest_weights_of_each_row_are_kept(inner, cols):
    code, w = OutlierCode(inner, 0.02), heavy_tailed(7, cols)
    w[3] = 0
    stored = code.quantize(w)
    layout = code.layout(7, cols)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == layout
    count = max(1, round(0.02 * cols))
    decoded = code.dequantize(stored, cols).numpy()
    others = code.inner.dequantize(stored, cols).numpy()
    for row, got, rest in zip(w.numpy(), decoded, others, strict=True):
        largest = np.sort(np.argsort(-np.abs(row), kind="stable")[:count])
        assert np.allclose(got[largest], row[largest], rtol=2**-8, atol=2**-8 * np.abs(rest).max())
        apart = np.ones(cols, bool)
        apart[largest] = False
        assert np.array_equal(got[apart], rest[apart])


def test_bytes_are_counted():
    tensor = quantize_tensor(
        heavy_tailed(32, 400), PVQConfig(3.25, code="outliers", fraction=0.01, rotation="none")
    )
    inner = quantize_tensor(heavy_tailed(32, 400), PVQConfig(3.25, rotation="none"))
    assert tensor.nbytes == inner.nbytes + 32 * 4 * (2 + 2)
    assert tensor.bits_per_weight == pytest.approx(inner.bits_per_weight + 0.32)
    assert tensor.config.bits == pytest.approx(inner.config.bits + 0.32)
    wide = OutlierCode(TableCode(2), 0.001).layout(1, 40_000)
    assert wide["outlier_col"] == ((1, 40), torch.int32)


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("inner", INNER)
def test_products_are_those_of_the_decoded_matrix(inner, block):
    code, w = OutlierCode(inner, 0.05), heavy_tailed(9, 96)
    rotated = torch.ops.pvq.hadamard(w, block, 3) if block else w
    stored = code.quantize(rotated)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    dense = code.dequantize(stored, 96, torch.float32, block, 3)
    assert torch.allclose(code.matmul(x, stored, block, 3), x @ dense.T, rtol=1e-4, atol=1e-4)
    assert (dense - w).square().sum() < 0.05 * w.square().sum()
    x.requires_grad_()
    code.matmul(x, stored, block, 3).sum().backward()
    assert torch.allclose(x.grad, dense.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", INNER)
def test_a_rounder_decodes_to_what_it_stores(inner):
    code, w = OutlierCode(inner, 0.03), heavy_tailed(8, 96)
    rounder = code.rounder(w)
    assert isinstance(rounder, SparseRounder)
    assert not isinstance(inner.rounder(w), SparseRounder)
    decoded = torch.cat(
        [rounder.round(w[:, f : f + rounder.step], f) for f in range(0, 96, rounder.step)], 1
    )
    assert torch.allclose(decoded, code.dequantize(rounder.stored(), 96), atol=1e-5)
    other = heavy_tailed(16, 96)[8:]
    decoded = rounder.set_sparse(other)
    assert torch.allclose(decoded, code.dequantize(rounder.stored(), 96), atol=1e-5)
    assert ((rounder.sparse() != 0).sum(1) == 3).all()
    kept = rounder.sparse() != 0
    assert (
        other.abs()[kept].view(8, 3).min(1).values >= other.masked_fill(kept, 0).abs().max(1).values
    ).all()
    decoded = rounder.rescale(torch.full((8,), 2.0))
    assert torch.allclose(decoded, code.dequantize(rounder.stored(), 96), atol=1e-5)


def test_quantease_moves_the_outliers_to_where_they_help():
    rng = np.random.default_rng(1)
    w = heavy_tailed(40, 192)
    x = rng.standard_normal((600, 192)) * np.geomspace(0.1, 4, 192)
    x = x @ (np.eye(192) + 0.3 * rng.standard_normal((192, 192)) / 14)
    h = torch.from_numpy(x.T @ x)

    def loss(code, rounding) -> float:
        error = (w - code.dequantize(rounding(w, code, Hessian(h)), 192)).double()
        return ((error @ h) * error).sum().item()

    plain, apart = PyramidCode(16, 27, 4), OutlierCode(PyramidCode(16, 27, 4), 0.02)
    sweeps = [loss(apart, QuantEase(sweeps=n)) for n in (0, 1, 3, 6)]
    assert sweeps == sorted(sweeps, reverse=True), "every sweep helps"
    assert sweeps[0] == loss(apart, GPTQ())
    assert sweeps[3] < 0.7 * loss(plain, QuantEase(sweeps=6))
    # More inner bits at the same cost are worth less on such weights.
    assert apart.bits < 4.0
    assert sweeps[3] < loss(PyramidCode.make(3.875), QuantEase(sweeps=6))


def test_a_model_with_outliers_goes_the_whole_path(tmp_path, tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = PVQConfig(2.25, code="outliers", fraction=0.02, rotation="none")
    report = quantize_model(
        model, config, rounding=QuantEase(sweeps=1), calibration=tokens[:1024].view(8, 128),
        overrides={"*.o_proj": {"bits": 3.25}, "*.v_proj": {"fraction": 0.05}},
        skip=["*.layers.[1-3].*"], progress=False,
    )  # fmt: skip
    assert "2 % outliers" in report.table()
    pvq.save_checkpoint(model, report, tmp_path / "out", source=TINY)
    loaded = pvq.load(tmp_path / "out")
    attention = loaded.model.layers[0].self_attn
    assert isinstance(attention.v_proj, PVQLinear)
    assert attention.v_proj.config.code.fraction == 0.05
    assert attention.o_proj.config.code.inner == PyramidCode.make(3.25)
    with torch.no_grad():
        ours, theirs = (m(tokens[None, :64]).logits.float() for m in (loaded, model))
    assert torch.allclose(ours, theirs, atol=0.1)


def test_configurations_can_be_written_and_read():
    config = PVQConfig(3.25, code="outliers", fraction=0.05, rotation="none")
    assert PVQConfig.from_dict(config.to_dict()) == config
    assert config.code.inner == PyramidCode.make(3.25)
    assert config.replace(bits=2.25).code.inner == PyramidCode.make(2.25)
    assert config.replace(fraction=0.1).code == OutlierCode(PyramidCode.make(3.25), 0.1)
    table = config.replace(inner={"code": "table", "bits": 3})
    assert table.code.inner == TableCode(3)
    assert PVQConfig.from_dict(table.to_dict()) == table
    assert config.for_cols(64) == config


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"fraction": 0}, ValueError, "fraction is 0: use the inner code"),
        ({"fraction": 0.3}, ValueError, r"fraction is 0\.3, expected 0 to 0\.25"),
        ({"fraction": "x"}, TypeError, "fraction is 'x', expected a number"),
        ({"inner": "outliers"}, ValueError, "outliers of outliers"),
        ({"inner": "tabel"}, ValueError, "code is 'tabel', expected one of"),
        ({"inner": {"code": "pyramid", "pulse": 3}}, ValueError, "unknown choice 'pulse'"),
        ({"dim": 8}, ValueError, "unknown choice 'dim' with code='outliers'"),
    ],
)
def test_bad_choices_are_named(choices, error, message):
    with pytest.raises(error, match=message):
        PVQConfig(3.25, code="outliers", **choices)
    with pytest.raises(ValueError, match="60 columns are not a multiple of dim=16"):
        PVQConfig(3.25, code="outliers").for_cols(60)
