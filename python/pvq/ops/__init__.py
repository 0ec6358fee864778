"""Fake-tensor rules and gradients of ``torch.ops.pvq.*``, one file for each family of operators."""

from pvq.ops import code, hadamard, matmul, tables, tables_cuda  # noqa: F401  register their rules
