"""The memory-augmented network of Santoro et al. (2016) with least-recently-used access (section 3.1).

The controller is an LSTM; it takes the input and the last reads. Its state h_t gives each of H heads a key k_t, an add
vector a_t and a gate alpha_t::

    w^u_t = gamma w^u_{t-1} + sum_heads (w^r_t + w^w_t)                  usage              (equation 5)
    w^lu_t = one-hot of the least used slot                                                 (6)
    w^w_t = sigmoid(alpha) w^r_{t-1} + (1 - sigmoid(alpha)) w^lu_{t-1}   write weights      (7)
    M_t(i) = M_{t-1}(i) + sum_heads w^w_t(i) a_t                                            (8)
    w^r_t = softmax(strength * cosine(k_t, M_t)),  r_t = sum_i w^r_t(i) M_t(i)              (2 to 4)

The least used slot is set to zero before (8). Usage decides where to write and is not differentiated.

Two things differ from the paper. There a head writes its key (a_t = k_t; ``writes="key"`` here), so that it reads what
it has just written before all else; and H slots count as least used, one per head. With a single one, all 50 steps of a
sequence fit in 128 slots.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from distmeta.models.lstm import lstm_step
from distmeta.models.ntm import NTMNetwork, Trace, cosine_similarity
from distmeta.types import ModelFactory, TaskSpec


class MANNNetwork(nn.Module):
    """An LSTM with a memory addressed by usage, for sequences ``[B, L, inputs]``; see :func:`mann_network`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int,
        slots: int,
        width: int,
        reads: int,
        writes: Literal["own", "key"],
        strength: float,
        usage_decay: float,
    ) -> None:
        super().__init__()
        self.size, self.slots, self.width, self.reads = size, slots, width, reads
        self.strength, self.usage_decay = strength, usage_decay
        self.sees = nn.Linear(inputs, 4 * size)
        self.recurs = nn.Linear(reads * width + size, 4 * size, bias=False)
        self.interface = nn.Linear(size, reads * ((2 if writes == "own" else 1) * width + 1))
        self.output = nn.Linear(size + reads * width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, L, outputs]``."""
        return self.trace(x).output

    def trace(self, x: torch.Tensor) -> Trace:
        """Logits, and the read and write weights of the heads at each step."""
        batch = len(x)
        memory = x.new_full((batch, self.slots, self.width), 1e-6)
        # Rounding, which depends on the batch, would break ties of usage: a slope breaks them instead.
        usage = torch.linspace(0, 1e-3, self.slots, dtype=x.dtype, device=x.device).expand(batch, -1)
        reading = x.new_zeros(batch, self.reads, self.slots)
        last, cell = x.new_zeros(batch, self.reads * self.width + self.size), x.new_zeros(batch, self.size)
        states, readings, writings = [], [], []
        # The inputs' part of the gates is one product for all steps: half of the arithmetic, and it saves more than
        # half of the cost of the weights' gradient.
        for gates in self.sees(x.flatten(2)).unbind(1):
            h, cell = lstm_step(torch.addmm(gates, last, self.recurs.weight.T), cell)
            interface = self.interface(h).to(x.dtype)  # addresses in full, where the rest is in bfloat16
            vectors = interface[:, self.reads :].tanh().reshape(batch, -1, self.reads, self.width)
            key, add = vectors[:, 0], vectors[:, -1]  # the same vector if writes="key"
            gate = interface[:, : self.reads].sigmoid()[:, :, None]
            least = least_used(usage)
            writing = write_weights(gate, reading, least)
            memory = write(memory, writing, add, least)
            reading = (self.strength * cosine_similarity(memory, key)).softmax(-1).to(x.dtype)
            usage = next_usage(usage, reading, writing, self.usage_decay)
            last = torch.cat([torch.bmm(reading, memory).flatten(1), h], -1)
            states.append(last)
            readings.append(reading)
            writings.append(writing)
        return Trace(self.output(torch.stack(states, 1)), torch.stack(readings, 1), torch.stack(writings, 1))


def least_used(usage: torch.Tensor) -> torch.Tensor:
    """Least used slot as one-hot ``[B, 1, S]`` from usage ``[B, S]`` (equation 6); the first of a tie.

    Example:
        >>> least_used(torch.tensor([[0.3, 0.0, 0.2]])).tolist()
        [[[0.0, 1.0, 0.0]]]
    """
    return F.one_hot(usage.argmin(-1, keepdim=True), usage.shape[-1]).to(usage.dtype)


def write_weights(gate: torch.Tensor, last_read: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Interpolate between the last read weights and the least used slot (equation 7): ``[B, H, S]``.

    Args:
        gate: sigmoid(alpha), ``[B, H, 1]``.
        last_read: the last read weights, ``[B, H, S]``.
        least: the least used slot, one-hot ``[B, 1, S]``.
    """
    return torch.lerp(least, last_read, gate)


