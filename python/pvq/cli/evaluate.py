"""Measure a model on a text: perplexity, and its distance to the model that it was made from."""

import argparse
from pathlib import Path
from typing import Any

from pvq.cli.models import add_device, add_run_time, load_any, load_tokenizer, read_text
from pvq.evaluate import evaluate, tokenize

NAME = "eval"
HELP = "perplexity, and KL divergence to a reference"
EPILOG = """\
examples:
  pvq eval ./quantized --text book.txt
  pvq eval ./quantized --text book.txt --against ./model --tokens 50000 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name, quantized or dense")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file to score")
    parser.add_argument("--against", metavar="REFERENCE", help="the unquantized model")
    parser.add_argument("--window", type=int, help="tokens a window (default: the context)")
    parser.add_argument("--tokens", type=int, help="use only the first so many tokens")
    add_run_time(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Loads, tokenises, scores."""
    text = read_text(args.text, "--text")
    model = load_any(args.model, args)
    reference = None if args.against is None else load_any(args.against, args)
    result = evaluate(
        model,
        tokenize(load_tokenizer(args.model), text),
        reference=reference,
        window=args.window,
        max_tokens=args.tokens,
    )
    return {"model": args.model, "reference": args.against, **result.to_dict()}


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The figures as text."""
    lines = [f"perplexity        {result['perplexity']:.4f}"]
    if result["reference_perplexity"] is not None:
        lines += [
            f"reference         {result['reference_perplexity']:.4f}",
            f"increase          {100 * result['perplexity_increase']:+.2f} %",
            f"KL divergence     {result['kl_divergence']:.5f} nats a token",
            f"top-1 agreement   {100 * result['top1_agreement']:.2f} %",
        ]
    lines.append(f"scored            {result['scored_tokens']} tokens: {result['convention']}")
    return "\n".join(lines)
