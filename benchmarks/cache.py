"""A model with its keys and values in pyramid codes: quality against bits, memory and time.

    python benchmarks/cache.py MODEL --text FILE [--bits 4 3 2] [--windows 4] [--json FILE]

Each window of the text is read in pieces of --piece tokens with a cache, so that a token sees all
tokens before its piece as the cache holds them; no token but those of the piece is exact. KL
divergence is from the same model with transformers' own cache. The time is that of generating
--new tokens after a window, one at a time, and what quantizing and decoding take of it.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import machine, print_machine, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, PreTrainedModel

import pvq
from pvq.evaluate import tokenize


@dataclass
class Sums:
    """Over all scored tokens."""

    nll: float = 0.0
    kl: float = 0.0
    agreements: int = 0
    tokens: int = 0


def log_probabilities(
    model: PreTrainedModel, ids: torch.Tensor, cache: Cache, piece: int
) -> torch.Tensor:
    """[tokens, vocabulary] of a window that is read piece after piece."""
    logits = [
        model(part[None], past_key_values=cache, use_cache=True).logits[0]
        for part in ids.split(piece)
    ]
    return torch.cat(logits).float().log_softmax(-1)


def seconds_of_generation(
    model: PreTrainedModel, ids: torch.Tensor, cache: Cache, new: int
) -> float:
    """Of `new` greedy steps behind `ids`."""
    token = model(ids[None], past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    begin = time.perf_counter()
    for _ in range(new):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--piece", type=int, default=32)
    parser.add_argument("--exact", type=int, nargs="+", default=[0], help="PVQCache's window")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    ids = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))
    windows = ids[: arguments.windows * arguments.length].split(arguments.length)

    settings = [None] + [
        {"bits": bits, "dim": dim, "window": exact}
        for bits in arguments.bits
        for dim in arguments.dims
        for exact in arguments.exact
    ]

    def make(setting: dict | None) -> Cache:
        if setting is None:
            return DynamicCache(config=model.config)
        return pvq.PVQCache(model.config, **setting)

    sums = [Sums() for _ in settings]
    caches: list[Cache] = []
    with torch.inference_mode():
        for window in windows:
            targets, dense = window[1:, None], None
            caches = [make(setting) for setting in settings]
            for cache, total in zip(caches, sums, strict=True):
                log_q = log_probabilities(model, window, cache, arguments.piece)[:-1]
                log_p = dense = log_q if dense is None else dense
                total.nll -= log_q.gather(-1, targets).sum().item()
                total.kl += (log_p.exp() * (log_p - log_q)).sum().item()
                total.agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
                total.tokens += len(targets)
        rows = []
        for setting, cache, total in zip(settings, caches, sums, strict=True):
            coded = isinstance(cache, pvq.PVQCache)
            seconds = seconds_of_generation(model, windows[0], make(setting), arguments.new)
            rows.append(
                {
                    **(setting or {"bits": None, "dim": None, "window": None}),
                    "bits_per_value": cache.bits_per_value if coded else 8 * model.dtype.itemsize,
                    "nbytes": cache.nbytes if coded else None,
                    "perplexity": math.exp(total.nll / total.tokens),
                    "kl_divergence": total.kl / total.tokens,
                    "top1_agreement": total.agreements / total.tokens,
                    "tokens": total.tokens,
                    "ms_per_step": 1e3 * seconds / arguments.new,
                }
            )
    description = machine() | {"model": Path(arguments.model).name, "piece": arguments.piece}
    print_machine(description)
    print("| bits | D | exact | b/value stored | perplexity | KL | top-1 | ms a step |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        name = "none" if row["bits"] is None else f"{row['bits']:g}"
        print(
            f"| {name} | {row['dim'] or '-'} | {row['window'] if row['dim'] else '-'} "
            f"| {row['bits_per_value']:.3f} | {row['perplexity']:.3f} | {row['kl_divergence']:.5f} "
            f"| {row['top1_agreement']:.1%} | {row['ms_per_step']:.1f} |"
        )
    write_json(arguments.json, description, rows)


if __name__ == "__main__":
    main()
