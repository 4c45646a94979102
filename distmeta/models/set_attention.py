"""Set models: what the networks of in-context learners share.

A set model maps ``(support_x [T,S,...], support_y [T,S], query_x [T,Q,...])`` to ``[T,Q,outputs]``: T tasks side by
side, none of which sees another. Support rows attend to support rows and query rows to support rows, so queries never
see each other, and the keys and values of the support set can be kept while queries come and go. No mask is needed for
that: support and queries take separate paths with the same weights. A mask is built only where rows are padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from distmeta.errors import ModelContractError
from distmeta.types import TaskSpec


class SetModel(nn.Module, ABC):
    """A set model in two halves: what is kept of the support set, and the answers to queries.

    Args:
        spec: shapes of the tasks.
        takes_any_width: whether rows may have another number of features than ``spec.input_shape``.
    """

    def __init__(self, spec: TaskSpec, *, takes_any_width: bool = False) -> None:
        super().__init__()
        self.input_shape = tuple(spec.input_shape)
        self.target_size = target_size(spec)
        self._takes_any_width = takes_any_width

    @abstractmethod
    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """What queries need of support sets ``[T,S,...]`` and targets ``[T,S]`` or ``[T,S,D]``; each with leading T."""

    @abstractmethod
    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]`` of queries ``[T,Q,...]``, each on its own."""

    def forward(self, support_x: torch.Tensor, support_y: torch.Tensor, query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]``: the queries of T tasks, each answered from the support set of its task.

        Args:
            support_x: ``[T,S,...]`` inputs, S at least 1.
            support_y: ``[T,S]`` class positions, -1 for a row that is padding, or ``[T,S,D]`` floats.
            query_x: ``[T,Q,...]`` inputs.

        Raises:
            ModelContractError: the shapes do not belong together.
        """
        self._require(support_x, support_y, query_x)
        return self.decode_queries(self.encode_support(support_x, support_y), query_x)

    def _require(self, support_x: torch.Tensor, support_y: torch.Tensor, query_x: torch.Tensor) -> None:
        name = type(self).__name__
        rank = 2 + len(self.input_shape)
        given = f"support_x {list(support_x.shape)}, support_y {list(support_y.shape)}, query_x {list(query_x.shape)}"
        if support_x.dim() != rank or query_x.dim() != rank or support_x.shape[:1] != query_x.shape[:1]:
            raise ModelContractError(
                f"{name} takes the support sets and queries of T tasks, [T, S, ...] and [T, Q, ...] with inputs of "
                f"shape {list(self.input_shape)}; it was given {given}. For one task add a leading dimension: x[None]."
            )
        if support_x.shape[2:] != query_x.shape[2:] or not (
            self._takes_any_width or support_x.shape[2:] == self.input_shape
        ):
            raise ModelContractError(
                f"{name} was built for inputs of shape {list(self.input_shape)}; it was given {given}. Give support "
                "set and queries inputs of that shape, or build the model for these tasks."
            )
        expected = support_x.shape[:2] + (() if self.target_size is None else (self.target_size,))
        if support_y.shape != expected or not support_x.shape[1]:
            raise ModelContractError(
                f"{name} takes at least one support row per task and targets of shape {list(expected)}; it was given "
                f"{given}. Give class positions [T, S] for classes, floats [T, S, D] for a regression."
            )


def target_size(spec: TaskSpec) -> int | None:
    """D of regression targets ``[T,S,D]``, ``None`` for classes ``[T,S]``."""
    if spec.kind != "regression":
        return None
    return spec.outputs if spec.target_size is None else spec.target_size


def require_rows(name: str, spec: TaskSpec) -> int:
    """The number of features F of the tasks' inputs.

    Args:
        name: the factory that asks.
        spec: shapes of the tasks.

    Raises:
        ModelContractError: inputs are no rows ``[F]``.
    """
    if len(spec.input_shape) != 1:
        raise ModelContractError(
            f"{name} takes rows of features [F]; the tasks have inputs of shape {list(spec.input_shape)}. For images "
            "use image_context(), or tasks whose inputs are rows, such as Tables, GaussianProcesses or ImageCompletion."
        )
    return spec.input_shape[0]


def require_heads(name: str, width: int, heads: int) -> None:
    """Check that ``width`` is a multiple of ``heads``.

    Raises:
        ModelContractError: it is not.
    """
    if heads < 1 or width % heads:
        raise ModelContractError(
            f"{name}(width={width}, heads={heads}): every head has width / heads numbers. Give a width that is a "
            f"multiple of {heads}, or other heads."
        )


def valid_rows(support_y: torch.Tensor) -> torch.Tensor:
    """``[T,S]``: True for rows of the support set, False for padding; all True where a task has nothing but padding."""
    if support_y.is_floating_point():
        return support_y.new_ones(support_y.shape[:2], dtype=torch.bool)
    valid = support_y >= 0
    return valid | ~valid.any(1, keepdim=True)  # softmax over no key would be NaN


def key_mask(valid: torch.Tensor) -> torch.Tensor | None:
    """A mask over keys ``[T,1,1,S]`` for rows ``valid [T,S]``; ``None`` where all are: the kernel is faster without."""
    return None if bool(valid.all()) else valid[:, None, None, :]


class TargetEmbedding(nn.Module):
    """Targets as vectors: a table for classes ``[T,S]`` (-1 as 0), a linear map for floats ``[T,S,D]``."""

    def __init__(self, spec: TaskSpec, width: int) -> None:
        super().__init__()
        size = target_size(spec)
        self.map: nn.Module = nn.Embedding(spec.outputs, width) if size is None else nn.Linear(size, width)

    def forward(self, targets: torch.Tensor) -> torch.Tensor:
        """``[T,S,width]``."""
        embedded: torch.Tensor = self.map(targets if targets.is_floating_point() else targets.clamp(min=0))
        return embedded


class RowAttention(nn.Module):
    """Attention of rows ``[T,L,...,W]`` over support rows ``[T,S,...,W]``, for every column in between on its own.

    Columns count as further heads, so that a table is attended over in one call of the fused kernel without a copy.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        # No bias: the softmax cancels that of the keys, and those of values and output would be one.
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def keys_values(self, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[T,S,...,W]`` of the support rows."""
        return self.key(support), self.value(support)

    def forward(
        self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """``[T,L,...,W]`` of rows ``[T,L,...,W]`` over keys and values of the support set."""
        queries, keys, values = (
            tensor.flatten(2).unflatten(2, (-1, self.size)).transpose(1, 2)
            for tensor in (self.query(rows), keys, values)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        attended: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(rows.shape))
        return attended


class Block(nn.Module):
    """A transformer block, normalised first: attention over support rows, then a perceptron for each row."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = RowAttention(width, heads)
        self.perceptron = perceptron(width, hidden)

    def keys_values(self, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What rows attend to: keys and values ``[T,S,...,W]``."""
        return self.attention.keys_values(self.attention_norm(support))

    def forward(
        self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """``[T,L,...,W]`` of rows ``[T,L,...,W]``."""
        rows = rows + self.attention(self.attention_norm(rows), keys, values, mask)
        passed: torch.Tensor = rows + self.perceptron(rows)
        return passed


class Stack(nn.Module):
    """Blocks over support tokens ``[T,S,W]`` and query tokens ``[T,Q,W]``."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))

    def encode(self, support: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The last block's support tokens, and the keys and values of every block with the ``valid`` rows."""
        encoded, mask = {"rows": valid}, key_mask(valid)
        for index, block in enumerate(cast("list[Block]", self.blocks)):
            keys, values = block.keys_values(support)
            encoded |= {f"keys_{index}": keys, f"values_{index}": values}
            support = block(support, keys, values, mask)
        return support, encoded

    def decode(self, encoded: dict[str, torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
        """The last block's query tokens ``[T,Q,W]``."""
        mask = key_mask(encoded["rows"])
        for index, block in enumerate(cast("list[Block]", self.blocks)):
            queries = block(queries, encoded[f"keys_{index}"], encoded[f"values_{index}"], mask)
        return queries


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """Layer norm, a hidden layer of GELUs, and back: the second half of a block."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
