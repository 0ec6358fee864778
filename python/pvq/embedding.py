"""PVQEmbedding and PVQTiedHead: the token table in pyramid codes, and a head that reads it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pvq.buffers import register_codes, without_casts
from pvq.config import PVQConfig
from pvq.linear import check_features
from pvq.tensor import PVQTensor, quantize_tensor


class PVQEmbedding(nn.Module):
    """A table [num_embeddings, embedding_dim] in pyramid codes; decodes only the rows asked for.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        config: how the table is stored.
        device: of the tensors, which are uninitialised: see :meth:`from_embedding`.
        dtype: of the rows that :meth:`forward` returns; casting the module changes it.

    Raises:
        ValueError: if ``config`` does not fit ``embedding_dim``.
    """

    index: torch.Tensor
    gain: torch.Tensor
    row_scale: torch.Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        config: PVQConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.config = config.for_cols(embedding_dim)
        self.dtype = dtype if dtype is not None else torch.get_default_dtype()
        register_codes(self, self.config.code.empty(num_embeddings, embedding_dim, device))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, config: PVQConfig) -> "PVQEmbedding":
        """Quantizes the table of ``embedding``.

        Raises:
            TypeError: see :func:`pvq.quantize_tensor`.
            ValueError: see :func:`pvq.quantize_tensor`.
        """
        return cls.from_tensor(quantize_tensor(embedding.weight, config), embedding.weight.dtype)

    @classmethod
    def from_tensor(cls, weight: PVQTensor, dtype: torch.dtype) -> "PVQEmbedding":
        """A table around codes that exist; nothing is copied."""
        table = cls(*weight.shape, weight.config, device="meta", dtype=dtype)
        register_codes(table, weight.stored)
        return table

    @property
    def weight_codes(self) -> PVQTensor:
        """The stored form."""
        shape = (self.num_embeddings, self.embedding_dim)
        return PVQTensor(self.index, self.gain, self.row_scale, shape, self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of the table in a checkpoint."""
        return self.weight_codes.nbytes

    @property
    def resident_nbytes(self) -> int:
        """Bytes of the table in memory."""
        return self.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense table [num_embeddings, embedding_dim]."""
        return self.weight_codes.dequantize(dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows named by ``ids`` [...], an integer tensor: [..., embedding_dim]."""
        config, flat = self.config, ids.reshape(-1)
        rows: torch.Tensor = torch.ops.pvq.dequantize(
            *(self.index[flat], self.gain[flat], self.row_scale[flat]),
            *(config.dim, config.pulses, config.gain_bits, config.gain_law),
            *(self.embedding_dim, self.dtype, config.hadamard_block, config.seed),
        )
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the table."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, dim={self.config.dim}, "
            f"pulses={self.config.pulses}, gain_bits={self.config.gain_bits}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(without_casts(self, fn), recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.index.device)).dtype
        return self


class PVQTiedHead(nn.Module):
    """The output head of a model with tied embeddings: multiplies from the codes of the table.

    It has no tensors of its own, so a checkpoint holds the codes once, under the table's name.

    Args:
        table: the embedding; a submodule of the model already, hence not of this one.
        bias: of the head, if it has one.
    """

    def __init__(self, table: PVQEmbedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple: registered as a submodule it would be saved twice
        self.bias = bias

    @property
    def in_features(self) -> int:
        """Columns of the table."""
        return self._table[0].embedding_dim

    @property
    def out_features(self) -> int:
        """Rows of the table."""
        return self._table[0].num_embeddings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` [..., in_features] with every row: [..., out_features]."""
        table = self._table[0]
        check_features(x, table.embedding_dim)
        config = table.config
        y: torch.Tensor = torch.ops.pvq.matmul(
            x,
            *(table.index, table.gain, table.row_scale),
            *(config.dim, config.pulses, config.gain_bits, config.gain_law),
            *(config.hadamard_block, config.seed),
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)
