"""The LSTM (Hochreiter and Schmidhuber 1997, with forget gate): its step, a cell, plain weights, a stack of layers.

One step from x, h and c, with D the width of the cell::

    i, f, o, g = W_x x + W_h h + b            [4 D]
    c' = sigmoid(f) c + sigmoid(i) tanh(g)
    h' = sigmoid(o) tanh(c')

:func:`lstm_step` is that step after the product. :class:`LSTMCell` is a module for networks that step by themselves,
:class:`LSTMWeights` the same on plain tensors, for weights that are meta-parameters. Both are plain operations, because
torch's fused LSTM supports neither vmap over per-task weights nor double backward. :func:`lstm` is a whole network of
torch's fused layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from distmeta.types import ModelFactory, TaskSpec


def lstm_step(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step from the gates' pre-activations: the next ``(h, c)``, each ``[..., D]``.

    Args:
        gates: ``[..., 4 D]``: input, forget and output gate and candidate.
        cell: the last c, ``[..., D]``.
    """
    size = cell.shape[-1]
    opened, candidate = torch.split(gates, [3 * size, size], -1)
    i, f, o = opened.sigmoid().chunk(3, -1)  # one sigmoid call for all three gates
    cell = f * cell + i * candidate.tanh()
    return o * cell.tanh(), cell


class LSTMCell(nn.Module):
    """One step of an LSTM as a module of plain operations: twice differentiable, on every device and under ``vmap``.

    Args:
        inputs: size of x.
        size: D, units.

    Example:
        >>> cell = LSTMCell(3, 5)
        >>> h, c = cell(torch.zeros(2, 3), (torch.zeros(2, 5), torch.zeros(2, 5)))
        >>> h.shape
        torch.Size([2, 5])
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.gates = nn.Linear(inputs + size, 4 * size)  # input, forget, output, candidate

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Next ``(h, c)`` from ``x [B, inputs]`` and the last ``(h, c)``, each ``[B, size]``."""
        h, c = state
        return lstm_step(self.gates(torch.cat([x, h], -1)), c)


class LSTMWeights(NamedTuple):
    """The weights of one LSTM layer as plain tensors.

    Args:
        x: W_x, ``[4 D, inputs]``.
        h: W_h, ``[4 D, hidden]``; hidden is D, or more where h is read together with something else.
        b: b, ``[4 D]``.

    Example:
        >>> weights = LSTMWeights.draw(np.random.default_rng(0), inputs=3, width=2)
        >>> weights.unroll(torch.ones(7, 3, dtype=torch.float64)).shape
        torch.Size([7, 2])
    """

    x: torch.Tensor
    h: torch.Tensor
    b: torch.Tensor

    @staticmethod
    def draw(rng: np.random.Generator, inputs: int, width: int, hidden: int | None = None) -> LSTMWeights:
        """Draw float64 weights as ``torch.nn.LSTM`` draws them, uniform within ``1 / sqrt(D)``.

        Args:
            rng: source of every random number.
            inputs: size of x.
            width: D.
            hidden: size of h; D when left out.

        Example:
            >>> [tuple(w.shape) for w in LSTMWeights.draw(np.random.default_rng(0), inputs=3, width=2)]
            [(8, 3), (8, 2), (8,)]
        """
        bound = 1 / math.sqrt(width)
        shapes = ((4 * width, inputs), (4 * width, hidden or width), (4 * width,))
        return LSTMWeights(*(torch.from_numpy(rng.uniform(-bound, bound, shape)) for shape in shapes))

    def step(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step: the next ``(h, c)``, each ``[..., D]``.

        Args:
            x: ``[..., inputs]``.
            h: ``[..., hidden]``.
            c: ``[..., D]``.
        """
        return lstm_step(x @ self.x.T + h @ self.h.T + self.b, c)

    def unroll(self, sequence: torch.Tensor) -> torch.Tensor:
        """Read ``sequence [L, inputs]`` from h = c = 0, and return h after every element, ``[L, D]``."""
        h = c = sequence.new_zeros(self.h.shape[1])
        states = []
        for x in sequence:
            h, c = self.step(x, h, c)
            states.append(h)
        return torch.stack(states)


class LSTM(nn.Module):
    """Stacked LSTM layers and a linear output for sequences ``[B, L, ...]``; see :func:`lstm`."""

    def __init__(self, inputs: int, outputs: int, *, size: int, layers: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(inputs, size, layers, batch_first=True)
        self.output = nn.Linear(size, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, L, outputs]``."""
        hidden, _ = self.recurrent(x.flatten(2))
        logits: torch.Tensor = self.output(hidden)
        return logits


def lstm(size: int = 256, layers: int = 3) -> ModelFactory:
    """An LSTM without external memory, the baseline of the memory networks (Graves et al. 2014, table 3).

    Args:
        size: units per layer.
        layers: stacked layers.

    Returns:
        A factory; the built model maps ``[B, L, ...]`` to logits ``[B, L, outputs]``.

    Example:
        >>> spec = TaskSpec(input_shape=(9,), outputs=8, kind="sequence", support=0, queries=41)
        >>> lstm()(spec)(torch.zeros(2, 41, 9)).shape
        torch.Size([2, 41, 8])
    """

    def build(spec: TaskSpec) -> nn.Module:
        return LSTM(torch.Size(spec.input_shape).numel(), spec.outputs, size=size, layers=layers)

    return build
