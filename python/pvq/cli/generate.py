"""Continue a prompt."""

import argparse
import time
from typing import Any

import torch

from pvq.cache import PVQCache
from pvq.cli.models import add_device, add_run_time, load_any, load_tokenizer

NAME = "generate"
HELP = "continue a prompt"
EPILOG = """\
examples:
  pvq generate ./quantized --prompt "It was a dark night" --max-new-tokens 40
  pvq generate ./quantized --prompt "It was" --temperature 0.8 --seed 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name, quantized or dense")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="default 64")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument(
        "--cache-bits",
        type=float,
        metavar="BITS",
        help="keep keys and values in pyramid codes of 1 to 8 bits a value (default: as they are)",
    )
    add_run_time(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Loads and generates."""
    if args.max_new_tokens < 1 or args.temperature < 0:
        raise ValueError(
            f"--max-new-tokens is {args.max_new_tokens} and --temperature {args.temperature}: "
            "expected 1 or more, and 0 or more"
        )
    tokenizer = load_tokenizer(args.model)
    model = load_any(args.model, args)
    prompt = tokenizer(args.prompt, return_tensors="pt").to(model.device)
    if prompt["input_ids"].shape[1] == 0:
        raise ValueError("--prompt has no tokens: give at least one word")
    torch.manual_seed(args.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature:
        sampling = {"do_sample": True, "temperature": args.temperature}
    cache = None
    if args.cache_bits is not None:
        cache = PVQCache(model.config, args.cache_bits)
        sampling["past_key_values"] = cache
    start = time.perf_counter()
    with torch.no_grad():  # not inference_mode, in which projections share no product
        ids = model.generate(
            **prompt,
            **sampling,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )[0]
    seconds = time.perf_counter() - start
    new = len(ids) - prompt["input_ids"].shape[1]
    return {
        "model": args.model,
        "prompt": args.prompt,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "new_tokens": new,
        "cache_nbytes": None if cache is None else cache.nbytes,
        "seconds": seconds,
        "tokens_per_second": new / seconds,
    }


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The prompt and its continuation."""
    return str(result["text"])
