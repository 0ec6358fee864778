"""quantize_model: replaces the linear layers of a model by quantized ones, one at a time."""

import time
import warnings
from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from pvq.config import PVQConfig
from pvq.embedding import PVQEmbedding, PVQTiedHead
from pvq.hf import mark_quantized
from pvq.linear import PVQLinear
from pvq.modules import dense_nbytes, replace_module
from pvq.plan import Override, Target, make_plan
from pvq.progress import progress_bar
from pvq.report import LayerRecord, Report
from pvq.tensor import quantize_tensor


def quantize_model(
    model: nn.Module,
    config: PVQConfig | None = None,
    *,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Override] | None = None,
    embeddings: bool = False,
    head: bool = False,
    progress: bool = True,
) -> Report:
    """Quantizes every ``nn.Linear`` of a model's decoder in place, layer by layer.

    Left dense unless asked for: the embeddings and the output head. Left dense always, and named in
    the report: routers of experts, stacks of experts (3-D parameters), subclasses of ``nn.Linear``.
    Every layer is checked before the first is touched. A transformers model can be saved with
    ``save_pretrained`` afterwards.

    Args:
        model: a transformers model or any ``nn.Module``; changed in place.
        config: how; ``PVQConfig()`` if not given.
        skip: shell patterns (:mod:`fnmatch`) of full module names to leave dense, such as
            ``"*.layers.0.*"``.
        overrides: pattern to a :class:`PVQConfig`, or to a mapping of changes such as
            ``{"bits": 4.25}``; all that match a layer apply, in the order given.
        embeddings: also the input embeddings. Where they are tied to the head, both or neither.
        head: also the output head.
        progress: whether to show a bar on stderr.

    Returns:
        What was done to each layer: error, rate, bytes, seconds.

    Raises:
        ValueError: naming every layer that cannot be quantized, and what to do; nothing is changed.
    """
    config = PVQConfig() if config is None else config
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
    layers = []
    bar = progress_bar(plan.targets, "quantizing", "layer", progress)
    for target in bar:
        bar.set_postfix_str(target.name, refresh=False)
        layers.append(_quantize_layer(model, target))
    if plan.tied is not None:
        head_name, table_name = plan.tied
        output, table = model.get_submodule(head_name), model.get_submodule(table_name)
        assert isinstance(table, PVQEmbedding)
        replace_module(model, output, PVQTiedHead(table, getattr(output, "bias", None)))
    if isinstance(model, PreTrainedModel):
        configs = {target.name: target.config for target in plan.targets}
        mark_quantized(model, config, configs, plan.tied)
    return Report(config, layers, plan.left_dense, dense_nbytes(model))


def _quantize_layer(model: nn.Module, target: Target) -> LayerRecord:
    start = time.perf_counter()
    weight = target.module.weight.detach()
    codes = quantize_tensor(weight, target.config)
    error = codes.relative_error(weight)
    new: PVQLinear | PVQEmbedding
    if isinstance(target.module, nn.Linear):
        new = PVQLinear.from_tensor(codes, target.module.bias)
    else:
        new = PVQEmbedding.from_tensor(codes, weight.dtype)
    new.train(target.module.training)
    replace_module(model, target.module, new)
    return LayerRecord(
        name=target.name,
        kind="linear" if isinstance(target.module, nn.Linear) else "embedding",
        shape=codes.shape,
        config=target.config,
        relative_error=error,
        bits_per_weight=codes.bits_per_weight,
        nbytes=codes.nbytes,
        layout=new.layout,
        resident_nbytes=new.resident_nbytes,
        original_nbytes=weight.nbytes,
        seconds=time.perf_counter() - start,
    )
