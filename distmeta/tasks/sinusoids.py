"""Sinusoid regression (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import PositiveInt

from distmeta import config
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Episode, Split, TaskRef, TaskSpec


class Sinusoids(TaskDistribution):
    """Regression of ``y = A sin(x - b)`` with A in [0.1, 5], b in [0, pi] and x in [-5, 5], all uniform.

    Args:
        shots: K, points of the support set.
        queries: points of the query set.

    Example:
        >>> Sinusoids(shots=10).spec.support
        10
    """

    class Config(config.Config):
        """The settings of :class:`Sinusoids`."""

        shots: PositiveInt = 10
        queries: PositiveInt = 10

    config: Config

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the tasks: one number in, one number out."""
        return TaskSpec((1,), 1, "regression", self.config.shots, self.config.queries)

    @property
    def fingerprint(self) -> str:
        """Digest of the formula, since there are no data."""
        return hashlib.sha256(b"sinusoids: y = A sin(x - b), A in [0.1, 5], b in [0, pi], x in [-5, 5]").hexdigest()

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw an amplitude, a phase and ``shots + queries`` points."""
        return self._drawn([random]).map(lambda part: part[0])

    def draw_refs(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """Draw the tasks of a chunk: the numbers of each as :meth:`draw` does, the tensors of all at once."""
        if not self.draws_alone_as(Sinusoids):
            return super().draw_refs(refs, seed)
        return self._drawn(self.generators(refs, seed))

    def _drawn(self, randoms: Sequence[np.random.Generator]) -> Episode:
        k = self.config.shots
        x = np.empty((len(randoms), k + self.config.queries, 1))
        y = np.empty_like(x)
        for i, random in enumerate(randoms):
            amplitude, phase = random.uniform(0.1, 5.0), random.uniform(0.0, math.pi)
            x[i] = random.uniform(-5.0, 5.0, size=x.shape[1:])
            y[i] = amplitude * np.sin(x[i] - phase)
        points, values = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        parts = points[:, :k], values[:, :k], points[:, k:], values[:, k:]
        return Episode(*(part.contiguous() for part in parts))
