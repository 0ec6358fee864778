"""group_projections: runs the projections of a block that read the same input as one product."""

from collections.abc import Hashable, Sequence

import torch
from torch import nn

from pvq.arguments import check_model
from pvq.codes import TILE_ROWS
from pvq.codes.joined import Joinable, JoinedForm, JoinedProduct, SharedProduct
from pvq.linear import PVQLinear

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Names of children of one module that are called with the same tensor, in most models."""


def group_projections(model: nn.Module, names: Sequence[Sequence[str]] = SHARED_INPUTS) -> int:
    """Lets projections that read the same input share one product, which costs one launch.

    Those that can share are siblings of one of the sets of names, are prepared in a form that can
    be joined (:class:`pvq.codes.joined.Joinable`: fragments on the GPU), with the same code,
    rotation, device and activations, and have a multiple of 16 rows. They stay the modules they
    are, with their own names, biases and state dicts; results are the same up to the order of
    floating-point sums. Their fragments move into one tensor.

    The member that is called first computes the outputs of all; the others are handed theirs if
    they are called with the same tensor (:class:`pvq.codes.joined.SharedProduct` says what that
    means), and compute their own with any other. So siblings that turn out to read different inputs
    give the right results, but slower. Where gradients of the input are wanted, under
    ``torch.inference_mode`` and in ``torch.compile`` every member computes its own: use
    ``torch.no_grad``. A member leaves for good when it is moved to another device, loaded anew or
    put back into the stored form.

    Args:
        model: any module with :class:`pvq.PVQLinear` layers; changed in place.
        names: sets of names of siblings.

    Returns:
        How many groups were made; members of a group are not grouped again.

    Raises:
        TypeError: if ``model`` is no module.
    """
    check_model(model)
    made = 0
    for parent in list(model.modules()):
        for siblings in names:
            children = dict.fromkeys(parent._modules.get(name) for name in siblings)
            alike: dict[Hashable, list[PVQLinear]] = {}
            for child in children:
                if isinstance(child, PVQLinear) and (key := _key(child)) is not None:
                    alike.setdefault(key, []).append(child)
            for members in alike.values():
                if len(members) > 1:
                    _join(members)
                    made += 1
    return made


def _key(layer: PVQLinear) -> Hashable | None:
    """What layers must have in common to be joined; ``None`` for one that cannot be."""
    form, config = layer._form, layer.config
    if not isinstance(form, Joinable) or layer.out_features % TILE_ROWS or not layer.out_features:
        return None
    tile = _tile_bytes(layer)
    if tile == 0:
        return None
    rotation = (config.hadamard_block, config.seed)
    return (form, layer.in_features, rotation, layer._device, layer.activations, tile)


def _fragments(layer: PVQLinear) -> torch.Tensor:
    assert layer._form is not None
    (name,) = layer._form.tensors
    return layer._held()[name]


def _tile_bytes(layer: PVQLinear) -> int:
    assert isinstance(layer._form, Joinable)
    tiles = layer.out_features // TILE_ROWS
    return (_fragments(layer).numel() - layer._form.header) // tiles


def _join(members: Sequence[PVQLinear]) -> None:
    first = members[0]
    form = first._form
    assert form is not None
    assert isinstance(form, Joinable)
    tile = _tile_bytes(first)
    gap = -(-form.header // tile)  # tiles between members
    starts, rows = [], 0
    for layer in members:
        starts.append(rows)
        rows += layer.out_features + gap * TILE_ROWS
    rows -= gap * TILE_ROWS
    memory = _fragments(first).new_zeros(form.header + rows // TILE_ROWS * tile)
    row_scale = first._held()["row_scale"].new_zeros(rows)
    (name,) = form.tensors
    held = {name: memory, "row_scale": row_scale}
    product = JoinedProduct(form, held, rows, first.config.hadamard_block, first.config.seed)
    parts = [slice(s, s + m.out_features) for s, m in zip(starts, members, strict=True)]
    shared = SharedProduct(product, parts)
    overhead = memory.nbytes - sum(_fragments(m).nbytes for m in members) + row_scale.nbytes
    for i, (layer, part) in enumerate(zip(members, parts, strict=True)):
        own = _fragments(layer)
        begin = part.start // TILE_ROWS * tile
        memory[begin : begin + own.numel()] = own
        row_scale[part] = layer._held()["row_scale"]
        layer._buffers[name] = memory[begin : begin + own.numel()]
        layer._form = JoinedForm(form, shared, i, memory, 0 if i else overhead)
