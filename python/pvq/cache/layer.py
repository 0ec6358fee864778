"""CodedCacheLayer: the cache of one attention layer, all but its recent tokens in codes."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from pvq.cache.states import DTYPES, CodedStates, joined, state_code


class CodedCacheLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, as transformers' caches hold them, in codes.

    A token is exact in the call that brings it and as long as it is among the last ``window``;
    then it is quantized, once. ``keys`` and ``values`` hold the exact tokens only.

    Args:
        bits: a value of keys and of values.
        dim: group size of the code; ``None`` for one that fits.
        window: how many of the last tokens stay exact.
        seed: of the rotation.
        sliding_window: of the layer's attention, which sees that many tokens; ``None`` for all.
    """

    def __init__(
        self,
        bits: tuple[float, float],
        dim: int | None,
        window: int,
        seed: int,
        sliding_window: int | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.dim, self.window, self.seed = bits, dim, window, seed
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.record_past = False
        self.cumulative_length = 0
        self.old_keys: CodedStates | None = None
        self.old_values: CodedStates | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        exact = sum(tensor.nbytes for tensor in (self.keys, self.values) if tensor is not None)
        return exact + sum(old.nbytes for old in self._old())

    @property
    def held_tokens(self) -> int:
        """Tokens that are held: all, or those that a sliding window still needs."""
        return self._coded_tokens + (0 if self.keys is None else self.keys.shape[2])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Checks what the first tokens tell: dtype and head sizes.

        Raises:
            TypeError: if they are of a dtype that has no codes.
            ValueError: if ``dim`` does not divide the head size.
        """
        for name, states in (("keys", key_states), ("values", value_states)):
            if states.dtype not in DTYPES:
                raise TypeError(
                    f"{name} have dtype {states.dtype}, expected one of "
                    f"{', '.join(map(str, DTYPES))}: cast the model, or pass another cache"
                )
        self._codes = tuple(
            state_code(bits, states.shape[-1], self.dim, self.seed)
            for bits, states in zip(self.bits, (key_states, value_states), strict=True)
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds tokens [batch, heads, tokens, head_dim]; returns all that the layer may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        keys = joined(self.old_keys, (self.keys, key_states))
        values = joined(self.old_values, (self.values, value_states))
        self.keys = torch.cat((self.keys, key_states), dim=2)
        self.values = torch.cat((self.values, value_states), dim=2)
        self.cumulative_length += new
        if self.sliding_window is not None:
            visible = self.sliding_window - 1 + new
            keys, values = keys[:, :, -visible:], values[:, :, -visible:]
            if not self.record_past:
                self._drop_oldest(self.held_tokens - (self.sliding_window - 1))
        self._quantize_oldest(self.keys.shape[2] - self.window)
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Length and offset of what the next ``query_length`` tokens will look at."""
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        past = self.cumulative_length
        if self.sliding_window is not None:
            past = min(past, self.sliding_window - 1)
        return past + new, self.cumulative_length - past

    def get_max_length(self) -> int:
        """Most tokens that it can hold; -1 for any number."""
        return -1 if self.sliding_window is None else self.sliding_window

    def get_max_cache_shape(self) -> int:
        """The same, as older transformers call it."""
        return self.get_max_length()

    def activate_past_recording(self) -> None:
        """Keeps what a sliding window no longer needs until :meth:`crop` is called."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens; a positive number says how many to keep.

        Raises:
            RuntimeError: if a sliding window has let go of tokens that would be needed again.
        """
        if not self.is_initialized:
            return
        remove = -tokens_to_remove
        if tokens_to_remove > 0:
            remove = self.cumulative_length - tokens_to_remove
        remove = max(0, min(remove, self.cumulative_length))
        left = self.cumulative_length - remove
        needed = left if self.sliding_window is None else min(left, self.sliding_window - 1)
        if self.held_tokens - remove < needed:
            raise RuntimeError(
                f"cannot crop {remove} tokens: the sliding window of {self.sliding_window} let go "
                "of older ones; call activate_past_recording before them"
            )
        self.cumulative_length = left
        exact = min(remove, self.keys.shape[2])
        self.keys = self.keys[:, :, : self.keys.shape[2] - exact].clone()
        self.values = self.values[:, :, : self.values.shape[2] - exact].clone()
        coded = self._coded_tokens - (remove - exact)
        self._change_old(lambda tensor: tensor[:, :, :coded].clone())
        if self.sliding_window is not None:
            self._drop_oldest(self.held_tokens - (self.sliding_window - 1))

    def reset(self) -> None:
        """Forgets everything."""
        super().__init__()  # which leaves no keys and no values
        self.old_keys = self.old_values = None
        self.cumulative_length = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the sequences ``beam_idx`` of the batch, which may repeat: beam search."""
        if self.is_initialized:
            self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sequence of the batch."""
        if self.is_initialized:
            self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences ``indices`` of the batch."""
        if self.is_initialized:
            self._change(lambda tensor: tensor[indices.to(tensor.device)])

    def offload(self) -> None:
        """Moves everything to the CPU."""
        if self.is_initialized:
            self._change(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Moves everything back to the layer's device."""
        if self.is_initialized:
            self._change(lambda tensor: tensor.to(self.device, non_blocking=True))

    def _old(self) -> list[CodedStates]:
        return [old for old in (self.old_keys, self.old_values) if old is not None]

    @property
    def _coded_tokens(self) -> int:
        return 0 if self.old_keys is None else self.old_keys.tokens

    def _quantize_oldest(self, count: int) -> None:
        """Moves the first ``count`` exact tokens behind those in codes."""
        if count <= 0:
            return
        coded = [
            code.quantize(states[:, :, :count])
            for code, states in zip(self._codes, (self.keys, self.values), strict=True)
        ]
        if self.old_keys is not None and self.old_values is not None:
            coded = [self.old_keys.followed_by(coded[0]), self.old_values.followed_by(coded[1])]
        self.old_keys, self.old_values = coded
        # Copies, because a slice would keep the memory of what was quantized.
        self.keys, self.values = self.keys[:, :, count:].clone(), self.values[:, :, count:].clone()

    def _drop_oldest(self, count: int) -> None:
        """Forgets the first ``count`` tokens that are held."""
        if count <= 0:
            return
        coded = min(count, self._coded_tokens)
        exact = count - coded
        self._change_old(lambda tensor: tensor[:, :, coded:].clone())
        if exact:
            self.keys = self.keys[:, :, exact:].clone()
            self.values = self.values[:, :, exact:].clone()

    def _change(self, change: Any) -> None:
        self.keys, self.values = change(self.keys), change(self.values)
        self._change_old(change)

    def _change_old(self, change: Any) -> None:
        if self.old_keys is not None and self.old_values is not None:
            self.old_keys, self.old_values = self.old_keys.map(change), self.old_values.map(change)
