"""The outer optimizer on one flat vector, with the average of the parameters that a run is evaluated by.

All of its state is a few arrays of the size of the vector and some numbers, so that a checkpoint holds it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distmeta.errors import ConfigError
from distmeta.experiment.settings import Outer
from distmeta.types import FloatArray

AVERAGE = "average"
"""Name of the averaged parameters among the arrays of the state."""

_COUNTERS = ("k", "weight_sum", "lr_max")  # of schedule-free AdamW, which keeps them beside its vectors


class OuterOptimizer:
    """What happens to a mean meta-gradient.

    Args:
        outer: its settings.
        vector: the meta-parameters ``[P]``; copied.
        arrays: from :meth:`state`, to resume.

    Example:
        >>> optimizer = OuterOptimizer(Outer(optimizer="sgd", lr=1.0, average=0.5), np.zeros(1, np.float32))
        >>> _ = [optimizer.step(step, torch.ones(1)) for step in range(2)]
        >>> optimizer.vector().item(), round(optimizer.learned().item(), 3)
        (-2.0, -1.8)
    """

    def __init__(self, outer: Outer, vector: FloatArray, arrays: Mapping[str, FloatArray] | None = None) -> None:
        self._outer = outer
        self._parameter = torch.nn.Parameter(torch.from_numpy(np.array(vector, copy=True)))
        self._optimizer = _make(outer, self._parameter)
        self._average = None if outer.average is None else self._parameter.detach().clone()
        state = {name: torch.from_numpy(np.array(value, copy=True)) for name, value in (arrays or {}).items()}
        average = state.pop(AVERAGE, None)
        if average is not None and self._average is not None:
            self._average = average
        group = self._optimizer.param_groups[0]
        for name in _COUNTERS:
            if (kept := state.pop(f"counter/{name}", None)) is not None:
                group[name] = int(kept) if name == "k" else float(kept)
        if state:
            self._optimizer.state[self._parameter] = state

    def step(self, step: int, gradient: torch.Tensor) -> float:
        """One outer step, number ``step``, along ``gradient [P]``; returns its learning rate."""
        lr = learning_rate(self._outer, step)
        group = self._optimizer.param_groups[0]
        group["lr"] = lr
        self._parameter.grad = gradient
        self._optimizer.step()
        if self._average is not None:
            assert self._outer.average is not None  # it is why there is one
            # The start would weigh long: a short average first (as in TensorFlow's ExponentialMovingAverage).
            kept = min(self._outer.average, (1 + step) / (10 + step))
            self._average.lerp_(self._parameter.detach(), 1 - kept)
        return lr

    def vector(self) -> FloatArray:
        """A copy of the meta-parameters ``[P]`` that gradients are taken at."""
        array: FloatArray = self._parameter.detach().numpy().copy()
        return array

    def learned(self) -> FloatArray:
        """A copy of the meta-parameters ``[P]`` that the run is evaluated by: the average, where there is one."""
        if self._average is not None:
            return self._average.numpy().copy()
        state = self._optimizer.state.get(self._parameter, {})
        if self._outer.optimizer == "schedulefree" and "z" in state:
            beta1 = self._optimizer.param_groups[0]["betas"][0]
            averaged = torch.lerp(self._parameter.detach(), state["z"], 1 - 1 / beta1)
            return averaged.numpy().copy()
        return self.vector()

    def state(self) -> dict[str, FloatArray]:
        """Arrays by name: all that is needed to go on, and the average."""
        state: dict[str, Any] = self._optimizer.state.get(self._parameter, {})
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in state.items() if value is not None}
        if self._outer.optimizer == "schedulefree" and state:
            group = self._optimizer.param_groups[0]
            arrays |= {f"counter/{name}": np.asarray(group[name], np.float64) for name in _COUNTERS}
        if self._average is not None or self._outer.optimizer == "schedulefree":
            arrays[AVERAGE] = self.learned()
        return arrays


def learning_rate(outer: Outer, step: int) -> float:
    """Learning rate of ``step``: a pure function, so that resuming needs no scheduler state.

    It rises linearly over ``warmup`` steps, then follows the schedule over the rest.

    Example:
        >>> learning_rate(Outer(lr=0.1, schedule="linear", iterations=10), step=5)
        0.05
        >>> [learning_rate(Outer(lr=0.1, warmup=4, iterations=10), step=step) for step in (0, 1, 3, 8)]
        [0.025, 0.05, 0.1, 0.1]
    """
    if step < outer.warmup:
        return outer.lr * (step + 1) / outer.warmup
    done = min((step - outer.warmup) / max(1, outer.iterations - outer.warmup), 1.0)
    if outer.schedule == "linear":
        return outer.lr * (1.0 - done)
    if outer.schedule == "cosine":
        return outer.final_lr + (outer.lr - outer.final_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
    return outer.lr


def _make(outer: Outer, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    decay: dict[str, Any] = {"lr": outer.lr, "weight_decay": outer.weight_decay}
    if outer.optimizer == "sgd":
        return torch.optim.SGD([parameter], momentum=outer.momentum, nesterov=outer.nesterov, **decay)
    if outer.optimizer == "rmsprop":
        graves: dict[str, Any] = {"alpha": 0.95, "eps": 1e-4, "centered": True}
        return torch.optim.RMSprop([parameter], momentum=outer.momentum, **decay, **graves)
    if outer.optimizer == "schedulefree":
        require_schedulefree()
        from schedulefree import AdamWScheduleFree

        found: torch.optim.Optimizer = AdamWScheduleFree([parameter], **decay)
        found.train()  # type: ignore[attr-defined]  # it has no types
        return found
    kind = torch.optim.AdamW if outer.optimizer == "adamw" else torch.optim.Adam
    return kind([parameter], **decay)


def require_schedulefree() -> None:
    """Raise where the library of schedule-free AdamW is absent, before a worker starts.

    Raises:
        ConfigError: it is.
    """
    try:
        import schedulefree  # noqa: F401
    except ImportError:
        raise ConfigError(
            "outer.optimizer=schedulefree needs the package schedulefree, which is not installed. Use pip install "
            "'distmeta[schedulefree]', or set outer.optimizer=adamw with outer.schedule=cosine."
        ) from None
