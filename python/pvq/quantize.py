"""quantize_model: replaces the linear layers of a model by quantized ones, one at a time."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from pvq.arguments import check_model
from pvq.calibration import Samples, check_samples
from pvq.config import PVQConfig
from pvq.embedding import PVQEmbedding, PVQTiedHead
from pvq.hf import mark_quantized
from pvq.layerwise import quantize_layers
from pvq.modules import dense_nbytes, replace_module
from pvq.plan import Override, make_plan
from pvq.progress import advance, counter
from pvq.report import Report
from pvq.rounding import ReconstructsBlocks, Rounding
from pvq.rounding.registry import make_rounding, settings_of
from pvq.work import WorkFolder, fingerprint


def quantize_model(
    model: nn.Module,
    config: PVQConfig | None = None,
    *,
    rounding: str | Rounding = "nearest",
    calibration: Samples | None = None,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Override] | None = None,
    embeddings: bool = False,
    head: bool = False,
    refit: bool = False,
    device: torch.device | str | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Quantizes every ``nn.Linear`` of a model's decoder in place, layer by layer.

    Left dense unless asked for: the embeddings and the output head. Left dense always, and named in
    the report: routers of experts, stacks of experts (3-D parameters), subclasses of ``nn.Linear``.
    Every layer is checked before the first is touched. A transformers model can be saved with
    ``save_pretrained`` afterwards.

    With calibration, the decoder is walked layer by layer (:mod:`pvq.calibration.walk`): each layer
    is fitted to what it gets from those before it, which are quantized already. Embeddings have no
    inputs to learn from and are rounded to the nearest points; so is, with a warning, a layer that
    the calibration never reached.

    Args:
        model: a transformers model or any ``nn.Module``; changed in place.
        config: how; ``PVQConfig()`` if not given.
        rounding: the rounding method, by name (:mod:`pvq.rounding.registry`) or with settings of
            your own, such as ``pvq.rounding.gptq.GPTQ(damping=0.05)``.
        calibration: for methods that need it: token ids [samples, length] of a transformers model,
            such as :func:`pvq.calibration_tokens` makes from a text. For any other module a
            sequence of inputs: each a tensor, a tuple of arguments or a dict of named arguments.
        skip: shell patterns (:mod:`fnmatch`) of full module names to leave dense, such as
            ``"*.layers.0.*"``.
        overrides: pattern to a :class:`PVQConfig`, or to a mapping of changes such as
            ``{"bits": 4.25}``; all that match a layer apply, in the order given.
        embeddings: also the input embeddings. Where they are tied to the head, both or neither.
        head: also the output head.
        refit: after a decoder layer is calibrated, try for each of its layers the row scales that
            fit its own outputs best, and keep them where the decoder layer's output gets nearer to
            the dense one's.
        device: where decoder layers are calibrated and rounded, one at a time; where the model is
            if not given. A layer that does not fit in its memory is computed on the CPU instead.
        work: folder in which finished layers are kept. A run that finds those of an interrupted
            run there goes on behind them.
        progress: whether to show a bar on stderr.

    Returns:
        What was done to each layer: error, rate, bytes, seconds.

    Raises:
        TypeError: if ``model`` is no module (such as the name of one), or ``config``, ``skip`` or
            an override is of the wrong type.
        ValueError: naming the layers that cannot be quantized, and what to do, before anything is
            changed; or if ``model`` is itself a layer, which cannot be replaced in place; or if the
            calibration is missing, empty, or does not fit the model, or ``work`` is of another run.
        RuntimeError: under ``torch.inference_mode()``, if the method needs gradients.
    """
    check_model(model)
    config = PVQConfig() if config is None else config
    method = make_rounding(rounding)
    if method.needs_hessian and calibration is None:
        raise ValueError(
            f"rounding={method.name!r} needs calibration: pass token ids (pvq.calibration_tokens "
            "makes them from a text), or use rounding='nearest'"
        )
    if refit and not method.needs_hessian:
        raise ValueError(f"refit=True needs calibration, which rounding={method.name!r} does not")
    if isinstance(method, ReconstructsBlocks) and torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"rounding={method.name!r} needs gradients, which torch.inference_mode() rules out: "
            "call quantize_model outside of it (torch.no_grad() does no harm)"
        )
    samples = check_samples(model, calibration) if calibration is not None else None
    plan = make_plan(
        model, config, skip=skip, overrides=overrides, embeddings=embeddings, head=head
    )
    experts = [left for left in plan.left_dense if left.reason.startswith("stack of experts")]
    if experts:
        nbytes = sum(left.nbytes for left in experts)
        warnings.warn(
            f"{len(experts)} stacks of experts ({nbytes / 1e6:.1f} MB) stay dense: pvq quantizes "
            "nn.Linear layers only",
            stacklevel=2,
        )
    folder = None
    if work is not None:
        folder = WorkFolder(Path(work), fingerprint(plan.targets, method, refit, samples))
    with counter(len(plan.targets), "quantizing", "layer", progress) as bar:
        layers = quantize_layers(
            *(model, plan.targets, method, samples),
            device=None if device is None else torch.device(device),
            work=folder,
            refit=refit,
            done=lambda name: advance(bar, name),
        )
    if plan.tied is not None:
        head_name, table_name = plan.tied
        output, table = model.get_submodule(head_name), model.get_submodule(table_name)
        assert isinstance(table, PVQEmbedding)
        replace_module(model, output, PVQTiedHead(table, getattr(output, "bias", None)))
    if isinstance(model, PreTrainedModel):
        configs = {layer.name: layer.config for layer in layers}
        mark_quantized(model, config, configs, plan.tied)
    return Report(
        *(config, layers, plan.left_dense, dense_nbytes(model)), rounding=settings_of(method)
    )
