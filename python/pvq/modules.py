"""The quantized modules of a model: finding, placing, preparing and measuring them."""

from collections.abc import Iterator

import torch
from torch import nn

from pvq.arguments import check_model
from pvq.embedding import PVQEmbedding
from pvq.linear import PVQLinear


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, PVQLinear | PVQEmbedding]]:
    """Name and module of everything in ``model`` that holds codes."""
    for name, module in model.named_modules():
        if isinstance(module, PVQLinear | PVQEmbedding):
            yield name, module


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts ``new`` wherever ``old`` is a child, so that a module used twice stays one module."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def prepare(model: nn.Module, layout: str = "auto", activations: str | None = None) -> nn.Module:
    """Chooses how every quantized layer runs; see :meth:`pvq.PVQLinear.prepare`.

    Codes that are not on a device yet (offloaded by accelerate) stay as they are stored.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: on an unknown name, or a layout that a layer's code does not have on its device.
        RuntimeError: if the codes are damaged.
    """
    check_model(model)
    for _, module in quantized_modules(model):
        if next(module.buffers()).device.type != "meta":
            module.prepare(layout, activations)
    return model


def dense_nbytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers that a checkpoint holds and that are not codes."""
    coded = {
        id(buffer)
        for _, module in quantized_modules(model)
        for buffer in module.buffers(recurse=False)
    }
    tensors = {
        id(tensor): tensor.nbytes
        for module in model.modules()
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if isinstance(tensor, torch.Tensor)
        and name not in module._non_persistent_buffers_set
        and id(tensor) not in coded
    }
    return sum(tensors.values())
