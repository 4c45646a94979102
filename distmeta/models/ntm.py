"""The Neural Turing Machine, a network with an external memory (Graves, Wayne, Danihelka 2014).

The memory is ``M [B, S, W]``: S slots of width W. H heads address it, each by a weighting ``w [B, H, S]`` over the
slots::

    w_c = softmax(strength * cosine(key, M))            content              (equations 5 and 6)
    w_g = gate * w_c + (1 - gate) * w_{t-1}             interpolation        (7)
    w_~(i) = sum_j w_g(j) shift(i - j)                  circular convolution (8)
    w(i) = w_~(i)^sharpness / sum_j w_~(j)^sharpness    sharpening           (9)
    r = sum_i w(i) M(i)                                 reading              (2)
    M(i) <- M(i) * (1 - w(i) erase) + w(i) add          writing              (3 and 4)

In a time step the controller takes the input and the last reads, then the memory is written, then read; the output
layer takes the controller's state and the new reads.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from distmeta.models.lstm import LSTMCell
from distmeta.types import ModelFactory, TaskSpec


def content_weights(memory: torch.Tensor, key: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Attention over the slots by their cosine similarity to the key (equations 5 and 6).

    Args:
        memory: ``[B, S, W]``.
        key: ``[B, H, W]``.
        strength: ``[B, H, 1]``, beta, positive.

    Returns:
        ``[B, H, S]``; each row sums to 1.

    Example:
        >>> memory = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> content_weights(memory, torch.tensor([[[2.0, 0.0]]]), torch.full((1, 1, 1), 100.0)).round().tolist()
        [[[1.0, 0.0]]]
    """
    return torch.softmax(strength * cosine_similarity(memory, key), -1)


def cosine_similarity(memory: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Cosine of each key ``[B, H, W]`` with each slot ``[B, S, W]``, as ``[B, H, S]``; 0 for a slot of zeros."""
    # The derivative of vector_norm at zero is 0; that of a square root of squares is NaN.
    lengths = torch.linalg.vector_norm(key, dim=-1)[:, :, None] * torch.linalg.vector_norm(memory, dim=-1)[:, None, :]
    cosine: torch.Tensor = torch.bmm(key, memory.transpose(1, 2)) / (lengths + 1e-8)
    return cosine


def interpolate(content: torch.Tensor, previous: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Interpolate ``gate * content + (1 - gate) * previous`` (equation 7): ``[B, H, S]``, gate ``[B, H, 1]``."""
    return previous + gate * (content - previous)


def shift(weights: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Shift weights around the memory by circular convolution (equation 8).

    Args:
        weights: ``[B, H, S]``.
        kernel: ``[B, H, 2R + 1]``, weights of the shifts by -R .. R slots.

    Example:
        >>> shift(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])).tolist()
        [[[0.0, 1.0, 0.0, 0.0]]]
    """
    reach = kernel.shape[-1] // 2
    moved = torch.stack([weights.roll(by, -1) for by in range(-reach, reach + 1)], -1)
    return (moved * kernel[:, :, None, :]).sum(-1)


def sharpen(weights: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """Raise weights ``[B, H, S]`` to ``sharpness [B, H, 1]``, at least 1, and normalise to sum 1 (equation 9)."""
    # A softmax of logarithms is equal and cheaper to differentiate than a power.
    return torch.softmax(sharpness * (weights + 1e-16).log(), -1)


def write(memory: torch.Tensor, weights: torch.Tensor, erase: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
    """Erase, then add (equations 3 and 4); the order of the heads does not matter.

    Args:
        memory: ``[B, S, W]``.
        weights: ``[B, H, S]``.
        erase: ``[B, H, W]``, 0 to 1.
        add: ``[B, H, W]``.

    Returns:
        The new memory, ``[B, S, W]``.
    """
    if weights.shape[1] == 1:  # matrix products are faster than broadcasting over the narrow last axis
        at = weights.transpose(1, 2)
        return torch.addcmul(torch.baddbmm(memory, at, add), memory, torch.bmm(at, erase), value=-1)
    # Not prod(): its derivative is slow, and its second derivative at zero is missing.
    kept = reduce(torch.mul, (1 - weights[:, :, :, None] * erase[:, :, None, :]).unbind(1))
    return torch.baddbmm(memory * kept, weights.transpose(1, 2), add)


class Trace(NamedTuple):
    """Output of a memory network with its read and write weights, for pictures.

    Args:
        output: ``[B, L, outputs]``.
        read: read weights ``[B, L, H, S]``.
        written: write weights ``[B, L, H, S]``.
    """

    output: torch.Tensor
    read: torch.Tensor
    written: torch.Tensor


class Addressing(NamedTuple):
    """Parameters of the heads at one time step, from the controller; A = 2H heads, the read heads first.

    Args:
        key: ``[B, A, W]``, -1 to 1.
        strength: ``[B, A, 1]``, beta, positive.
        gate: ``[B, A, 1]``, g, 0 to 1.
        kernel: ``[B, A, 2R + 1]``, s, sums to 1.
        sharpness: ``[B, A, 1]``, gamma, at least 1.
        erase: ``[B, H, W]``, e, 0 to 1.
        add: ``[B, H, W]``, a.
    """

    key: torch.Tensor
    strength: torch.Tensor
    gate: torch.Tensor
    kernel: torch.Tensor
    sharpness: torch.Tensor
    erase: torch.Tensor
    add: torch.Tensor

    def weights(self, memory: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Weightings of the heads at this step, ``[B, A, S]``, from the memory and the previous ones (figure 2)."""
        content = content_weights(memory, self.key, self.strength)
        return sharpen(shift(interpolate(content, previous, self.gate), self.kernel), self.sharpness)


