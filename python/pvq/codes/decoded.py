"""What all codes have in common that are written in tensor operations.

Such a code says how a matrix is rounded and decoded; its products decode to scratch and multiply
densely (:mod:`pvq.ops.decoded`). They are there to be compared with, not to be fast.
"""

import functools
import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch

from pvq.codes import Layout, Rounder, RunTimeForm, Stored


class DecodedCode(ABC):
    """Base of frozen dataclasses whose fields are the choices of a code."""

    name: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]]
    spec: str  # see spec_of; made once, because graphs are traced through the products

    @abstractmethod
    def describe(self) -> str:
        """Name and choices in a few words."""

    @abstractmethod
    def layout(self, rows: int, cols: int) -> Layout:
        """Shape and dtype of each stored tensor of a [rows, cols] matrix."""

    @abstractmethod
    def decode(self, stored: Stored, cols: int) -> torch.Tensor:
        """float32 [rows, cols]: what ``stored`` was rounded to, in the rotated basis."""

    @abstractmethod
    def rounder(self, w: torch.Tensor) -> Rounder:
        """Starts to round the float32 matrix ``w`` [rows, cols], rotated already, in blocks."""

    def choices(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every heir is one

    def quantize(self, w: torch.Tensor) -> Stored:
        """The points nearest to the float32 matrix ``w`` [rows, cols], rotated already."""
        rounder = self.rounder(w)
        rounder.round(w, 0)
        return rounder.stored()

    def dequantize(
        self,
        stored: Stored,
        cols: int,
        dtype: torch.dtype = torch.float32,
        block: int = 0,
        seed: int = 0,
    ) -> torch.Tensor:
        """The matrix [rows, cols] of ``stored``, rotated back unless ``block`` is 0."""
        w: torch.Tensor = torch.ops.pvq.decoded_dequantize(
            [stored[name] for name in self.tensors], self.spec, cols, dtype, block, seed
        )
        return w

    def matmul(
        self, x: torch.Tensor, stored: Stored, block: int = 0, seed: int = 0
    ) -> torch.Tensor:
        """The product of ``x`` [..., cols], rotated unless ``block`` is 0, with every row."""
        y: torch.Tensor = torch.ops.pvq.decoded_matmul(
            x, [stored[name] for name in self.tensors], self.spec, block, seed
        )
        return y

    def run_time(self, device: torch.device) -> RunTimeForm | None:
        """None: there is only the stored form."""
        return None


def spec_of(code: DecodedCode) -> str:
    """The name and the choices of a code as one line of text, which operators can take."""
    return json.dumps({"code": code.name, **code.choices()}, sort_keys=True)


@functools.cache
def decoder(spec: str) -> DecodedCode:
    """The code that :func:`spec_of` wrote down."""
    from pvq.codes.registry import CODES  # which imports the codes, and they this module

    choices = json.loads(spec)
    code = CODES[choices.pop("code")](**choices)
    assert isinstance(code, DecodedCode)
    return code


def as_stored(scale: torch.Tensor) -> torch.Tensor:
    """Scales as a bfloat16 holds them, in float32; the greatest one instead of infinity."""
    return scale.clamp(max=torch.finfo(torch.bfloat16).max).bfloat16().float()
