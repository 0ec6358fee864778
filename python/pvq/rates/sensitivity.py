"""How much a model's loss grows with the relative error of each layer, measured by noise.

One layer at a time gets Gaussian noise of a relative squared size t^2 = |noise|^2 / |W|^2, and the
loss is measured on the same tokens as without. The slope of the increase over t^2 is the layer's
sensitivity (arXiv 2411.17525, section 3). Two losses:

- ``kl``, the divergence of the original model's predictions from the noisy one's. It needs no
  text: tokens may be drawn at random (data-free), and its first-order term is zero by nature.
- ``nll``, the increase of the negative log-likelihood of a text. Off a perfect optimum it has a
  first-order term, so each change is added and subtracted and the mean taken.

Noise is not all: a code of least squared error shrinks. Its points are the means of their cells, so
W' = (1 - t^2) W + noise of energy t^2 (1 - t^2) |W|^2. Small errors do not show it; but the queries
of a layer, which noise hardly hurts, lose their contrast when they shrink by a quarter. So each
layer is also shrunk, and its loss is modelled as slope * t^2 (1 - t^2) + curvature * t^4.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pvq.plan import Target
from pvq.progress import progress_bar

FORMAT_VERSION = 1
LOSSES = ("kl", "nll")
DEFAULT_LEVELS = (0.02,)
SHRINK = 0.1
# Positions whose logits are in float32 at one time.
_CHUNK = 256


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        loss: ``"kl"`` or ``"nll"``, nats a token.
        source: of the tokens, in words.
        tokens: how many were predicted for each layer and level.
        levels: relative squared sizes of the noise.
        layers: mean increase of the loss at each level, by full module name.
        shrunk: mean increase when all weights of the layer are a tenth (``SHRINK``) smaller.

    Raises:
        ValueError: if a value is not finite, or a level or the number of tokens not above 0. An
            increase may be negative: that of ``nll`` on a text, and any by a rounding error.
    """

    loss: str
    source: str
    tokens: int
    levels: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]
    shrunk: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}, expected 1 or more")
        if not self.levels or not all(0 < level < math.inf for level in self.levels):
            raise ValueError(f"levels are {list(self.levels)}, expected finite numbers above 0")
        values = {_shrunk(name): value for name, value in self.shrunk.items()}
        for name, increases in self.layers.items():
            for level, value in zip(self.levels, increases, strict=True):
                values[_noisy(name, level)] = value
        for what, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"the increase {what} is {value}, expected a finite number: measure again, in "
                    "float32"
                )

    def slope(self, name: str) -> float:
        """Loss for each unit of noise's relative squared size: least squares from the origin."""
        weights = torch.tensor(self.levels, dtype=torch.float64)
        increases = torch.tensor(self.layers[name], dtype=torch.float64)
        return float((weights * increases).sum() / weights.square().sum())

    def increase(self, name: str, error: float) -> float:
        """The loss that a layer adds with a relative squared error of its code, at least 0."""
        noise = max(0.0, self.slope(name)) * error * (1 - error)
        return noise + max(0.0, self.shrunk[name]) * (error / SHRINK) ** 2

    def predict(self, errors: Mapping[str, float]) -> float:
        """The loss increase of relative squared errors: the sum over layers.

        Raises:
            ValueError: if a layer was not measured.
        """
        self.check_layers(list(errors))
        return sum(self.increase(name, error) for name, error in errors.items())

    def check_layers(self, names: Sequence[str]) -> None:
        """Refuses layers that were not measured.

        Raises:
            ValueError: naming the first of them.
        """
        missing = [name for name in names if name not in self.layers]
        if missing:
            raise ValueError(
                f"the sensitivities are of other layers: {missing[0]} is missing, {len(missing)} "
                f"of {len(names)} are; measure this model (pvq sensitivity), with the same "
                "--embeddings and --head"
            )

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes JSON."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        slopes = {name: self.slope(name) for name in self.layers}
        Path(file).write_text(json.dumps({**content, "slopes": slopes}, indent=1))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Sensitivity":
        """Inverse of :meth:`save`.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no such file, or a newer pvq wrote it.
        """
        try:
            stored = json.loads(Path(file).read_text())
            version = stored["format_version"]
            layers = {name: tuple(map(float, row)) for name, row in stored["layers"].items()}
            levels = tuple(map(float, stored["levels"]))
            shrunk = {name: float(stored["shrunk"][name]) for name in layers}
            origin = (stored["loss"], stored["source"], int(stored["tokens"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no file of sensitivities ({error!r})") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"{file} has format_version {version}: upgrade pvq")
        if any(len(row) != len(levels) for row in layers.values()):
            raise ValueError(f"{file} is damaged: a layer has not one value for each level")
        try:
            return cls(*origin, levels, layers, shrunk)
        except ValueError as error:
            raise ValueError(f"{file} cannot be used: {error}") from error


def random_tokens(vocabulary: int, windows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids [windows, length] drawn uniformly: the data-free variant."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (windows, length), generator=source)


def measure_targets(
    model: PreTrainedModel,
    targets: Sequence[Target],
    tokens: Tensor,
    *,
    loss: str = "kl",
    levels: Sequence[float] = DEFAULT_LEVELS,
    source: str = "tokens as given",
    seed: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """The increases of some layers, ``targets`` of :func:`pvq.plan.make_plan`.

    The rest is as :func:`pvq.measure_sensitivity` says.

    Raises:
        ValueError: on an unknown loss, a level out of range, or no window of two tokens; or if a
            loss is not finite, as where noise makes float16 overflow.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
    if not levels or not all(0 < level <= 1 for level in levels):
        raise ValueError(f"levels are {list(levels)}, expected numbers above 0 and up to 1")
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens have shape {list(tokens.shape)}, expected [windows, 2 or more]")
    generator = torch.Generator().manual_seed(seed)
    sums = {target.name: [0.0] * (len(levels) + 1) for target in targets}
    steps = [(window, target) for window in range(len(tokens)) for target in targets]
    signs = (1.0,) if loss == "kl" else (1.0, -1.0)
    reference, before = torch.empty(0), 0.0
    with torch.inference_mode():
        for window, target in progress_bar(steps, "measuring", "layer", progress):
            ids = tokens[window]
            if target is targets[0]:
                reference = _logits(model, ids)
                before = _mean_loss(loss, reference, reference, ids)
                _check_finite(before, f"{loss} of window {window} without noise", model.dtype)
            for i in range(len(levels) + 1):
                change, what = -SHRINK * target.module.weight.float(), _shrunk(target.name)
                if i < len(levels):
                    change = _noise(target.module, levels[i], generator)
                    what = _noisy(target.name, levels[i])
                after = [
                    _mean_loss(loss, reference, _changed_logits(model, target, ids, c), ids)
                    for c in (sign * change for sign in signs)
                ]
                _check_finite(sum(after), f"{loss} of window {window} {what}", model.dtype)
                sums[target.name][i] += sum(after) / len(after) - before
    count = len(tokens)
    means = {name: tuple(total / count for total in row) for name, row in sums.items()}
    return Sensitivity(
        *(loss, source, count * (tokens.shape[1] - 1), tuple(levels)),
        layers={name: row[:-1] for name, row in means.items()},
        shrunk={name: row[-1] for name, row in means.items()},
    )


def _noisy(name: str, level: float) -> str:
    return f"with noise of {level:g} in {name}"


def _shrunk(name: str) -> str:
    return f"with {name} a tenth smaller"


def _check_finite(loss: float, what: str, dtype: torch.dtype) -> None:
    """Refuses what an overflow has made: a layer with NaN would seem to cost nothing."""
    if not math.isfinite(loss):
        narrow = torch.finfo(dtype).bits < 32
        remedy = ": measure in float32 (--dtype float32)" if narrow else ""
        raise ValueError(f"{what} is {loss} in {dtype}{remedy}")


def _noise(module: nn.Linear | nn.Embedding, level: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of relative squared size ``level``, float32 on the layer's device."""
    w = module.weight
    noise = torch.randn(w.shape, generator=generator).to(w.device)
    factor: Tensor = level**0.5 * w.float().norm() / noise.norm()
    return noise * factor


def _changed_logits(model: PreTrainedModel, target: Target, ids: Tensor, change: Tensor) -> Tensor:
    weight = target.module.weight.data
    target.module.weight.data = (weight.float() + change).to(weight.dtype)
    try:
        return _logits(model, ids)
    finally:
        target.module.weight.data = weight


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [tokens - 1, vocabulary] of the next token."""
    logits: Tensor = model(ids[None].to(model.device), use_cache=False).logits
    return logits[0, :-1]


def _mean_loss(loss: str, reference: Tensor, logits: Tensor, ids: Tensor) -> float:
    total = 0.0
    targets = ids[1:].to(logits.device)
    for begin in range(0, len(logits), _CHUNK):
        positions = slice(begin, begin + _CHUNK)
        log_q = logits[positions].float().log_softmax(-1)
        if loss == "kl":
            log_p = reference[positions].float().log_softmax(-1)
            total += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().item()
        else:
            total -= log_q.gather(-1, targets[positions, None]).double().sum().item()
    return total / len(logits)
