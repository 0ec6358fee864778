"""Finished cells on disk, each in a file that is named by everything that determines it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# Of a model folder, what its outputs depend on.
_MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "tokenizer*", "vocab*", "merges.txt")
_BUFFER = 1 << 22


class Store:
    """Results by key.

    Args:
        folder: made if it does not exist.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> dict[str, Any] | None:
        """A finished result; ``None`` if there is none that is whole."""
        try:
            stored = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return stored["result"] if isinstance(stored, dict) and "result" in stored else None

    def save(self, key: str, determined_by: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keeps a result: the file is there whole or not at all."""
        part = self._file(key).with_suffix(".part")
        content = {"determined_by": determined_by, "result": result}
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(part, self._file(key))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def key_of(determined_by: Mapping[str, Any]) -> str:
    """A name for values that are ready for JSON: equal values, equal names."""
    text = json.dumps(determined_by, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest_of_model(folder: Path) -> str:
    """A hash of the weights, the configuration and the tokenizer in a model folder."""
    digest = hashlib.sha256()
    files = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BUFFER):
                digest.update(block)
    return digest.hexdigest()


def digest_of_tokens(tokens: torch.Tensor | None) -> str | None:
    """A hash of token ids and their shape."""
    if tokens is None:
        return None
    content = tokens.to("cpu", torch.int64).contiguous()
    text = f"{list(content.shape)}\n".encode()
    return hashlib.sha256(text + content.numpy().tobytes()).hexdigest()
