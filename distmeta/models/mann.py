"""The memory-augmented network of Santoro et al. (2016) with least-recently-used access (section 3.1).

An LSTM of state h_t sees the input and what was read last. Each of H heads has a key k_t, an add vector a_t and a gate
alpha_t from h_t::

    w^u_t = gamma w^u_{t-1} + sum_heads (w^r_t + w^w_t)                  usage              (equation 5)
    w^lu_t = one-hot of the least used slot                                                 (6)
    w^w_t = sigmoid(alpha) w^r_{t-1} + (1 - sigmoid(alpha)) w^lu_{t-1}   write weights      (7)
    M_t(i) = M_{t-1}(i) + sum_heads w^w_t(i) a_t                                            (8)
    w^r_t = softmax(strength * cosine(k_t, M_t)),  r_t = sum_i w^r_t(i) M_t(i)              (2 to 4)

The least used slot is set to zero before (8). Usage decides where to write and is not differentiated.

Two things differ from the text of the paper, where a head writes its key (a_t = k_t; ``writes="key"`` here) and as many
slots count as least used as there are heads. A head that writes its key finds what it has just written before all
else; one slot per step keeps all 50 steps of a sequence in 128 slots.
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
    """An LSTM with a memory accessed by use, for sequences ``[B, L, inputs]``; see :func:`mann` for the settings."""

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
        """The output, and where the heads read and wrote at each step."""
        batch = len(x)
        memory = x.new_full((batch, self.slots, self.width), 1e-6)
        # A tie of usages would be broken by rounding, and that depends on the batch: a slope decides instead.
        usage = torch.linspace(0, 1e-3, self.slots, dtype=x.dtype, device=x.device).expand(batch, -1)
        looking = x.new_zeros(batch, self.reads, self.slots)
        last, cell = x.new_zeros(batch, self.reads * self.width + self.size), x.new_zeros(batch, self.size)
        seen, readings, writings = [], [], []
        # The inputs' share of the gates is one product for all steps: half of the arithmetic, and more than half of
        # what the gradient of the weights would cost step by step.
        for gates in self.sees(x.flatten(2)).unbind(1):
            h, cell = lstm_step(torch.addmm(gates, last, self.recurs.weight.T), cell)
            interface = self.interface(h)
            vectors = interface[:, self.reads :].tanh().reshape(batch, -1, self.reads, self.width)
            key, add = vectors[:, 0], vectors[:, -1]  # the same one where a head writes its key
            gate = interface[:, : self.reads].sigmoid()[:, :, None]
            least = least_used(usage)
            writing = write_weights(gate, looking, least)
            memory = write(memory, writing, add, least)
            looking = (self.strength * cosine_similarity(memory, key)).softmax(-1)
            usage = next_usage(usage, looking, writing, self.usage_decay)
            last = torch.cat([torch.bmm(looking, memory).flatten(1), h], -1)
            seen.append(last)
            readings.append(looking)
            writings.append(writing)
        return Trace(self.output(torch.stack(seen, 1)), torch.stack(readings, 1), torch.stack(writings, 1))


def least_used(usage: torch.Tensor) -> torch.Tensor:
    """One-hot ``[B, 1, S]``: the least used slot (equation 6), the first of several; from usage ``[B, S]``.

    Example:
        >>> least_used(torch.tensor([[0.3, 0.0, 0.2]])).tolist()
        [[[0.0, 1.0, 0.0]]]
    """
    return F.one_hot(usage.argmin(-1, keepdim=True), usage.shape[-1]).to(usage.dtype)


def write_weights(gate: torch.Tensor, looked: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Between the slot read last and the least used one (equation 7).

    Args:
        gate: sigmoid(alpha), ``[B, H, 1]``.
        looked: the last read weights, ``[B, H, S]``.
        least: the least used slot, ``[B, 1, S]``.
    """
    return torch.lerp(least, looked, gate)


def write(memory: torch.Tensor, weights: torch.Tensor, add: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Set the least used slot to zero, then add (equation 8).

    Args:
        memory: ``[B, S, W]``.
        weights: ``[B, H, S]``.
        add: ``[B, H, W]``.
        least: the least used slot, ``[B, 1, S]``.
    """
    return torch.baddbmm(memory * (1 - least.transpose(1, 2)), weights.transpose(1, 2), add)


def next_usage(usage: torch.Tensor, reading: torch.Tensor, writing: torch.Tensor, decay: float) -> torch.Tensor:
    """Usage ``[B, S]`` after a step (equation 5); not differentiated."""
    return decay * usage + (reading.detach() + writing.detach()).sum(1)


def mann(
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
        reads: H, heads: each reads and writes.
        access: ``"lru"``: writes go to the least used slot or to those read last; ``"ntm"``: the same controller,
            memory and number of heads with the addressing of a Neural Turing Machine, the paper's ablation.
        writes: what a head adds to the memory: ``"own"``, a vector of its own, or ``"key"``, the key that it reads by,
            as the paper has it; not for ``"ntm"``.
        strength: of content addressing, constant; the paper has none (1), which learns slowly. Not for ``"ntm"``, which
            learns its own.
        usage_decay: gamma, the share of usage that is left after a step; not for ``"ntm"``.

    Returns:
        A factory; the built model maps ``[B, L, inputs]`` to logits ``[B, L, outputs]``.

    Example:
        >>> spec = TaskSpec(input_shape=(405,), outputs=5, kind="sequence", support=0, queries=50)
        >>> mann()(spec)(torch.zeros(2, 50, 405)).shape
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
