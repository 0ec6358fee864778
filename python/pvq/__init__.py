"""Pyramid vector quantization for language models.

Importing pvq registers ``torch.ops.pvq.*`` and lets transformers read pvq checkpoints:

>>> import pvq
>>> report = pvq.quantize_model(model, pvq.PVQConfig(bits=3.25))
>>> model = pvq.load("folder")  # or AutoModelForCausalLM.from_pretrained("folder")
"""

import torch  # noqa: F401  libtorch must be loaded before _C resolves its symbols

from pvq import _C, _core, ops  # noqa: F401  registers torch.ops.pvq and its Python rules
from pvq._core import build_info, count
from pvq.cache import PVQCache
from pvq.calibration import calibration_tokens
from pvq.checkpoint import save_checkpoint
from pvq.config import PVQConfig
from pvq.embedding import PVQEmbedding
from pvq.grouping import group_projections
from pvq.hf import register
from pvq.instruction_sets import check_limit
from pvq.linear import PVQLinear
from pvq.load import load
from pvq.modules import prepare
from pvq.quantize import quantize_model
from pvq.rates import Sensitivity, allocate, measure_sensitivity
from pvq.report import Report
from pvq.tensor import PVQTensor, quantize_tensor

check_limit()
register()
__version__: str = build_info()["version"]

__all__ = [
    "PVQCache",
    "PVQConfig",
    "PVQEmbedding",
    "PVQLinear",
    "PVQTensor",
    "Report",
    "Sensitivity",
    "allocate",
    "build_info",
    "calibration_tokens",
    "count",
    "group_projections",
    "load",
    "measure_sensitivity",
    "prepare",
    "quantize_model",
    "quantize_tensor",
    "save_checkpoint",
]
