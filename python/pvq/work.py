"""The work folder of a long run: finished layers, written whole, so that a new run goes on there.

One file for each unit of work (a decoder layer, or a single layer outside of them) holds its codes
and its records. ``run.json`` says which run they belong to.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pvq import _core
from pvq.calibration import Samples
from pvq.finished import Finished
from pvq.plan import Target
from pvq.report import LayerRecord
from pvq.rounding import Rounding
from pvq.tensor import PVQTensor

_RUN_FILE = "run.json"
_DENSE = "dense "  # no module's name begins like this
# Rows of each weight that tell one model from another.
_PROBED_ROWS = 4


class WorkFolder:
    """Finished layers of one run.

    Args:
        path: the folder; made if it does not exist.
        run: what must be the same for its layers to be of use, see :func:`fingerprint`.

    Raises:
        ValueError: if the folder is of a run with other settings; the text says which.
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        file = path / _RUN_FILE
        if not file.exists():
            _write(file, json.dumps(run, indent=1).encode())
            return
        before = json.loads(file.read_text())
        different = [key for key in run if before.get(key) != run[key]]
        if different:
            raise ValueError(
                f"work folder {path} is of another run, which differs in {', '.join(different)}: "
                "delete it or use another"
            )

    def load(self, unit: str) -> tuple[list[Finished], dict[str, Tensor]] | None:
        """What :meth:`save` was given, on the CPU; ``None`` if the unit is not finished."""
        file = self.path / f"{unit}.safetensors"
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as stored:
            records = json.loads(stored.metadata()["records"])
            finished = []
            for fields in records:
                record = LayerRecord.from_dict(fields)
                tensors = {
                    name: stored.get_tensor(f"{record.name}.{name}")
                    for name in record.config.code.tensors
                }
                finished.append(Finished(record, PVQTensor(tensors, record.shape, record.config)))
            dense = {
                key.removeprefix(_DENSE): stored.get_tensor(key)
                for key in stored.keys()  # noqa: SIM118  it is no mapping
                if key.startswith(_DENSE)
            }
        return finished, dense

    def save(self, unit: str, layers: Sequence[Finished], dense: Mapping[str, Tensor]) -> None:
        """Keeps a unit: all of it, or nothing if this is interrupted.

        Args:
            unit: its name.
            layers: its quantized layers.
            dense: dense parameters that quantization has changed, by their full names.
        """
        tensors = {_DENSE + name: tensor.contiguous().cpu() for name, tensor in dense.items()}
        tensors |= {
            f"{layer.record.name}.{name}": tensor.contiguous().cpu()
            for layer in layers
            for name, tensor in layer.codes.stored.items()
        }
        records = json.dumps([layer.record.to_dict() for layer in layers])
        _write(self.path / f"{unit}.safetensors", save(tensors, {"records": records}))


def fingerprint(
    targets: Sequence[Target], rounding: Rounding, refit: bool, samples: Samples | None
) -> dict[str, Any]:
    """What determines the codes of a run, ready for JSON."""
    weights = hashlib.sha256()
    for target in targets:
        _digest(target.module.weight[:_PROBED_ROWS], weights)
    data = hashlib.sha256()
    _digest(samples, data)
    return {
        "pvq": _core.build_info()["version"],
        "layers": {
            target.name: [list(target.module.weight.shape), target.config.to_dict()]
            for target in targets
        },
        "rounding": repr(rounding),
        "refit": refit,
        "weights": weights.hexdigest(),
        "calibration": data.hexdigest(),
    }


def _digest(value: Any, digest: Any) -> None:
    """Adds tensors, and containers of them, to a hash."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}".encode())
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(str(key).encode())
            _digest(item, digest)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _digest(item, digest)
    else:
        digest.update(repr(value).encode())


def _write(file: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
