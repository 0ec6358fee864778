"""Quantize a dense checkpoint: every linear layer of the decoder, with or without a text."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pvq.calibration import DEFAULT_SAMPLES, MAX_LENGTH, calibration_tokens
from pvq.checkpoint import new_folder, work_folder, write_model
from pvq.cli.choices import parsed_choices, parsed_named
from pvq.cli.models import activations_name, add_device, chosen_device, load_tokenizer
from pvq.codes.pyramid import GAIN_LAWS, PyramidCode
from pvq.codes.registry import CODES
from pvq.config import DEFAULT_CODE, ROTATIONS, PVQConfig
from pvq.load import check_exists
from pvq.quantize import quantize_model
from pvq.rates import Sensitivity, allocate
from pvq.report import Report
from pvq.rounding import Rounding
from pvq.rounding.registry import ROUNDINGS, make_rounding
from pvq.sizes import megabytes

NAME = "quantize"
HELP = "quantize a model and write a checkpoint"
_SETTINGS = "\n".join(
    f"  --bits {bits}   {config.pulses:>2} pulses, {config.gain_bits} gain bits"
    for bits in (2.25, 2.75, 3.25, 3.75, 4.25)
    for config in (PyramidCode.make(bits),)
)
EPILOG = f"""\
--code pyramid (the default) reaches any rate: --bits counts the index and the gain of a group and
shares them out for the least error. At --dim 16:
{_SETTINGS}
--code table has --bits 2, 3 or 4, a byte for each group of weights, and is the fastest to run.
--code overlap has --bits 2, 2.5, 3, 3.5 or 4 and the least error; it takes longer to quantize.
--code bands is the pyramid code in bands of columns (--choice bands=2); with --rounding gptq each
band of a layer gets its own rate, for less error in as many bytes. Products take longer.
--code outliers is the pyramid code of --bits with the --fraction of each row that it would hurt
most kept apart, at 32 bits each; for --rotation none, as a rotation leaves no outliers.
A 16-bit scale a row comes on top.
To be compared with: --code uniform (--bits 2 to 8, --choice group=128 symmetric=true fit=minmax),
--code nf4 (--choice block_size=64 double=false), --code higgs (--bits 3.25 --choice p=2).
--rounding nearest needs no data. gptq and quantease fit each layer to what it gets from a text;
tesseraq goes on from either and tunes all layers of a decoder layer together, which takes longer.
An interrupted run goes on where it was when it is started again.
Patterns are those of a shell and match full module names.

examples:
  pvq quantize meta-llama/Llama-3.1-8B llama-3.25b --bits 3.25
  pvq quantize ./model ./out --code uniform --bits 4 --choice group=64
  pvq quantize ./model ./out --code table --bits 2 --override '*.down_proj:bits=3'
  pvq quantize ./model ./out --bits 2.25 --override '*.down_proj:bits=3.25'
  pvq quantize ./model ./out --budget 3.25bpw --sensitivity layers.json
  pvq quantize ./model ./out --bits 3.25 --rounding gptq --calibration book.txt
  pvq quantize ./model ./out --bits 4.25 --activations pyramid4
  pvq quantize ./model ./out --skip '*.layers.0.*' --embeddings --head
