"""Bands of columns: what is stored, the products, the path of a model, configurations."""

import itertools
import json
import math

import numpy as np
import pytest
import reference
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM

import pvq
from pvq import PVQConfig, PVQLinear, _core, quantize_model, quantize_tensor
from pvq.cli import main
from pvq.codes import stored_nbytes
from pvq.codes.bands import BandsCode
from pvq.codes.pyramid import PyramidCode
from pvq.plan import make_plan
from pvq.rates import Sensitivity, allocate
from pvq.rounding.gptq import GPTQ

MIXED = BandsCode(4, 16, (10, 12, 15, 30), (1, 2, 2, 4))
CODES = [
    MIXED,
    BandsCode(3, 8, (4, 9, 6), (0, 3, 1), gain_law="beta", quality=2),
    BandsCode(1, 24, (40,), (3,)),
    BandsCode.uniform(PyramidCode(16, 27, 4), 2),
]
IDS = [code.describe() for code in CODES]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edges(code: BandsCode, cols: int) -> list[int]:
    return [0, *(band.stop for band in code.limits(cols))]


def decode(code: BandsCode, stored, cols: int) -> np.ndarray:
    """float64 [rows, cols] in the rotated basis, from the bit streams by slow exact steps."""
    rows, bands = len(stored["row_scale"]), []
    if not rows:
        return np.zeros((0, cols))
    for i, (begin, end) in enumerate(itertools.pairwise(edges(code, cols))):
        pulses, gain_bits, groups = code.pulses[i], code.gain_bits[i], (end - begin) // code.dim
        width = reference.count(code.dim, pulses).bit_length()
        rank = [reference.unpack(row, width, groups) for row in stored[f"index_{i}"].numpy()]
        gain = [reference.unpack(row, gain_bits, groups) for row in stored[f"gain_{i}"].numpy()]
        y = np.array([[unrank(r, code.dim, pulses) for r in row] for row in rank])
        levels = _core.gain_levels(code.dim, end - begin, gain_bits, code.gain_law)
        scale = stored["row_scale"].float().numpy()
        y, gain = y.reshape(rows, groups, code.dim), np.array(gain).reshape(rows, groups)
        bands.append(reference.dequantize(y, gain.astype(int), scale, levels))
    return np.concatenate(bands, 1)


