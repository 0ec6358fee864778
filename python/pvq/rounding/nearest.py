"""Rounding to the nearest point: needs no data, minimises the squared error of the weights."""

import torch

from pvq.codes import Code, Stored


def nearest(w: torch.Tensor, code: Code) -> Stored:
    """The point of ``code`` nearest to each group of ``w`` [rows, cols], each group on its own."""
    return code.quantize(w)
