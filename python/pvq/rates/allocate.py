"""allocate: a setting for each layer, so that a model fits a budget with the least loss.

Loss: the sum of what layers add by their relative errors (:mod:`pvq.rates.sensitivity`). After a
rotation weights are nearly Gaussian, so the error of a setting is that of a Gaussian matrix with as
many columns, the same for all layers. Pyramid codes have settings 1 / dim of a bit apart, so the
budget is met almost to the byte.
"""

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pvq.codes import Code, stored_nbytes
from pvq.codes.registry import CODES
from pvq.config import PVQConfig, check_config
from pvq.modules import dense_nbytes
from pvq.plan import Override, Target, make_plan
from pvq.rates.budget import Budget, parse_budget
from pvq.rates.knapsack import choose
from pvq.rates.sensitivity import Sensitivity
from pvq.sizes import megabytes
from pvq.tensor import quantize_tensor

LOW, HIGH = 1.0, 8.0
# Of the Gaussian matrices on which the errors of settings are measured.
_SAMPLE_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class LayerRate:
    """What one layer gets.

    Attributes:
        name: full module name.
        config: its setting.
        weights: how many it has.
        nbytes: of its codes.
        error: relative squared error expected.
        loss: that it adds.
    """

    name: str
    config: PVQConfig
    weights: int
    nbytes: int
    error: float
    loss: float


@dataclass(frozen=True)
class Allocation:
    """The outcome.

    Attributes:
        layers: in the order of the model.
        dense_nbytes: bytes of everything that is not quantized.
        loss: name of the loss, ``"kl"`` or ``"nll"``.
        predicted: its increase, nats a token.
        uniform: the same if every layer had the best single setting within the budget; ``None`` if
            there is none, or overrides give some layers settings of their own.
        resolution: bytes to which the budget was cut for the optimisation.
        budget_nbytes: bytes that the codes were allowed.
    """

    layers: Sequence[LayerRate]
    dense_nbytes: int
    loss: str
    predicted: float
    uniform: float | None
    resolution: int
    budget_nbytes: int

    @property
    def overrides(self) -> dict[str, PVQConfig]:
        """The setting of each layer, as :func:`pvq.quantize_model` takes them."""
        return {layer.name: layer.config for layer in self.layers}

    @property
    def quantized_nbytes(self) -> int:
        """Bytes of all codes."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model."""
        return self.quantized_nbytes + self.dense_nbytes

    @property
    def bits_per_weight(self) -> float:
        """Rate of the quantized layers."""
        return 8 * self.quantized_nbytes / sum(layer.weights for layer in self.layers)

    def summary(self) -> str:
        """A few lines for a person."""
        rates = [8 * layer.nbytes / layer.weights for layer in self.layers]
        lines = [
            f"budget          {self.bits_per_weight:.4f} bits a weight, model "
            f"{megabytes(self.nbytes)}; {self.budget_nbytes - self.quantized_nbytes} bytes left, "
            f"optimal to {self.resolution} bytes",
            f"layers          {min(rates):.2f} to {max(rates):.2f} bits a weight",
            f"predicted {self.loss:<6}{self.predicted:+.5f} nats a token"
            + ("" if self.uniform is None else f", {self.uniform:+.5f} with one rate for all"),
        ]
        return "\n".join(lines)


