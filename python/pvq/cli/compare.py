"""Compare codes and rounding methods on one model: quantize it in every way, and measure each."""

import argparse
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from pvq.calibration import calibration_tokens
from pvq.calibration.texts import DEFAULT_SAMPLES
from pvq.cli.choices import parsed_named
from pvq.cli.models import add_device, check_writable, chosen_device, load_tokenizer, read_text
from pvq.codes.registry import CODES
from pvq.compare import Comparison, cells_of, compare
from pvq.compare.cells import Named
from pvq.compare.plot import check_format, plot
from pvq.evaluate import checked_window, tokenize
from pvq.load import check_exists
from pvq.rounding.registry import ROUNDINGS

NAME = "compare"
HELP = "one table of codes and rounding methods at several rates"
RESULT_FILE = "comparison.json"
EPILOG = f"""\
Codes: {", ".join(CODES)}. Rounding methods: {", ".join(ROUNDINGS)}. Each may carry choices:
uniform:group=64,symmetric=true  higgs:p=1  pyramid:dim=8,rotation=none  gptq:damping=0.05
At each rate a code takes its setting with the most bits that is at or below it, scales of groups
counted; the table says what is stored in truth. nf4 has 4.13 and 4.5 bits only: ask for one of
these, and no other code gets more than it. Finished cells are kept in --work: an interrupted
run goes on there, and another rate or code costs only its own cells.

examples:
  pvq compare ./model --text test.txt --bits 2.25 3.25 4.25 --codes pyramid uniform nf4 higgs:p=2
  pvq compare ./model --text test.txt --calibration train.txt --methods nearest gptq --plot kl.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name of the dense model")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file to score")
    parser.add_argument("--calibration", help="text for methods that need it: a file or dataset")
    parser.add_argument(
        "--bits", type=float, nargs="+", default=[2.25, 3.25, 4.25], help="rates to compare at"
    )
    parser.add_argument("--codes", nargs="+", default=["pyramid"], metavar="CODE[:KEY=VALUE,...]")
    parser.add_argument(
        "--methods", nargs="+", default=["nearest"], metavar="METHOD[:KEY=VALUE,...]"
    )
    parser.add_argument("--window", type=int, help="tokens a window (default: the context)")
    parser.add_argument("--tokens", type=int, help="use only the first so many tokens of --text")
    parser.add_argument(
        "--samples", type=int, default=DEFAULT_SAMPLES, help="windows of --calibration to use"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("pvq-compare"),
        help="folder of finished cells and of the result (default ./pvq-compare)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw KL against bits")
    add_device(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is missing; the result is the table as data."""
    try:
        cells = cells_of(
            args.bits,
            [Named(*parsed_named(text, "--codes")) for text in args.codes],
            [Named(*parsed_named(text, "--methods")) for text in args.methods],
        )
    except (ValueError, TypeError) as error:
        args.parser.error(str(error))
    if args.plot is not None:
        check_format(args.plot)  # says so before hours of work
    check_exists(args.model)
    args.work.mkdir(parents=True, exist_ok=True)  # the plot may lie in it
    if args.plot is not None:
        check_writable(args.plot, "--plot")
    folder = Path(args.model)
    if not folder.is_dir():
        folder = Path(snapshot_download(args.model))
    tokenizer = load_tokenizer(str(folder))
    settings = AutoConfig.from_pretrained(folder).get_text_config()
    context = getattr(settings, "max_position_embeddings", None)
    calibration = None
    if args.calibration is not None:
        calibration = calibration_tokens(
            args.calibration, tokenizer, samples=args.samples, context=context
        )
    comparison = compare(
        folder,
        cells,
        tokenize(tokenizer, read_text(args.text, "--text"))[: args.tokens],
        work=args.work,
        calibration=calibration,
        window=checked_window(context, args.window),
        device=chosen_device(args.device),
    )
    result = {**comparison.to_dict(), "model": args.model}
    (args.work / RESULT_FILE).write_text(json.dumps(result, indent=1), encoding="utf-8")
    if args.plot is not None:
        plot(comparison.rows, args.plot)
    return result


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The table."""
    return Comparison(**result).table()
