import dataclasses
import math

import pytest
import torch
from reference import count

from pvq import PVQConfig
from pvq.config import FORMAT_VERSION


def index_bits(dim: int, pulses: int) -> int:
    return count(dim, pulses).bit_length()


@pytest.mark.parametrize(
    ("bits", "pulses"), [(2.25, 12), (2.75, 18), (3.25, 27), (3.75, 40), (4.25, 58)]
)
def test_production_rates_at_dim_16(bits, pulses):
    config = PVQConfig(bits, gain_bits=4)
    assert (config.code.dim, config.code.pulses, config.code.gain_bits) == (16, pulses, 4)
    assert config == PVQConfig(pulses=pulses)
    assert config.bits == bits


@pytest.mark.parametrize("dim", [8, 16, 32])
@pytest.mark.parametrize("bits", [1.5, 2.25, 3.0, 3.25, 4.25])
def test_the_rate_is_shared_out_with_nearly_the_least_error(dim, bits):
    def error(config):
        w = torch.randn(32, 2048, generator=torch.Generator().manual_seed(3))
        code = config.code
        return float((code.dequantize(code.quantize(w), 2048) - w).square().mean())

    chosen = PVQConfig(bits, dim=dim)
    assert chosen.bits == bits or dim == 8
    every = [error(PVQConfig(bits, dim=dim, gain_bits=gain)) for gain in range(6)]
    assert error(chosen) <= 1.03 * min(every)


@pytest.mark.parametrize("dim", [2, 3, 8, 16, 24, 64, 256])
@pytest.mark.parametrize("bits", [2.0, 2.6, 3.25, 4.4])
@pytest.mark.parametrize("gain_bits", [0, 3])
def test_bits_takes_the_most_pulses_that_fit(dim, bits, gain_bits):
    budget = math.floor(bits * dim + 0.5) - gain_bits
    if index_bits(dim, 1) > budget:
        with pytest.raises(ValueError, match="out of reach"):
            PVQConfig(bits, dim=dim, gain_bits=gain_bits)
        return
    pulses = PVQConfig(bits, dim=dim, gain_bits=gain_bits).code.pulses
    assert index_bits(dim, pulses) <= budget < index_bits(dim, pulses + 1)


def test_bits_is_a_way_to_ask_for_pulses():
    assert PVQConfig() == PVQConfig(bits=3.25) == PVQConfig(pulses=28, gain_bits=3)
    assert hash(PVQConfig(3.25)) == hash(PVQConfig(pulses=28, gain_bits=3))
    assert PVQConfig(3.25) != PVQConfig(4.25)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PVQConfig().seed = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        PVQConfig().code.pulses = 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"pulses": 0}, r"pulses is 0, expected 1 to 4096"),
        ({"pulses": 4097}, r"pulses is 4097, expected 1 to 4096"),
        ({"dim": 1}, r"dim is 1, expected 2 to 256"),
        ({"dim": 257}, r"dim is 257, expected 2 to 256"),
        ({"dim": 0}, r"dim is 0"),
        ({"gain_bits": 9}, r"gain_bits is 9, expected 0 to 8"),
        ({"gain_bits": -1}, r"gain_bits is -1"),
        ({"gain_law": "gauss"}, r"gain_law is 'gauss', expected one of 'lloyd', 'beta'"),
        ({"rotation": "fft"}, r"rotation is 'fft', expected one of 'hadamard', 'none'"),
        ({"seed": -1}, r"seed is -1"),
        ({"seed": 2**63}, r"seed is"),
        ({"quality": 3}, r"quality is 3, expected 0 to 2"),
        ({"block": 0}, r"block is 0"),
        ({"block": 7}, r"block=7 has no Hadamard matrix"),
        ({"block": 64, "rotation": "none"}, r"block=64 has no meaning with rotation='none'"),
        ({"bits": 3.25, "pulses": 27}, r"both given"),
        ({"bits": 0.1}, r"bits=0\.1 is out of reach .* choose from 0\.\d+ to 1\d"),
        ({"bits": 40.0}, r"bits=40\.0 is out of reach"),
        ({"bits": float("nan")}, r"bits=nan is out of reach"),
    ],
)
def test_config_refuses_values(arguments, text):
    with pytest.raises(ValueError, match=text):
        PVQConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"pulses": 2.5}, {"dim": "16"}, {"pulses": True}, {"bits": "3.25"}, {"seed": None}],
)
def test_config_refuses_types(arguments):
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} is"):
        PVQConfig(**arguments)


def test_out_of_reach_names_a_range_that_is_reachable():
    with pytest.raises(ValueError) as error:
        PVQConfig(bits=100)
    low, high = (
        float(x) for x in str(error.value).split("choose from ")[1].split(",")[0].split(" to ")
    )
    assert PVQConfig(bits=low).code.pulses == 1
    assert PVQConfig(bits=math.floor(high * 16) / 16).code.pulses > 4000


def test_for_cols_settles_the_block():
    assert PVQConfig().for_cols(1024).block is not None
    assert PVQConfig(block=64).for_cols(192).block == 64
    assert PVQConfig(rotation="none").for_cols(48).hadamard_block == 0
    config = PVQConfig().for_cols(768)
    assert config.for_cols(768) == config
    assert 768 % config.hadamard_block == 0


