"""DecodedWeight: ``weight`` of modules that hold codes, for models that read it from outside.

Some do: Mamba multiplies by ``dt_proj.weight`` itself, and T5 asks for the dtype of ``wo.weight``.
What they are given is nobody's memory: it is no parameter and no buffer, a checkpoint does not hold
it, and what is written into it is lost.
"""

import torch
from torch import nn


class DecodedWeight(nn.Module):
    """A module with a matrix in a code, which it can decode.

    Attributes:
        dtype: that the model around it computes in; casting the module changes it.
    """

    dtype: torch.dtype

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense matrix."""
        raise NotImplementedError

    @property
    def weight(self) -> torch.Tensor:
        """The dense matrix in the dtype of the bias, without one in :attr:`dtype`.

        Every access decodes all of it anew, also one that asks for the shape only. It has no
        gradient.

        Raises:
            AttributeError: if it is set.
            RuntimeError: if the codes are damaged.
        """
        bias = getattr(self, "bias", None)
        weight = self.dequantize(self.dtype if bias is None else bias.dtype)
        # transformers would draw random values for a tensor that does not say so.
        weight._is_hf_initialized = True  # type: ignore[attr-defined]
        return weight

    @weight.setter
    def weight(self, value: object) -> None:
        raise AttributeError(self._read_only())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuses ``weight``: this is how modules take a parameter that an attribute is set to.

        Raises:
            AttributeError: saying what to do.
        """
        if name == "weight":
            raise AttributeError(self._read_only())
        super().register_parameter(name, param)

    def _read_only(self) -> str:
        return (
            f"weight of a {type(self).__name__} is decoded from its codes and cannot be set: "
            "quantize another matrix and put a module with its codes (from_tensor) in this one's "
            "place, or make the model dense first (model.dequantize())"
        )
