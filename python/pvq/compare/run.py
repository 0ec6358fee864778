"""Runs the cells of a comparison, one after the other, and makes the table.

Each cell starts from the original model. Its perplexity is that of the decoded weights in the
dtype of the model, multiplied densely: all codes are scored by the same arithmetic, and codes
without a fast product take no longer than others.
"""

import copy
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pvq import _core
from pvq.compare.cells import Cell
from pvq.compare.memory import peak_memory
from pvq.compare.store import Store, digest_of_model, digest_of_tokens, key_of
from pvq.compare.table import markdown
from pvq.config import FORMAT_VERSION
from pvq.evaluate import evaluate
from pvq.progress import counter
from pvq.quantize import quantize_model


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        model: as it was named.
        reference: perplexity and bytes of the original; empty if no cell could be run.
        rows: a dict for each cell: ``code``, ``method``, ``asked``, and either its figures or
            ``problem``.
    """

    model: str
    reference: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"model": self.model, "reference": self.reference, "rows": self.rows}

    def table(self) -> str:
        """A Markdown table."""
        return markdown(self.reference, self.rows)


def compare(
    model: Path,
    cells: Sequence[Cell],
    tokens: torch.Tensor,
    *,
    work: Path,
    calibration: torch.Tensor | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Comparison:
    """Quantizes a model in every way asked for and scores what comes out.

    Args:
        model: folder of the dense model.
        cells: what to compare; see :func:`pvq.compare.cells_of`.
        tokens: [n] int64, the text that is scored; see :func:`pvq.evaluate.tokenize`.
        work: folder of finished cells; made if it does not exist.
        calibration: [samples, length] int64, for methods that need it.
        window: tokens a window of the evaluation; see :func:`pvq.evaluate.evaluate`.
        device: where to compute.
        progress: whether to show a bar on stderr.

    Returns:
        The rows in the order of the cells. A cell whose code does not fit the model, or that fails
        with bad data, has a ``problem`` and is tried again the next time.

    Raises:
        ValueError: if a method needs calibration and there is none, or the text does not have a
            window.
        FileNotFoundError: if there is no such model.
        OSError: if the work folder cannot be written.
    """
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} has no config.json: it is no model folder")
    missing = {c.method for c in cells if c.rounding.needs_hessian and calibration is None}
    if missing:
        raise ValueError(
            f"{', '.join(sorted(missing))} needs calibration: pass a text (--calibration) or use "
            "the method nearest"
        )
    runner = _Runner(model, tokens, Store(work), calibration, window, torch.device(device))
    rows = []
    with counter(len(cells), "comparing", "cell", progress) as bar:
        for cell in cells:
            bar.set_postfix_str(f"{cell.code} {cell.method} {cell.bits:g}", refresh=True)
            rows.append(runner.row(cell))
            bar.update()
    return Comparison(str(model), _reference(rows), rows)


class _Runner:
    """The things that all cells share."""

    def __init__(
        self,
        model: Path,
        tokens: torch.Tensor,
        store: Store,
        calibration: torch.Tensor | None,
        window: int | None,
        device: torch.device,
    ) -> None:
        self._folder, self._tokens, self._store = model, tokens, store
        self._calibration, self._window, self._device = calibration, window, device
        self._shared = {
            "model": digest_of_model(model),
            "text": digest_of_tokens(tokens),
            "window": window,
            "format_version": FORMAT_VERSION,
            "pvq": _core.build_info()["version"],
            "device": device.type,
        }
        self._calibration_digest = digest_of_tokens(calibration)

    @cached_property
    def _original(self) -> PreTrainedModel:
        """Loaded when the first cell has to be run."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self._folder)
        return model.to(self._device)

    def row(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell, from the store or computed."""
        named = {"code": cell.code, "method": cell.method, "asked": cell.bits}
        if cell.config is None:
            return {**named, "problem": cell.problem}
        determined_by = {
            **self._shared,
            "config": cell.config.to_dict(),
            "rounding": repr(cell.rounding),
            "calibration": self._calibration_digest if cell.rounding.needs_hessian else None,
        }
        key = key_of(determined_by)
        result = self._store.load(key)
        if result is None:
            try:
                result = self._run(cell, self._store.folder / f"{key}.layers")
            except (ValueError, RuntimeError) as error:
                return {**named, "problem": " ".join(str(error).split())}
            self._store.save(key, determined_by, result)
        return {**named, **result}

    def _run(self, cell: Cell, layers: Path) -> dict[str, Any]:
        model = copy.deepcopy(self._original)
        start = time.perf_counter()
        with peak_memory(self._device) as peak:
            report = quantize_model(
                model,
                cell.config,
                rounding=cell.rounding,
                calibration=self._calibration if cell.rounding.needs_hessian else None,
                work=layers if cell.rounding.needs_hessian else None,
                progress=False,
            )
        seconds = time.perf_counter() - start
        scored = evaluate(
            model.dequantize(),
            self._tokens,
            reference=self._original,
            window=self._window,
            progress=False,
        )
        shutil.rmtree(layers, ignore_errors=True)
        return {
            "description": report.config.code.describe(),
            "bits_per_weight": report.bits_per_weight,
            "quantized_nbytes": report.quantized_nbytes,
            "nbytes": report.nbytes,
            "original_nbytes": report.original_nbytes,
            "relative_error": report.relative_error,
            "seconds": seconds,
            "peak_nbytes": peak.nbytes,
            **scored.to_dict(),
        }


def _reference(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [row for row in rows if "problem" not in row]
    if not done:
        return {}
    names = ("reference_perplexity", "original_nbytes", "convention")
    return {name: done[0][name] for name in names}