def test_for_cols_says_what_divides():
    with pytest.raises(ValueError, match=r"100 columns .* dim=16.* pass dim=10 or leave"):
        PVQConfig().for_cols(100)
    with pytest.raises(ValueError, match=r"101 columns .* never pads: leave this layer dense"):
        PVQConfig().for_cols(101)
    with pytest.raises(ValueError, match=r"192 columns are not a multiple of block=128"):
        PVQConfig(block=128).for_cols(192)
    with pytest.raises(ValueError, match="depends on the number of columns"):
        _ = PVQConfig().hadamard_block


def test_replace_derives_pulses_anew_only_when_asked():
    config = PVQConfig(pulses=12, seed=5)
    assert config.replace(seed=6) == PVQConfig(pulses=12, seed=6)
    assert config.replace(bits=3.25) == PVQConfig(bits=3.25, seed=5)
    assert config.replace(dim=8) == PVQConfig(config.bits, dim=8, seed=5)
    assert config.replace(dim=8, pulses=3) == PVQConfig(dim=8, pulses=3, seed=5)
    assert PVQConfig(block=64).replace(rotation="none").block is None
    with pytest.raises(ValueError, match="unknown choice 'pulse'"):
        config.replace(pulse=3)


def test_dict_round_trip():
    config = PVQConfig(2.75, dim=8, gain_law="beta", seed=9, quality=2, block=32)
    stored = config.to_dict()
    assert stored["format_version"] == FORMAT_VERSION
    assert PVQConfig.from_dict(stored) == config


def test_from_dict_refuses_what_it_cannot_know():
    stored = PVQConfig().to_dict()
    with pytest.raises(ValueError, match=r"format_version 99.* upgrade pvq"):
        PVQConfig.from_dict({**stored, "format_version": 99})
    with pytest.raises(ValueError, match="format_version is 'one'"):
        PVQConfig.from_dict({**stored, "format_version": "one"})
    with pytest.raises(ValueError, match="does not know: shift"):
        PVQConfig.from_dict({**stored, "shift": 3})


@pytest.mark.parametrize(
    ("config", "change", "text"),
    [
        (PVQConfig(), {"dim": "16"}, "unreadable .dim is '16', expected an integer from 2 to 256"),
        (PVQConfig(), {"seed": None}, "seed is None, expected an integer"),
        (PVQConfig(), {"pulses": [28]}, r"pulses is \[28\], expected an integer"),
        (PVQConfig(), {"block": {}}, "block is {}, expected an integer"),
        (PVQConfig(), {"code": 5}, "code is 5, expected one of 'pyramid'"),
        (PVQConfig(code="nf4"), {"double": 1}, "double is 1, expected True or False"),
        (PVQConfig(2, code="table"), {"bits": "2"}, "bits is '2', expected a number of bits"),
        (PVQConfig(code="outliers"), {"inner": 5}, "inner is 5, expected a code, its name"),
        (PVQConfig(code="outliers"), {"inner": {"dim": "8"}}, "dim is '8', expected an integer"),
        (PVQConfig(code="outliers"), {"fraction": "1"}, "fraction is '1', expected a number"),
    ],
)
def test_values_of_the_wrong_type_in_a_file_are_values_that_it_refuses(config, change, text):
    with pytest.raises(ValueError, match=text):
        PVQConfig.from_dict({**config.to_dict(), **change})


@pytest.mark.parametrize("stored", [None, 5, "pyramid", [], [["code", "pyramid"]]])
def test_a_file_without_an_object_has_no_configuration(stored):
    with pytest.raises(ValueError, match="expected an object with the fields of one"):
        PVQConfig.from_dict(stored)


ODD = [None, True, 5, -1, 2.5, math.inf, math.nan, 10**30, "", "16", "bands", [], [1], ["a"],
       [[1], [2]], [28, 28], {}, {"a": 1}, {"code": 5}, {"code": []}, {"pulses": [1]}]  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        *(PVQConfig(), PVQConfig(3, activations="pyramid4"), PVQConfig(2, code="table")),
        *(PVQConfig(2.5, code="overlap"), PVQConfig(code="bands"), PVQConfig(code="nf4")),
        *(PVQConfig(4, code="uniform"), PVQConfig(code="higgs"), PVQConfig(code="outliers")),
    ],
    ids=lambda config: config.code.name,
)
def test_any_value_in_a_file_is_refused_or_makes_a_whole_configuration(config):
    stored = config.to_dict()
    for key in stored:
        for value in ODD:
            try:
                made = PVQConfig.from_dict({**stored, key: value}).for_cols(384)
            except ValueError:
                continue
            assert made.code.layout(3, 384)
            assert PVQConfig.from_dict(made.to_dict()) == made
            assert isinstance(hash(made), int)


def test_codes_that_have_changed_are_refused_from_older_files():
    for bits, since in ((2, 1), (2.5, 1), (3, 2), (3.5, 2), (4, 2)):
        stored = PVQConfig(bits, code="overlap").to_dict()
        for version in (1, FORMAT_VERSION):
            if version >= since:
                PVQConfig.from_dict({**stored, "format_version": version})
                continue
            with pytest.raises(ValueError, match=r"format_version 1, and .* quantize the model"):
                PVQConfig.from_dict({**stored, "format_version": version})
    inside = PVQConfig(3, code="outliers", inner="overlap", rotation="none").to_dict()
    with pytest.raises(ValueError, match=r"format_version 1, and .* quantize the model"):
        PVQConfig.from_dict({**inside, "format_version": 1})
    older = {**PVQConfig(3.25).to_dict(), "format_version": 1}
    assert PVQConfig.from_dict(older) == PVQConfig(3.25)
