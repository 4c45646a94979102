"""Batch statistics of the support set, kept: what an adapted model normalises new inputs by.

In meta-training a norm layer takes the statistics of the batch at hand. A prediction must not depend on the other
inputs asked for with it, and to compute the support set's statistics again for each of them would cost a forward pass
of the whole support set per input. So the layer's statistics are taken from the support set, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from distmeta.errors import ModelContractError

_NORMS = (F.batch_norm, torch.batch_norm)


class Statistics(NamedTuple):
    """Mean and variance ``[C]`` of one call of a norm layer."""

    mean: torch.Tensor
    variance: torch.Tensor


class _BatchNorms(TorchFunctionMode, ABC):
    """Normalise every batch norm that takes batch statistics by those of :meth:`statistics`."""

    @abstractmethod
    def statistics(self, x: torch.Tensor) -> Statistics:
        """The statistics for the next call, whose input is ``x [B, C, ...]``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _NORMS and (call := _Call.of(func, args, kwargs or {})).training:
            return call.by(self.statistics(call.input))
        return func(*args, **(kwargs or {}))


class _Recording(_BatchNorms):
    """Keep the statistics of the batch at hand in :attr:`seen`, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Statistics] = []

    def statistics(self, x: torch.Tensor) -> Statistics:
        dims = tuple(d for d in range(x.dim()) if d != 1)
        mean = x.mean(dims)
        self.seen.append(Statistics(mean, (x - _of_channels(mean, x)).square().mean(dims)))
        return self.seen[-1]


class _Replay(_BatchNorms):
    """Take recorded statistics, in the order of the calls."""

    def __init__(self, recorded: Sequence[Statistics]) -> None:
        super().__init__()
        self._recorded, self._next = recorded, 0

    def statistics(self, x: torch.Tensor) -> Statistics:
        if self._next == len(self._recorded):
            raise ModelContractError(
                f"The model called batch norm {len(self._recorded)} times on the support set and more often on other "
                "inputs; expected as many calls for any inputs. Take the condition out of forward(), or use GroupNorm."
            )
        self._next += 1
        return self._recorded[self._next - 1]


class _Call(NamedTuple):
    """The arguments of ``F.batch_norm`` or ``torch.batch_norm`` that matter here."""

    input: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    training: bool
    eps: float

    @classmethod
    def of(cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        names = ["input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"]
        if func is torch.batch_norm:
            names = ["input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return cls(
            given["input"],
            given.get("weight"),
            given.get("bias"),
            bool(given.get("training", False)),
            given.get("eps", 1e-5),
        )

    def by(self, statistics: Statistics) -> torch.Tensor:
        """Normalise the input by ``statistics``."""
        if not statistics.mean.requires_grad:
            return F.batch_norm(self.input, *statistics, self.weight, self.bias, training=False, eps=self.eps)
        # torch's own has no derivative with respect to the statistics.
        scale = torch.rsqrt(statistics.variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = (self.input - _of_channels(statistics.mean, self.input)) * _of_channels(scale, self.input)
        return y if self.bias is None else y + _of_channels(self.bias, self.input)


@dataclass(frozen=True)
class FixedStatistics:
    """``predict`` with the statistics of its batch norms fixed.

    Args:
        predict: a forward pass, or several, of a batch of inputs.
        recorded: of each batch norm, in the order of the calls.
    """

    predict: Callable[[torch.Tensor], torch.Tensor]
    recorded: tuple[Statistics, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Predict.

        Raises:
            ModelContractError: the model calls its norm layers more often than on the support set.
        """
        with _Replay(self.recorded):
            return self.predict(x)


def keeping_statistics(
    predict: Callable[[torch.Tensor], torch.Tensor], on_support: Callable[[], object]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """``predict`` with the statistics of every batch norm fixed to those of one pass over the support set.

    Args:
        predict: a forward pass, or several, of a batch of inputs.
        on_support: the same passes over the support set; called once, now.

    Returns:
        ``predict`` itself where no norm layer takes batch statistics.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2, track_running_stats=False)
        >>> support, queries = torch.rand(5, 2), torch.rand(3, 2)
        >>> fixed = keeping_statistics(norm, lambda: norm(support))
        >>> torch.allclose(fixed(queries)[1:], fixed(queries[1:]))
        True
    """
    with _Recording() as recording:
        on_support()
    return FixedStatistics(predict, tuple(recording.seen)) if recording.seen else predict


def _of_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``[C]`` so that it broadcasts over ``x [B, C, ...]``."""
    return values.reshape([1, -1] + [1] * (x.dim() - 2))
