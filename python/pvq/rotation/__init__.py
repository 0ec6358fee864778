"""Rotations of a layer's input dimension, so that its weights look Gaussian to the code."""

from pvq.rotation.hadamard import default_block, hadamard_matrix, rotate, supported_block

__all__ = ["default_block", "hadamard_matrix", "rotate", "supported_block"]
