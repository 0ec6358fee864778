"""The transformers plugin: importing pvq makes ``from_pretrained`` read checkpoints of pvq.

The ``quantization_config`` of a checkpoint names every quantized module with its configuration, so
it determines the shape of every tensor and no pattern is evaluated again when the file is read.
"""

import contextvars
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from pvq import _core
from pvq.config import FORMAT_VERSION, PVQConfig, check_format_version
from pvq.embedding import PVQEmbedding, PVQTiedHead
from pvq.grouping import group_projections
from pvq.integrity import checksum_metadata, read_headers, verify_checksums
from pvq.linear import PVQLinear
from pvq.matching import check_tensors
from pvq.modules import prepare, quantized_modules, replace_module

METHOD = "pvq"


class RunTime(NamedTuple):
    """How the layers of a model run: see :func:`pvq.prepare` and :func:`pvq.group_projections`."""

    layout: str = "auto"
    activations: str | None = None
    group: bool = True

    def apply(self, model: nn.Module) -> nn.Module:
        """Makes the layers of ``model`` run so."""
        prepare(model, self.layout, self.activations)
        if self.group:
            group_projections(model)
        return model


FASTEST = RunTime()

# What a load in progress is to end with; set by pvq.load.
run_time_when_loaded: contextvars.ContextVar[RunTime] = contextvars.ContextVar(
    "run_time_when_loaded", default=FASTEST
)


class PVQQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """``quantization_config`` of a checkpoint. transformers makes it; use :class:`pvq.PVQConfig`.

    Args:
        format_version: of the stored form.
        pvq_version: that wrote it, for the reader's information.
        default: fields of the :class:`PVQConfig` that most modules have.
        layers: name of every quantized module, with the fields in which it differs; all fields
            where it has another code, as no field of one code means anything to another.
        tied: name of an output head to the name of the embedding whose codes it reads.
        **_: keys that other programs may add.

    Raises:
        ValueError: if a newer pvq wrote it, or an older one whose codes have changed, or a field
            is missing or out of range.
    """

    def __init__(
        self,
        format_version: int = FORMAT_VERSION,
        pvq_version: str | None = None,
        default: Mapping[str, Any] | None = None,
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        tied: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        check_format_version(format_version)
        for key, value in (("default", default), ("layers", layers), ("tied", tied or {})):
            _check_type(repr(key), value, Mapping, "an object")
        for name, changes in (layers or {}).items():
            _check_type(f"'layers' of {name!r}", changes, Mapping, "an object")
        for name, table in (tied or {}).items():
            _check_type(f"'tied' of {name!r}", table, str, "a name")
        self.quant_method = METHOD
        self.format_version = format_version
        self.pvq_version = pvq_version or _core.build_info()["version"]
        self.default = dict(default or {})
        self.layers = {name: dict(changes) for name, changes in (layers or {}).items()}
        self.tied = dict(tied or {})
        self.layer_configs()

    @classmethod
    def of_layers(
        cls, default: PVQConfig, layers: Mapping[str, PVQConfig], tied: Mapping[str, str]
    ) -> "PVQQuantizationConfig":
        """Writes down the configuration of every module."""
        base = _fields(default)
        changes = {name: _changes(base, _fields(config)) for name, config in layers.items()}
        return cls(default=base, layers=changes, tied=tied)

    def layer_configs(self) -> dict[str, PVQConfig]:
        """The configuration of every quantized module."""
        of = {"format_version": self.format_version}
        return {
            name: PVQConfig.from_dict(
                (changes if "code" in changes else self.default | changes) | of
            )
            for name, changes in self.layers.items()
        }


class PVQQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds the quantized skeleton that ``from_pretrained`` fills, and what surrounds that."""

    # Makes transformers refuse to quantize while it loads a dense model: use pvq.quantize_model.
    requires_calibration = True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is needed beyond what ``import pvq`` checked."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        for name, config in self.quantization_config.layer_configs().items():
            old = _named_module(model, name)
            if old is not None:
                replace_module(model, old, _skeleton(name, old, config))
            else:  # nor will it be there when this model is saved
                del self.quantization_config.layers[name]
        for head_name, table_name in self.quantization_config.tied.items():
            head, table = _found_module(model, head_name), _named_module(model, table_name)
            if head is not None and isinstance(table, PVQEmbedding):
                _tie(model, head_name, head, table)
        _leave_codes_alone(model)
        if checkpoint_files and all(file.endswith(".safetensors") for file in checkpoint_files):
            entries = read_headers(checkpoint_files)
            check_tensors(model, entries)
            verify_checksums(entries)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        _give_parameter(model)
        run_time_when_loaded.get().apply(model)
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """State dict in the stored form, and the checksums that go with it."""
        state = model.state_dict()
        return state, checksum_metadata(state)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained: the product is differentiable in its input."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Every operator has a fake-tensor rule."""
        return True

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | str | None = None
    ) -> PreTrainedModel:
        if isinstance(dtype, str):  # that of the config, after save_pretrained
            dtype = cast(torch.dtype, getattr(torch, dtype))
        chosen = dtype or model.dtype
        heads = [module for module in model.modules() if isinstance(module, PVQTiedHead)]
        for _, module in list(quantized_modules(model)):
            replace_module(model, module, _dense(module, chosen))
        for head in heads:
            replace_module(model, head, _linear(model.get_input_embeddings().weight, head.bias))
            model.__dict__.pop("_tied_weights_keys", None)
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        return model


