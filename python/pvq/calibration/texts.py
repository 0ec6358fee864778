"""Calibration text as windows of tokens, from a file, strings, a dataset on disk or token ids."""

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvq.arguments import check_int

DEFAULT_SAMPLES = 128
MAX_LENGTH = 2048
# What `datasets` leaves in a folder that save_to_disk wrote.
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
_MAX_TEXTS = 1 << 20

Source = str | os.PathLike[str] | Sequence[str] | Tensor


def calibration_tokens(
    source: Source,
    tokenizer: Any = None,
    *,
    samples: int = DEFAULT_SAMPLES,
    length: int | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """Windows of equal length that are spread evenly over a text and do not overlap.

    Args:
        source: a text file; a folder that ``datasets`` saved, of which the column ``text`` is read
            (of the split ``train`` if it has splits); strings, which are joined token by token; or
            an integer tensor [n] of token ids. A tensor [samples, length] is returned as it is.
        tokenizer: of the model; not needed for a tensor.
        samples: how many windows.
        length: tokens a window; ``context`` if not given, at most 2048.
        context: tokens that the model can take, if that is known.
        max_tokens: use no more than this many tokens of a text, from its beginning.

    Returns:
        [samples, length] int64; fewer rows, with a warning, if the text is too short for all.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the text has not one whole window, or is empty, or the length does not fit
            the model's context.
        TypeError: if the source is none of these, or needs a tokenizer and there is none.
        ImportError: if it is a dataset and ``datasets`` is not installed.
    """
    check_int("samples", samples, 1, 1 << 20)
    if length is None:
        length = min(context or MAX_LENGTH, MAX_LENGTH)
    check_int("length", length, 1, context or 1 << 20, "a window needs a token")
    if max_tokens is not None:
        check_int("max_tokens", max_tokens, 1, 1 << 62)
    if isinstance(source, Tensor):
        if source.is_floating_point() or source.is_complex() or source.dtype == torch.bool:
            raise TypeError(f"calibration tokens have dtype {source.dtype}, expected integers")
        if source.ndim == 2 and source.numel():
            return source.to("cpu", torch.int64)
        if source.ndim != 1:
            raise ValueError(
                f"calibration tokens have shape {list(source.shape)}, expected [n] or "
                "[samples, length] with at least one token"
            )
        tokens = source.to("cpu", torch.int64)
    else:
        if tokenizer is None:
            raise TypeError("calibration text needs the model's tokenizer: pass it, or token ids")
        tokens = _tokenize(tokenizer, _texts(source))
    tokens = tokens[:max_tokens]
    windows = len(tokens) // length
    if windows == 0:
        raise ValueError(
            f"the calibration text has {len(tokens)} tokens, less than one window of {length}: use "
            f"more text or length={max(1, len(tokens))} or less (--length)"
        )
    if windows < samples:
        warnings.warn(
            f"the calibration text has {windows} windows of {length} tokens, {samples} were asked "
            "for: all of it is used",
            stacklevel=2,
        )
        samples = windows
    chosen = torch.arange(samples) * windows // samples
    return tokens[: windows * length].view(windows, length)[chosen].clone()


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _texts(source: str | os.PathLike[str] | Sequence[str]) -> Sequence[str]:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                f"calibration text {path} does not exist: pass a text file, a folder that datasets "
                "saved, or a list of strings"
            )
        if path.is_dir():
            return _dataset_texts(path)
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ValueError(f"calibration text {path} is not UTF-8: {error}") from error
    if not isinstance(source, Sequence) or not all(isinstance(text, str) for text in source):
        raise TypeError(
            f"calibration is a {type(source).__name__}, expected a path, a list of strings or a "
            "tensor of token ids"
        )
    return source


def _dataset_texts(path: Path) -> Sequence[str]:
    if not any((path / name).is_file() for name in _DATASET_FILES):
        raise ValueError(
            f"{path} is a folder without {' or '.join(_DATASET_FILES)}: pass a text file, or a "
            "folder written by datasets' save_to_disk"
        )
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"reading {path} needs datasets: pip install datasets") from error
    data = datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        split = "train" if "train" in data else next(iter(data))
        data = data[split]
    if "text" not in data.column_names:
        raise ValueError(
            f"{path} has no column 'text', only {', '.join(data.column_names)}: rename one"
        )
    texts: list[str] = data[:_MAX_TEXTS]["text"]
    return texts
