"""Pyramid vector quantization for language models."""

import torch  # noqa: F401  libtorch must be loaded before _C resolves its symbols

from pvq import _C, _core  # noqa: F401  registers torch.ops.pvq
from pvq import ops as ops  # the operators' fake-tensor rules and gradients