class NTMNetwork(nn.Module):
    """A Neural Turing Machine for sequences ``[B, L, inputs]``; see :func:`ntm_network` for the settings.

    Parameters, for N units, H heads, I inputs and O outputs: the controller (inputs I + H W), a linear layer from it to
    the heads, one to the outputs (from the controller and the reads), the first reads, and the memory where learned.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        controller: Literal["lstm", "feedforward"],
        size: int,
        heads: int,
        slots: int,
        width: int,
        reach: int,
        memory_init: Literal["constant", "learned"],
    ) -> None:
        super().__init__()
        self.heads, self.slots, self.width, self.size = heads, slots, width, size
        self.controller: nn.Module = (
            LSTMCell(inputs + heads * width, size) if controller == "lstm" else nn.Linear(inputs + heads * width, size)
        )
        # Numbers of one kind lie together, for one squashing function each: keys; strengths and sharpnesses; gates and
        # erase vectors; shift kernels; add vectors.
        self.parts = [2 * heads * width, 4 * heads, (2 + width) * heads, 2 * heads * (2 * reach + 1), heads * width]
        self.interface = nn.Linear(size, sum(self.parts))
        self.output = nn.Linear(size + heads * width, outputs)
        self.first_read = nn.Parameter(torch.randn(heads, width) * 0.01)
        if memory_init == "learned":
            self.first_memory = nn.Parameter(torch.randn(slots, width) * 0.05)
        else:  # Collier and Beel 2018: a small constant converges fastest
            self.register_buffer("first_memory", torch.full((slots, width), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, L, outputs]``."""
        return self.trace(x).output

    def trace(self, x: torch.Tensor) -> Trace:
        """Logits, and the weightings of the heads at each step."""
        batch = len(x)
        memory = self.first_memory.expand(batch, -1, -1)
        read = self.first_read.flatten().expand(batch, -1)
        # Every head starts at slot 0, so that shifts alone can walk through the memory.
        weights = F.one_hot(x.new_zeros(batch, 2 * self.heads, dtype=torch.long), self.slots).to(x.dtype)
        state = x.new_zeros(batch, self.size), x.new_zeros(batch, self.size)
        states, weightings = [], []
        for step in x.flatten(2).unbind(1):
            h, state = self._control(torch.cat([step, read], -1), state)
            heads = self._addressing(h)
            weights = heads.weights(memory, weights)
            reading, writing = torch.split(weights, self.heads, 1)
            memory = write(memory, writing, heads.erase, heads.add)
            read = torch.bmm(reading, memory).flatten(1)
            states += [h, read]
            weightings.append(weights)
        # Outputs are not fed back, so one product serves all steps.
        output = self.output(torch.cat(states, -1).view(batch, len(weightings), -1))
        return Trace(output, *torch.split(torch.stack(weightings, 1), self.heads, 2))

    def _control(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        if isinstance(self.controller, LSTMCell):
            state = self.controller(x, state)
            return state[0], state
        return self.controller(x).tanh(), state

    def _addressing(self, h: torch.Tensor) -> Addressing:
        batch, heads = len(h), self.heads
        key, positive, between, kernel, add = torch.split(self.interface(h), self.parts, -1)
        strength, sharpness = F.softplus(positive).view(batch, 2, 2 * heads, 1).unbind(1)
        gate, erase = torch.split(between.sigmoid(), [2 * heads, heads * self.width], -1)
        return Addressing(
            key.tanh().view(batch, 2 * heads, -1),
            strength,
            gate[:, :, None],
            kernel.view(batch, 2 * heads, -1).softmax(-1),
            1 + sharpness,
            erase.view(batch, heads, -1),
            add.view(batch, heads, -1),
        )


def ntm_network(
    controller: Literal["lstm", "feedforward"] = "lstm",
    *,
    size: int = 100,
    heads: int = 1,
    slots: int = 128,
    width: int = 20,
    reach: int = 1,
    memory_init: Literal["constant", "learned"] = "constant",
) -> ModelFactory:
    """A Neural Turing Machine (Graves et al. 2014), with the paper's sizes for the copy task.

    Args:
        controller: ``"lstm"``, or ``"feedforward"`` for one hidden layer of tanh units.
        size: units of the controller.
        heads: H, number of read heads and of write heads.
        slots: S, rows of the memory.
        width: W, numbers per row.
        reach: R, largest shift of a head in one step, in slots.
        memory_init: the first memory: ``"constant"``, every number 1e-6 (Collier and Beel 2018), or ``"learned"``, a
            parameter.

    Returns:
        A factory; the built model maps ``[B, L, inputs]`` to logits ``[B, L, outputs]``.

    Example:
        >>> spec = TaskSpec(input_shape=(9,), outputs=8, kind="sequence", support=0, queries=41)
        >>> ntm_network()(spec)(torch.zeros(2, 41, 9)).shape
        torch.Size([2, 41, 8])
    """

    def build(spec: TaskSpec) -> nn.Module:
        return NTMNetwork(
            torch.Size(spec.input_shape).numel(),
            spec.outputs,
            controller=controller,
            size=size,
            heads=heads,
            slots=slots,
            width=width,
            reach=reach,
            memory_init=memory_init,
        )

    return build


ntm = ntm_network
"""Short name of :func:`ntm_network`, for job files."""
