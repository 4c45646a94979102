"""A transformer over tables: attention over the features of a row, then over the rows of a column.

The architecture of TabPFN v2 (Hollmann et al. 2025, Nature 637) in the small form of nanoTabPFN: every cell is a token,
the target is one more column, and rows to predict have an unknown target. Nothing depends on the order of rows or of
features, and tables of any number of either can be asked.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from distmeta.models.set_attention import (
    Block,
    SetModel,
    TargetEmbedding,
    key_mask,
    require_heads,
    require_rows,
    valid_rows,
)
from distmeta.types import ModelFactory, TaskSpec


def table_transformer(
    width: int = 96, heads: int = 4, layers: int = 3, hidden: int | None = None, *, clip: float = 10.0
) -> ModelFactory:
    """A table transformer: each cell a token, attention over features and over rows in turn (TabPFN v2, nanoTabPFN).

    Rows and features may come in any order and number; classes up to the largest number of a task. Features that are 0
    in the whole support set are left out, as if the table did not have them. Inputs should be standardised:
    ``InContext(table_transformer(), standardise="inputs")``.

    Args:
        width: numbers per token.
        heads: attention heads; they divide ``width``.
        layers: pairs of attention over features and over rows.
        hidden: units of the perceptron after each pair; twice the width by default.
        clip: cells are cut at this distance from 0, so that an outlier is far out but not alone.

    Returns:
        A factory; the built model is a set model: ``(support_x [T,S,F], support_y [T,S] or [T,S,D], query_x [T,Q,F])``
        to ``[T,Q,outputs]``.

    Example:
        >>> spec = TaskSpec(input_shape=(3,), outputs=3, kind="classification", support=20, queries=30)
        >>> model = table_transformer(width=8, heads=2)(spec)
        >>> model(torch.randn(2, 20, 5), torch.randint(3, (2, 20)), torch.randn(2, 7, 5)).shape
        torch.Size([2, 7, 3])
    """
    require_heads("table_transformer", width, heads)

    def build(spec: TaskSpec) -> nn.Module:
        require_rows("table_transformer", spec)
        return TableTransformer(spec, width, heads, layers, 2 * width if hidden is None else hidden, clip)

    return build


class TableTransformer(SetModel):
    """The network of :func:`table_transformer`."""

    def __init__(self, spec: TaskSpec, width: int, heads: int, layers: int, hidden: int, clip: float) -> None:
        super().__init__(spec, takes_any_width=True)
        self.clip = clip
        self.cell = nn.Linear(1, width)
        self.target = TargetEmbedding(spec, width)
        self.unknown = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(_Layer(width, heads, hidden) for _ in range(layers))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, spec.outputs)
        )

    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys and values ``[T,S,C,W]`` of every layer for the target and C - 1 features; the last has the target's."""
        rows = valid_rows(support_y)
        columns = ((support_x != 0) & rows.unsqueeze(2)).any(1)
        encoded, row_mask = {"rows": rows, "columns": columns}, key_mask(rows)
        tokens, feature_mask = self._tokens(support_x, columns, self.target(support_y))
        for index, layer in enumerate(cast("list[_Layer]", self.layers)):
            last = index == len(self.layers) - 1
            tokens = layer.features(tokens, feature_mask, target_only=last)
            keys, values = layer.rows.keys_values(tokens)
            encoded |= {f"keys_{index}": keys, f"values_{index}": values}
            if not last:
                tokens = layer.rows(tokens, keys, values, row_mask)
        return encoded

    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]`` of queries ``[T,Q,F]``."""
        row_mask = key_mask(encoded["rows"])
        unknown = self.unknown.expand(*query_x.shape[:2], -1)
        tokens, feature_mask = self._tokens(query_x, encoded["columns"], unknown)
        for index, layer in enumerate(cast("list[_Layer]", self.layers)):
            # The head reads the target's token alone, so the last layer computes no other.
            tokens = layer.features(tokens, feature_mask, target_only=index == len(self.layers) - 1)
            tokens = layer.rows(tokens, encoded[f"keys_{index}"], encoded[f"values_{index}"], row_mask)
        outputs: torch.Tensor = self.head(tokens.squeeze(2))
        return outputs

    def _tokens(
        self, x: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens ``[T,L,C,W]``, the target's first, and a mask over C where some tasks lack features of others."""
        used = columns.any(0)
        if not bool(used.all()):
            x, columns = x[:, :, used], columns[:, used]
        cells = self.cell(x.clamp(-self.clip, self.clip).unsqueeze(3))
        tokens = torch.cat([targets.unsqueeze(2), cells], 2)
        if bool(columns.all()):
            return tokens, None
        present = torch.cat([columns.new_ones(len(columns), 1), columns], 1)  # a row attends to its target at least
        each_row = present[:, None].expand(-1, x.shape[1], -1)
        return tokens, each_row.reshape(-1, 1, 1, present.shape[1])


class _Layer(nn.Module):
    """Attention over features, then over rows, then a perceptron per token."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.features = _FeatureAttention(width, heads)
        self.rows = Block(width, heads, hidden)


_MOST_SEQUENCES = 2**15
"""Rows that one call attends in: CUDA's kernels refuse batches of more than 65,535."""


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """``[N,C,heads,size]`` of N sequences: each token of queries over keys and values, of the same shape but for C."""
    if len(queries) > _MOST_SEQUENCES:
        parts = [slice(start, start + _MOST_SEQUENCES) for start in range(0, len(queries), _MOST_SEQUENCES)]
        return torch.cat(
            [_attend(queries[part], keys[part], values[part], None if mask is None else mask[part]) for part in parts]
        )
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2)


class _FeatureAttention(nn.Module):
    """Each token attends to all tokens of its row; no row sees another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None, *, target_only: bool) -> torch.Tensor:
        """``[T,L,C,W]`` of tokens ``[T,L,C,W]``, or ``[T,L,1,W]``: those of the targets alone."""
        normed = self.norm(tokens).flatten(0, 1)  # [rows, C, W]
        keys, values = self.key_value(normed).unflatten(2, (2, self.heads, self.size)).unbind(2)
        if target_only:
            tokens, normed = tokens[:, :, :1], normed[:, :1]
        queries = self.query(normed).unflatten(2, (self.heads, self.size))
        mixed = _attend(queries, keys, values, mask)
        attended: torch.Tensor = tokens + self.out(mixed.reshape(tokens.shape))
        return attended
