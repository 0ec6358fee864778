"""PVQEmbedding and PVQTiedHead: the token table in a code, and a head that reads it."""

from typing import cast

import torch
from torch import nn

from pvq.buffers import register_codes
from pvq.coded import CodedModule
from pvq.codes import GivesRows, RunTimeForm
from pvq.config import PVQConfig
from pvq.decoded_weight import DecodedWeight
from pvq.tensor import PVQTensor, quantize_tensor


class PVQEmbedding(CodedModule):
    """A table [num_embeddings, embedding_dim] in a code; decodes only the rows asked for.

    See :class:`pvq.coded.CodedModule` for its buffers and forms. The table stays stored, whatever
    layout is asked for, unless a head multiplies from it too and single rows can be read from the
    run-time form.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        config: how the table is stored.
        device: of the tensors, which are uninitialised: see :meth:`from_embedding`.
        dtype: of the rows that :meth:`forward` returns; casting the module changes it.

    Raises:
        ValueError: if ``config`` does not fit ``embedding_dim``.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        config: PVQConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, config, device, dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.has_head = False  # set by PVQTiedHead

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

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows named by ``ids`` [...], an integer tensor: [..., embedding_dim]."""
        flat, held = ids.reshape(-1), self._held()
        tail = (self.dtype, self.config.hadamard_block, self.config.seed)
        if self._form is None:
            chosen = {name: tensor[flat] for name, tensor in held.items()}
            rows = self.config.code.dequantize(chosen, self.embedding_dim, *tail)
        else:
            rows = cast(GivesRows, self._form).dequantize_rows(held, flat, self._shape, *tail)
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of the table."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.describe()}"

    def _form_for(self, layout: str) -> RunTimeForm | None:
        form = self.config.code.run_time(self._device) if self.has_head else None
        return super()._form_for(layout) if isinstance(form, GivesRows) else None


class PVQTiedHead(DecodedWeight):
    """The output head of a model with tied embeddings: multiplies from the codes of the table.

    It has no tensors of its own, so a checkpoint holds the codes once, under the table's name.

    Args:
        table: the embedding; a submodule of the model already, hence not of this one.
        bias: of the head, if it has one.
    """

    def __init__(self, table: PVQEmbedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple: registered as a submodule it would be saved twice
        table.has_head = True
        self.bias = bias
        self.in_features = table.embedding_dim
        self.out_features = table.num_embeddings

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """That of the table."""
        return self._table[0].dtype

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dense table [out_features, in_features]."""
        return self._table[0].dequantize(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product of ``x`` [..., in_features] with every row: [..., out_features]."""
        y = self._table[0].product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)
