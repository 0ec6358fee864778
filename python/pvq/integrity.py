"""Are the files of a checkpoint what was written? Headers and checksums of safetensors files.

A safetensors file is an 8-byte little-endian header length, a JSON header (name to dtype, shape and
byte range; free text under ``__metadata__``) and the data. pvq writes a CRC-32 of every tensor into
that free text: an index stream has no redundancy, so that without one most damage would decode to
other weights rather than fail.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CHECKSUMS = "pvq_crc32"
_READ_NBYTES = 1 << 22
_THREADS = 4


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file, from the header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset in the file."""
    nbytes: int
    checksum: int | None


def read_headers(files: Iterable[str | os.PathLike[str]]) -> dict[str, Entry]:
    """Every tensor of some safetensors files by its name; no data is read.

    Raises:
        ValueError: if a file is shorter or longer than its header says, or has no valid header.
    """
    entries: dict[str, Entry] = {}
    for file in map(Path, files):
        entries.update(_read_header(file))
    return entries


def _read_header(file: Path) -> dict[str, Entry]:
    size = file.stat().st_size
    damaged = f"{file} is damaged or truncated"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{damaged}: {size} bytes are less than its header; copy it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            checksums = json.loads(header.pop("__metadata__", {}).get(CHECKSUMS, "{}"))
            entries = {
                name: Entry(
                    file,
                    str(tensor["dtype"]),
                    tuple(tensor["shape"]),
                    8 + length + int(tensor["data_offsets"][0]),
                    int(tensor["data_offsets"][1]) - int(tensor["data_offsets"][0]),
                    checksums.get(name),
                )
                for name, tensor in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{damaged}: its header cannot be read; copy it again") from error
    expected = max((e.begin + e.nbytes for e in entries.values()), default=8 + length)
    if size != expected:
        raise ValueError(f"{damaged}: {size} bytes, its header says {expected}; copy it again")
    return entries


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of the bytes that safetensors writes for ``tensor``."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)


def checksum_metadata(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What goes into the free text of a safetensors file. Tensors on meta have no bytes."""
    sums = {
        name: checksum(tensor) for name, tensor in state.items() if tensor.device.type != "meta"
    }
    return {CHECKSUMS: json.dumps(sums)}


def verify_checksums(entries: Mapping[str, Entry]) -> None:
    """Compares the bytes on disk with the checksums in the headers, where there are any.

    Raises:
        ValueError: naming the tensors that were altered.
    """
    summed = {name: entry for name, entry in entries.items() if entry.checksum is not None}
    with ThreadPoolExecutor(_THREADS) as pool:  # crc32 releases the interpreter lock
        found = dict(zip(summed, pool.map(_checksum_on_disk, summed.values()), strict=True))
    altered = [name for name, entry in summed.items() if found[name] != entry.checksum]
    if altered:
        files = ", ".join(sorted({str(summed[name].file) for name in altered}))
        raise ValueError(
            f"{files} was altered after it was saved: checksum of {shortened(altered)} differs; "
            "copy the checkpoint again"
        )


def _checksum_on_disk(entry: Entry) -> int:
    value = 0
    with entry.file.open("rb") as stream:
        stream.seek(entry.begin)
        for _ in range(math.ceil(entry.nbytes / _READ_NBYTES)):
            left = entry.begin + entry.nbytes - stream.tell()
            value = zlib.crc32(stream.read(min(left, _READ_NBYTES)), value)
    return value


def shortened(names: Iterable[str], most: int = 3) -> str:
    """The first few names and the number of the others."""
    listed = sorted(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