"""

_CHOICES = ("dim", "pulses", "gain_bits", "gain_law", "quality", "fraction")  # of codes, as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("model", help="folder or hub name of the dense model")
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--code", choices=CODES, default=DEFAULT_CODE, help="what weights become")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--bits", type=float, help="bits a weight, such as 3.25 (default)")
    rate.add_argument("--pulses", type=int, help="K of the pyramid code, instead of --bits")
    rate.add_argument(
        "--budget",
        metavar="RATE|SIZE",
        help="bits a weight in the mean (3.25bpw) or bytes of the model (4.7GB), shared out over "
        "the layers by --sensitivity",
    )
    parser.add_argument(
        "--sensitivity", metavar="FILE", help="what pvq sensitivity measured, for --budget"
    )
    parser.add_argument("--dim", type=int, help="group size D of the pyramid code (default 16)")
    parser.add_argument(
        "--gain-bits",
        type=int,
        help="bits of a group's amplitude (default: the best share of --bits)",
    )
    parser.add_argument("--gain-law", choices=GAIN_LAWS, help="gain codebook (default lloyd)")
    parser.add_argument(
        "--quality", type=int, help="search effort of the pyramid code, 0 to 2 (default 1)"
    )
    parser.add_argument(
        "--fraction", type=float, help="of each row that code outliers keeps apart (default 0.01)"
    )
    parser.add_argument(
        "--choice",
        action="append",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any choice of the code, such as group=64",
    )
    parser.add_argument(
        "--rotation", choices=ROTATIONS, help="of the input (default: what the code is meant for)"
    )
    parser.add_argument("--block", type=int, help="Hadamard block (default: from the layer)")
    parser.add_argument("--seed", type=int, default=0, help="of the rotation's signs")
    parser.add_argument(
        "--activations",
        type=activations_name,
        metavar="NAME",
        help="what products shall do to activations, written into the checkpoint: pyramid4, or "
        "another number of bits from 2 to 8, rounds them to points of a pyramid",
    )
    parser.add_argument(
        "--rounding",
        default="nearest",
        metavar="METHOD[:KEY=VALUE,...]",
        help=f"how points are chosen: {', '.join(ROUNDINGS)}; settings such as "
        "gptq:damping=0.05 or tesseraq:steps=400,start=quantease",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="text file, or folder that datasets saved, for methods that need one",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=DEFAULT_SAMPLES,
        help=f"windows of the calibration text (default {DEFAULT_SAMPLES})",
    )
    parser.add_argument(
        "--length",
        type=int,
        help=f"tokens a window (default: the model's context, at most {MAX_LENGTH})",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="refit row scales where that improves a decoder layer (needs calibration)",
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
        "--shard-size",
        type=_shard_size,
        default="5GB",
        metavar="SIZE",
        help="largest weight file, such as 500MB (default 5GB)",
    )
    parser.add_argument("--layers", action="store_true", help="print a line for each layer")
    add_device(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Quantizes and writes; the result is the report."""
    try:
        config = PVQConfig(
            args.bits,
            code=args.code,
            rotation=args.rotation,
            block=args.block,
            seed=args.seed,
            activations=args.activations,
            **{name: getattr(args, name) for name in _CHOICES if getattr(args, name) is not None},
            **parsed_choices([text for texts in args.choice for text in texts], "--choice"),
        )
        overrides = _parsed_overrides(args.override, config)
        rounding = _parsed_rounding(args.rounding)
    except (ValueError, TypeError) as error:
        args.parser.error(str(error))
    calibrated = rounding.needs_hessian
    if calibrated != (args.calibration is not None):
        args.parser.error(
            f"--rounding {rounding.name} "
            + ("needs --calibration FILE" if calibrated else "takes no --calibration")
        )
    if args.refit and not calibrated:
        args.parser.error(f"--refit needs calibration, which --rounding {rounding.name} does not")
    if (args.budget is None) != (args.sensitivity is None):
        args.parser.error("--budget and --sensitivity FILE go together: see pvq sensitivity")
    sensitivity = None if args.sensitivity is None else Sensitivity.load(args.sensitivity)
    check_exists(args.model)
    out = args.out.resolve()  # once, whatever a symlink comes to point to in the meantime
    work_at = work_folder(out)
    with new_folder(out, overwrite=args.overwrite) as folder:
        device = chosen_device(args.device)
        model = AutoModelForCausalLM.from_pretrained(args.model)
        if calibrated:  # layer by layer, so the device need not hold the model
            tokens, work = _calibration(args, model), work_at
        else:
            model, tokens, work = model.to(device), None, None
        what = {"skip": args.skip, "embeddings": args.embeddings, "head": args.head}
        allocation = None
        if sensitivity is not None:
            allocation = allocate(
                model, args.budget, sensitivity, config, overrides=overrides, **what
            )
        report = quantize_model(
            model,
            config,
            rounding=rounding,
            calibration=tokens,
            refit=args.refit,
            device=device,
            work=work,
            overrides=overrides if allocation is None else allocation.overrides,
            **what,
        )
        write_model(folder, model, report, source=args.model, max_shard_size=args.shard_size)
    shutil.rmtree(work_at, ignore_errors=True)
    args.report, args.allocation = report, allocation
    result = {"out": str(args.out), **report.to_dict()}
    if allocation is not None and sensitivity is not None:
        errors = {layer.name: layer.relative_error for layer in report.layers}
        result["predicted"] = {sensitivity.loss: sensitivity.predict(errors)}
    return result


def show(result: dict[str, Any], args: argparse.Namespace) -> str:
    """The report as text."""
    report: Report = args.report
    on_disk = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    table = f"{report.table()}\n\n" if args.layers else ""
    budget = ""
    if args.allocation is not None:
        (loss, value) = next(iter(result["predicted"].items()))
        budget = f"{args.allocation.summary()}\nfrom errors     {value:+.5f} {loss}\n"
    return (
        f"{table}{budget}{report.summary()}\nwritten         {result['out']}, {megabytes(on_disk)}"
    )


def _calibration(args: argparse.Namespace, model: PreTrainedModel) -> torch.Tensor:
    """Token ids [samples, length] of the calibration text."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return calibration_tokens(
        args.calibration,
        load_tokenizer(args.model),
        samples=args.samples,
        length=args.length,
        context=context,
    )


def _shard_size(text: str) -> str:
    """The type of --shard-size: what ``save_pretrained`` reads, which is not before the end."""
    size = re.fullmatch(r"(\d+|\d*\.\d+)\s*[KMGT]B", text.strip(), re.IGNORECASE)
    if size is None or not float(size[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return text


def _parsed_overrides(texts: Sequence[str], config: PVQConfig) -> dict[str, dict[str, Any]]:
    """The overrides in order; each must make sense after some of those before it.

    Which of them meet in one layer is known only when the model is, and checked again then.
    """
    overrides: dict[str, dict[str, Any]] = {}
    possible = [config]
    for text in texts:
        pattern, changes = _parsed_override(text)
        results, errors = [], []
        for base in possible:
            try:
                results.append(base.replace(**changes))
            except (ValueError, TypeError) as error:
                errors.append(error)
        if not results:
            raise ValueError(f"--override {text!r}: {errors[0]}")
        possible += [result for result in results if result not in possible]
        overrides[pattern] = overrides.get(pattern, {}) | changes
    return overrides


def _parsed_override(text: str) -> tuple[str, dict[str, Any]]:
    """``PATTERN:KEY=VALUE,...`` as a pattern and changes of the configuration."""
    pattern, colon, assignments = text.rpartition(":")
    if not colon or not pattern:
        raise ValueError(f"--override {text!r}: expected PATTERN:KEY=VALUE[,KEY=VALUE...]")
    return pattern, parsed_choices(assignments.split(","), f"--override {text!r}")


def _parsed_rounding(text: str) -> Rounding:
    """``METHOD[:KEY=VALUE,...]`` as a rounding method."""
    name, settings = parsed_named(text, "--rounding")
    return make_rounding(name, **settings)
