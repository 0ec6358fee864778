"""PVQLinear: a linear layer that multiplies from codes and never holds a dense weight."""

import torch
from torch import nn

from pvq.buffers import register_codes
from pvq.coded import CodedModule
from pvq.config import PVQConfig
from pvq.tensor import PVQTensor, quantize_tensor


class PVQLinear(CodedModule):
    """``y = x @ W.T + bias`` with ``W`` [out_features, in_features] in a code.

    See :class:`pvq.coded.CodedModule` for its buffers and forms. Casting the module
    (``.to(torch.float16)``) casts the bias and leaves the codes alone.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
        config: how the weight is stored.
        device: of the tensors, which are uninitialised: see :meth:`from_linear`.
        dtype: of the bias, and of :attr:`weight`.

    Raises:
        ValueError: if ``config`` does not fit ``in_features``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        config: PVQConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, config, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: PVQConfig) -> "PVQLinear":
        """Quantizes ``linear``; its bias is shared, not copied.

        Raises:
            TypeError: see :func:`pvq.quantize_tensor`.
            ValueError: see :func:`pvq.quantize_tensor`.
        """
        codes = quantize_tensor(linear.weight, config)
        return cls.from_tensor(codes, linear.bias, linear.weight.dtype)

    @classmethod
    def from_tensor(
        cls,
        weight: PVQTensor,
        bias: nn.Parameter | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PVQLinear":
        """A layer around codes that exist; nothing is copied.

        ``dtype`` is that of :attr:`weight` without a bias; PyTorch's default if not given.
        """
        rows, cols = weight.shape
        layer = cls(cols, rows, False, weight.config, device="meta", dtype=dtype)
        register_codes(layer, weight.stored)
        layer.bias = bias
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` [..., in_features], in its dtype: [..., out_features].

        Raises:
            ValueError: if the last dimension of ``x`` is not ``in_features``.
            RuntimeError: if its dtype or device is not supported, or the codes are damaged.
        """
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.describe()}"
        )