def register() -> None:
    """Tells transformers about pvq; safe to call again, also after a reload of this module."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = PVQQuantizationConfig
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = PVQQuantizer


def mark_quantized(
    model: PreTrainedModel,
    default: PVQConfig,
    layers: Mapping[str, PVQConfig],
    tied: tuple[str, str] | None,
) -> None:
    """Makes a model that was quantized in memory what ``from_pretrained`` would have returned."""
    config = PVQQuantizationConfig.of_layers(default, layers, dict([tied]) if tied else {})
    if tied:
        _forget_tie(model, tied[0])
    _give_parameter(model)
    model.config.quantization_config = config
    model.hf_quantizer = PVQQuantizer(config, pre_quantized=True)
    model.quantization_method = METHOD
    model.is_quantized = True


def _check_type(what: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(
            f"{what} in the quantization_config of this checkpoint is {value!r}, expected "
            f"{expected}: config.json is damaged"
        )


def _fields(config: PVQConfig) -> dict[str, Any]:
    fields = config.to_dict()
    del fields["format_version"]
    return fields


def _changes(base: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    if fields["code"] != base["code"]:
        return fields
    names = base.keys() | fields.keys()  # a field that is left out is None
    return {name: fields.get(name) for name in names if fields.get(name) != base.get(name)}


def _named_module(model: PreTrainedModel, name: str) -> nn.Module | None:
    """A module by its name in the checkpoint; ``None`` for a head that this model lacks.

    A model without a head lacks it, and one of another class has a head of its own.
    """
    module = _found_module(model, name)
    if module is not None:
        return module
    first = name.partition(".")[0]
    inside = first == model.base_model_prefix or hasattr(model.base_model, first)
    other_class = type(model).__name__ not in (model.config.architectures or [])
    if not inside and (model.base_model is model or other_class):
        return None
    raise ValueError(
        f"the quantization_config names {name}, which {type(model).__name__} does not have: "
        "config.json does not belong to these weights or this class"
    )


def _found_module(model: PreTrainedModel, name: str) -> nn.Module | None:
    """A module by its name in the checkpoint, with or without the prefix of the base model."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in modules:
            return modules[candidate]
    return None


def _skeleton(name: str, old: nn.Module, config: PVQConfig) -> nn.Module:
    """The quantized module that takes the place of ``old``, on the meta device."""
    try:
        if isinstance(old, nn.Linear):
            bias = old.bias is not None
            size = (old.in_features, old.out_features)
            return PVQLinear(*size, bias, config, device="meta", dtype=old.weight.dtype)
        if isinstance(old, nn.Embedding):
            size = (old.num_embeddings, old.embedding_dim)
            return PVQEmbedding(*size, config, device="meta", dtype=old.weight.dtype)
    except ValueError as error:
        raise ValueError(f"the quantization_config does not fit {name}: {error}") from error
    raise ValueError(
        f"the quantization_config names {name}, which is a {type(old).__name__} and not a linear "
        "layer or an embedding"
    )


def _dense(module: PVQLinear | PVQEmbedding, dtype: torch.dtype) -> nn.Module:
    weight = nn.Parameter(module.dequantize(dtype))
    if isinstance(module, PVQLinear):
        return _linear(weight, module.bias)
    return nn.Embedding(module.num_embeddings, module.embedding_dim, _weight=weight)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    dense.weight = weight
    dense.register_parameter("bias", bias)
    return dense


def _tie(model: PreTrainedModel, name: str, head: nn.Module, table: PVQEmbedding) -> None:
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the quantization_config ties {name}, which is no linear layer")
    replace_module(model, head, PVQTiedHead(table, head.bias))
    _forget_tie(model, name)


def _forget_tie(model: PreTrainedModel, head_name: str) -> None:
    """Stops transformers from looking for the weight of a head that has no tensors."""
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        tied = getattr(model, attribute, None) or {}
        kept = {k: v for k, v in tied.items() if k != f"{head_name}.weight"}  # biases stay tied
        setattr(model, attribute, kept)


def _leave_codes_alone(model: PreTrainedModel) -> None:
    """Keeps transformers from making float32 of row scales in modules that a model wants so.

    It finds these by patterns, such as T5's ``wo``, which become the names of what has no codes.
    """
    codes = tuple(f"{name}." for name, _ in quantized_modules(model))
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        patterns = getattr(model, attribute, None)
        if patterns:
            found = re.compile("|".join(re.escape(p).replace(r"\*", ".*") for p in patterns))
            names = {name for name in model.state_dict() if found.search(name)}
            setattr(model, attribute, {name for name in names if not name.startswith(codes)})


class _Placeholder(nn.Module):
    """An empty parameter that no checkpoint holds."""

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.empty = nn.Parameter(like, requires_grad=False)

    def _save_to_state_dict(self, *_: Any) -> None:
        """Saves nothing."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Misses nothing."""


def _give_parameter(model: PreTrainedModel) -> None:
    """Makes ``model.dtype`` and ``model.device`` work where no parameter is left.

    They are those of the first parameter, and transformers asks for them to save and to generate;
    OLMo has norms without weights, so that with embeddings and head quantized it has none.
    """
    tables = [m for _, m in quantized_modules(model) if isinstance(m, PVQEmbedding)]
    if tables and not any(p.is_floating_point() for p in model.parameters()):
        device = next(tables[0].buffers()).device
        like = torch.empty(0, dtype=tables[0].dtype, device=device)
        tables[0].add_module("placeholder", _Placeholder(like))
