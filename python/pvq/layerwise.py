"""Quantizing the layers of a plan one after the other, with or without calibration."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pvq.calibration import InputStatistics, Samples, Stage, on_device, walk
from pvq.calibration.absorb import divide_outputs, find_source, scale_columns
from pvq.embedding import PVQEmbedding
from pvq.finished import Finished, divide_rows, quantize_layer, reconstructed, refit_rows
from pvq.linear import PVQLinear
from pvq.modules import replace_module
from pvq.plan import Target
from pvq.report import LayerRecord
from pvq.rounding import ReconstructsBlocks, Rounding, scaling_of
from pvq.rounding.block import Block, Matrix, Reconstruction
from pvq.rounding.nearest import Nearest
from pvq.tensor import PVQTensor
from pvq.work import WorkFolder

# Samples that a decoder layer's outputs are compared on.
_JUDGES = 16


def quantize_layers(
    model: nn.Module,
    targets: Sequence[Target],
    rounding: Rounding,
    samples: Samples | None,
    *,
    device: torch.device | None,
    work: WorkFolder | None,
    refit: bool,
    done: Callable[[str], None],
) -> list[LayerRecord]:
    """Replaces every target in the model.

    Args:
        model: changed in place.
        targets: of a plan.
        rounding: the method.
        samples: for methods that ask for a Hessian.
        device: where decoder layers are computed; ``None`` for where the model is.
        work: finished layers are taken from there, and kept there.
        refit: whether to refit row scales where that improves the output of a decoder layer.
        done: is called with the name of each finished layer.

    Returns:
        The records, in the order of the targets.

    Raises:
        ValueError: if calibration gives a layer no usable Hessian.
    """
    run = _Run(model, targets, rounding, device, work, refit, done)
    calibrated = [
        target.name
        for target in targets
        if rounding.needs_hessian and isinstance(target.module, nn.Linear)
    ]
    for target in targets:
        if target.name not in calibrated:
            if not run.restore(target.name, [target.name]):
                run.quantize(target, None, target.module.weight.device)
                run.keep(target.name)
            run.leave(target.name)
    if calibrated:
        assert samples is not None
        run.calibrate(calibrated, samples)
    return [run.records[target.name] for target in targets]


class _Run:
    """The state of one run: what is finished."""

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        rounding: Rounding,
        device: torch.device | None,
        work: WorkFolder | None,
        refit: bool,
        done: Callable[[str], None],
    ) -> None:
        self.model, self.device, self.work = model, device, work
        self.method = rounding if isinstance(rounding, ReconstructsBlocks) else None
        self.rounding = rounding.start if isinstance(rounding, ReconstructsBlocks) else rounding
        self.refit, self.done = refit, done
        self.targets = {target.name: target for target in targets}
        self.records: dict[str, LayerRecord] = {}
        self.pending: list[Finished] = []  # the layers of the unit that is being worked on
        self.changed: dict[str, Tensor] = {}  # its dense parameters that are not as they were
        self.refitted: dict[str, Finished] = {}  # what its layers would be with other row scales
        self.dense: dict[str, Tensor] = {}  # weights of these, if they are needed once more
        self.dense_outputs: list[Tensor] = []  # of the unit, before the first layer was replaced
        self.unseen: list[str] = []  # layers without any input
        self.few: list[str] = []  # layers with too few, and how many they saw

    def restore(self, unit: str, names: list[str]) -> bool:
        """Takes the layers of a unit from the work folder, if they are there."""
        finished = None if self.work is None else self.work.load(unit)
        if finished is None:
            return False
        layers, changed = finished
        for name, tensor in changed.items():
            parameter = self.model.get_parameter(name)
            parameter.data = tensor.to(parameter.device)
        for layer in layers:
            self.stand_in(layer)
        return True

    def keep(self, unit: str) -> None:
        """Puts the layers of a unit into the work folder."""
        if self.work is not None:
            self.work.save(unit, self.pending, self.changed)
        self.changed = {}

    def leave(self, unit: str) -> None:
        """Replaces the dense layers of a unit."""
        for layer in self.pending:
            place(self.model, self.targets[layer.record.name], layer.codes)
        self.pending, self.refitted, self.dense, self.dense_outputs = [], {}, {}, []

    def stand_in(self, layer: Finished) -> None:
        """Lets the dense layer compute what the quantized one will, for layers behind it to see.

        Every code's product is fast for a few tokens; a calibration pass has thousands.
        """
        weight = self.targets[layer.record.name].module.weight
        weight.data = layer.codes.to(weight.device).dequantize(weight.dtype)
        self.records[layer.record.name] = layer.record
        self.pending.append(layer)
        self.done(layer.record.name)

    def quantize(
        self, target: Target, statistics: InputStatistics | None, device: torch.device
    ) -> None:
        """Quantizes a layer."""
        rounding = self.rounding if statistics is not None else Nearest()
        refit = bool(self.dense_outputs) and statistics is not None

        def quantize_on(where: torch.device) -> tuple[Finished, Finished | None]:
            layer = quantize_layer(target, rounding, statistics, where)
            if not refit or statistics is None:
                return layer, None
            weight = target.module.weight.detach().to(where)
            return layer, refit_rows(layer, weight, statistics.hessian.to(where))

        layer, other = on_device(device, quantize_on, target.name)
        if self.method is not None:
            self.dense[target.name] = target.module.weight.data
        if other is not None:
            self.refitted[target.name] = other
        self.stand_in(layer)

    def output_error(self, stage: Stage) -> float:
        """Squared error of the unit's outputs on the samples that it is judged by."""
        assert stage.probe is not None
        return sum(
            (stage.probe(number) - dense).square().sum(dtype=torch.float64).item()
            for number, dense in enumerate(self.dense_outputs)
        )

    def choose_refits(self, stage: Stage) -> None:
        """Takes the refitted row scales of each layer that improves the unit's outputs by them."""
        least = self.output_error(stage)
        for number, layer in enumerate(self.pending):
            other = self.refitted.get(layer.record.name)
            if other is None:
                continue
            weight = self.targets[layer.record.name].module.weight
            before = weight.data
            weight.data = other.codes.to(weight.device).dequantize(weight.dtype)
            error = self.output_error(stage)
            if error < least:
                least = error
                self.pending[number] = other
                self.records[layer.record.name] = other.record
            else:
                weight.data = before

    def reconstruct(self, method: ReconstructsBlocks, stage: Stage) -> None:
        """Tunes all layers of a unit together, after they were quantized one by one."""
        if stage.output is None or stage.targets is None:
            warnings.warn(
                f"{method.name} reconstructs the decoder layers of a transformers model: "
                f"{stage.unit} is rounded by {self.rounding.name} alone",
                stacklevel=2,
            )
            return
        start = time.perf_counter()
        output, targets = stage.output, stage.targets
        weights = [self.targets[layer.record.name].module.weight for layer in self.pending]

        def reconstruct_on(where: torch.device) -> Reconstruction:
            output(0, where)  # which brings the weights there
            matrices = []
            for layer, weight in zip(self.pending, weights, strict=True):
                codes, config = layer.codes.to(where), layer.codes.config
                rotation = (config.hadamard_block, config.seed)
                error = layer.record.relative_error
                matrices.append(Matrix(weight, config.code, codes.stored, *rotation, error))
            return method.reconstruct(Block(matrices, lambda n: output(n, where), targets))

        result = on_device(stage.device, reconstruct_on, f"the reconstruction of {stage.unit}")
        share = (time.perf_counter() - start) / len(weights)
        for number, (weight, stored) in enumerate(zip(weights, result.stored, strict=True)):
            before = self.pending[number]
            layer = reconstructed(before, stored, self.dense[before.record.name], result)
            seconds = before.record.seconds + share
            record = replace(layer.record, rounding=method.name, seconds=seconds)
            self.pending[number] = replace(layer, record=record)
            self.records[record.name] = record
            weight.data = layer.codes.to(weight.device).dequantize(weight.dtype)

    def scale_columns(self, stage: Stage) -> None:
        """Scales the columns of a stage's layers and their input, if the method wants that."""
        scaling = scaling_of(self.rounding)
        if scaling is None or stage.layer is None:
            return
        assert stage.probe is not None
        shared: dict[int, list[str]] = {}
        for name in stage.names:
            if name in stage.statistics and stage.statistics[name].tokens:
                shared.setdefault(id(stage.statistics[name]), []).append(name)
        prefix = f"{stage.unit}."
        modules = {prefix + name: module for name, module in stage.layer.named_modules() if name}
        for names in shared.values():
            statistics = stage.statistics[names[0]]
            targets = [self.targets[name] for name in names]
            consumers = {t.name: t.module for t in targets if isinstance(t.module, nn.Linear)}
            source = find_source(
                *(modules, consumers, stage.probe, stage.samples, statistics.tokens)
            )
            if source is None:
                continue
            scale = scaling.column_scales(
                [target.module.weight.detach() for target in targets],
                [target.config for target in targets],
                statistics.hessian,
            )
            if scale is None or not self.divide(source, modules[source], scale):
                continue
            scale_columns(consumers, scale)
            statistics.hessian /= scale[:, None] * scale

    def divide(self, name: str, module: nn.Module, scale: Tensor) -> bool:
        """Divides a module's outputs by powers of two; false if its codes cannot do that."""
        place = next((i for i, f in enumerate(self.pending) if f.record.name == name), None)
        if place is None and name in self.targets:
            return False  # about to be quantized, or replaced in another unit
        if place is not None:
            divided = divide_rows(self.pending[place].codes, scale)
            if divided is None:
                return False
            self.pending[place] = replace(self.pending[place], codes=divided)
            other = self.refitted.pop(name, None)
            codes = None if other is None else divide_rows(other.codes, scale)
            if other is not None and codes is not None:
                self.refitted[name] = replace(other, codes=codes)
            if name in self.dense:  # what these codes stand for from now on
                dense = self.dense[name]
                self.dense[name] = dense / scale.to(dense)[:, None]
        divide_outputs(module, scale)
        for key, parameter in module.named_parameters():
            if place is None or key != "weight":
                self.changed[f"{name}.{key}"] = parameter.data
        return True

    def calibrate(self, names: list[str], samples: Samples) -> None:
        """Walks the model and quantizes each stage."""
        training = {name for name, module in self.model.named_modules() if module.training}
        self.model.eval()
        device = self.device or next(self.model.parameters()).device
        try:
            with torch.no_grad():
                for stage in walk(
                    *(self.model, names, samples),
                    device=device,
                    restore=self.restore,
                    leave=self.leave,
                    targets=self.method is not None,
                ):
                    self.quantize_stage(stage)
        finally:
            for name, module in self.model.named_modules():
                module.training = name in training
        if self.unseen:
            warnings.warn(
                f"calibration never reached {_listed(self.unseen)}: rounded to the nearest points",
                stacklevel=2,
            )
        if self.few:
            warnings.warn(
                f"{_listed(self.few)} saw fewer tokens than the weight has columns, too few to "
                "tell which errors matter: use more calibration text",
                stacklevel=2,
            )

    def quantize_stage(self, stage: Stage) -> None:
        """Quantizes the layers of a stage."""
        if self.refit and not self.dense_outputs and stage.probe is not None:
            count = min(_JUDGES, stage.samples)
            self.dense_outputs = [stage.probe(number) for number in range(count)]
        self.scale_columns(stage)
        for name in stage.names:
            statistics = stage.statistics.get(name)
            target = self.targets[name]
            if statistics is None or not statistics.hessian.diagonal().any():
                self.unseen.append(name)
                statistics = None
            elif statistics.tokens < target.module.weight.shape[1]:
                self.few.append(f"{name} ({statistics.tokens})")
            self.quantize(target, statistics, stage.device)
        if stage.last:
            if self.refitted:
                self.choose_refits(stage)
            if self.method is not None:
                self.reconstruct(self.method, stage)
            self.keep(stage.unit)


def place(model: nn.Module, target: Target, codes: PVQTensor) -> None:
    """Puts a quantized layer where the dense one was, on its device."""
    old = target.module
    codes = codes.to(old.weight.device)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = PVQLinear.from_tensor(codes, old.bias, old.weight.dtype)
    else:
        new = PVQEmbedding.from_tensor(codes, old.weight.dtype)
    new.train(old.training)
    replace_module(model, old, new)


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"
