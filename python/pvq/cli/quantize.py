"""Quantize a dense checkpoint: every linear layer of the decoder, without calibration data."""

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from pvq.checkpoint import new_folder, write_model
from pvq.cli.models import add_device, check_exists, chosen_device
from pvq.codes.pyramid import GAIN_LAWS
from pvq.config import ROTATIONS, PVQConfig
from pvq.quantize import quantize_model
from pvq.report import Report, megabytes

NAME = "quantize"
HELP = "quantize a model and write a checkpoint"
_SETTINGS = "\n".join(
    f"  --bits {bits}   {config.pulses:>2} pulses, {config.gain_bits} gain bits"
    for bits in (2.25, 2.75, 3.25, 3.75, 4.25)
    for config in (PVQConfig(bits),)
)
EPILOG = f"""\
--bits counts the index and the gain of a group and shares them out for the least error; a 16-bit
scale a row comes on top. At --dim 16:
{_SETTINGS}
Patterns are those of a shell and match full module names.

examples:
  pvq quantize meta-llama/Llama-3.1-8B llama-3.25b --bits 3.25
  pvq quantize ./model ./out --bits 2.25 --override '*.down_proj:bits=3.25'
  pvq quantize ./model ./out --skip '*.layers.0.*' --embeddings --head
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name of the dense model")
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--bits", type=float, help="bits a weight, such as 3.25 (default)")
    rate.add_argument("--pulses", type=int, help="K, instead of --bits")
    parser.add_argument("--dim", type=int, default=16, help="group size D (default 16)")
    parser.add_argument(
        "--gain-bits",
        type=int,
        help="bits of a group's amplitude (default: the best share of --bits)",
    )
    parser.add_argument("--gain-law", choices=GAIN_LAWS, default="lloyd", help="gain codebook")
    parser.add_argument("--rotation", choices=ROTATIONS, default="hadamard", help="of the input")
    parser.add_argument("--block", type=int, help="Hadamard block (default: from the layer)")
    parser.add_argument("--seed", type=int, default=0, help="of the rotation's signs")
    parser.add_argument(
        "--quality", type=int, default=1, help="search effort, 0 fast to 2 best (default 1)"
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN", help="leave layers dense"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="PATTERN:KEY=VALUE[,...]",
        help="other choices for some layers, such as '*.v_proj:bits=4.25'",
    )
    parser.add_argument("--embeddings", action="store_true", help="also the input embeddings")
    parser.add_argument("--head", action="store_true", help="also the output head")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is not empty")
    parser.add_argument(
        "--shard-size", default="5GB", metavar="SIZE", help="largest weight file (default 5GB)"
    )
    parser.add_argument("--layers", action="store_true", help="print a line for each layer")
    add_device(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Quantizes and writes; the result is the report."""
    try:
        config = PVQConfig(
            args.bits,
            dim=args.dim,
            pulses=args.pulses,
            gain_bits=args.gain_bits,
            gain_law=args.gain_law,
            rotation=args.rotation,
            block=args.block,
            seed=args.seed,
            quality=args.quality,
        )
        overrides = dict(_parsed_override(text) for text in args.override)
    except ValueError as error:
        args.parser.error(str(error))
    check_exists(args.model)
    with new_folder(args.out, overwrite=args.overwrite) as folder:
        model = AutoModelForCausalLM.from_pretrained(args.model).to(chosen_device(args.device))
        report = quantize_model(
            model,
            config,
            skip=args.skip,
            overrides=overrides,
            embeddings=args.embeddings,
            head=args.head,
        )
        write_model(folder, model, report, source=args.model, max_shard_size=args.shard_size)
    args.report = report
    return {"out": str(args.out), **report.to_dict()}


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The report as text."""
    report: Report = args.report
    on_disk = sum(path.stat().st_size for path in args.out.iterdir())
    table = f"{report.table()}\n\n" if args.layers else ""
    return f"{table}{report.summary()}\nwritten         {result['out']}, {megabytes(on_disk)}"


def _parsed_override(text: str) -> tuple[str, dict[str, Any]]:
    """``PATTERN:KEY=VALUE,...`` as a pattern and changes of the configuration."""
    pattern, colon, assignments = text.rpartition(":")
    if not colon or not pattern:
        raise ValueError(f"--override {text!r}: expected PATTERN:KEY=VALUE[,KEY=VALUE...]")
    changes: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--override {text!r}: {assignment!r} is not KEY=VALUE")
        changes[key.strip().replace("-", "_")] = _parsed_value(value.strip())
    PVQConfig().replace(**changes)
    return pattern, changes


def _parsed_value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
