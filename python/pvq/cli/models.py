"""What the commands share: which model, where, its tokenizer, texts, and files to write."""

import argparse
import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pvq import _core, hf
from pvq.activations import check_activations
from pvq.coded import LAYOUTS
from pvq.load import check_exists, load


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that says where to compute."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"
    )


def add_run_time(parser: argparse.ArgumentParser) -> None:
    """The options that say how quantized layers run."""
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="auto",
        help="form of quantized layers in memory: stored (least memory), index (as little, but "
        "decoded inside the products of an H200 or H100: pyramid codes of dim 8 and 16; elsewhere "
        "the same as stored), planes (fastest for pyramid codes on the CPU), fragments (fastest on "
        "the GPU)",
    )
    parser.add_argument(
        "--activations",
        type=activations_name,
        metavar="NAME",
        help="pyramid4 (or another number of bits, 2 to 8: round them to points of a pyramid), or "
        "what the GPU's products with table codes may do: int8 (round to 8 bits; fastest), int8x2 "
        "(round to 15 bits) or float (nothing; slow). Default: what the checkpoint says, or int8",
    )


def activations_name(text: str) -> str:
    """The type of options that say what becomes of activations."""
    try:
        check_activations(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def chosen_device(name: str) -> torch.device:
    """The device that an option names.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and _has_kernels() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is no device: use cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch sees no GPU; use --device cpu")
    return device


def load_any(name: str, args: argparse.Namespace) -> PreTrainedModel:
    """A dense or a quantized model, in evaluation mode, where and as the options say.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: see :func:`pvq.load`.
    """
    check_exists(name)
    where = chosen_device(args.device)
    quantization = getattr(AutoConfig.from_pretrained(name), "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == hf.METHOD:
        return load(name, device=where, layout=args.layout, activations=args.activations)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name).to(where)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer


def read_text(file: Path, option: str) -> str:
    """The content of a text file.

    Raises:
        OSError: naming ``option`` if it cannot be read.
        ValueError: if it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot read {option} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {file} is not UTF-8 text ({error.reason})") from error


def check_writable(file: Path, what: str) -> None:
    """Says so before the work if its result could not be written.

    Raises:
        OSError: naming ``what``.
    """
    reason = None
    if file.is_dir():
        reason = "it is a folder"
    elif not file.parent.is_dir():
        reason = f"there is no folder {file.parent}"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        reason = "permission denied"
    if reason is not None:
        raise OSError(f"cannot write {what} {file}: {reason}")


def _has_kernels() -> bool:
    return bool(_core.build_info()["cuda"])
