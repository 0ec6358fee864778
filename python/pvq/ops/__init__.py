"""Fake-tensor rules and gradients of ``torch.ops.pvq.*``, one file for each family of operators."""

from pvq.ops import (  # noqa: F401  register their rules
    code,
    decoded,
    hadamard,
    index_cuda,
    matmul,
    overlap,
    planes_cuda,
    points,
    tables,
    tables_cuda,
)
