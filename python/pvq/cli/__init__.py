"""The ``pvq`` command: results on stdout, progress and errors on stderr.

Exit codes: 0 success, 1 the work failed, 2 the command line is wrong, 130 interrupted.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging as transformers_logging

from pvq.cli import compare, evaluate, generate, info, quantize, sensitivity

_EPILOG = """\
start here:
  pvq quantize MODEL OUT --bits 3.25           a dense checkpoint in, a quantized one out
  pvq eval OUT --text book.txt --against MODEL how much worse is it?
  pvq compare MODEL --text book.txt            which code at which rate?
  pvq generate OUT --prompt "Once upon a time"
  pvq info OUT                                 rates and sizes;  pvq info: this installation

PVQ_DEBUG=1 shows the traceback of an error, PVQ_CPU=portable|avx2|avx512|avx512vbmi|amx limits
the instruction set.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (by default that of the process) and returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result = args.run(args)
            print(json.dumps(result, indent=1) if args.json else args.show(result, args))
        except KeyboardInterrupt:
            print("pvq: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of stdout, such as `head`, has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if os.environ.get("PVQ_DEBUG") == "1":
                raise
            print(f"pvq: error: {_one_line(error)}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pvq",
        description="Pyramid vector quantization for language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (quantize, evaluate, sensitivity, compare, generate, info):
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.__doc__,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(run=command.run, show=command.show)
    return parser


def _one_line(error: Exception) -> str:
    """The message without line breaks and without the C++ location that torch puts in front."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"pvq: warning: {_one_line(message)}", file=sys.stderr)
