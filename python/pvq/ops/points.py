"""Rules of ``activation_points`` and of the products with its results.

They work on integers and have no gradient: what trains through them takes the rounding for the
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


@torch.library.register_fake("pvq::table_matmul_points")
@torch.library.register_fake("pvq::overlap_matmul_points")
def _matmul_points_fake(
    point: Tensor,
    amplitude: Tensor,
    fragments: Tensor,
    row_scale: Tensor,
    bits: int,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    return point.new_empty((*point.shape[:-1], len(row_scale)), dtype=dtype)
