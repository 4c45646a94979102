"""The attention of queries over the support set, read off a set model while it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class AttentionSeen(TorchFunctionMode):
    """Keep the weights of each fused attention of as many queries over as many keys as asked for.

    Args:
        queries: M, rows that attend; another number than ``support``, or the support set's attention to itself would
            look the same, and more than one, or that of one token of a row to the others could.
        support: S, rows that are attended to.

    Example:
        >>> with AttentionSeen(1, 2) as seen:
        ...     _ = F.scaled_dot_product_attention(torch.zeros(1, 1, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
        >>> seen.weights.tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, queries: int, support: int) -> None:
        super().__init__()
        self._size = (queries, support)
        self._found: list[torch.Tensor] = []

    @property
    def weights(self) -> torch.Tensor | None:
        """Mean weights ``[M, S]`` over layers and heads, rows sum to 1; ``None`` where there was no such attention."""
        return torch.stack(self._found).mean(0) if self._found else None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self._look(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _look(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if (query.shape[-2], key.shape[-2]) != self._size or is_causal or enable_gqa:
            return
        logits = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        self._found.append(logits.softmax(-1).reshape(-1, *self._size).mean(0))
