"""Fake-tensor rules and gradients of ``torch.ops.pvq.*``, one file for each family of operators."""
