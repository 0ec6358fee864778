"""PVQCache: what it returns, against the operators and transformers' own cache; what it holds."""

import copy
from itertools import pairwise

import pytest
import torch
from conftest import TINY
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    LlamaConfig,
    Qwen3NextConfig,
)

import pvq
from pvq.cache.layer import CodedCacheLayer
from pvq.cache.states import state_code

LENGTHS = (5, 1, 1, 17, 3, 1)


def llama_config(head_dim: int = 32, **changes: object) -> LlamaConfig:
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaConfig(num_hidden_layers=1, head_dim=head_dim, **{**sizes, **changes})


def states(tokens: int, head_dim: int = 32, batch: int = 2, dtype=torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(tokens * 1000 + head_dim)
    x = torch.randn(batch, 3, tokens, head_dim, generator=random)
    x[..., 1] *= 20  # a channel as keys have them
    return x.to(dtype)


def reference(x: torch.Tensor, bits: float, dim: int, seed: int) -> torch.Tensor:
    """Every state quantized and decoded again, by the public functions."""
    code = state_code(bits, x.shape[-1], dim, seed).code
    numbers = {"dim": dim, "pulses": code.pulses, "gain_bits": code.gain_bits, "seed": seed}
    config = pvq.PVQConfig(block=pvq.rotation.default_block(x.shape[-1]), **numbers)
    rows = pvq.quantize_tensor(x.reshape(-1, x.shape[-1]), config).dequantize(x.dtype)
    return rows.view(x.shape)


def filled(cache: pvq.PVQCache, lengths=LENGTHS, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds tokens in pieces; returns them all, keys and values."""
    keys, values = states(sum(lengths), **kwargs), states(sum(lengths), **kwargs).flip(-1)
    begin = 0
    for length in lengths:
        part = slice(begin, begin + length)
        cache.update(keys[:, :, part], values[:, :, part], 0)
        begin += length
    return keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("bits", "dim", "window"), [(3, 16, 4), (2, 8, 0), (4, 32, 9), (2.5, 4, 1)]
)
def test_old_tokens_are_those_that_quantization_gives_and_recent_ones_exact(
    bits, dim, window, dtype
):
    cache = pvq.PVQCache(llama_config(), bits, dim=dim, window=window, seed=7)
    keys, values = filled(cache, dtype=dtype)
    new = states(2, dtype=dtype)
    got_keys, got_values = cache.update(new, new, 0)
    old = keys.shape[2] - window
    for got, exact in ((got_keys, keys), (got_values, values)):
        assert got.dtype == dtype
        assert torch.equal(got[:, :, :old], reference(exact[:, :, :old], bits, dim, seed=7))
        assert torch.equal(got[:, :, old:], torch.cat((exact[:, :, old:], new), 2))
        assert not torch.equal(got[:, :, :old], exact[:, :, :old])
    assert cache.get_seq_length() == keys.shape[2] + 2


@pytest.mark.parametrize("head_dim", [16, 24, 64, 80, 96, 128, 256])
def test_head_sizes_that_are_no_powers_of_two(head_dim):
    cache = pvq.PVQCache(llama_config(head_dim), 4, dim=8, window=0)
    keys, _ = filled(cache, head_dim=head_dim)
    got, _ = cache.update(keys[:, :, :1], keys[:, :, :1], 0)
    assert torch.equal(got[:, :, :-1], reference(keys, 4, 8, seed=0))
    error = (got[:, :, :-1] - keys).square().sum() / keys.square().sum()
    assert error < 0.02  # a head of 24 has little room for amplitudes


@pytest.mark.parametrize("bits", [2, 3, 4, (4, 2)])
@pytest.mark.parametrize("dim", [8, 16, 64])
def test_every_byte_is_counted_and_the_rate_is_kept(bits, dim):
    cache = pvq.PVQCache(llama_config(64), bits, dim=dim, window=5)
    assert cache.nbytes == cache.dense_nbytes == cache.bits_per_value == 0
    keys, values = filled(cache, head_dim=64)
    layer = cache.layers[0]
    tensors = [*layer.old_keys.tensors, *layer.old_values.tensors, layer.keys, layer.values]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert cache.nbytes == sum(storages.values())  # also that no view keeps more alive
    assert cache.dense_nbytes == keys.nbytes + values.nbytes
    rate = sum(bits) / 2 if isinstance(bits, tuple) else bits
    assert rate - 0.3 < cache.bits_per_value <= rate + 16 / 64


def test_generate_follows_the_model_and_saves_memory(tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = tokens[:400].view(2, 200)
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    dense = model.generate(ids, **settings)
    window = pvq.PVQCache(model.config, bits=2, window=300)
    assert torch.equal(model.generate(ids, past_key_values=window, **settings), dense)
    fine = pvq.PVQCache(model.config, bits=8, window=0)
    assert torch.equal(model.generate(ids, past_key_values=fine, **settings), dense)
    cache = pvq.PVQCache(model.config, bits=3, window=16)
    assert model.generate(ids, past_key_values=cache, **settings).shape == dense.shape
    assert cache.get_seq_length() == 211
    assert cache.bits_per_value == 3.25
    assert cache.nbytes < cache.dense_nbytes / 5


def test_logits_get_nearer_with_every_bit(tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = tokens[None, :256]

    def logits(cache):
        with torch.no_grad():
            past = model(ids[:, :200], past_key_values=cache).past_key_values
            return model(ids[:, 200:], past_key_values=past).logits.log_softmax(-1)

    exact = logits(DynamicCache(config=model.config))
    divergence = [
        (exact.exp() * (exact - logits(pvq.PVQCache(model.config, bits, window=0)))).sum(-1).mean()
        for bits in (8, 4, 3, 2)
    ]
    assert 0 < divergence[0] < 1e-4
    assert all(a < b / 2 for a, b in pairwise(divergence))


def test_beam_search_runs_and_batches_are_reordered(tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = tokens[:60].view(2, 30)
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    settings["attention_mask"] = torch.ones_like(ids)
    dense = model.generate(ids, **settings)
    cache = pvq.PVQCache(model.config, bits=8, window=0)
    assert torch.equal(model.generate(ids, past_key_values=cache, **settings), dense)


def test_prompt_lookup_crops_what_it_guessed_wrong(tokens):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = tokens[None, :20].repeat(1, 4)
    settings = {"max_new_tokens": 30, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    dense = model.generate(ids, **settings)
    for bits, window in ((3, 200), (8, 0)):
        cache = pvq.PVQCache(model.config, bits, window=window)
        settings["past_key_values"] = cache
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **settings), dense)


def test_layers_without_keys_stay_as_they_are():
    types = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    config = Qwen3NextConfig(num_hidden_layers=4, layer_types=types, head_dim=64)
    cache = pvq.PVQCache(config, 3)
    coded = [isinstance(layer, CodedCacheLayer) for layer in cache.layers]
    assert coded == [False, True, False, True]
    assert cache.nbytes == 0


@pytest.mark.parametrize("window", [0, 3, 50])
def test_batch_operations_are_those_on_the_states(window):
    config = llama_config()
    new = states(1)

    def after(change):
        cache = pvq.PVQCache(config, 3, window=window)
        filled(cache)
        change(cache)
        batch = cache.layers[0].keys.shape[0]
        return cache.update(new[:1].expand(batch, -1, -1, -1), new[:1].expand(batch, -1, -1, -1), 0)

    plain = after(lambda cache: None)
    order = torch.tensor([1, 1])
    changes = {
        "reorder": (lambda cache: cache.reorder_cache(order), lambda x: x[order]),
        "select": (lambda c: c.batch_select_indices(torch.tensor([1])), lambda x: x[1:]),
        "repeat": (lambda c: c.batch_repeat_interleave(2), lambda x: x.repeat_interleave(2, 0)),
    }
    for change, expected in changes.values():
        for got, states_before in zip(after(change), plain, strict=True):
            assert torch.equal(got[:, :, :-1], expected(states_before)[:, :, :-1])


@pytest.mark.parametrize("remove", [0, 1, 4, 10, 28])
def test_crop_forgets_the_last_tokens(remove):
    cache = pvq.PVQCache(llama_config(), 3, window=4)
    filled(cache)
    before = copy.deepcopy(cache).update(states(1), states(1), 0)
    cache.crop(-remove)
    kept = sum(LENGTHS) - remove
    assert cache.get_seq_length() == kept
    assert cache.layers[0].get_mask_sizes(3) == (kept + 3, 0)
    after = cache.update(states(1), states(1), 0)
    for got, expected in zip(after, before, strict=True):
        assert torch.equal(got[:, :, :kept], expected[:, :, :kept])
        assert torch.equal(got[:, :, kept:], states(1))


def test_a_positive_crop_is_the_number_to_keep():
    layer = CodedCacheLayer((3, 3), 16, 4, 0)
    layer.update(states(20), states(20))
    layer.crop(7)
    assert layer.get_seq_length() == layer.held_tokens == 7


def test_reset_forgets_everything():
    cache = pvq.PVQCache(llama_config(), 3)
    filled(cache)
    cache.reset()
    assert cache.nbytes == cache.get_seq_length() == 0
    keys, _ = filled(cache, lengths=(6,))
    got, _ = cache.update(keys[:, :, :1], keys[:, :, :1], 0)
    assert torch.equal(got[:, :, :6], keys)


def sliding_layer(sliding_window: int, window: int) -> CodedCacheLayer:
    return CodedCacheLayer((3, 3), 16, window, 0, sliding_window=sliding_window)


@pytest.mark.parametrize("window", [0, 3, 100])
@pytest.mark.parametrize("sliding_window", [2, 8, 64])
def test_a_sliding_window_keeps_what_transformers_keeps(sliding_window, window):
    config = LlamaConfig(num_hidden_layers=1, sliding_window=sliding_window)
    theirs = DynamicCache(config=config).layers[0]
    layer = sliding_layer(sliding_window, window)
    x = states(sum(LENGTHS))
    decoded = reference(x, 3, 16, seed=0)
    begin = 0
    for length in LENGTHS:
        part = x[:, :, begin : begin + length]
        assert layer.get_mask_sizes(length) == theirs.get_mask_sizes(length)
        got, _ = layer.update(part, part)
        expected, _ = theirs.update(part, part)
        assert got.shape == expected.shape
        first = begin + length - got.shape[2]
        exact = max(begin - window, first)  # the first token that is not in codes yet
        assert torch.equal(got[:, :, : exact - first], decoded[:, :, first:exact])
        assert torch.equal(got[:, :, exact - first :], x[:, :, exact : begin + length])
        begin += length
        assert layer.held_tokens == theirs.keys.shape[2]
        assert layer.get_seq_length() == theirs.get_seq_length()


def test_a_sliding_window_is_cropped_only_where_it_recorded_the_past():
    layer = sliding_layer(8, 2)
    x = states(20)
    layer.update(x, x)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        layer.crop(-1)
    assert layer.get_seq_length() == 20
    layer.reset()
    layer.activate_past_recording()
    layer.update(x, x)
    layer.crop(-5)
    assert layer.held_tokens == 7
    got, _ = layer.update(x[:, :, :1], x[:, :, :1])
    decoded = reference(x, 3, 16, seed=0)
    assert torch.equal(got, torch.cat((decoded[:, :, 8:15], x[:, :, :1]), 2))


def test_models_with_both_kinds_of_layers_generate():
    config = Gemma2Config(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = pvq.PVQCache(config, 8, window=0)
    assert [layer.sliding_window for layer in cache.layers] == [8, None]
    ids = torch.arange(1, 21)[None]
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    settings |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    dense = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, past_key_values=cache, **settings), dense)
    assert [layer.held_tokens for layer in cache.layers] == [7, 29]


def test_states_of_any_strides_and_no_tokens():
    cache = pvq.PVQCache(llama_config(), 3, window=0)
    x = states(6)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    got, _ = cache.update(strided[:, :, ::2], strided[:, :, ::2], 0)
    assert torch.equal(got, x[:, :, ::2])
    got, _ = cache.update(x[:, :, :0], x[:, :, :0], 0)
    assert torch.equal(got, reference(x[:, :, ::2].contiguous(), 3, 16, seed=0))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"bits": 0.5}, ValueError, "bits is 0.5, expected 1 to 8"),
        ({"bits": 9}, ValueError, "bits is 9"),
        ({"bits": "3"}, TypeError, "bits is '3'"),
        ({"bits": (3, 2, 1)}, ValueError, "a pair"),
        ({"bits": (3, None)}, TypeError, "bits is None"),
        ({"dim": 24}, ValueError, "no groups of dim=24 in head_dim=32.*pass dim=16"),
        ({"dim": 1}, ValueError, "dim is 1"),
        ({"window": -1}, ValueError, "window is -1"),
        ({"window": 1.5}, TypeError, "window is 1.5"),
        ({"seed": -3}, ValueError, "seed is -3"),
        ({"bits": 1, "dim": 2}, ValueError, "leaves no index|out of reach"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_cached(arguments, error, text):
    with pytest.raises(error, match=text):
        pvq.PVQCache(llama_config(), **arguments)


def test_what_is_no_configuration_is_refused():
    with pytest.raises(TypeError, match="that of the model"):
        pvq.PVQCache(3)


@pytest.mark.parametrize(("head_dim", "dim"), [(64, 16), (24, 8), (36, 4), (34, 2)])
def test_the_group_size_is_one_that_fits(head_dim, dim):
    assert state_code(4, head_dim, None, seed=0).code.dim == dim


def test_a_head_size_without_groups_is_refused():
    with pytest.raises(ValueError, match="head_dim=33"):
        state_code(3, 33, None, seed=0)


def test_states_that_have_no_codes_are_refused():
    cache = pvq.PVQCache(llama_config(), 3, window=0)
    with pytest.raises(TypeError, match=r"keys have dtype torch\.float64"):
        cache.update(states(1).double(), states(1).double(), 0)
    x = states(2)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        cache.update(x, x, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_stores_the_same_bits():
    caches = [pvq.PVQCache(llama_config(64), 3, window=4) for _ in range(2)]
    for cache, device in zip(caches, ("cpu", "cuda"), strict=True):
        x = states(40, head_dim=64, dtype=torch.float16).to(device)
        cache.update(x, x, 0)
    ours, theirs = caches[0].layers[0].old_keys, caches[1].layers[0].old_keys
    assert ours.tokens == theirs.tokens == 36
    # The rotation's sums may round differently, which may move a value across an edge.
    difference = (ours.decode(torch.float32) - theirs.decode(torch.float32).cpu()).square().sum()
    assert difference < 1e-3 * ours.decode(torch.float32).square().sum()
