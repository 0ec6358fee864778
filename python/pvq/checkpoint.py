"""Writing a checkpoint folder: all of it or nothing, and with what a user needs beside the weights.

Everything is written into a hidden sibling of the output folder, which is renamed at the end. The
sibling is made before the work starts, so that an output that cannot be written fails at once and
not after an hour of quantization.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from pvq.report import Report, model_card
from pvq.sizes import megabytes

REPORT_FILE = "pvq_report.json"
# What a model folder may hold besides weights and config.json, and a quantized model needs too.
_COMPANIONS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*processor_config.json",
    "LICENSE*",
)
_SPARE_NBYTES = 16 << 20


@contextmanager
def new_folder(out: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` when the block ends and vanishes if it fails.

    Args:
        out: folder to make. It may exist if it is empty.
        overwrite: replace ``out`` if it is not empty; the old one goes only when the new is whole.

    Yields:
        The folder to write into, beside ``out``.

    Raises:
        FileExistsError: if ``out`` is a file, or not empty without ``overwrite``.
        OSError: if it cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(out).absolute()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"output {out} is a file: choose another name")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise FileExistsError(
            f"output folder {out} is not empty: choose another, or pass overwrite (--overwrite)"
        )
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield folder
        folder.chmod(0o777 & ~_umask())
        for file in folder.iterdir():  # safetensors leaves files that only their owner may read
            file.chmod(0o666 & ~_umask())
        _sync(folder)
        _swap(folder, target)
    except Exception as error:
        # safetensors reports what the system said as text
        if _is_disk_full(error):
            raise OSError(
                f"no space left on the disk of {target.parent}: nothing was written, free some "
                "space or choose another output folder"
            ) from error
        if isinstance(error, OSError) and folder is None:
            raise OSError(f"cannot write the output folder {out}: {error.strerror}") from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_model(
    folder: Path,
    model: PreTrainedModel,
    report: Report,
    *,
    source: str | os.PathLike[str] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a quantized model, its tokenizer, its report and its card into an existing folder.

    Args:
        folder: to write into; see :func:`new_folder`.
        model: quantized by :func:`pvq.quantize_model`.
        report: what that returned.
        source: folder or hub name of the dense model: its tokenizer and license are taken over.
        max_shard_size: largest weight file.

    Raises:
        OSError: if there is not room for it.
    """
    needed, free = report.nbytes + _SPARE_NBYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"the model takes {megabytes(needed)}, {megabytes(free)} are free"
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if source is not None:
        _copy_companions(source, folder)
    (folder / REPORT_FILE).write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    base_model = str(source) if source is not None and not Path(source).exists() else None
    (folder / "README.md").write_text(model_card(report, base_model, _license_of(source)))


def save_checkpoint(
    model: PreTrainedModel,
    report: Report,
    out: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes ``out`` whole or not at all; :func:`new_folder` and :func:`write_model` in one.

    Raises:
        FileExistsError: if ``out`` is not empty and ``overwrite`` is not set.
        OSError: if it cannot be written.
    """
    with new_folder(out, overwrite=overwrite) as folder:
        write_model(folder, model, report, source=source, max_shard_size=max_shard_size)


def _swap(folder: Path, target: Path) -> None:
    """Puts the finished folder in place; the one it replaces is removed last."""
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """A rename may reach the disk before the data does; after this it cannot."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "os error 28" in str(error)


def _copy_companions(source: str | os.PathLike[str], folder: Path) -> None:
    if Path(source).is_dir():
        for pattern in _COMPANIONS:
            for path in Path(source).glob(pattern):
                if path.is_file() and not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)
    else:
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _license_of(source: str | os.PathLike[str] | None) -> str | None:
    """The license that the card of the dense model states, if it is at hand."""
    card = Path(source) / "README.md" if source is not None else None
    if card is None or not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    stated = re.search(r"^license:\s*(\S+)\s*$", front.group(1), re.MULTILINE) if front else None
    return stated.group(1) if stated else None
