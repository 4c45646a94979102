"""The records that travel between the parts, all frozen.

Shape legend, used in every docstring of the package::

    T  tasks in a chunk          N  ways (classes per task)      K  shots (support examples per class)
    Q  queries per class         P  meta-parameters (scalars)    C, H, W  channels, height, width

Splits of classes are named ``meta_train``, ``meta_validation`` and ``meta_test``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Split = Literal["meta_train", "meta_validation", "meta_test"]
SPLITS: tuple[Split, ...] = ("meta_train", "meta_validation", "meta_test")

Params = dict[str, torch.Tensor]
"""Named meta-parameters, in the order of ``model.named_parameters()``."""

Metrics = dict[str, torch.Tensor]
"""Per-task numbers by name, each ``[T]``; scalars for one task."""

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, order=True, slots=True)
class TaskRef:
    """The name of one task: small enough to send, enough to rebuild the task anywhere.

    Together with the dataset's fingerprint and the run's seed it determines every number of the task.

    Args:
        split: the class split the task is drawn from.
        step: the outer step it belongs to; 0 for evaluation tasks.
        index: its place in the meta-batch (training) or in the evaluation list.

    Example:
        >>> TaskRef("meta_train", step=12, index=3)
        TaskRef(split='meta_train', step=12, index=3)
    """

    split: Split
    step: int
    index: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The unit of dispatch: tasks ``start`` to ``stop - 1`` of one meta-batch, adapted in one vectorised call.

    Example:
        >>> [ref.index for ref in Chunk(id=1, split="meta_train", step=0, start=8, stop=10).refs]
        [8, 9]
    """

    id: int
    split: Split
    step: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of tasks T."""
        return self.stop - self.start

    @property
    def refs(self) -> tuple[TaskRef, ...]:
        """One :class:`TaskRef` per task, in order."""
        return tuple(TaskRef(self.split, self.step, index) for index in range(self.start, self.stop))


@dataclass(frozen=True)
class Episode:
    """The data of one task, or of T tasks stacked along a leading axis.

    A sequence, for memory-based learners, has its labels among its inputs: the support set is empty, and the queries
    are the L time steps in their order. A step with negative targets is not scored. See :meth:`sequence`.

    Args:
        support_x: ``[N*K, ...]`` inputs to adapt on (``[T, N*K, ...]`` when stacked), floating point.
        support_y: ``[N*K]`` int64 class positions 0..N-1, or ``[N*K, D]`` floats for regression; -1 for a row that is
            padding, where the :class:`TaskSpec` says ``padded``.
        query_x: ``[N*Q, ...]`` inputs the adapted model is evaluated on; ``[L, ...]`` for sequences.
        query_y: ``[N*Q]`` int64 (-1 for padding) or ``[N*Q, D]`` floats; for sequences ``[L]`` int64, or ``[L, S]``
            int64 for S symbols per step, or ``[L, B]`` floats 0 or 1 for B bits per step.
        ways: N, known without looking at the labels; filled in by the engine, ``None`` for regression.
        outputs: how many of the model's outputs stand for classes of this task, the first ones; ``None`` for all. Fewer
            than the model has where the number of classes is drawn per step.
    """

    support_x: torch.Tensor
    support_y: torch.Tensor
    query_x: torch.Tensor
    query_y: torch.Tensor
    ways: int | None = field(default=None, kw_only=True)
    outputs: int | None = field(default=None, kw_only=True)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.support_x, self.support_y, self.query_x, self.query_y))

    @staticmethod
    def sequence(inputs: torch.Tensor, targets: torch.Tensor) -> Episode:
        """One sequence of L steps: ``inputs [L, ...]`` and ``targets [L, ...]``, negative where nothing is scored.

        Example:
            >>> episode = Episode.sequence(torch.rand(7, 3), torch.tensor([-1, -1, -1, 0, 1, 2, 0]))
            >>> len(episode.support_x), len(episode.query_x)
            (0, 7)
        """
        return Episode(inputs[:0], targets[:0], inputs, targets)

    @staticmethod
    def stack(episodes: list[Episode]) -> Episode:
        """T episodes of equal shapes as one, ``[T, ...]``."""
        parts = (torch.stack(parts) for parts in zip(*episodes, strict=True))
        return Episode(*parts, ways=episodes[0].ways, outputs=episodes[0].outputs)

    def to(self, device: torch.device, dtype: torch.dtype) -> Episode:
        """The same episode on ``device``, floating point tensors as ``dtype``; labels keep their type."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Episode:
        """``function`` of each of the four tensors."""
        return Episode(*(function(part) for part in self), ways=self.ways, outputs=self.outputs)

    def counted(self) -> Episode:
        """With :attr:`ways` filled in: the highest label plus one, for integer labels."""
        if self.ways is not None or self.support_y.is_floating_point() or not self.support_y.numel():
            return self
        return replace(self, ways=int(self.support_y.max()) + 1)


