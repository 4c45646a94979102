"""The LSTM: one cell for every network that uses one, and a stack of layers to compare memories with."""

from __future__ import annotations

import torch
from torch import nn

from distmeta.types import ModelFactory, TaskSpec


class LSTMCell(nn.Module):
    """One step of an LSTM from plain operations: differentiable twice, on every device and under ``vmap``.

    Args:
        inputs: numbers in.
        size: units.

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


def lstm_step(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Next ``(h, c)`` of an LSTM, each ``[B, size]``, from the last c and the sums for its gates.

    Args:
        gates: input, forget and output gate and candidate, ``[B, 4 * size]``.
        cell: the last c, ``[B, size]``.
    """
    size = cell.shape[-1]
    opened, candidate = torch.split(gates, [3 * size, size], -1)
    i, f, o = opened.sigmoid().chunk(3, -1)  # one sigmoid for the three gates
    cell = f * cell + i * candidate.tanh()
    return o * cell.tanh(), cell


class LSTM(nn.Module):
    """Stacked LSTM layers and a linear output, for sequences ``[B, L, ...]``; see :func:`lstm`."""

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
    """An LSTM without external memory: what the memory networks are compared with (Graves et al. 2014, table 3).

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
