"""Measure how much each layer's error costs a model, for pvq quantize --budget."""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pvq.calibration import calibration_tokens
from pvq.cli.models import add_device, check_writable, chosen_device, load_tokenizer
from pvq.load import check_exists
from pvq.rates.measure import measure_sensitivity
from pvq.rates.sensitivity import DEFAULT_LEVELS, LOSSES, random_tokens

NAME = "sensitivity"
HELP = "measure which layers matter, for quantize --budget"
EPILOG = """\
Each layer in turn gets Gaussian noise, and the loss is measured with it and without: windows times
layers times levels passes of the model, in float32 unless --dtype says otherwise. Without --text
the tokens are random (data-free).

examples:
  pvq sensitivity ./model layers.json
  pvq sensitivity ./model layers.json --text train.txt --windows 16
  pvq quantize ./model ./out --budget 3.25bpw --sensitivity layers.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name of the dense model")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--text", help="text to measure on: a file or dataset (default: random)")
    parser.add_argument("--tokens", type=int, help="use only the first so many tokens of --text")
    parser.add_argument(
        "--loss",
        choices=LOSSES,
        default="kl",
        help="divergence from the original (default), or log-likelihood of --text",
    )
    parser.add_argument("--windows", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--length", type=int, default=512, help="tokens a window (default 512)")
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        default=list(DEFAULT_LEVELS),
        help="relative squared sizes of the noise",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the random tokens")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--embeddings", action="store_true", help="also the input embeddings")
    parser.add_argument("--head", action="store_true", help="also the output head")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of passes"
    )
    add_device(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and writes."""
    if args.loss == "nll" and args.text is None:
        args.parser.error("--loss nll needs --text: random tokens have no likelihood to lose")
    if args.tokens is not None and args.text is None:
        args.parser.error("--tokens needs --text: of random tokens, --windows says how many")
    check_writable(args.out, "OUT")
    check_exists(args.model)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    model = model.to(chosen_device(args.device))
    settings = model.config.get_text_config()
    context = getattr(settings, "max_position_embeddings", None)
    length = min(args.length, context or args.length)
    if args.text is None:
        tokens = random_tokens(settings.vocab_size, args.windows, length, args.seed)
    else:
        tokenizer = load_tokenizer(args.model)
        tokens = calibration_tokens(
            *(args.text, tokenizer),
            samples=args.windows,
            length=length,
            max_tokens=args.tokens,
        )
    sensitivity = measure_sensitivity(
        *(model, tokens),
        skip=args.skip,
        embeddings=args.embeddings,
        head=args.head,
        loss=args.loss,
        levels=args.levels,
        source="random tokens" if args.text is None else f"text {Path(args.text).name}",
        seed=args.seed,
    )
    sensitivity.save(args.out)
    return {
        "out": str(args.out),
        "loss": sensitivity.loss,
        "source": sensitivity.source,
        "tokens": sensitivity.tokens,
        "slopes": {name: sensitivity.slope(name) for name in sensitivity.layers},
    }


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The slopes, the greatest first."""
    ordered = sorted(result["slopes"].items(), key=lambda item: -item[1])
    lines = [f"{name:<48}{slope:10.4f}" for name, slope in ordered]
    return "\n".join(
        [f"{result['loss']} in nats a token for each unit of relative squared error", *lines,
         f"measured on {result['tokens']} tokens of {result['source']}; written to {result['out']}"]
    )  # fmt: skip
