"""PVQTensor: one quantized matrix, and quantize_tensor, which makes it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pvq.codes import Stored, empty_stored
from pvq.config import PVQConfig, check_config
from pvq.rounding import Rounding
from pvq.rounding.hessian import Hessian
from pvq.rounding.registry import make_rounding

# Weights that are in float32 at one time: 64 MiB, so that a large layer needs no large copies.
SLAB_WEIGHTS = 1 << 24


@dataclass(frozen=True)
class PVQTensor:
    """A matrix [rows, cols] in a code.

    Attributes:
        stored: the tensors by the name that they have in a checkpoint, such as ``index``, ``gain``
            and ``row_scale`` of the pyramid code; the first dimension of each is the rows.
        shape: (rows, cols) of the matrix that it stands for.
        config: how to read the codes; ``block`` is settled.
    """

    stored: Stored
    shape: tuple[int, int]
    config: PVQConfig

    def __post_init__(self) -> None:
        rows, cols = self.shape
        layout = self.config.code.layout(rows, cols)
        if self.stored.keys() != layout.keys():
            raise ValueError(
                f"stored has {', '.join(self.stored)}, expected {', '.join(layout)} with "
                f"{self.config}"
            )
        for name, (shape, dtype) in layout.items():
            tensor = self.stored[name]
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} "
                    f"{list(shape)} for a [{rows}, {cols}] matrix with {self.config}"
                )

    def __repr__(self) -> str:
        """What it is, in one line and without its codes."""
        rows, cols = self.shape
        return (
            f"PVQTensor([{rows}, {cols}], {self.config.code.describe()}, "
            f"{self.bits_per_weight:.4f} bits a weight, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return next(iter(self.stored.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: codes, scales and their padding."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def bits_per_weight(self) -> float:
        """The rate, read off the bytes; 0 for an empty matrix."""
        weights = self.shape[0] * self.shape[1]
        return 8 * self.nbytes / weights if weights else 0.0

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix [rows, cols] that the codes stand for, rotated back, in ``dtype``.

        Raises:
            RuntimeError: if the codes are damaged, such as an index that names no point.
        """
        return self.config.code.dequantize(
            self.stored, self.shape[1], dtype, self.config.hadamard_block, self.config.seed
        )

    def rows(self, which: slice | torch.Tensor) -> "PVQTensor":
        """Some rows, as a slice or as an int64 tensor of row numbers; codes are not decoded."""
        stored = {name: tensor[which] for name, tensor in self.stored.items()}
        rows = next(iter(stored.values())).shape[0]
        return PVQTensor(stored, (rows, self.shape[1]), self.config)

    def to(self, device: torch.device | str) -> "PVQTensor":
        """The same codes on another device."""
        stored = {name: tensor.to(device) for name, tensor in self.stored.items()}
        return PVQTensor(stored, self.shape, self.config)

    def relative_error(self, w: torch.Tensor) -> float:
        """Squared error relative to the matrix that was quantized, ||w - w'||^2 / ||w||^2.

        Args:
            w: [rows, cols], the dense matrix, any float dtype.

        Returns:
            The ratio, summed in float64; 0 if ``w`` is zero and was reproduced.
        """
        error = energy = 0.0
        for slab in row_slabs(*self.shape):
            dense = w[slab].to(torch.float32)
            residual = dense - self.rows(slab).dequantize()
            error += residual.double().square().sum().item()
            energy += dense.double().square().sum().item()
        return error / energy if energy else error


def quantize_tensor(
    w: torch.Tensor,
    config: PVQConfig,
    *,
    rounding: str | Rounding = "nearest",
    hessian: torch.Tensor | None = None,
) -> PVQTensor:
    """Quantizes a matrix, a slab of rows at a time, in float32 whatever its dtype.

    Args:
        w: [rows, cols], any floating-point dtype, any strides.
        config: how; its ``block`` is settled from the number of columns if it is not set.
        rounding: the rounding method, by name or as :func:`pvq.quantize_model` takes it.
        hessian: [cols, cols], X^T X of inputs x [cols] that the matrix is multiplied with, on the
            device of ``w``, for methods that ask for it; not rotated.

    Returns:
        The codes, on the device of ``w``. Rows of zeros decode to zeros.

    Raises:
        TypeError: if ``w`` is not a tensor of a floating-point dtype, or ``config`` no
            configuration.
        ValueError: if it is not a matrix, has values that are NaN, infinite or too large for
            float32, or a number of columns that the code or ``block`` does not fit; or if the
            rounding method is unknown, or needs a Hessian and there is none that is finite and
            positive definite; the text says what to do.
    """
    check_config(config)
    method = make_rounding(rounding)
    problem = unquantizable(w, config)
    if problem is not None:
        raise (ValueError if isinstance(w, torch.Tensor) and w.is_floating_point() else TypeError)(
            f"weight {problem}"
        )
    rows, cols = w.shape
    config = config.for_cols(cols)
    loss = None
    if hessian is not None and method.needs_hessian:
        if len(hessian) != cols:
            raise ValueError(f"Hessian is of {len(hessian)} columns, the weight has {cols}")
        loss = Hessian(hessian, config.hadamard_block, config.seed)
    stored = empty_stored(config.code, rows, cols, w.device)
    for slab in row_slabs(rows, cols):
        rotated = w[slab].detach().to(torch.float32, copy=True).contiguous()
        if config.hadamard_block and rotated.numel():
            torch.ops.pvq.hadamard_(rotated, config.hadamard_block, config.seed)
        for name, codes in method(rotated, config.code, loss).items():
            stored[name][slab] = codes
    return PVQTensor(stored, (rows, cols), config)


def unquantizable(w: object, config: PVQConfig) -> str | None:
    """Why ``w`` cannot be quantized, as the rest of a sentence that starts with its name."""
    if not isinstance(w, torch.Tensor):
        return f"is a {type(w).__name__}, expected a torch.Tensor"
    if not w.is_floating_point():
        return f"has dtype {w.dtype}, expected a floating-point dtype"
    if w.ndim != 2:
        return f"has shape {list(w.shape)}, expected a matrix [rows, cols]; reshape it"
    if w.device.type == "meta":
        return (
            "is on the meta device (its values are not loaded): load the model without offloading"
        )
    try:
        config.for_cols(w.shape[1])
    except ValueError as error:
        return f"does not fit: {error}"
    for slab in row_slabs(*w.shape):
        finite = torch.isfinite(w[slab].to(torch.float32))
        if not finite.all():
            row, col = (~finite).nonzero()[0].tolist()
            bad = w[slab.start + row, col].item()
            what, remedy = "NaN or infinite values", "repair the checkpoint"
            if math.isfinite(bad):
                what, remedy = "values too large for float32", "scale the weights down"
            return (
                f"has {what} (the first at [{slab.start + row}, {col}] is {bad}): {remedy} or "
                "leave this layer dense"
            )
    return None


def row_slabs(rows: int, cols: int) -> Iterator[slice]:
    """Consecutive slices of rows with about ``SLAB_WEIGHTS`` weights each."""
    step = max(1, SLAB_WEIGHTS // max(1, cols))
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))
