"""LSTM cells as plain functions of their weights: torch's fused ones know neither ``vmap`` with weights per task nor a
second derivative.

One step (Hochreiter and Schmidhuber 1997, with forget gate)::

    i, f, o, g = W_x x + W_h h + b            [4 D], D the width of the cell
    c' = sigmoid(f) c + sigmoid(i) tanh(g)
    h' = sigmoid(o) tanh(c')
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from distmeta.models import lstm as cells


class LSTMWeights(NamedTuple):
    """W_x ``[4 D, inputs]``, W_h ``[4 D, hidden]`` and b ``[4 D]``; hidden may be wider than D."""

    x: torch.Tensor
    h: torch.Tensor
    b: torch.Tensor


def init_lstm(rng: np.random.Generator, inputs: int, width: int, hidden: int | None = None) -> LSTMWeights:
    """Weights drawn as ``torch.nn.LSTM`` draws them, uniform within ``1 / sqrt(D)``.

    Args:
        rng: the only source of randomness.
        inputs: size of x.
        width: D.
        hidden: size of what stands for h; D when left out.

    Example:
        >>> [tuple(w.shape) for w in init_lstm(np.random.default_rng(0), inputs=3, width=2)]
        [(8, 3), (8, 2), (8,)]
    """
    bound = 1 / math.sqrt(width)
    shapes = ((4 * width, inputs), (4 * width, hidden or width), (4 * width,))
    return LSTMWeights(*(torch.from_numpy(rng.uniform(-bound, bound, shape)) for shape in shapes))


def lstm_step(
    x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, weights: LSTMWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """h' and c' after one step.

    Args:
        x: ``[..., inputs]``.
        h: ``[..., hidden]``.
        c: ``[..., D]``.
        weights: of the cell.

    Example:
        >>> weights = init_lstm(np.random.default_rng(0), inputs=3, width=2)
        >>> zeros = torch.zeros(5, 2, dtype=torch.float64)
        >>> h, c = lstm_step(torch.ones(5, 3, dtype=torch.float64), zeros, zeros, weights)
        >>> h.shape
        torch.Size([5, 2])
    """
    return cells.lstm_step(x @ weights.x.T + h @ weights.h.T + weights.b, c)


def lstm(sequence: torch.Tensor, weights: LSTMWeights) -> torch.Tensor:
    """h after every element of a sequence ``[L, inputs]``, from zero: ``[L, D]``.

    Example:
        >>> weights = init_lstm(np.random.default_rng(0), inputs=3, width=2)
        >>> lstm(torch.ones(7, 3, dtype=torch.float64), weights).shape
        torch.Size([7, 2])
    """
    h = c = sequence.new_zeros(weights.h.shape[1])
    states = []
    for x in sequence:
        h, c = lstm_step(x, h, c, weights)
        states.append(h)
    return torch.stack(states)
