"""Calibration: texts as windows of tokens, and what the inputs of each layer say about its loss."""

from pvq.calibration.accumulate import InputStatistics
from pvq.calibration.samples import Samples, check_samples
from pvq.calibration.texts import DEFAULT_SAMPLES, MAX_LENGTH, calibration_tokens
from pvq.calibration.walk import Stage, on_device, walk

__all__ = [
    "DEFAULT_SAMPLES",
    "MAX_LENGTH",
    "InputStatistics",
    "Samples",
    "Stage",
    "calibration_tokens",
    "check_samples",
    "on_device",
    "walk",
]