@dataclass(frozen=True)
class TaskSpec:
    """The shapes that every task of a distribution has in common: enough to build a model for it.

    Args:
        input_shape: shape of one input, for example ``(1, 28, 28)``.
        outputs: numbers the model must return per input: N for N-way classification, D for regression; per time step
            of a sequence: one per bit, or one per symbol and value.
        kind: ``"classification"`` (integer labels), ``"regression"`` (float targets) or ``"sequence"``.
        support: examples in the support set, N*K; 0 for sequences.
        queries: examples in the query set, N*Q; for sequences L, the time steps of a test task.
        fewest: the fewest classes of a task, where N is drawn per step; ``outputs``, ``support`` and ``queries`` are
            then the largest numbers. ``None`` where it is always the same.
        target_size: D, numbers of a regression target, where the model must return another number ``outputs`` per
            query, such as a mean and a scale for each; ``None`` where it returns D.
        padded: whether tasks are filled up to equal shapes: support and query rows of label -1 are padding, and whole
            columns of zeros may be. Only in-context learners take such tasks.
    """

    input_shape: tuple[int, ...]
    outputs: int
    kind: Literal["classification", "regression", "sequence"]
    support: int
    queries: int
    fewest: int | None = field(default=None, repr=False)
    target_size: int | None = field(default=None, repr=False)
    padded: bool = field(default=False, repr=False)


ModelFactory = Callable[[TaskSpec], nn.Module]
"""Builds the network that fits the shapes of the tasks."""


@dataclass(frozen=True)
class MetaGradient:
    """The meta-gradient of a chunk: the *sum* over its T tasks, so that chunks of any size add up.

    Args:
        gradient: the sum over tasks of d(loss)/d(meta_params), one tensor per meta-parameter.
        tasks: T, the weight of this sum.
        metrics: per-task numbers, each ``[T]``; ``loss`` is always there.
    """

    gradient: Params
    tasks: int
    metrics: Mapping[str, torch.Tensor]


class Span(NamedTuple):
    """What a process did from when to when, in seconds by its clock, see :mod:`distmeta.runtime.step_time`."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class ChunkResult:
    """The small header that a worker sends to the driver; the gradient vector travels apart, to the server.

    Args:
        chunk: what was computed.
        version: version of the meta-parameters it was computed from.
        worker: name of the worker.
        metrics: per-task numbers, each ``[T]``.
        seconds: wall time in the worker.
        calibration: sums of each task that are pooled over all tasks, ``[T, rows, bins]``, see
            :class:`distmeta.calibration.Calibration`; ``None`` in training, and without probabilities.
        spans: what the worker did, one after the other: ``sample``, ``compute``, ``flatten``.
    """

    chunk: Chunk
    version: int
    worker: str
    metrics: Mapping[str, FloatArray]
    seconds: float
    calibration: FloatArray | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class ParamVersion:
    """The header of a published version of the meta-parameters; the flat vector ``[P]`` travels apart.

    Args:
        version: outer steps applied so far.
        grad_norm: Euclidean norm of the mean meta-gradient of the last step, before clipping.
        lr: learning rate of the last step.
        spans: what the server did for it: ``reduce`` once for each chunk, then ``apply``.
    """

    version: int
    grad_norm: float
    lr: float
    spans: tuple[Span, ...] = ()
