"""PVQLinear: a linear layer that multiplies from pyramid codes and never holds a dense weight.

A layer has two forms. The stored one is the exact index; it is what a state dict contains, always.
The planes are a run-time form that the product reads faster; :meth:`PVQLinear.prepare` trades the
index for them, and a state dict gets the index back from the planes bit for bit, because both name
the same integer vectors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pvq import planes
from pvq.buffers import register_codes, without_casts
from pvq.codes.pyramid import TENSORS
from pvq.config import PVQConfig
from pvq.tensor import PVQTensor, quantize_tensor

LAYOUTS = ("auto", "index", "planes")


class PVQLinear(nn.Module):
    """``y = x @ W.T + bias`` with ``W`` [out_features, in_features] in pyramid codes.

    Buffers: ``index``, ``gain`` and ``row_scale`` (see :mod:`pvq.codes.pyramid`); once prepared as
    planes, ``index`` is ``None`` and the planes are non-persistent buffers. Casting the module
    (``.to(torch.float16)``) casts the bias and leaves the codes alone.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
        config: how the weight is stored.
        device: of the tensors, which are uninitialised: see :meth:`from_linear`.
        dtype: of the bias.

    Raises:
        ValueError: if ``config`` does not fit ``in_features``.
    """

    index: torch.Tensor | None
    gain: torch.Tensor
    row_scale: torch.Tensor

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
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.config = config.for_cols(in_features)
        register_codes(self, self.config.code.empty(out_features, in_features, device))
        for name in planes.TENSORS:
            self.register_buffer(name, None, persistent=False)
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
        return cls.from_tensor(quantize_tensor(linear.weight, config), linear.bias)

    @classmethod
    def from_tensor(cls, weight: PVQTensor, bias: nn.Parameter | None = None) -> "PVQLinear":
        """A layer around codes that exist; nothing is copied."""
        rows, cols = weight.shape
        layer = cls(cols, rows, False, weight.config, device="meta")
        register_codes(layer, weight.stored)
        layer.bias = bias
        return layer

    @property
    def layout(self) -> str:
        """``"index"`` or ``"planes"``: the form that is in memory."""
        return "planes" if self.index is None else "index"

    @property
    def weight_codes(self) -> PVQTensor:
        """The stored form, made from the planes if they are what is in memory."""
        index = self.index if self.index is not None else self._index_of_planes()
        shape = (self.out_features, self.in_features)
        return PVQTensor(index, self.gain, self.row_scale, shape, self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in a checkpoint."""
        layout = self.config.code.layout(self.out_features, self.in_features)
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values())

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the weight in memory, in the present layout."""
        return sum(buffer.nbytes for buffer in self._buffers.values() if buffer is not None)

    def prepare(self, layout: str = "auto") -> "PVQLinear":
        """Chooses the run-time form; results are the same up to the order of floating-point sums.

        Args:
            layout: ``"index"`` (least memory), ``"planes"`` (fastest), or ``"auto"``: planes where
                the device has them. A matrix so small in scale (below about 1e-30) that planes
                would lose the index stays as it is; :attr:`layout` tells.

        Returns:
            The layer itself.

        Raises:
            ValueError: on an unknown layout, or planes on a device that has none.
            RuntimeError: if an index names no point of the pyramid (a damaged file).
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        possible = planes.available(self.row_scale.device)
        if layout == "planes" and not possible:
            raise ValueError(
                f"no planes on device {self.row_scale.device}: use layout='index' or 'auto'"
            )
        if layout == "index" or not possible:
            if self.index is None:
                self._hold_index(self._index_of_planes())
        elif self.index is not None:
            run_time = planes.of_codes(self.weight_codes)
            if run_time is not None:
                for name, tensor in run_time.items():
                    setattr(self, name, tensor)
                self.index = None
        return self

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense weight [out_features, in_features]."""
        return self.weight_codes.dequantize(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` [..., in_features], in its dtype: [..., out_features].

        Raises:
            ValueError: if the last dimension of ``x`` is not ``in_features``.
            RuntimeError: if its dtype or device is not supported, or the codes are damaged.
        """
        check_features(x, self.in_features)
        config = self.config
        rotation = (config.hadamard_block, config.seed)
        y: torch.Tensor
        if self.index is None:
            run_time = [getattr(self, name) for name in planes.TENSORS]
            y = torch.ops.pvq.matmul_planes(x, *run_time, self.out_features, config.dim, *rotation)
        else:
            y = torch.ops.pvq.matmul(
                x,
                *(self.index, self.gain, self.row_scale),
                *(config.dim, config.pulses, config.gain_bits, config.gain_law),
                *rotation,
            )
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dim={self.config.dim}, pulses={self.config.pulses}, "
            f"gain_bits={self.config.gain_bits}, layout={self.layout}"
        )

    def _index_of_planes(self) -> torch.Tensor:
        run_time = {name: getattr(self, name) for name in planes.TENSORS}
        return planes.to_index(run_time, (self.out_features, self.in_features), self.config)

    def _hold_index(self, index: torch.Tensor) -> None:
        self.index = index
        for name in planes.TENSORS:
            setattr(self, name, None)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        here = self.row_scale.device
        there = fn(torch.empty(0, dtype=torch.uint8, device=here)).device
        prepared = self.layout == "planes"
        if prepared and there.type != here.type:  # another kind of device, another form of planes
            self.prepare("index")
        super()._apply(without_casts(self, fn), recurse)  # type: ignore[no-untyped-call]
        return self.prepare("auto") if prepared else self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.index is None:
            destination[f"{prefix}{TENSORS[0]}"] = self._index_of_planes()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        layout = self.layout
        if layout == "planes":
            shape, dtype = self.config.code.layout(self.out_features, self.in_features)["index"]
            self._hold_index(torch.empty(shape, dtype=dtype, device=self.row_scale.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.prepare(layout)


def check_features(x: torch.Tensor, in_features: int) -> None:
    """Refuses an input whose last dimension is not that of the weight, in the terms of a layer."""
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x has shape {list(x.shape)}, expected [..., {in_features}]")
