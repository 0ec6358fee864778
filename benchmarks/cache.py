"""A model with its keys and values in pyramid codes: quality against bits, memory and time.

    python benchmarks/cache.py MODEL --text FILE [--bits 4 3 2] [--windows 3] [--json FILE]

Each window of the text is read in pieces of --piece tokens with a cache, so that a token sees all
tokens before its piece as the cache holds them; no token but those of the piece is exact. KL
divergence is from the same model with transformers' own cache. "int" stands for integers with a
bfloat16 scale and a bfloat16 offset for each token and head, rotated or not. The time is that of
one more token after the last window, the median of steps that all caches make in turn; integers
are held as what they stand for, so theirs says nothing. With --weights BITS the model is quantized
before, and with --activations pyramid4 its activations are rounded, too; KL divergence is then from
the dense model.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import interleave, machine, print_machine, write_json
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, PreTrainedModel

import pvq
from pvq.cache.layer import CodedCacheLayer
from pvq.evaluate import tokenize
from pvq.rotation import default_block, rotate


@dataclass
class Integers:
    """What :class:`pvq.cache.states.CodedStates` is, of integers; holds what they stand for."""

    states: Tensor
    bits: int

    @property
    def tokens(self) -> int:
        return self.states.shape[2]

    @property
    def bits_per_value(self) -> float:
        return self.bits + 32 / self.states.shape[-1]

    def decode(self, dtype: torch.dtype) -> Tensor:
        return self.states.to(dtype)

    def map(self, change: Callable[[Tensor], Tensor]) -> Integers:
        return Integers(change(self.states), self.bits)

    def followed_by(self, other: Integers) -> Integers:
        return Integers(torch.cat((self.states, other.states), 2), self.bits)


@dataclass
class IntegerCode:
    """Rounds states to 2^bits levels from the least to the greatest value."""

    bits: int
    rotated: bool

    def quantize(self, states: Tensor) -> Integers:
        block = default_block(states.shape[-1])
        x = rotate(states.float(), block, 0) if self.rotated else states.float()
        offset = x.amin(-1, keepdim=True).bfloat16().float()
        scale = (x.amax(-1, keepdim=True) - offset) / (2**self.bits - 1)
        scale = scale.bfloat16().float().clamp(min=1e-30)
        x = ((x - offset) / scale).round().clamp(0, 2**self.bits - 1) * scale + offset
        return Integers(rotate(x, block, 0, inverse=True) if self.rotated else x, self.bits)


class IntegerLayer(CodedCacheLayer):
    """A cache layer with integers instead of points."""

    def __init__(self, bits: int, rotated: bool) -> None:
        super().__init__((3, 3), 8, 0, 0)
        self.code = IntegerCode(bits, rotated)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._codes = (self.code, self.code)


@dataclass
class Sums:
    """Over all scored tokens."""

    nll: float = 0.0
    kl: float = 0.0
    agreements: int = 0
    tokens: int = 0

    def add(self, log_p: Tensor, log_q: Tensor, targets: Tensor) -> None:
        self.nll -= log_q.gather(-1, targets).sum().item()
        self.kl += (log_p.exp() * (log_p - log_q)).sum().item()
        self.agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        self.tokens += len(targets)


def make(model: PreTrainedModel, setting: dict) -> Cache:
    """The cache of a row of the table."""
    if setting["cache"] == "none":
        return DynamicCache(config=model.config)
    if setting["cache"] == "pvq":
        return pvq.PVQCache(model.config, setting["bits"], dim=setting["dim"], window=0)
    rotated = setting["cache"] == "int, rotated"
    layers = range(model.config.num_hidden_layers)
    return Cache(layers=[IntegerLayer(int(setting["bits"]), rotated) for _ in layers])


def log_probabilities(model: PreTrainedModel, ids: Tensor, cache: Cache, piece: int) -> Tensor:
    """[tokens - 1, vocabulary] of a window that is read piece after piece."""
    logits = [
        model(part[None], past_key_values=cache, use_cache=True).logits[0]
        for part in ids.split(piece)
    ]
    return torch.cat(logits)[:-1].float().log_softmax(-1)


def bits_per_value(cache: Cache) -> float:
    if isinstance(cache, pvq.PVQCache):
        return cache.bits_per_value
    layer = cache.layers[0]
    if isinstance(layer, IntegerLayer):
        return layer.old_keys.bits_per_value
    return 8.0 * layer.keys.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--piece", type=int, default=64)
    parser.add_argument("--weights", type=float, help="bits of the pyramid code")
    parser.add_argument("--activations", default="float", help="of quantized layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    dense = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    model = dense
    if arguments.weights is not None:
        model = copy.deepcopy(dense)
        pvq.quantize_model(model, pvq.PVQConfig(arguments.weights), progress=False)
        pvq.prepare(model, "planes", arguments.activations)
    ids = tokenize(tokenizer, arguments.text.read_text(encoding="utf-8"))
    windows = ids[: arguments.windows * arguments.length].split(arguments.length)

    settings: list[dict] = [{"cache": "none", "bits": None, "dim": None}]
    for bits in arguments.bits:
        settings += [{"cache": "pvq", "bits": bits, "dim": dim} for dim in arguments.dims]
        names = ("int, rotated", "int") if bits == int(bits) else ()
        settings += [{"cache": name, "bits": bits, "dim": None} for name in names]

    sums = [Sums() for _ in settings]
    with torch.inference_mode():
        for window in windows:
            exact = DynamicCache(config=dense.config)
            log_p = log_probabilities(dense, window, exact, arguments.piece)
            caches = [make(model, setting) for setting in settings]
            for cache, total in zip(caches, sums, strict=True):
                log_q = log_probabilities(model, window, cache, arguments.piece)
                total.add(log_p, log_q, window[1:, None])
        rates = [bits_per_value(cache) for cache in caches]
        token = windows[-1][None, -1:]
        steps = {
            str(i): lambda cache=cache: model(token, past_key_values=cache, use_cache=True)
            for i, cache in enumerate(caches)
        }
        times = [timing.median for timing in interleave(steps, rounds=15).values()]
    rows = [
        {
            **setting,
            "bits_per_value": rate,
            "perplexity": math.exp(total.nll / total.tokens),
            "kl_divergence": total.kl / total.tokens,
            "top1_agreement": total.agreements / total.tokens,
            "tokens": total.tokens,
            "ms_per_step": 1e3 * seconds,
        }
        for setting, total, rate, seconds in zip(settings, sums, rates, times, strict=True)
    ]
    description = machine() | {"model": Path(arguments.model).name, "piece": arguments.piece}
    description |= {"weights": arguments.weights, "activations": arguments.activations}
    print_machine(description)
    print("| cache | bits | D | b/value stored | perplexity | KL | top-1 | ms a step |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['cache']} | {row['bits'] or '-'} | {row['dim'] or '-'} "
            f"| {row['bits_per_value']:.3f} | {row['perplexity']:.2f} | {row['kl_divergence']:.5f} "
            f"| {row['top1_agreement']:.1%} | {row['ms_per_step']:.1f} |"
        )
    write_json(arguments.json, description, rows)


if __name__ == "__main__":
    main()
