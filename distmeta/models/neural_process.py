"""Neural processes: conditional (CNP), attentive (CANP) and transformer (TNP-D), as set models.

Sizes are those of the code published with Nguyen and Grover (2022), in which these networks are compared. The networks
return the numbers of a predictive distribution for each query (a mean and a raw scale per target, or bins): what they
mean is the learner's affair.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from distmeta.models.set_attention import (
    RowAttention,
    SetModel,
    Stack,
    key_mask,
    require_heads,
    require_rows,
    target_size,
    valid_rows,
)
from distmeta.types import ModelFactory, TaskSpec


def cnp(width: int = 128, depth: int = 4) -> ModelFactory:
    """A conditional neural process (Garnelo et al. 2018): means over embedded support pairs, and a decoder.

    Args:
        width: units of every layer.
        depth: layers of the two encoders of pairs (x, y).

    Returns:
        A factory; the built model is a set model: ``(support_x [T,S,F], support_y [T,S,D] or [T,S], query_x [T,Q,F])``
        to ``[T,Q,outputs]``.

    Example:
        >>> spec = TaskSpec((1,), outputs=2, kind="regression", support=10, queries=20, target_size=1)
        >>> cnp(width=8)(spec)(torch.randn(3, 10, 1), torch.randn(3, 10, 1), torch.randn(3, 20, 1)).shape
        torch.Size([3, 20, 2])
    """

    def build(spec: TaskSpec) -> nn.Module:
        require_rows("cnp", spec)
        return ConditionalNeuralProcess(spec, width, depth)

    return build


def attentive_cnp(width: int = 128, depth: int = 4, heads: int = 8) -> ModelFactory:
    """An attentive conditional neural process (Kim et al. 2019, the deterministic path).

    Beside the mean of :func:`cnp`, each query attends to the support set: its inputs are the keys, and the embedded
    pairs after self-attention the values.

    Args:
        width: units of every layer.
        depth: layers of the encoders of pairs (x, y).
        heads: attention heads; they divide ``width``.

    Returns:
        A factory; the built model is a set model, as that of :func:`cnp`.

    Example:
        >>> spec = TaskSpec((1,), outputs=2, kind="regression", support=10, queries=20, target_size=1)
        >>> model = attentive_cnp(width=8, heads=2)(spec)
        >>> model(torch.randn(3, 10, 1), torch.randn(3, 10, 1), torch.randn(3, 20, 1)).shape
        torch.Size([3, 20, 2])
    """
    require_heads("attentive_cnp", width, heads)

    def build(spec: TaskSpec) -> nn.Module:
        require_rows("attentive_cnp", spec)
        return AttentiveNeuralProcess(spec, width, depth, heads)

    return build


def tnp(width: int = 64, layers: int = 6, heads: int = 4, hidden: int = 128, depth: int = 4) -> ModelFactory:
    """A diagonal transformer neural process, TNP-D (Nguyen and Grover 2022), with layer norm first in each block.

    Args:
        width: numbers per token.
        layers: transformer blocks.
        heads: attention heads; they divide ``width``.
        hidden: units of the perceptron of a block.
        depth: layers of the embedding of a pair (x, y).

    Returns:
        A factory; the built model is a set model, as that of :func:`cnp`.

    Example:
        >>> spec = TaskSpec((1,), outputs=2, kind="regression", support=10, queries=20, target_size=1)
        >>> model = tnp(width=8, layers=2)(spec)
        >>> model(torch.randn(3, 10, 1), torch.randn(3, 10, 1), torch.randn(3, 20, 1)).shape
        torch.Size([3, 20, 2])
    """
    require_heads("tnp", width, heads)

    def build(spec: TaskSpec) -> nn.Module:
        require_rows("tnp", spec)
        return TransformerNeuralProcess(spec, width, layers, heads, hidden, depth)

    return build


class _PairsModel(SetModel):
    """Set models that embed pairs (x, y): floats as they are, classes as indicators."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.classes = spec.outputs
        self.features = spec.input_shape[0]
        self.targets = target_size(spec) or spec.outputs

    def pairs(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``[T,S,F+D]``."""
        if not y.is_floating_point():
            y = F.one_hot(y.clamp(min=0), self.classes)
        return torch.cat([x, y.to(x.dtype)], 2)


class ConditionalNeuralProcess(_PairsModel):
    """The network of :func:`cnp`."""

    def __init__(self, spec: TaskSpec, width: int, depth: int) -> None:
        super().__init__(spec)
        # Two encoders, as in the published code: a mean of so few numbers tells functions apart badly.
        pair = self.features + self.targets
        self.encoders = nn.ModuleList(_PooledPairs(pair, width, depth) for _ in range(2))
        self.decoder = _Decoder(self.features, 2 * width, width, spec.outputs)

    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """The means ``[T,2W]`` of the embedded pairs."""
        pairs, rows = self.pairs(support_x, support_y), valid_rows(support_y)
        return {"mean": torch.cat([encoder(pairs, rows) for encoder in self.encoders], 1)}

    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]`` of queries ``[T,Q,F]``."""
        outputs: torch.Tensor = self.decoder(query_x, encoded["mean"].unsqueeze(1))
        return outputs


class AttentiveNeuralProcess(_PairsModel):
    """The network of :func:`attentive_cnp`."""

    def __init__(self, spec: TaskSpec, width: int, depth: int, heads: int) -> None:
        super().__init__(spec)
        pair = self.features + self.targets
        self.encoder = _PooledPairs(pair, width, depth)
        self.values = _mlp(pair, width, width, depth)
        self.self_attention = RowAttention(width, heads)
        self.keys = _mlp(self.features, width, width, 2)
        self.cross_attention = RowAttention(width, heads)
        self.decoder = _Decoder(self.features, 2 * width, width, spec.outputs)

    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean ``[T,W]`` of the embedded pairs, and keys and values ``[T,S,W]`` of each."""
        pairs, rows = self.pairs(support_x, support_y), valid_rows(support_y)
        values = self.values(pairs)
        values = values + self.self_attention(values, *self.self_attention.keys_values(values), key_mask(rows))
        return {
            "mean": self.encoder(pairs, rows),
            "rows": rows,
            "keys": self.cross_attention.key(self.keys(support_x)),
            "values": self.cross_attention.value(values),
        }

    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]`` of queries ``[T,Q,F]``."""
        mask = key_mask(encoded["rows"])
        attended = self.cross_attention(self.keys(query_x), encoded["keys"], encoded["values"], mask)
        mean = encoded["mean"].unsqueeze(1).expand_as(attended)
        outputs: torch.Tensor = self.decoder(query_x, torch.cat([attended, mean], 2))
        return outputs


class TransformerNeuralProcess(_PairsModel):
    """The network of :func:`tnp`."""

    def __init__(self, spec: TaskSpec, width: int, layers: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__(spec)
        self.embedding = _mlp(self.features + self.targets + 1, width, width, depth)
        self.stack = Stack(width, heads, hidden, layers)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, spec.outputs)
        )

    def encode_support(self, support_x: torch.Tensor, support_y: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys and values ``[T,S,W]`` of every layer."""
        known = support_x.new_ones(*support_x.shape[:2], 1)
        tokens = self.embedding(torch.cat([self.pairs(support_x, support_y), known], 2))
        return self.stack.encode(tokens, valid_rows(support_y))[1]

    def decode_queries(self, encoded: dict[str, torch.Tensor], query_x: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]`` of queries ``[T,Q,F]``."""
        tokens = self.embedding(F.pad(query_x, (0, self.targets + 1)))  # target 0, not known
        outputs: torch.Tensor = self.head(self.stack.decode(encoded, tokens))
        return outputs


class _PooledPairs(nn.Module):
    """The mean over embedded pairs, and a small perceptron of it: ``[T,S,P]`` to ``[T,W]``."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.before = _mlp(inputs, width, width, depth)
        self.after = _mlp(width, width, width, 2)

    def forward(self, pairs: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """``[T,W]``, over the rows that are ``valid [T,S]``."""
        embedded = self.before(pairs)
        weights = valid.to(embedded.dtype).unsqueeze(2)
        pooled: torch.Tensor = self.after((embedded * weights).sum(1) / weights.sum(1))
        return pooled


class _Decoder(nn.Module):
    """Queries ``[T,Q,F]`` and what the support set says of them ``[T,1 or Q,R]`` to ``[T,Q,outputs]``."""

    def __init__(self, features: int, representation: int, width: int, outputs: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, width)
        self.representation = nn.Linear(representation, width, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), _mlp(width, width, outputs, 3))

    def forward(self, queries: torch.Tensor, representation: torch.Tensor) -> torch.Tensor:
        """``[T,Q,outputs]``; one linear layer of both, in parts: the mean is the same for all queries of a task."""
        outputs: torch.Tensor = self.rest(self.query(queries) + self.representation(representation))
        return outputs


def _mlp(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        linear = nn.Linear(inputs, width)
        # torch's default shrinks what passes by sqrt(6) per layer: after ten layers no support set would be heard.
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
