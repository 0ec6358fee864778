# Importing this module registers torch.ops.pvq.*; it has no names of its own.
# ruff: noqa: N999
