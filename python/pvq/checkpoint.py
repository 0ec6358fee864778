"""Writing a checkpoint folder: all of it or nothing, and with what a user needs beside the weights.

Everything is written into a hidden sibling of the output folder, which is renamed at the end. The
sibling is made before the work starts, so that an output that cannot be written fails at once and
not after an hour of quantization. A mount point or the current directory cannot be replaced by
another folder: there the hidden one lies inside, and what it holds is moved up at the end.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
_TEMPLATES = "additional_chat_templates"  # the folder of chat templates that have names
_SPARE_NBYTES = 16 << 20
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # what renaming onto something may say


@contextmanager
def new_folder(out: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` when the block ends and vanishes if it fails.

    Args:
        out: folder to make. It may exist if it is empty; of a symlink, the folder it points to.
        overwrite: replace ``out`` if it is not empty; the old one goes only when the new is whole.

    Yields:
        The folder to write into, beside ``out`` or hidden in it.

    Raises:
        FileExistsError: if ``out`` is a file, or not empty without ``overwrite``. If it became so
            meanwhile, the text says under which name the finished folder was kept.
        ValueError: if ``overwrite`` would remove the current directory, or all that a mount point
            or the current directory holds where that is no model.
        OSError: if it cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(out).resolve()
    inside = _cannot_be_replaced(target)
    _check_target(target, inside, overwrite)
    place = target if inside else target.parent
    folder: Path | None = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=place))
        yield folder
        _set_modes(folder)
        _sync(folder)
        try:
            (_move_up if inside else _swap)(folder, target, overwrite)
        except OSError as error:
            kept = _keep(folder, target.name)
            taken = error.errno in _TAKEN
            why = "was written to meanwhile" if taken else f"cannot be replaced: {error.strerror}"
            raise (FileExistsError if taken else OSError)(
                f"output {target} {why}; the finished folder was kept as {kept}"
            ) from error
    except Exception as error:
        # safetensors reports what the system said as text
        if _is_disk_full(error):
            raise OSError(
                f"no space left on the disk of {place}: nothing was written, free some "
                "space or choose another output folder"
            ) from error
        if isinstance(error, OSError) and folder is None:
            raise OSError(f"cannot write the output folder {out}: {error.strerror}") from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def work_folder(out: str | os.PathLike[str]) -> Path:
    """Where the layers of an unfinished run are kept: beside ``out``, or in it if it is a disk."""
    target = Path(out).resolve()
    return (target if os.path.ismount(target) else target.parent) / f".{target.name}.work"


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
    """Writes a quantized model with its report and card, whole or not at all.

    ``pvq.load`` and ``from_pretrained`` read it.

    Args:
        model: quantized by :func:`pvq.quantize_model`.
        report: what that returned.
        out: folder to make. It may exist if it is empty; of a symlink, the folder it points to.
        source: folder or hub name of the dense model: its tokenizer and license are taken over.
        overwrite: replace ``out`` if it is not empty; the old one goes only when the new is whole.
        max_shard_size: largest weight file.

    Raises:
        TypeError: if ``model`` is no transformers model.
        FileExistsError: if ``out`` is a file, or not empty without ``overwrite``. If it became so
            meanwhile, the text says under which name the finished folder was kept.
        ValueError: if ``overwrite`` would remove the current directory, or all that a mount point
            or the current directory holds where that is no model.
        OSError: if it cannot be written, or the disk is full; nothing is left behind.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a transformers model; of others save the "
            "state_dict, which holds the codes"
        )
    with new_folder(out, overwrite=overwrite) as folder:
        write_model(folder, model, report, source=source, max_shard_size=max_shard_size)


def _cannot_be_replaced(target: Path) -> bool:
    """Whether a rename onto ``target`` fails, or pulls it from under the shell."""
    return os.path.ismount(target) or target in _current_folders()[:1]


def _current_folders() -> list[Path]:
    """The current directory and those around it; none if it was removed."""
    try:
        current = Path.cwd()
    except FileNotFoundError:
        return []
    return [current, *current.parents]


def _check_target(target: Path, inside: bool, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"output {target} is a file: choose another name")
    if not target.is_dir() or not (_contents(target) if inside else any(target.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(
            f"output folder {target} is not empty: choose another, or pass overwrite (--overwrite)"
        )
    if target in _current_folders()[1:]:
        raise ValueError(
            f"output folder {target} holds the current directory, which overwrite would remove: "
            "choose another, or leave it first"
        )
    if inside and not (target / "config.json").is_file():
        raise ValueError(
            f"output folder {target} is a mount point or the current directory and holds no model: "
            "overwrite would remove all that is in it; choose another, or empty it first"
        )


def _contents(target: Path) -> list[Path]:
    """What is in a folder, without hidden folders of our runs and what a file system puts there."""
    ours = f".{target.name}."
    return [
        path
        for path in target.iterdir()
        if not path.name.startswith(ours) and path.name != "lost+found"
    ]


def _swap(folder: Path, target: Path, overwrite: bool) -> None:
    """Puts the finished folder in place; the one it replaces is removed last."""
    try:
        folder.rename(target)  # replaces an empty folder and nothing else
    except OSError as error:
        if error.errno not in _TAKEN or not overwrite:
            raise
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        _rename_all([(target, old), (folder, target)], old)


def _move_up(folder: Path, target: Path, overwrite: bool) -> None:
    """Moves the files of the finished folder into ``target``, around it; old ones go last.

    Without config.json a folder is no model: the old one leaves first, and the new one comes last.
    """
    before = sorted(_contents(target), key=lambda path: path.name != "config.json")
    if before and not overwrite:
        raise FileExistsError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    new = sorted(folder.iterdir(), key=lambda path: path.name == "config.json")
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target))
    _rename_all([*((p, old / p.name) for p in before), *((p, target / p.name) for p in new)], old)


def _rename_all(moves: Iterable[tuple[Path, Path]], old: Path) -> None:
    """Renames in order, all or none, and removes ``old``, where the former content has gone."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            source.rename(destination)
            done.append((source, destination))
    except BaseException:
        for source, destination in reversed(done):
            with suppress(OSError):
                destination.rename(source)
        with suppress(OSError):
            old.rmdir()  # empty, or renamed back
        raise
    shutil.rmtree(old, ignore_errors=True)


def _keep(folder: Path, name: str) -> Path:
    """Gives a finished folder that cannot have its name a visible one that is free."""
    number = 2
    while (kept := folder.with_name(f"{name}-{number}")).exists():
        number += 1
    return folder.rename(kept)


def _set_modes(folder: Path) -> None:
    """Those of any new file and folder: temporary ones, and safetensors', are for their owner."""
    mask = _umask()
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


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
        if (Path(source) / _TEMPLATES).is_dir() and not (folder / _TEMPLATES).exists():
            shutil.copytree(Path(source) / _TEMPLATES, folder / _TEMPLATES)
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
