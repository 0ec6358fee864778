"""How good is a language model: perplexity, and its distance to a reference model.

Convention (that of the GPTQ line of work): the text is tokenised in one go without special tokens
and cut into consecutive windows that do not overlap; the tail that does not fill a window is
dropped; each window is scored on its own from its second token on. Perplexity is the exponential of
the mean negative log-likelihood of all scored tokens. Kullback-Leibler divergence, in nats, is from
the reference to the model, averaged over the same positions; agreement is how often both rank the
same token first.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pvq.progress import progress_bar

# Longest default window: contexts of 100,000 tokens would compare with no published figure.
MAX_WINDOW = 2048
# Positions whose logits are in float32 at one time.
_CHUNK = 256


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`; the last four are ``None`` without a reference.

    Attributes:
        perplexity: of the model.
        nll: mean negative log-likelihood, nats a token.
        scored_tokens: how many tokens were predicted.
        windows: how many windows they are from.
        window: tokens a window.
        convention: how the figures were made, in words.
        reference_perplexity: of the reference.
        kl_divergence: from the reference to the model, nats a token.
        top1_agreement: fraction of positions where both rank the same token first.
        perplexity_increase: relative to the reference.
    """

    perplexity: float
    nll: float
    scored_tokens: int
    windows: int
    window: int
    convention: str
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    perplexity_increase: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass
class _Sums:
    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    agreements: int = 0


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Token ids of a whole text [tokens], int64, without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def evaluate(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    *,
    reference: PreTrainedModel | None = None,
    window: int | None = None,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores ``model`` on a text, window by window; logits of one window are held at a time.

    Args:
        model: a causal language model, on any device.
        tokens: [n] int64, the text; see :func:`tokenize`.
        reference: the model that it is compared with, with the same vocabulary.
        window: tokens a window; the model's context by default, at most ``MAX_WINDOW``.
        max_tokens: use no more than this many tokens of the text.
        progress: whether to show a bar on stderr.

    Returns:
        The figures and the convention that they follow.

    Raises:
        ValueError: if the text has no whole window, the window does not fit the model's context, or
            the vocabularies differ.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    window = checked_window(context, window)
    tokens = tokens[:max_tokens]
    count = len(tokens) // window
    if count == 0:
        raise ValueError(
            f"the text has {len(tokens)} tokens, less than one window of {window}: use more text "
            f"or window={max(2, len(tokens))} or less (--window)"
        )
    sums = _Sums()
    with torch.inference_mode():
        for i in progress_bar(range(count), "evaluating", "window", progress):
            _score_window(model, reference, tokens[i * window : (i + 1) * window], sums)
    scored = count * (window - 1)
    nll = sums.nll / scored
    convention = (
        f"{count} non-overlapping windows of {window} tokens, no BOS added, loss over tokens 2 to "
        f"{window} of each"
    )
    if reference is None:
        return Evaluation(math.exp(nll), nll, scored, count, window, convention)
    return Evaluation(
        *(math.exp(nll), nll, scored, count, window, convention),
        reference_perplexity=math.exp(sums.reference_nll / scored),
        kl_divergence=sums.kl / scored,
        top1_agreement=sums.agreements / scored,
        perplexity_increase=math.expm1(nll - sums.reference_nll / scored),
    )


def _score_window(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokens: torch.Tensor,
    sums: _Sums,
) -> None:
    logits = _logits(model, tokens)
    other = None if reference is None else _logits(reference, tokens)
    if other is not None and other.shape != logits.shape:
        raise ValueError(
            f"the model has {logits.shape[-1]} tokens and the reference {other.shape[-1]}: they "
            "must share a vocabulary"
        )
    targets = tokens[1:].to(logits.device)
    for begin in range(0, len(targets), _CHUNK):
        positions = slice(begin, min(begin + _CHUNK, len(targets)))
        log_q = logits[positions].float().log_softmax(-1)
        target = targets[positions, None]
        sums.nll -= log_q.gather(-1, target).double().sum().item()
        if other is None:
            continue
        log_p = other[positions].to(logits.device).float().log_softmax(-1)
        sums.reference_nll -= log_p.gather(-1, target).double().sum().item()
        sums.kl += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().item()
        sums.agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())


def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [tokens - 1, vocabulary] of the next token; the last position predicts none."""
    logits: torch.Tensor = model(tokens[None].to(model.device), use_cache=False).logits
    return logits[0, :-1]


def checked_window(context: int | None, window: int | None) -> int:
    """Tokens a window: ``window``, or the model's ``context`` where there is nothing against it.

    Raises:
        ValueError: if ``window`` does not fit.
    """
    if window is None:
        return min(context or MAX_WINDOW, MAX_WINDOW)
    if window < 2 or (context is not None and window > context):
        raise ValueError(f"window is {window}, expected 2 to the model's context of {context}")
    return window
