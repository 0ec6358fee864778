"""PVQLinear: a linear layer that multiplies from codes and never holds a dense weight.

A layer has two forms. The stored one is what a state dict contains, always. Some codes have a form
that a device's product reads faster (:class:`pvq.codes.RunTimeForm`, such as the planes of the
pyramid code); :meth:`PVQLinear.prepare` trades stored tensors for it, and a state dict gets them
back from it bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pvq.buffers import register_codes, without_casts
from pvq.codes import RunTimeForm, Stored, empty_stored, stored_nbytes
from pvq.config import PVQConfig
from pvq.tensor import PVQTensor, quantize_tensor

LAYOUTS = ("auto", "index", "planes")


class PVQLinear(nn.Module):
    """``y = x @ W.T + bias`` with ``W`` [out_features, in_features] in a code.

    Buffers: the tensors of the code, such as ``index``, ``gain`` and ``row_scale`` (see
    :mod:`pvq.codes.pyramid`); once prepared in a run-time form, those that it replaces are ``None``
    and its own are non-persistent buffers. Casting the module (``.to(torch.float16)``) casts the
    bias and leaves the codes alone.

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
        self._form: RunTimeForm | None = None  # None: the stored form
        register_codes(self, empty_stored(self.config.code, out_features, in_features, device))
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
        """The form that is in memory: ``"index"`` (the stored one) or the name of another."""
        return "index" if self._form is None else self._form.layout

    @property
    def weight_codes(self) -> PVQTensor:
        """The stored form, made from the run-time form if that is what is in memory."""
        held = self._held()
        if self._form is not None:
            held |= self._form.to_stored(held, self._shape)
        stored = {name: held[name] for name in self.config.code.tensors}
        return PVQTensor(stored, self._shape, self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in a checkpoint."""
        return stored_nbytes(self.config.code, *self._shape)

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the weight in memory, in the present layout."""
        return sum(buffer.nbytes for buffer in self._held().values())

    def prepare(self, layout: str = "auto") -> "PVQLinear":
        """Chooses the run-time form; results are the same up to the order of floating-point sums.

        Args:
            layout: ``"index"`` (the stored form, least memory), ``"planes"`` (fastest for pyramid
                codes on the CPU), or ``"auto"``: the fastest that the code has on this device. A
                matrix that would not survive the way back, such as one so small in scale (below
                about 1e-30) that planes would lose the index, stays as it is; :attr:`layout` tells.

        Returns:
            The layer itself.

        Raises:
            ValueError: on an unknown layout, or one that the code does not have on this device.
            RuntimeError: if the codes are damaged.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        form = None if layout == "index" else self.config.code.run_time(self._device)
        if layout not in ("auto", "index") and (form is None or form.layout != layout):
            raise ValueError(
                f"code={self.config.code.name!r} has no {layout} on device {self._device}: use "
                "layout='index' or 'auto'"
            )
        if form is None and self._form is not None:
            self._hold_stored(self._form.to_stored(self._held(), self._shape))
        elif form is not None and self._form is None:
            run_time = form.of_stored(self._held(), self._shape)
            if run_time is not None:
                self._hold_run_time(form, run_time)
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
        rotation = (self.config.hadamard_block, self.config.seed)
        if self._form is None:
            y = self.config.code.matmul(x, self._held(), *rotation)
        else:
            y = self._form.matmul(x, self._held(), self.out_features, *rotation)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the layer."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, code={self.config.code.describe()}, "
            f"layout={self.layout}"
        )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def _device(self) -> torch.device:
        return next(self.buffers(recurse=False)).device

    def _held(self) -> Stored:
        """The tensors that are in memory, by name."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def _hold_run_time(self, form: RunTimeForm, tensors: Stored) -> None:
        for name in form.replaces:
            self._buffers[name] = None
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self._form = form

    def _hold_stored(self, replaced: Stored) -> None:
        if self._form is not None:
            for name in self._form.tensors:
                delattr(self, name)
        self._form = None
        for name, tensor in replaced.items():
            self._buffers[name] = tensor

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        here = self._device
        there = fn(torch.empty(0, dtype=torch.uint8, device=here)).device
        prepared = self._form is not None
        if prepared and there.type != here.type:  # another kind of device, another form
            self.prepare("index")
        super()._apply(without_casts(self, fn), recurse)  # type: ignore[no-untyped-call]
        return self.prepare("auto") if prepared else self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._form is not None:
            for name, tensor in self._form.to_stored(self._held(), self._shape).items():
                destination[f"{prefix}{name}"] = tensor

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        layout = self.layout
        if self._form is not None:
            empty = empty_stored(self.config.code, *self._shape, self._device)
            self._hold_stored({name: empty[name] for name in self._form.replaces})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.prepare(layout)


def check_features(x: torch.Tensor, in_features: int) -> None:
    """Refuses an input whose last dimension is not that of the weight, in the terms of a layer."""
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x has shape {list(x.shape)}, expected [..., {in_features}]")
