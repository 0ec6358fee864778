"""CodedModule: a matrix in a code as the buffers of a module, in the form that a device reads best.

A module has two forms. The stored one is what a state dict contains, always. Some codes have forms
that a device's product reads faster (:class:`pvq.codes.RunTimeForm`: the planes of the pyramid code
on the CPU, the fragments of either code and the pyramid code's index on the GPU);
:meth:`CodedModule.prepare` trades stored tensors for one, so that memory holds one form, and a
state dict gets them back bit for bit.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from pvq.activations import (
    ActivationCode,
    activation_code,
    decoded,
    multiply,
    multiply_values,
    rotated,
)
from pvq.arguments import check_choice
from pvq.buffers import register_codes, without_casts
from pvq.codes import (
    ACTIVATIONS,
    GivesIndex,
    RunTimeForm,
    Stored,
    empty_stored,
    stored_nbytes,
)
from pvq.codes.joined import JoinedForm
from pvq.config import FORMAT_VERSION, PVQConfig, check_code_version
from pvq.decoded_weight import DecodedWeight
from pvq.sizes import megabytes
from pvq.tensor import PVQTensor

LAYOUTS = ("auto", "stored", "index", "planes", "fragments")

M = TypeVar("M", bound="CodedModule")


class CodedModule(DecodedWeight):
    """What :class:`pvq.PVQLinear` and :class:`pvq.PVQEmbedding` are: a matrix in a code.

    Buffers: the tensors of the code, such as ``index``, ``gain`` and ``row_scale`` (see
    :mod:`pvq.codes.pyramid`); once prepared in a run-time form, those that it replaces are ``None``
    and its own are non-persistent buffers. Casting the module (``.to(torch.float16)``) leaves the
    codes alone. Moved to another kind of device, it takes the fastest form there if it was prepared
    before or goes to a GPU, unless the stored form or the index was asked for.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        config: how it is stored.
        device: of the tensors, which are uninitialised.
        dtype: that the model computes in; PyTorch's default if not given.

    Raises:
        ValueError: if ``config`` does not fit ``cols``.
    """

    _version = FORMAT_VERSION  # of state dicts, which are refused if codes have changed since

    def __init__(
        self,
        rows: int,
        cols: int,
        config: PVQConfig,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.config = config.for_cols(cols)
        self.activations = self.config.activations or ACTIVATIONS[0]
        self._points = activation_code(self.activations, cols)  # None: no such rounding
        self._shape = (rows, cols)
        self._form: RunTimeForm | None = None  # None: the stored form
        self._wanted: str | None = None  # the layout asked for
        register_codes(self, empty_stored(self.config.code, rows, cols, device))

    @property
    def layout(self) -> str:
        """The form that is in memory: ``"stored"`` or the name of another."""
        return "stored" if self._form is None else self._form.layout

    @property
    def weight_codes(self) -> PVQTensor:
        """The stored form, made from the run-time form if that is what is in memory."""
        return PVQTensor(self._stored(), self._shape, self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in a checkpoint."""
        return stored_nbytes(self.config.code, *self._shape)

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the matrix in memory, in the present layout."""
        shared = self._form.overhead_nbytes if isinstance(self._form, JoinedForm) else 0
        return sum(buffer.nbytes for buffer in self._held().values()) + shared

    @property
    def bits_per_activation(self) -> float | None:
        """Bits of an activation with its share of an amplitude; ``None`` if none is rounded so."""
        return None if self._points is None else self._points.bits

    def prepare(self: M, layout: str = "auto", activations: str | None = None) -> M:
        """Chooses how products run: the form in memory, and what becomes of the activations.

        Args:
            layout: ``"stored"`` (what checkpoints hold, least memory), ``"index"`` (what pyramid
                codes store, in as little memory, but on an H200 or H100 in an order that products
                decode as they go instead of expanding it first; everywhere else, with other codes,
                with ``dim`` other than 8 and 16 and with more than 32 pulses the stored form),
                ``"planes"`` (fastest for pyramid codes on the CPU), ``"fragments"`` (fastest on
                the GPU), or ``"auto"``: the fastest that the code has on this device. A matrix that
                does not fit the form or would not survive the way back stays stored (fragments and
                index: columns that are no multiple of 128; planes: scales below about 1e-30);
                :attr:`layout` tells.
            activations: what products do to theirs. ``"pyramid4"``, or another number of bits
                from 2 to 8, rounds them to points of a pyramid, in every product
                (:mod:`pvq.activations`); for gradients the rounding is the identity. Products from
                planes, and float16 and bfloat16 ones from the fragments of table and overlapping
                codes, multiply the integers; others what they stand for. NaN and infinity are
                refused on the CPU; on the GPU they count as zero, with all of their group.
                All other choices say what the GPU's products with table and overlapping codes may
                do to float16 and bfloat16 activations. ``"int8"``, the default, lets them round to
                8 bits (one scale a token and 128 columns, up to 1024 of many tokens), which is the
                fastest and costs less than 1 % of relative error. ``"int8x2"`` rounds to 15 bits,
                in two passes: 0.1 %.
                ``"float"`` never rounds: the codes are expanded for every product, which then takes
                longer than that of a dense layer; these three round nothing on the CPU, in float32,
                or with pyramid codes. ``None`` leaves the choice as it is.

        Returns:
            The module itself.

        Raises:
            ValueError: on an unknown name, or a layout that the code does not have on this device.
            RuntimeError: if the codes are damaged.
        """
        check_choice("layout", layout, LAYOUTS)
        form = self._form_for(layout)
        if activations is not None:
            self._points = activation_code(activations, self._shape[1])
            self.activations = activations
        self._wanted = layout
        self._take(form)
        return self

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense matrix [rows, cols]."""
        rotation = (self.config.hadamard_block, self.config.seed)
        return self.config.code.dequantize(self._stored(), self._shape[1], dtype, *rotation)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` [..., cols] with every row, in its dtype: [..., rows].

        Raises:
            ValueError: if the last dimension of ``x`` is not ``cols``.
            RuntimeError: if its dtype or device is not supported, or the codes are damaged.
        """
        rows, cols = self._shape
        if x.ndim == 0 or x.shape[-1] != cols:
            raise ValueError(f"x has shape {list(x.shape)}, expected [..., {cols}]")
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        if self._points is not None and (self._form is None or wants_gradient):
            return self._product_of_values(x, self._points)
        rotation = (self.config.hadamard_block, self.config.seed)
        if self._form is None:
            return self.config.code.matmul(x, self._held(), *rotation)
        activations = self._points or self.activations
        if isinstance(self._form, JoinedForm):
            return self._form.matmul(x, self._held(), rows, *rotation, activations)
        return multiply(self._form, x, self._held(), rows, *rotation, activations)

    def _product_of_values(self, x: torch.Tensor, points: ActivationCode) -> torch.Tensor:
        """The product with what ``x`` [..., cols] is rounded to; its gradient is that of ``x``."""
        exact = rotated(x, self.config.hadamard_block, self.config.seed)
        values = decoded(*points.round(exact.detach()))
        if exact.requires_grad:
            values = exact + (values - exact).detach()
        values = values.to(x.dtype)
        if self._form is None:
            return self.config.code.matmul(values, self._held())
        return multiply_values(self._form, values, self._held(), self._shape[0])

    def describe(self) -> str:
        """Code, layout and sizes, for ``print(model)``."""
        return (
            f"code={self.config.code.describe()}, layout={self.layout}, "
            + ("" if self._points is None else f"activations={self.activations}, ")
            + f"{megabytes(self.nbytes)} on disk, {megabytes(self.resident_nbytes)} in memory"
        )

    def _form_for(self, layout: str) -> RunTimeForm | None:
        if layout == "stored":
            return None
        if layout == "index":
            code = self.config.code
            return code.index_form(self._device) if isinstance(code, GivesIndex) else None
        form = self.config.code.run_time(self._device)
        if layout != "auto" and (form is None or form.layout != layout):
            raise ValueError(
                f"code={self.config.code.name!r} has no {layout} on device {self._device}: use "
                "layout='stored' or 'auto'"
            )
        return form

    @property
    def _device(self) -> torch.device:
        return next(self.buffers(recurse=False)).device

    def _held(self) -> Stored:
        """The tensors that are in memory, by name."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def _stored(self) -> Stored:
        """The tensors of the stored form, made again where a run-time form replaces them."""
        held = self._held()
        if self._form is not None:
            held |= self._form.to_stored(held, self._shape)
        return {name: held[name] for name in self.config.code.tensors}

    def _take(self, form: RunTimeForm | None) -> None:
        """Brings the tensors into a form, ``None`` for the stored one."""
        present = self._form
        if present is not None and (form is None or form.layout != present.layout):
            self._hold_stored(present, present.to_stored(self._held(), self._shape))
        if form is not None and self._form is None:
            tensors = form.of_stored(self._held(), self._shape)
            if tensors is not None:
                for name in form.replaces:
                    self._buffers[name] = None
                for name, tensor in tensors.items():
                    self.register_buffer(name, tensor, persistent=False)
                self._form = form

    def _hold_stored(self, form: RunTimeForm, replaced: Stored) -> None:
        """Puts back what ``form`` replaces, and drops its own tensors."""
        for name in form.tensors:
            delattr(self, name)
        self._form = None
        for name, tensor in replaced.items():
            self._buffers[name] = tensor

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        here = self._device
        there = fn(torch.empty(0, dtype=torch.uint8, device=here)).device
        prepared = self._form is not None
        moves = there.type != here.type  # to another kind of device, another form
        if moves:
            self._take(None)
        super()._apply(without_casts(self, fn), recurse)  # type: ignore[no-untyped-call]
        if there != here and isinstance(self._form, JoinedForm):
            self._form = self._form.form  # its tensor has memory of its own now
        if moves and "meta" not in (here.type, there.type):  # meta has no values
            self._take(self._form_for(self._layout_after_move(prepared, there)))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self._device)).dtype
        return self

    def _layout_after_move(self, prepared: bool, there: torch.device) -> str:
        """What a module wants on another kind of device, given whether it had a form on its own."""
        if self._wanted is None:
            return "auto" if prepared or there.type == "cuda" else "stored"
        return self._wanted if self._wanted in ("stored", "index") else "auto"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._form is not None:
            for name, tensor in self._form.to_stored(self._held(), self._shape).items():
                destination[f"{prefix}{name}"] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads the stored form into whichever is in memory.

        What a state dict leaves out, or has in another shape, stays as it is, as it does in other
        modules. Codes that turn out damaged are an error of the load and remain stored.
        """
        version = local_metadata.get("version")  # none where the dict is not a module's own
        if version is not None:
            check_code_version(self.config.code, version)
        form, here = self._form, self._device
        given = {
            name: state_dict[f"{prefix}{name}"]
            for name in self.config.code.tensors
            if f"{prefix}{name}" in state_dict
        }
        if form is not None and given:
            self._make_way(form, given)
        elif form is not None and strict:  # what is not in memory is not missed by super()
            missing_keys += [f"{prefix}{name}" for name in form.replaces]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if form is not None and self._form is None:
            there = self._device  # another where tensors were assigned
            same = there.type == here.type
            layout = form.layout if same else self._layout_after_move(True, there)
            try:
                self._take(self._form_for(layout))
            except RuntimeError as error:
                error_msgs.append(f"{prefix.removesuffix('.')}: {error}")

    def _make_way(self, form: RunTimeForm, given: dict[str, Any]) -> None:
        """Back to the stored form, before tensors of a state dict are copied into it.

        What is certain to be overwritten is not made from the run-time form first.
        """
        layout = self.config.code.layout(*self._shape)
        if all(_fills(given.get(name), layout[name][0]) for name in form.replaces):
            empty = empty_stored(self.config.code, *self._shape, self._device)
            self._hold_stored(form, {name: empty[name] for name in form.replaces})
        else:
            self._take(None)


def _fills(given: object, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of that shape is all overwritten when ``given`` is copied into it."""
    return (
        isinstance(given, torch.Tensor)
        and given.shape == shape
        and given.layout == torch.strided
        and not given.is_meta
    )