def allocate(
    model: nn.Module,
    budget: str | Budget,
    sensitivity: Sensitivity,
    config: PVQConfig | None = None,
    *,
    low: float = LOW,
    high: float = HIGH,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Override] | None = None,
    embeddings: bool = False,
    head: bool = False,
) -> Allocation:
    """Chooses the settings of a code for all layers of a model.

    Args:
        model: dense, as for :func:`pvq.quantize_model`.
        budget: ``"3.25bpw"`` of the quantized weights or ``"4.7GB"`` of the whole model.
        sensitivity: of its layers.
        config: the code and its other choices; its rate does not matter.
        low: least rate that a layer may get.
        high: greatest rate that a layer may get.
        skip: as for :func:`pvq.quantize_model`.
        overrides: as there; layers that these name keep what they say, and are counted.
        embeddings: as there.
        head: as there.

    Returns:
        The settings; pass ``allocation.overrides`` to :func:`pvq.quantize_model`.

    Raises:
        TypeError: if ``budget`` or ``sensitivity`` is of the wrong type, or one of the arguments
            that :func:`pvq.quantize_model` has too.
        ValueError: if the budget is less than the least settings take, which the text names, or no
            budget at all; or if the sensitivities are of other layers.
    """
    config = PVQConfig() if config is None else config
    check_config(config)
    budget = parse_budget(budget) if isinstance(budget, str) else budget
    if not isinstance(budget, Budget):
        raise TypeError(f"budget is {budget!r}, expected a text such as '3.25bpw' or '4.7GB'")
    if not isinstance(sensitivity, Sensitivity):
        raise TypeError(
            f"sensitivity is a {type(sensitivity).__name__}, expected a pvq.Sensitivity"
        )
    ladder = CODES[config.code.name].ladder(low, high, **config.code.family())
    if not ladder:
        raise ValueError(
            f"code={config.code.name!r} has no setting from {low:g} to {high:g} bits: widen the "
            "range"
        )
    settings = [_with_code(config, code) for code in ladder]
    plan = make_plan(
        model, settings[0], skip=skip, overrides=overrides, embeddings=embeddings, head=head
    )
    sensitivity.check_layers([target.name for target in plan.targets])
    items = [
        _item(
            target, [target.config] if _is_named(target.name, overrides) else settings, sensitivity
        )
        for target in plan.targets
    ]
    weights = sum(target.module.weight.numel() for target in plan.targets)
    dense = dense_nbytes(model) - sum(target.module.weight.nbytes for target in plan.targets)
    allowed = budget.for_codes(weights, dense)
    least = sum(min(option.nbytes for option in item) for item in items)
    if least > allowed:
        raise ValueError(
            f"the budget of {allowed / 1e6:.3f} MB for {weights:,} weights cannot be met: the "
            f"least settings take {8 * least / weights:.4f} bits a weight, "
            f"{(least + dense) / 1e9:.6g} GB with the dense parts; raise the budget, or lower the "
            "least rate (low)"
        )
    chosen, unit = choose(
        [np.array([option.nbytes for option in item]) for item in items],
        [np.array([option.loss for option in item]) for item in items],
        allowed,
    )
    layers = [item[i] for item, i in zip(items, chosen, strict=True)]
    return Allocation(
        layers,
        dense,
        sensitivity.loss,
        predicted=sum(layer.loss for layer in layers),
        uniform=None if overrides else _one_for_all(items, allowed),
        resolution=unit,
        budget_nbytes=allowed,
    )


@functools.cache
def gaussian_error(config: PVQConfig, cols: int) -> float:
    """Relative squared error of a setting on Gaussian rows of ``cols`` weights."""
    rows = max(1, _SAMPLE_WEIGHTS // max(1, cols))
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
    # Gaussian weights have the same law after a rotation, and are quicker without.
    return quantize_tensor(w, config.replace(rotation="none", seed=0)).relative_error(w)


def _with_code(config: PVQConfig, code: Code) -> PVQConfig:
    """``config`` with another setting of its code."""
    return PVQConfig.from_dict({**config.to_dict(), **code.choices()})


def _is_named(name: str, overrides: Mapping[str, Override] | None) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in overrides or ())


def _item(
    target: Target, settings: Sequence[PVQConfig], sensitivity: Sensitivity
) -> list[LayerRate]:
    """What a layer would get by each setting."""
    rows, cols = target.module.weight.shape
    item = []
    for setting in settings:
        config = setting.for_cols(cols)
        error = gaussian_error(setting, cols)
        nbytes = stored_nbytes(config.code, rows, cols)
        loss = sensitivity.increase(target.name, error)
        item.append(LayerRate(target.name, config, rows * cols, nbytes, error, loss))
    return item


def _one_for_all(items: Sequence[Sequence[LayerRate]], allowed: int) -> float | None:
    """The loss if all layers had the same setting, the best one within the budget."""
    fitting = [
        sum(option.loss for option in same)
        for same in zip(*items, strict=True)
        if sum(option.nbytes for option in same) <= allowed
    ]
    return min(fitting, default=None)
