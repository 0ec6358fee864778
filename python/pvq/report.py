"""What quantization did to a model: a record for each layer, totals, JSON, and the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from pvq import _core
from pvq.activations import activation_code
from pvq.config import PVQConfig
from pvq.modules import quantized_modules
from pvq.plan import LeftDense
from pvq.sizes import megabytes


@dataclass(frozen=True)
class LayerRecord:
    """One quantized layer.

    Attributes:
        name: full module name.
        kind: ``"linear"`` or ``"embedding"``.
        shape: (rows, cols) of the weight.
        config: as used, block settled.
        relative_error: ||w - w'||^2 / ||w||^2.
        bits_per_weight: the rate, from the stored bytes.
        nbytes: stored bytes.
        layout: the form in memory when this was written, see :meth:`pvq.PVQLinear.prepare`.
        resident_nbytes: bytes in memory in that form.
        original_nbytes: bytes of the dense weight in its original dtype.
        seconds: time to quantize and check the layer.
        rounding: name of the rounding method.
        tokens: how many the layer saw in calibration; ``None`` without.
        output_error: squared error of its outputs relative to their energy, on the inputs seen.
        nearest_output_error: what rounding to the nearest points would have made of them.
        refit: whether the row scales were refitted afterwards.
        block_error: squared error of the outputs of the decoder layer that it is in, relative to
            their energy, after all its matrices were tuned together; ``None`` if they were not.
        start_block_error: the same before.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    config: PVQConfig
    relative_error: float
    bits_per_weight: float
    nbytes: int
    layout: str
    resident_nbytes: int
    original_nbytes: int
    seconds: float
    rounding: str = "nearest"
    tokens: int | None = None
    output_error: float | None = None
    nearest_output_error: float | None = None
    refit: bool = False
    block_error: float | None = None
    start_block_error: float | None = None

    @property
    def weights(self) -> int:
        """Number of weights of the layer."""
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_activation(self) -> float | None:
        """Bits that products leave of an activation; ``None`` if the configuration says nothing."""
        name = self.config.activations
        code = None if name is None else activation_code(name, self.shape[1])
        return None if code is None else code.bits

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "shape": list(self.shape), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "LayerRecord":
        """Inverse of :meth:`to_dict`."""
        rows, cols = stored["shape"]
        config = PVQConfig.from_dict(stored["config"])
        return cls(**{**stored, "shape": (rows, cols), "config": config})