def unrank(rank: int, dim: int, pulses: int) -> list[int]:
    """The inverse of `reference.rank`; zeros for the word beyond the pyramid."""
    if rank == reference.count(dim, pulses):
        return [0] * dim
    if dim == 1:
        return [-pulses if rank else pulses]
    left = dim - dim // 2
    for j in range(pulses + 1):
        inside = reference.count(dim // 2, pulses - j)
        block = reference.count(left, j) * inside
        if rank < block:
            return unrank_half(rank // inside, left, j) + unrank_half(
                rank % inside, dim // 2, pulses - j
            )
        rank -= block
    raise AssertionError("no such rank")


def unrank_half(rank: int, dim: int, pulses: int) -> list[int]:
    return unrank(rank, dim, pulses) if pulses else [0] * dim


# --- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(0, 96), (1, 96), (7, 240), (3, 1056)])
@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_the_streams_say_what_the_matrix_is(code, rows, cols):
    w = gaussian(rows, cols) * torch.logspace(-3, 3, rows)[:, None]
    if rows > 3:
        w[2] = 0
        w[3, : cols // 2] = 0
    stored = code.quantize(w)
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == code.layout(rows, cols)
    assert tuple(stored) == code.tensors
    assert stored_nbytes(code, rows, cols) == sum(t.nbytes for t in stored.values())
    expected = decode(code, stored, cols)
    assert np.allclose(code.dequantize(stored, cols).double(), expected, rtol=1e-5, atol=0)
    error = (w.double() - torch.from_numpy(expected)).square().sum(1)
    assert (error <= 0.25 * w.double().square().sum(1)).all()
    for block in (8, 48):
        h = _core.hadamard_matrix(block) / math.sqrt(block)
        signs = np.sign(torch.ops.pvq.hadamard(torch.eye(cols), 1, 7, False).numpy().sum(1))
        back = (expected.reshape(rows, cols // block, block) @ h).reshape(rows, cols) * signs
        got = code.dequantize(stored, cols, torch.float32, block, 7)
        assert np.allclose(got, back, atol=1e-5 * (np.abs(back).max() if rows else 1))
        rounded_once = code.dequantize(stored, cols, torch.bfloat16, block, 7)
        assert torch.equal(rounded_once, got.bfloat16())


@pytest.mark.parametrize("pyramid", [PyramidCode(16, 13, 2), PyramidCode(8, 5, 0)])
def test_one_band_is_the_pyramid_code(pyramid):
    code, w = BandsCode.uniform(pyramid, 1), gaussian(9, 96) * torch.logspace(-30, 30, 9)[:, None]
    ours, theirs = code.quantize(w), pyramid.quantize(w)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    assert stored_nbytes(code, 9, 96) == stored_nbytes(pyramid, 9, 96)


@pytest.mark.parametrize("dim", [8, 16, 32])
@pytest.mark.parametrize("cols", [256, 512, 1792, 2880, 4096, 11008])
def test_bands_of_wide_matrices_have_whole_bytes_and_chunks(dim, cols):
    code = BandsCode.uniform(PyramidCode.make(2.25, dim=dim, gain_bits=1), 4)
    widths = code.widths(cols)
    assert sum(widths) == cols
    if cols < 4 * max(128, 8 * dim):
        return
    unit = max(128, 8 * dim)
    assert all(width % unit == 0 for width in widths[:-1])
    assert max(widths) - min(widths) < 2 * unit
    if cols % unit == 0:  # so bands cost nothing
        plain = stored_nbytes(code.settings[0], 5, cols)
        assert stored_nbytes(code, 5, cols) == plain


def test_one_scale_of_a_row_serves_all_bands_almost_as_well():
    # Scales of their own would take 48 bits a row, which are worth 12 % of the error here.
    w = gaussian(64, 512)
    code = BandsCode.uniform(PyramidCode(16, 13, 2), 4)
    error = (code.dequantize(code.quantize(w), 512) - w).square().mean()
    alone = (code.settings[0].quantize(band) for band in w.split(128, 1))
    own = [code.settings[0].dequantize(stored, 128) for stored in alone]
    assert error < 1.02 * (torch.cat(own, 1) - w).square().mean()


@pytest.mark.parametrize("first", [0, 64, 144])
def test_a_block_is_rounded_in_its_metric_by_its_own_code(first):
    w, root = gaussian(30, 240), gaussian(16, 16, seed=2)
    metric = root @ root.T + 0.1 * torch.eye(16)
    rounder, block = MIXED.rounder(w), w[:, first : first + 16]
    got = rounder.round(block, first, metric)
    band = next(i for i, limits in enumerate(MIXED.limits(240)) if limits.stop > first)
    begin, end = edges(MIXED, 240)[band : band + 2]
    code, own = MIXED.settings[band], MIXED.band(rounder.stored(), band)
    alone = code.rounder_of(own, end - begin)
    assert torch.equal(got, alone.round(block, first - begin, metric))
    assert not torch.equal(got, alone.round(block, first - begin))
    again = MIXED.rounder(w)
    decoded = again.round(w[:, 32:224], 32)
    whole = MIXED.dequantize(MIXED.quantize(w), 240)
    assert torch.allclose(decoded, whole[:, 32:224], rtol=1e-6, atol=0)


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["stored", "planes"])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_products_are_those_of_the_decoded_matrix(code, block, layout, dtype):
    w, cols = gaussian(21, 240), 240
    config = PVQConfig.from_dict(
        {"code": "bands", **code.choices(), "rotation": "hadamard" if block else "none"}
        | ({"block": block} if block else {})
    )
    layer = PVQLinear.from_tensor(quantize_tensor(w, config), None).prepare(layout)
    assert layer.layout == layout
    dense = layer.dequantize().double()
    assert (dense - w).square().sum() < 0.25 * w.square().sum()
    x = gaussian(2, 5, 2 * cols, seed=1).to(dtype)[..., ::2]
    got, expected = layer(x), x.double() @ dense.T
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps * (4 if dtype == torch.bfloat16 else 30)
    bound = x.double().norm(dim=-1, keepdim=True) * dense.norm(dim=1) * eps
    assert ((got.double() - expected).abs() <= bound).all()
    assert layer(x[:0]).shape == (0, 5, 21)
    if dtype == torch.float32:
        x.requires_grad_()
        layer(x).sum().backward()
        assert torch.allclose(x.grad.double(), dense.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("code", CODES, ids=IDS)
def test_planes_give_the_index_back_bit_for_bit(code):
    w = gaussian(19, 240)
    w[4] = 0
    config = PVQConfig.from_dict({"code": "bands", **code.choices(), "rotation": "none"})
    codes = quantize_tensor(w, config)
    layer = PVQLinear.from_tensor(codes, None).prepare("planes")
    assert all(f"planes_{i}" in dict(layer.named_buffers()) for i in range(code.bands))
    state = layer.state_dict()
    assert state.keys() == set(code.tensors)
    assert all(torch.equal(state[name], codes.stored[name]) for name in code.tensors)
    other = PVQLinear.from_tensor(quantize_tensor(gaussian(19, 240, seed=1), config), None)
    other.prepare("planes").load_state_dict(state)
    assert torch.equal(other.dequantize(), layer.dequantize())
    layer.prepare("stored")
    assert all(torch.equal(layer.weight_codes.stored[name], t) for name, t in state.items())


def test_activations_become_points_in_bands_too():
    codes = quantize_tensor(gaussian(32, 512), PVQConfig(4.25, code="bands"))
    x = gaussian(3, 512, seed=1)
    for layout in ("stored", "planes"):
        layer = PVQLinear.from_tensor(codes, None).prepare(layout, "pyramid6")
        exact, rough = x @ codes.dequantize().T, layer(x)
        assert 0 < (rough - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("layout", ["stored", "planes"])
def test_products_compile_without_graph_breaks(layout):
    config = PVQConfig.from_dict({"code": "bands", **MIXED.choices()})
    layer = PVQLinear.from_tensor(quantize_tensor(gaussian(21, 240), config), None).prepare(layout)
    x = gaussian(5, 240, seed=1)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


def test_damaged_codes_are_refused():
    stored = MIXED.quantize(gaussian(4, 96))
    stored["index_2"][1] = 255
    with pytest.raises(RuntimeError, match="row 1"):
        MIXED.dequantize(stored, 96)
    with pytest.raises(RuntimeError, match="row 1"):
        MIXED.matmul(gaussian(1, 96), stored)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cols", [512, 240])
def test_the_gpu_multiplies_the_same_codes(cols, dtype):
    config = PVQConfig.from_dict({"code": "bands", **MIXED.choices()})
    codes = quantize_tensor(gaussian(48, cols), config)
    layer = PVQLinear.from_tensor(codes, None).cuda()
    assert layer.layout == ("fragments" if cols == 512 else "stored")
    x, dense = gaussian(5, cols, seed=1).to("cuda", dtype), codes.dequantize().double().cuda()
    got = layer(x).double()
    bound = 4e-3 if dtype == torch.bfloat16 else 1e-3
    expected = x.double() @ dense.T
    assert (got - expected).norm() < bound * expected.norm()
    assert all(torch.equal(layer.state_dict()[n].cpu(), codes.stored[n]) for n in codes.stored)
    on_gpu = quantize_tensor(gaussian(48, cols).cuda(), config)
    assert all(torch.equal(on_gpu.stored[n].cpu(), codes.stored[n]) for n in codes.stored)


# --- the whole path -------------------------------------------------------------------------------


def test_a_calibrated_model_goes_the_whole_path(tmp_path, tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    config = PVQConfig(2.25, code="bands", bands=2)
    report = quantize_model(
        model, config, rounding=GPTQ(), calibration=tokens[:2048].view(16, 128),
        overrides={"*.v_proj": {"bands": 3}}, skip=["*.layers.[1-3].*"], progress=False,
    )  # fmt: skip
    configs = {layer.name: layer.config for layer in report.layers}
    assert len({config.code for config in configs.values()}) > 3, "each layer has its own rates"
    for layer in report.layers:
        asked = config.replace(bands=3) if "v_proj" in layer.name else config
        assert layer.nbytes <= stored_nbytes(asked.code, *layer.shape)
        assert layer.bits_per_weight == 8 * layer.nbytes / math.prod(layer.shape)
        assert layer.nbytes == stored_nbytes(layer.config.code, *layer.shape)
    pvq.save_checkpoint(model, report, tmp_path / "out", source=TINY)
    for loaded in (
        pvq.load(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32),
    ):
        for name, config in configs.items():
            assert loaded.get_submodule(name).config == config
            ours, theirs = (m.get_submodule(name).state_dict() for m in (model, loaded))
            assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    with torch.no_grad():
        ours, theirs = (m(tokens[None, :64]).logits.float() for m in (model, loaded))
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_an_interrupted_run_keeps_the_rates(small_llama, tmp_path):
    samples = torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))
    options = {"rounding": "gptq", "calibration": samples, "progress": False}
    config = PVQConfig(2.25, code="bands", bands=2)
    first, again = small_llama(), small_llama()
    once = quantize_model(first, config, work=tmp_path, **options)
    assert any(not layer.config.code.is_uniform for layer in once.layers)
    twice = quantize_model(again, config, work=tmp_path, **options)
    assert [a.config for a in once.layers] == [b.config for b in twice.layers]
    assert [a.seconds for a in once.layers] == [b.seconds for b in twice.layers], "restored"
    ours, theirs = first.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_budget_for_all_layers_is_shared_out_in_bands(small_llama):
    model, config = small_llama(), PVQConfig(code="bands", bands=2)
    names = [target.name for target in make_plan(model, config).targets]
    layers = {name: (0.01 * 1.5**i,) for i, name in enumerate(names)}
    sensitivity = Sensitivity("kl", "nothing", 1, (0.01,), layers, dict.fromkeys(names, 0.0))
    shared = allocate(model, "3.5bpw", sensitivity, config, low=3.0, high=3.25)
    assert all(c.code.is_uniform and c.code.bands == 2 for c in shared.overrides.values())
    samples = torch.randint(0, 80, (6, 32), generator=torch.Generator().manual_seed(0))
    report = quantize_model(
        *(model, config), rounding="gptq", calibration=samples, overrides=shared.overrides,
        progress=False,
    )  # fmt: skip
    assert report.quantized_nbytes <= shared.quantized_nbytes <= shared.budget_nbytes
    assert any(not layer.config.code.is_uniform for layer in report.layers)


def test_without_data_all_bands_have_one_rate(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["quantize", str(TINY), str(out), "--code", "bands", "--bits", "3.25"]
    assert main([*arguments, "--choice", "bands=2", "--device", "cpu"]) == 0
    capsys.readouterr()
    stored = json.loads((out / "config.json").read_text())["quantization_config"]["default"]
    assert (stored["pulses"], stored["gain_bits"], stored["bands"]) == ([28, 28], [3, 3], 2)
    assert PVQConfig.from_dict(stored).code == BandsCode.uniform(PyramidCode(16, 28, 3), 2)
    with torch.no_grad():
        assert torch.isfinite(pvq.load(out)(torch.arange(8)[None]).logits).all()


# --- configurations -------------------------------------------------------------------------------


def test_configurations_can_be_written_and_read():
    config = PVQConfig(2.25, code="bands")
    assert config.code == BandsCode(2, 16, (13, 13), (2, 2))
    mixed = PVQConfig(code="bands", pulses=[12, 14, 15], gain_bits=[2, 2, 3], seed=3)
    assert mixed.code.bands == 3
    assert mixed.bits == pytest.approx(sum(c.bits for c in mixed.code.settings) / 3)
    for each in (config, mixed, PVQConfig(3, code="bands", bands=2, dim=8, quality=2)):
        text = json.dumps(each.to_dict())
        assert PVQConfig.from_dict(json.loads(text)) == each
        assert hash(PVQConfig.from_dict(json.loads(text))) == hash(each)
    assert PVQConfig(code="bands", pulses=27).code == BandsCode(2, 16, (27, 27), (4, 4))
    assert mixed.replace(bits=3.25).code == BandsCode.uniform(PyramidCode(16, 28, 3), 3)
    assert mixed.replace(gain_bits=3).code.gain_bits == (3, 3, 3)
    assert config.replace(bands=3).code == BandsCode.uniform(PyramidCode(16, 13, 2), 3)
    assert config.replace(dim=8).code.settings[0] == PyramidCode.make(2.25, dim=8)
    assert PVQConfig(3.25).replace(code="bands").code.settings[0] == PyramidCode(16, 28, 3)
    ladder = BandsCode.ladder(2.0, 2.25, bands=2)
    assert [code.rate for code in ladder] == [2.0, 2.0625, 2.125, 2.1875, 2.25]
    assert BandsCode.ladder(2, 2.1, **config.code.family())[0] == config.replace(bits=2).code


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"bands": 0}, ValueError, "bands is 0, expected 1 to 64"),
        ({"bands": 65}, ValueError, "bands is 65"),
        ({"bands": 2.0}, TypeError, r"bands is 2\.0, expected an integer"),
        ({"bits": 0.1}, ValueError, r"bits=0\.1 is out of reach"),
        ({"bits": math.nan}, ValueError, "bits=nan is out of reach"),
        ({"pulses": [], "gain_bits": []}, ValueError, "bands is 0"),
        ({"pulses": [12, 13]}, ValueError, "takes pulses and gain_bits and no bits"),
        ({"gain_bits": [2, 3]}, ValueError, "takes pulses and gain_bits and no bits"),
        ({"bits": 2, "pulses": [9, 9], "gain_bits": 2}, ValueError, "bits=2: what each band"),
        ({"bands": 3, "pulses": [9, 9], "gain_bits": 2}, ValueError, "pulses has 2 values, .*=3"),
        ({"pulses": [9, 9], "gain_bits": [2]}, ValueError, "gain_bits has 1 values, .* bands=2"),
        ({"pulses": [9, 0], "gain_bits": 2}, ValueError, "pulses is 0, expected 1"),
        ({"pulses": [9, 9], "gain_bits": [2, 9]}, ValueError, "gain_bits is 9, expected 0 to 8"),
        ({"pulses": [9, "9"], "gain_bits": 2}, TypeError, "pulses is '9', expected an integer"),
        ({"dim": 1}, ValueError, "dim is 1"),
        ({"inner": "pyramid"}, ValueError, "unknown choice 'inner' with code='bands'"),
    ],
)
def test_bad_choices_are_named(choices, error, message):
    with pytest.raises(error, match=message):
        PVQConfig(code="bands", **choices)


def test_columns_that_do_not_fit_are_named():
    config = PVQConfig(3.25, code="bands", bands=4)
    with pytest.raises(ValueError, match=r"100 columns are not a multiple of dim=16.* pass dim="):
        config.for_cols(100)
    with pytest.raises(ValueError, match=r"48 columns are 3 groups of dim=16.* pass bands=3"):
        config.for_cols(48)
    with pytest.raises(ValueError, match="weight does not fit: 48 columns are 3 groups"):
        quantize_tensor(gaussian(2, 48), config)
