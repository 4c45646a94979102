"""The parameter server: sums meta-gradients, steps the outer optimizer, publishes the next version.

A plain class; the backend decides where it lives. Every call is idempotent by step and chunk ids, so a call that is
repeated after a failure changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from distmeta.errors import ChunksMissing, NonFiniteGradientError, RuntimeFailure
from distmeta.experiment.settings import Outer
from distmeta.runtime.chunks import Share, TreeSum
from distmeta.runtime.outer_optimizer import OuterOptimizer
from distmeta.runtime.step_time import Laps
from distmeta.types import FloatArray, ParamVersion, Span


class ParameterServer:
    """Owner of the meta-parameters, one flat vector ``[P]``.

    Args:
        outer: settings of the outer loop.
        vector: the meta-parameters ``[P]``, float32 or float64.
        version: outer steps that are already in ``vector``.
        optimizer: state arrays from :meth:`state`, to resume.

    Example:
        >>> from distmeta.runtime import chunks
        >>> server = ParameterServer(Outer(optimizer="sgd", lr=0.5), np.zeros(2, np.float32))
        >>> (share,) = chunks.shares(chunks.split(4, 4, split="meta_train", step=0), 1)
        >>> header, vector = server.apply(0, [share], np.array([[4.0, 8.0]], np.float32))
        >>> header.version, vector.tolist()
        (1, [-0.5, -1.0])
    """

    def __init__(
        self,
        outer: Outer,
        vector: FloatArray,
        *,
        version: int = 0,
        optimizer: Mapping[str, FloatArray] | None = None,
    ) -> None:
        self._outer = outer
        self._optimizer = OuterOptimizer(outer, vector, optimizer)
        self._published = ParamVersion(version=version, grad_norm=math.nan, lr=math.nan)
        self._sum: TreeSum | None = None
        self._tasks: dict[int, int] = {}
        self._spans: list[Span] = []

    def accumulate(self, step: int, share: Share, sums: FloatArray) -> None:
        """Take the gradients of a share of ``step``; one that came before is ignored.

        Args:
            step: the outer step, equal to the version they were computed from.
            share: which chunks of the step.
            sums: ``[K, P]``, the sum over the tasks of each of ``share.nodes``.
        """
        if step < self._published.version:
            return  # a late duplicate of a step that is done
        if step > self._published.version:
            raise RuntimeFailure(f"A gradient of step {step} came at version {self._published.version}.")
        laps = Laps()
        if self._sum is None:
            self._sum, self._tasks, self._spans = TreeSum(share.of), {}, []
        for (first, stop), gradient in zip(share.nodes, sums, strict=True):
            self._sum.add_node(first, stop, gradient)
        self._tasks |= {chunk.id: chunk.size for chunk in share.chunks}
        laps.lap("reduce")
        self._spans += laps.spans

    def apply(self, step: int, shares: Sequence[Share] = (), *sums: FloatArray) -> tuple[ParamVersion, FloatArray]:
        """One outer step with the mean gradient of all chunks; again for the same step returns what it returned.

        Args:
            step: the outer step.
            shares: those whose gradients come with this call, to be taken first.
            sums: of each of these, as for :meth:`accumulate`.

        Returns:
            The header of version ``step + 1`` and the flat vector ``[P]``.

        Raises:
            ChunksMissing: not every chunk of the step has come; the parameters are as before.
            NonFiniteGradientError: the mean gradient is NaN or infinite; the parameters are as before.
        """
        if step < self._published.version:
            return self._published, self.vector()
        for share, own in zip(shares, sums, strict=True):
            self.accumulate(step, share, own)
        if self._sum is None or not self._sum.complete or step > self._published.version:
            raise ChunksMissing(
                f"There is no gradient for step {step} at version {self._published.version}: it has {len(self._tasks)} "
                "of its chunks."
            )
        laps = Laps()
        mean = torch.from_numpy(self._sum.total / np.asarray(sum(self._tasks.values()), self._sum.total.dtype))
        norm = _norm(mean)
        if not math.isfinite(norm):
            raise NonFiniteGradientError(
                f"The mean meta-gradient of step {step} has norm {norm}; expected a finite number. Nothing was "
                "applied. Lower learner.inner_lr or outer.lr, or set outer.clip_norm=10."
            )
        if self._outer.clip_value is not None:
            mean = mean.clamp(-self._outer.clip_value, self._outer.clip_value)
        if self._outer.clip_norm is not None:
            mean = mean * min(1.0, self._outer.clip_norm / max(_norm(mean), 1e-12))
        lr = self._optimizer.step(step, mean)
        self._sum, self._tasks = None, {}
        vector = self.vector()
        laps.lap("apply")
        self._published = ParamVersion(version=step + 1, grad_norm=norm, lr=lr, spans=(*self._spans, *laps.spans))
        return self._published, vector

    def vector(self) -> FloatArray:
        """A copy of the meta-parameters ``[P]`` that gradients are taken at."""
        return self._optimizer.vector()

    def learned(self) -> FloatArray:
        """A copy of the meta-parameters ``[P]`` that the run is evaluated by: an average, where one is asked for."""
        return self._optimizer.learned()

    def state(self) -> tuple[int, FloatArray, dict[str, FloatArray]]:
        """Version, vector and optimizer arrays: all that a checkpoint needs."""
        return self._published.version, self.vector(), self._optimizer.state()


def _norm(vector: torch.Tensor) -> float:
    """The Euclidean norm, also where the squares of finite elements are beyond their type: those are to be clipped."""
    norm = float(torch.linalg.vector_norm(vector))
    return norm if norm < math.inf else float(torch.linalg.vector_norm(vector, dtype=torch.float64))