def write(memory: torch.Tensor, weights: torch.Tensor, add: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Set the least used slot of the memory to zero, then add (equation 8): ``[B, S, W]``.

    Args:
        memory: ``[B, S, W]``.
        weights: ``[B, H, S]``.
        add: ``[B, H, W]``.
        least: the least used slot, one-hot ``[B, 1, S]``.
    """
    return torch.baddbmm(memory * (1 - least.transpose(1, 2)), weights.transpose(1, 2), add)


def next_usage(usage: torch.Tensor, reading: torch.Tensor, writing: torch.Tensor, decay: float) -> torch.Tensor:
    """Usage ``[B, S]`` after a step, from weights ``[B, H, S]`` (equation 5); not differentiated."""
    return decay * usage + (reading.detach() + writing.detach()).sum(1)


def mann_network(
    size: int = 200,
    *,
    slots: int = 128,
    width: int = 40,
    reads: int = 4,
    access: Literal["lru", "ntm"] = "lru",
    writes: Literal["own", "key"] = "own",
    strength: float = 10.0,
    usage_decay: float = 0.95,
) -> ModelFactory:
    """The memory-augmented network of Santoro et al. (2016), with the paper's sizes for Omniglot.

    Args:
        size: units of the LSTM controller.
        slots: S, rows of the memory.
        width: W, numbers per row.
        reads: H, number of heads; each reads and writes.
        access: ``"lru"`` writes to the least used slot or to those read last; ``"ntm"`` is the paper's ablation: the
            same controller, memory and number of heads with the addressing of a Neural Turing Machine.
        writes: the vector that a head adds to the memory: ``"own"``, one of its own, or ``"key"``, the key that it
            reads by, as in the paper. No effect on ``"ntm"``.
        strength: constant factor of the cosine in content addressing; the paper has none (1), which learns slowly. No
            effect on ``"ntm"``, which learns its own.
        usage_decay: gamma, fraction of usage that is left after a step. No effect on ``"ntm"``.

    Returns:
        A factory; the built model maps ``[B, L, inputs]`` to logits ``[B, L, outputs]``.

    Example:
        >>> spec = TaskSpec(input_shape=(405,), outputs=5, kind="sequence", support=0, queries=50)
        >>> mann_network()(spec)(torch.zeros(2, 50, 405)).shape
        torch.Size([2, 50, 5])
    """

    def build(spec: TaskSpec) -> nn.Module:
        inputs = torch.Size(spec.input_shape).numel()
        if access == "ntm":
            return NTMNetwork(
                inputs,
                spec.outputs,
                controller="lstm",
                size=size,
                heads=reads,
                slots=slots,
                width=width,
                reach=1,
                memory_init="constant",
            )
        return MANNNetwork(
            inputs,
            spec.outputs,
            size=size,
            slots=slots,
            width=width,
            reads=reads,
            writes=writes,
            strength=strength,
            usage_decay=usage_decay,
        )

    return build


mann = mann_network
"""Short name of :func:`mann_network`, for job files."""