@dataclass(frozen=True)
class Report:
    """What :func:`pvq.quantize_model` did.

    Attributes:
        config: the configuration of all layers that no override names.
        layers: in the order of the model.
        left_dense: weight matrices that stayed as they were, and why.
        dense_nbytes: bytes of everything that is not codes (embeddings, norms, biases, ...).
        rounding: name and settings of the rounding method.
    """

    config: PVQConfig
    layers: Sequence[LayerRecord]
    left_dense: Sequence[LeftDense]
    dense_nbytes: int
    rounding: Mapping[str, Any] = field(default_factory=lambda: {"name": "nearest"})

    def __str__(self) -> str:
        """The summary, which is what ``print`` is to show."""
        return self.summary()

    @property
    def weights(self) -> int:
        """Number of quantized weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def quantized_nbytes(self) -> int:
        """Bytes of all codes."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole quantized model."""
        return self.quantized_nbytes + self.dense_nbytes

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the whole quantized model in memory, in the layouts of the records."""
        return sum(layer.resident_nbytes for layer in self.layers) + self.dense_nbytes

    @property
    def original_nbytes(self) -> int:
        """Bytes of the whole model before."""
        return sum(layer.original_nbytes for layer in self.layers) + self.dense_nbytes

    @property
    def bits_per_weight(self) -> float:
        """Rate of the quantized layers, from the bytes."""
        return 8 * self.quantized_nbytes / self.weights if self.weights else 0.0

    @property
    def relative_error(self) -> float:
        """Mean of the layers' relative errors, each layer counted by its weights."""
        total = sum(layer.relative_error * layer.weights for layer in self.layers)
        return total / self.weights if self.weights else 0.0

    @property
    def output_error(self) -> float | None:
        """Mean of the calibrated layers' output errors; ``None`` without calibration."""
        return _mean([layer.output_error for layer in self.layers])

    @property
    def nearest_output_error(self) -> float | None:
        """What rounding to the nearest points would have made of it."""
        return _mean([layer.nearest_output_error for layer in self.layers])

    @property
    def block_error(self) -> float | None:
        """Mean of the decoder layers' errors after reconstruction; ``None`` without."""
        return _mean([layer.block_error for layer in self.layers])

    @property
    def start_block_error(self) -> float | None:
        """The same before reconstruction."""
        return _mean([layer.start_block_error for layer in self.layers])

    @property
    def seconds(self) -> float:
        """Time spent on all layers."""
        return sum(layer.seconds for layer in self.layers)

    def remeasured(self, model: nn.Module) -> "Report":
        """The same with the layouts and bytes in memory that ``model`` has now.

        Args:
            model: that the report is of, prepared or moved since.
        """
        modules = dict(quantized_modules(model))
        layers = [
            replace(layer, layout=module.layout, resident_nbytes=module.resident_nbytes)
            for layer, module in ((layer, modules[layer.name]) for layer in self.layers)
        ]
        return replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "build": _core.build_info(),
            "config": self.config.to_dict(),
            "rounding": dict(self.rounding),
            "totals": {
                "layers": len(self.layers),
                "weights": self.weights,
                "bits_per_weight": self.bits_per_weight,
                "relative_error": self.relative_error,
                "output_error": self.output_error,
                "nearest_output_error": self.nearest_output_error,
                "block_error": self.block_error,
                "start_block_error": self.start_block_error,
                "quantized_nbytes": self.quantized_nbytes,
                "dense_nbytes": self.dense_nbytes,
                "nbytes": self.nbytes,
                "resident_nbytes": self.resident_nbytes,
                "original_nbytes": self.original_nbytes,
                "seconds": self.seconds,
            },
            "layers": [layer.to_dict() for layer in self.layers],
            "left_dense": [
                {"name": left.name, "reason": left.reason, "nbytes": left.nbytes}
                for left in self.left_dense
            ],
        }

    def summary(self) -> str:
        """A few lines for a person."""
        layouts = sorted({layer.layout for layer in self.layers})
        left = {left.reason for left in self.left_dense}
        lines = [
            f"{len(self.layers)} layers, {self.weights / 1e6:.2f} M weights in "
            f"{self.seconds:.1f} s",
            f"rate            {self.bits_per_weight:.4f} bits a weight with gain, scale, padding",
            f"relative error  {self.relative_error:.5f}",
            f"codes           {megabytes(self.quantized_nbytes)}, dense parts "
            f"{megabytes(self.dense_nbytes)}",
            f"model           {megabytes(self.nbytes)}, was {megabytes(self.original_nbytes)}",
            f"in memory       {megabytes(self.resident_nbytes)}, layout {', '.join(layouts)}",
        ]
        bits = sorted(filter(None, {layer.bits_per_activation for layer in self.layers}))
        if bits:
            listed = ", ".join(f"{value:.4g}" for value in bits)
            lines.append(f"activations     {listed} bits with amplitudes, points of pyramids")
        if self.output_error is not None:
            lines.insert(
                3,
                f"output error    {self.output_error:.5f} with {self.rounding['name']}, "
                f"{self.nearest_output_error:.5f} with the nearest points",
            )
        if self.block_error is not None:
            lines.insert(
                3,
                f"block error     {self.block_error:.5f} with {self.rounding['name']}, "
                f"{self.start_block_error:.5f} with {self.rounding['start']['name']}",
            )
        if left:
            lines.append(f"left dense      {len(self.left_dense)}: {'; '.join(sorted(left))}")
        return "\n".join(lines)

    def table(self) -> str:
        """One line for each layer, as a Markdown table."""
        lines = [
            "| layer | shape | code | block | bits/weight | bytes | in memory | error |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for layer in self.layers:
            config = layer.config
            lines.append(
                f"| {layer.name} | {layer.shape[0]} x {layer.shape[1]} | {config.code.describe()} "
                f"| {config.hadamard_block or '-'} | "
                f"{layer.bits_per_weight:.4f} | {layer.nbytes} | {layer.resident_nbytes} "
                f"({layer.layout}) | {layer.relative_error:.5f} |"
            )
        return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def model_card(report: Report, base_model: str | None, license_name: str | None) -> str:
    """README.md of a quantized checkpoint.

    Args:
        report: of its quantization.
        base_model: repository of the dense model on the hub, if it came from there.
        license_name: of the dense model, if its card states one; none is invented.
    """
    front = ["library_name: transformers"]
    if base_model is not None:
        front += [f"base_model: {base_model}", "base_model_relation: quantized"]
    if license_name is not None:
        front.append(f"license: {license_name}")
    front += ["tags:", "- pvq", "- quantized", f"- {round(report.bits_per_weight)}-bit"]
    name = base_model.rpartition("/")[2] if base_model is not None else "Model"
    return f"""---
{chr(10).join(front)}
---

# {name}, {report.bits_per_weight:.2f} bits a weight

{_describe(report.config, str(report.rounding["name"]))}

```python
import pvq  # registers the format with transformers: without this line the weights are not read
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

| | |
|---|---|
| quantized weights | {report.weights:,} in {len(report.layers)} layers |
| rate of these, with gains, scales and padding | {report.bits_per_weight:.4f} bits a weight |
| mean relative squared error of the weights | {report.relative_error:.5f} |
| codes | {report.quantized_nbytes:,} bytes |
| dense parts | {report.dense_nbytes:,} bytes |
| whole model | {report.nbytes:,} bytes, was {report.original_nbytes:,} |

{report.table()}
"""


def _describe(config: PVQConfig, rounding: str) -> str:
    rotation = "no rotation"
    if config.rotation == "hadamard":
        rotation = f"randomised Hadamard rotation with seed {config.seed}"
    activations = ""
    if config.activations is not None:
        activations = f", activations {config.activations}"
    return (
        f"Pyramid vector quantization with `pvq` {_core.build_info()['version']}: code "
        f"{config.code.describe()}, {rotation}, rounding {rounding}{activations}."
    )
