import math

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import pvq
from pvq.evaluate import evaluate, tokenize


def log_probabilities(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Float64 log-probabilities of the next token, the obvious way."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0].double()
    return logits - logits.exp().sum(-1, keepdim=True).log()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 80, (151,), generator=torch.Generator().manual_seed(1))


def test_figures_are_those_of_an_independent_computation(small_llama, ids):
    reference, model = small_llama(), small_llama()
    pvq.quantize_model(model, pvq.PVQConfig(2.25), progress=False)
    result = evaluate(model, ids, reference=reference, window=40, progress=False)
    nll = reference_nll = kl = agreements = 0.0
    for begin in (0, 40, 80):
        window = ids[begin : begin + 40]
        q, p = log_probabilities(model, window), log_probabilities(reference, window)
        for i in range(39):
            nll -= q[i, window[i + 1]].item()
            reference_nll -= p[i, window[i + 1]].item()
            kl += (p[i].exp() * (p[i] - q[i])).sum().item()
            agreements += int(p[i].argmax() == q[i].argmax())
    scored = 3 * 39
    assert (result.windows, result.window, result.scored_tokens) == (3, 40, scored)
    assert result.nll == pytest.approx(nll / scored, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nll / scored), rel=1e-5)
    assert result.reference_perplexity == pytest.approx(math.exp(reference_nll / scored), rel=1e-5)
    assert result.perplexity_increase == pytest.approx(
        math.exp((nll - reference_nll) / scored) - 1, rel=1e-2
    )
    assert result.kl_divergence == pytest.approx(kl / scored, rel=1e-3)
    assert result.kl_divergence > 0
    assert result.top1_agreement == agreements / scored
    assert "3 non-overlapping windows of 40 tokens, no BOS" in result.convention


def test_chunks_of_positions_do_not_matter(small_llama, ids, monkeypatch):
    model = small_llama()
    whole = evaluate(model, ids, reference=model, window=40, progress=False)
    monkeypatch.setattr("pvq.evaluate._CHUNK", 7)
    chunked = evaluate(model, ids, reference=model, window=40, progress=False)
    assert chunked.nll == pytest.approx(whole.nll, rel=1e-7)
    assert (whole.kl_divergence, whole.top1_agreement) == (0, 1)


def test_without_a_reference_there_is_no_divergence(small_llama, ids):
    result = evaluate(small_llama(), ids, window=40, max_tokens=100, progress=False)
    assert result.windows == 2
    assert result.reference_perplexity is None
    assert result.kl_divergence is None
    assert result.to_dict()["top1_agreement"] is None


def test_default_window_is_the_context(small_llama, ids):
    assert evaluate(small_llama(), ids, progress=False).window == 64


def test_evaluate_says_what_is_wrong(small_llama, ids):
    model = small_llama()
    with pytest.raises(
        ValueError, match=r"text has 30 tokens, less than one window of 40.*window=30"
    ):
        evaluate(model, ids[:30], window=40)
    with pytest.raises(ValueError, match="window is 65, expected 2 to the model's context of 64"):
        evaluate(model, ids, window=65)
    with pytest.raises(ValueError, match="window is 1,"):
        evaluate(model, ids, window=1)
    with pytest.raises(ValueError, match="80 tokens and the reference 96: they must share"):
        evaluate(model, ids, reference=small_llama(vocab_size=96), window=40, progress=False)


def test_text_is_tokenised_in_one_go_without_special_tokens(books):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenize(tokenizer, books[:20_000])
    assert ids.dtype == torch.int64
    assert ids.ndim == 1
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids) == books[:20_000]


def test_bundled_model_and_text_belong_together(tokens):
    """The bf16 model has 29.70 on the whole text; its first two windows are near that."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    result = evaluate(model, tokens[:2048], progress=False)
    assert result.windows == 2
    assert 15 < result.perplexity < 60
