"""One layer: its weight quantized, the result measured, and what can be done to it afterwards."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pvq.calibration import InputStatistics
from pvq.codes import Stored
from pvq.codes.bands import BandsCode
from pvq.config import PVQConfig
from pvq.plan import Target
from pvq.rates import fill_columns
from pvq.report import LayerRecord
from pvq.rounding import PricesColumns, Rounding
from pvq.rounding.block import Reconstruction
from pvq.rounding.hessian import Hessian
from pvq.tensor import PVQTensor, quantize_tensor, row_slabs


@dataclass(frozen=True)
class Finished:
    """A quantized layer, as it is kept until it takes its place in the model."""

    record: LayerRecord
    codes: PVQTensor


def quantize_layer(
    target: Target,
    rounding: Rounding,
    statistics: InputStatistics | None,
    device: torch.device,
) -> Finished:
    """Quantizes the weight of a layer and measures the result; the layer is not touched.

    Where its code has bands, the method sets their rates (:func:`pvq.rates.fill_columns`).

    Args:
        target: the layer and its configuration.
        rounding: the method.
        statistics: of its inputs, if the method asks for them.
        device: where to compute.

    Raises:
        ValueError: if the Hessian is not finite or singular; the text names the layer.
    """
    start = time.perf_counter()
    weight = target.module.weight.detach().to(device)
    hessian = None if statistics is None else statistics.hessian.to(device)
    try:
        config = target.config
        if hessian is not None and isinstance(config.code, BandsCode):
            config = _filled(weight, config, config.code.dim, rounding, hessian)
        codes = quantize_tensor(weight, config, rounding=rounding, hessian=hessian)
    except ValueError as error:
        raise ValueError(f"{target.name}: {error}") from error
    output_error = nearest_error = None
    if hessian is not None:
        output_error = relative_output_error(weight, codes, hessian)
        nearest = quantize_tensor(weight, target.config)
        nearest_error = relative_output_error(weight, nearest, hessian)
    record = LayerRecord(
        name=target.name,
        kind="linear" if isinstance(target.module, nn.Linear) else "embedding",
        shape=codes.shape,
        config=codes.config,
        relative_error=codes.relative_error(weight),
        bits_per_weight=codes.bits_per_weight,
        nbytes=codes.nbytes,
        layout="stored",
        resident_nbytes=codes.nbytes,
        original_nbytes=weight.nbytes,
        seconds=time.perf_counter() - start,
        rounding=rounding.name,
        tokens=None if statistics is None else statistics.tokens,
        output_error=output_error,
        nearest_output_error=nearest_error,
    )
    return Finished(record, codes)


def _filled(
    weight: Tensor, config: PVQConfig, step: int, rounding: Rounding, hessian: Tensor
) -> PVQConfig:
    """``config`` with a rate for each band, if the method knows what errors cost where."""
    if not isinstance(rounding, PricesColumns):
        return config
    energy = torch.zeros(weight.shape[1], device=weight.device)
    for slab in row_slabs(*weight.shape):
        rows = weight[slab].float().contiguous()
        if config.hadamard_block:
            rows = torch.ops.pvq.hadamard(rows, config.hadamard_block, config.seed)
        energy += rows.square().sum(0)
    loss = Hessian(hessian, config.hadamard_block, config.seed)
    return fill_columns(config, energy * rounding.prices(loss, step))


def refit_rows(layer: Finished, w: Tensor, hessian: Tensor) -> Finished | None:
    """The same codes, with the row scales that bring each row's outputs nearest to the dense ones.

    The factor of row w' is (w H w') / (w' H w'). What is best for a layer may still be worse for
    the model, because it shrinks or grows what all layers behind it get: compare before use.

    Args:
        layer: to refit.
        w: [rows, cols], the dense matrix.
        hessian: [cols, cols] float32, X^T X of its inputs, not rotated.

    Returns:
        ``None`` if the scales are the best already, as they are stored.
    """
    decoded, dense = layer.codes.dequantize(), w.float()
    weighted = decoded @ hessian
    energy = (weighted * decoded).sum(1)
    factor = (weighted * dense).sum(1) / energy
    factor = torch.where((energy > 0) & (factor > 0), factor, 1)
    codes = scale_rows(layer.codes, factor)
    before = [layer.codes.stored[name] for name in codes.stored]
    if all(map(torch.equal, codes.stored.values(), before)):
        return None
    record = replace(
        layer.record,
        relative_error=codes.relative_error(w),
        output_error=relative_output_error(w, codes, hessian),
        refit=True,
    )
    return Finished(record, codes)


def reconstructed(layer: Finished, stored: Stored, w: Tensor, result: Reconstruction) -> Finished:
    """The layer with codes that its decoder layer was tuned to.

    Args:
        layer: as it was.
        stored: its tuned codes.
        w: [rows, cols], the dense matrix.
        result: of the decoder layer.
    """
    codes = replace(layer.codes, stored={name: t.to(w.device) for name, t in stored.items()})
    record = replace(
        layer.record,
        relative_error=codes.relative_error(w),
        output_error=None,  # that of one matrix says little once others make up for it
        nearest_output_error=None,
        block_error=result.after,
        start_block_error=result.before,
    )
    return Finished(record, codes)


def scale_rows(codes: PVQTensor, factor: Tensor) -> PVQTensor:
    """Multiplies everything that is in units of a row's weights by ``factor`` [rows].

    These are the floating-point tensors of a code; the products are rounded to their dtypes.
    """

    def scaled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        rows = factor.to(tensor.device).float().view(-1, *[1] * (tensor.ndim - 1))
        return (tensor.float() * rows).to(tensor.dtype)

    return replace(codes, stored={name: scaled(tensor) for name, tensor in codes.stored.items()})


def divide_rows(codes: PVQTensor, divisor: Tensor) -> PVQTensor | None:
    """The codes of a matrix whose rows are divided by powers of two [rows], if there are such."""
    result = scale_rows(codes, 1 / divisor)
    exact = codes.dequantize() / divisor.to(codes.device)[:, None]
    return result if torch.equal(result.dequantize(), exact) else None


def relative_output_error(w: Tensor, codes: PVQTensor, hessian: Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T), E = W - W': squared error of the outputs, on the inputs of H.

    Args:
        w: [rows, cols], the dense matrix.
        codes: what became of it.
        hessian: [cols, cols] float32, not rotated.
    """
    error = energy = 0.0
    for slab in row_slabs(*codes.shape):
        dense = w[slab].float()
        residual = dense - codes.rows(slab).dequantize()
        error += ((residual @ hessian) * residual).sum(dtype=torch.float64).item()
        energy += ((dense @ hessian) * dense).sum(dtype=torch.float64).item()
    return error / energy if energy else error
