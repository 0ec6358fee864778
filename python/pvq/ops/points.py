"""Rules of ``activation_points`` and ``matmul_planes_points``, and the former on a GPU.

Both work on integers and have no gradient: what trains through them takes the rounding for the
identity (:meth:`pvq.coded.CodedModule.product`).
"""

import torch
from torch import Tensor


@torch.library.register_fake("pvq::activation_points")
def _activation_points_fake(x: Tensor, dim: int, pulses: int) -> tuple[Tensor, Tensor]:
    groups = (*x.shape[:-1], x.shape[-1] // dim)
    return x.new_empty(x.shape, dtype=torch.int16), x.new_empty(groups, dtype=torch.bfloat16)


@torch.library.register_fake("pvq::matmul_planes_points")
def _matmul_planes_points_fake(
    point: Tensor,
    amplitude: Tensor,
    planes: Tensor,
    scale: Tensor,
    outlier_start: Tensor,
    outlier_place: Tensor,
    outlier_value: Tensor,
    rows: int,
    dim: int,
    dtype: torch.dtype,
) -> Tensor:
    return point.new_empty((*point.shape[:-1], rows), dtype=dtype)


def points_in_tensor_operations(x: Tensor, dim: int, pulses: int) -> tuple[Tensor, Tensor]:
    """``activation_points`` (csrc/cpu/points.h) on any device.

    Sums may round differently there, which moves a pulse where two places are equally good. NaN
    and infinity are not refused, which would wait for the device: they become zeros.
    """
    groups = x.double().reshape(*x.shape[:-1], x.shape[-1] // dim, dim)
    magnitude = groups.abs()
    total = magnitude.sum(-1, keepdim=True)
    valid = (total > 0) & total.isfinite()
    magnitude = torch.where(valid, magnitude, 0)
    unit = torch.where(valid, pulses / total, 0)
    exact, rounded = _rounded_to_sum(magnitude, pulses, unit)
    unit = torch.where(valid, unit / _best_multiple(exact, rounded), 0)
    exact, rounded = _rounded_to_sum(magnitude, pulses, unit)
    amplitude = torch.where(valid, _best_multiple(exact, rounded) / unit, 0)
    point = torch.where(groups < 0, -rounded, rounded).to(torch.int16).reshape(x.shape)
    return point, amplitude.squeeze(-1).to(torch.bfloat16)


def _rounded_to_sum(magnitude: Tensor, pulses: int, unit: Tensor) -> tuple[Tensor, Tensor]:
    """``magnitude * unit`` and the nearest integers whose sum is ``pulses``, or zeros."""
    exact = (magnitude * unit).float()
    rounded = exact.round()
    missing = torch.where(unit > 0, pulses - rounded.sum(-1, keepdim=True), 0)
    keys = ((exact - rounded) * 2**21).int()
    # Place among the remainders, from the largest on and from the smallest on.
    from_above = keys.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    takes = torch.where(rounded > 0, keys, 2**31 - 1)
    from_below = takes.sort(dim=-1, stable=True).indices.argsort(dim=-1)
    return exact, rounded + (from_above < missing).float() - (from_below < -missing).float()


def _best_multiple(exact: Tensor, rounded: Tensor) -> Tensor:
    product = (exact * rounded).sum(-1, keepdim=True).double()
    return product / rounded.square().sum(-1, keepdim=True).double()


torch.library.impl("pvq::activation_points", "cuda", points_in_tensor_operations)
