"""The cache of a whole model, for ``past_key_values`` of transformers."""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pvq.arguments import check_int
from pvq.cache.layer import CodedCacheLayer
from pvq.cache.states import state_code


class PVQCache(Cache):  # type: ignore[misc]
    """A key/value cache in pyramid codes, for ``generate`` and ``forward``.

    >>> model.generate(**inputs, past_key_values=pvq.PVQCache(model.config, bits=3))

    The last ``window`` tokens stay as they are; a token that leaves the window is rotated (a
    Hadamard matrix over the head) and quantized, once. Every call decodes the codes again, so
    memory is saved and time is not. Layers with a sliding window keep what their window needs;
    layers that hold no keys and values (linear attention, say) are those of transformers.

    Args:
        config: of the model.
        bits: a value, index and amplitudes, from 1 to 8, padding included; or a pair, for keys and
            for values. A bfloat16 scale for each token and head comes on top (16 / head_dim bits).
        dim: group size of the code, a divisor of the head's size. By default 16 or what is left of
            it; larger ones are more exact and several times as slow.
        window: how many of the last tokens stay exact.
        seed: of the rotation's signs.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``bits`` is out of range, or ``dim`` does not divide the head's size.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        bits: float | tuple[float, float] = 3,
        *,
        dim: int | None = None,
        window: int = 32,
        seed: int = 0,
    ) -> None:
        if not isinstance(config, PreTrainedConfig):
            raise TypeError(f"config is a {type(config).__name__}, expected that of the model")
        if dim is not None:
            check_int("dim", dim, 2, 256)
        check_int("window", window, 0, 2**31 - 1)
        check_int("seed", seed, 0, 2**63 - 1)
        self.bits = _pair(bits)
        head_dim = _head_dim(config)
        for rate in self.bits:
            state_code(rate, dim or 16 if head_dim is None else head_dim, dim, seed)
        settings = (self.bits, dim, window, seed)
        super().__init__(layers=[_coded(layer, settings) for layer in _layers_of(config)])

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held: codes, scales, padding, exact tokens."""
        return sum(_nbytes(layer) for layer in self.layers)

    @property
    def dense_nbytes(self) -> int:
        """Bytes that the same tokens would take as they came."""
        return self.nbytes + sum(
            old.tensors[0].shape[:3].numel() * old.code.head_dim * layer.dtype.itemsize - old.nbytes
            for layer in self._coded_layers()
            for old in layer._old()
        )

    @property
    def bits_per_value(self) -> float:
        """Bits of a value in codes, scales and padding included; 0 before there is one."""
        old = [old for layer in self._coded_layers() for old in layer._old()]
        values = sum(each.tensors[0].shape[:3].numel() * each.code.head_dim for each in old)
        return 8 * sum(each.nbytes for each in old) / values if values else 0.0

    def _coded_layers(self) -> list[CodedCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, CodedCacheLayer)]


def _pair(bits: object) -> tuple[float, float]:
    if isinstance(bits, tuple):
        if len(bits) != 2:
            raise ValueError(f"bits is {bits!r}, expected a number or a pair (keys, values)")
        return bits
    return bits, bits  # type: ignore[return-value]  # state_code refuses what is no number


def _head_dim(config: PreTrainedConfig) -> int | None:
    """The size of a head where the configuration tells."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "kv_lora_rank", None) is not None:
        return None  # keys and values of latent attention have other sizes
    head_dim: int | None = getattr(text, "head_dim", None)
    heads: int | None = getattr(text, "num_attention_heads", None)
    if head_dim is None and heads:
        head_dim = text.hidden_size // heads
    return head_dim


def _layers_of(config: PreTrainedConfig) -> list[Any]:
    """The layers that transformers' own cache has for this model."""
    layers = DynamicCache(config=config).layers
    if not layers:
        raise ValueError(f"{type(config).__name__} does not say how many layers it has")
    return list(layers)


def _coded(layer: Any, settings: tuple[tuple[float, float], int | None, int, int]) -> Any:
    """The layer in codes; as it is where it is no plain cache of keys and values."""
    if type(layer) is DynamicLayer:
        return CodedCacheLayer(*settings)
    if type(layer) is DynamicSlidingWindowLayer:
        return CodedCacheLayer(*settings, sliding_window=layer.sliding_window)
    return layer


def _nbytes(layer: Any) -> int:
    if isinstance(layer, CodedCacheLayer):
        return layer.nbytes
    held = vars(layer).values()
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor))
