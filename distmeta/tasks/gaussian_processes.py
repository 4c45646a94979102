"""Functions drawn from Gaussian processes: the tasks of neural processes, with the exact answer beside them.

The protocol is that of transformer neural processes (Nguyen and Grover 2022, section 5.1) and, but for the ranges, of
Garnelo et al. (2018, section 4.1): inputs are uniform in [-2, 2], hyper-parameters are drawn for every task, and the
numbers of support points and queries for every step. Since the hyper-parameters of a task are a function of its name,
so is the posterior that no learner can do better than, on average::

    mean(x) = k(x, X) (k(X, X) + s^2 I)^-1 y        variance(x) = k(x, x) - k(x, X) (k(X, X) + s^2 I)^-1 k(X, x) + s^2
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from distmeta import config
from distmeta.config import NumberOrBounds
from distmeta.errors import TaskContractError
from distmeta.seeding import rng
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Episode, Metrics, Split, TaskRef, TaskSpec

Array = npt.NDArray[np.float64]
Kernel = Literal["rbf", "matern52", "periodic"]
Kernels = Kernel | Annotated[tuple[Kernel, ...], Field(min_length=1)]

_GROUP = 16
"""Evaluation tasks that share their numbers of points: a batch of the protocol."""

_FEWEST = 3
"""The fewest queries of a task, where they are drawn."""


def _range(value: Any) -> Any:
    """A number, or a lower and an upper bound, as bounds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] > value[1]:
        raise ValueError("expected a number, or a lower and an upper bound such as [0.1, 0.6]")
    return value


Range = Annotated[tuple[PositiveFloat, PositiveFloat], BeforeValidator(_range)]
"""Bounds of a uniform distribution; a number stands for two equal ones."""


@dataclass(frozen=True)
class Process:
    """The Gaussian process of one task: mean 0 and a covariance function.

    Args:
        kernel: which covariance function.
        length: its length scale, in units of the inputs; for ``"periodic"`` without unit.
        scale: standard deviation of the function's values.
        period: of ``"periodic"``, in units of the inputs.
        noise: standard deviation of independent noise on every target.
    """

    kernel: Kernel
    length: float
    scale: float
    period: float
    noise: float

    def covariance(self, a: Array, b: Array) -> Array:
        """``k(a, b)`` without noise, ``[m, n]`` for points ``a [m]`` and ``b [n]``.

        Example:
            >>> Process("rbf", length=0.5, scale=2.0, period=1.0, noise=0.1).covariance(np.zeros(1), np.zeros(2))
            array([[4., 4.]])
        """
        return self.scale**2 * _KERNELS[self.kernel](a[:, None] - b, self)

    def posterior(self, x: Array, y: Array, queries: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of a target at each of ``queries [m]``, noise included, given ``x``, ``y [n]``.

        Returns:
            Two arrays ``[m]``.
        """
        root = np.linalg.cholesky(self.covariance(x, x) + self.noise**2 * np.eye(len(x)))
        known = np.linalg.solve(root, np.column_stack([self.covariance(x, queries), y]))
        weights, targets = known[:, :-1], known[:, -1]
        variance = self.scale**2 - np.square(weights).sum(0)
        return weights.T @ targets, np.sqrt(np.maximum(variance, 0.0) + self.noise**2)


_KERNELS: Mapping[Kernel, Callable[[Array, Process], Array]] = {
    "rbf": lambda d, p: np.exp(-0.5 * np.square(d / p.length)),
    "matern52": lambda d, p: _matern52(math.sqrt(5) * np.abs(d) / p.length),
    "periodic": lambda d, p: np.exp(-2 * np.square(np.sin(np.pi * d / p.period) / p.length)),
}


def _matern52(r: Array) -> Array:
    found: Array = (1 + r + np.square(r) / 3) * np.exp(-r)
    return found


class GaussianProcesses(TaskDistribution):
    """Regression of functions drawn from Gaussian processes, with noise.

    Where ``context`` or ``queries`` are bounds, they are drawn for every step of training and for every 16 tasks of
    evaluation. Each result has ``exact_log_likelihood`` beside it, that of the posterior with the true kernel and
    hyper-parameters, per query and on the same tasks; also ``exact_loss`` and ``exact_mse``. On 4,800 tasks of the
    default it is 1.50 nats, and 1.09 with ``test_kernel="matern52"``.

    Args:
        kernel: ``"rbf"``, ``"matern52"`` or ``"periodic"``; of several each task draws one.
        test_kernel: that of the test tasks, where they differ.
        context: points of the support set.
        queries: query points; by default as many as leave less than ``points`` in all, 3 or more.
        points: see ``queries``.
        length: length scale: bounds of a uniform distribution, or a number.
        scale: standard deviation of the function; bounds or a number.
        period: of the periodic kernel; bounds or a number.
        noise: standard deviation of the noise on targets.
        inputs: bounds of the inputs, which are uniform.

    Example:
        >>> tasks = GaussianProcesses(length=0.4, scale=1.0, context=5, queries=20)
        >>> ref = TaskRef("meta_test", 0, 0)
        >>> episodes = tasks.episodes([ref], seed=0)
        >>> tasks.process(ref, seed=0).length
        0.4
        >>> mean, scale = tasks.posterior([ref], 0, episodes)
        >>> tuple(mean.shape), bool((scale >= 0.02).all())
        ((1, 20, 1), True)
    """

    class Config(config.Config):
        """The settings of :class:`GaussianProcesses`."""

        kernel: Kernels = "rbf"
        test_kernel: Kernels | None = None
        context: NumberOrBounds = (3, 46)
        queries: NumberOrBounds | None = None
        points: int = Field(default=50, gt=0)
        length: Range = (0.1, 0.6)
        scale: Range = (0.1, 1.0)
        period: Range = (0.1, 0.5)
        noise: PositiveFloat = 0.02
        inputs: tuple[float, float] = (-2.0, 2.0)

        @model_validator(mode="after")
        def _possible(self) -> Self:
            most = self.context[1] if isinstance(self.context, tuple) else self.context
            if self.queries is None and most + _FEWEST >= self.points:
                raise ValueError(
                    f"context={self.context} leaves fewer than {_FEWEST} queries of less than points={self.points}; "
                    f"expected fewer. Set points={most + _FEWEST + 1}, or queries"
                )
            if self.inputs[0] >= self.inputs[1]:
                raise ValueError(f"inputs={self.inputs}; expected a lower and an upper bound such as [-2, 2]")
            return self

    config: Config

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the test tasks: the largest numbers of points, where they are drawn."""
        c = self.config
        context, least = (c.context[1], c.context[0]) if isinstance(c.context, tuple) else (c.context, c.context)
        if c.queries is None:
            queries = c.points - 1 - least
        else:
            queries = c.queries[1] if isinstance(c.queries, tuple) else c.queries
        return TaskSpec((1,), 1, "regression", context, queries)

    @property
    def fingerprint(self) -> str:
        """Digest of the recipe, since there are no data."""
        return hashlib.sha256(b"gaussian processes, version 1").hexdigest()

    def describe(self) -> dict[str, Any]:
        """The kernels, as JSON-ready facts."""
        kernels = [", ".join(self._kernels(split)) for split in ("meta_train", "meta_test")]
        test = f"; test: {kernels[1]}" if kernels[1] != kernels[0] else ""
        return {"name": f"Gaussian processes ({kernels[0]}{test})", "source": "Gaussian processes"}

    def at_step(self, split: Split, random: np.random.Generator) -> GaussianProcesses:
        """The tasks of one outer step: numbers of points are drawn where they are no single numbers."""
        c = self.config
        if isinstance(c.context, int) and isinstance(c.queries, int):
            return self
        context = _drawn(random, c.context)
        most = c.points - 1 - context
        return self.with_config(context=context, queries=_drawn(random, c.queries or (_FEWEST, most)))

    def shaped(self, ref: TaskRef, seed: int) -> GaussianProcesses:
        """The distribution that the task of ``ref`` is drawn from; in evaluation every 16 tasks have their own."""
        if ref.split == "meta_train":
            return super().shaped(ref, seed)
        path = (ref.split, ref.step, "shapes", ref.index // _GROUP)
        return self.at_step(ref.split, rng(seed, self.fingerprint, *path))

    def together(self, refs: Sequence[TaskRef], seed: int) -> list[Sequence[TaskRef]]:
        """``refs`` in runs of equal numbers of points."""
        if refs[0].split == "meta_train":
            return [refs]
        return [list(run) for _, run in itertools.groupby(refs, lambda ref: ref.index // _GROUP)]

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw a process, inputs, and a function with noise at these inputs.

        Raises:
            TaskContractError: the covariance is too near to singular for the noise.
        """
        c = self.config
        if not isinstance(c.context, int) or not isinstance(c.queries, int):
            return self.at_step(split, random).draw(split, random)
        process = self._process(split, random)
        # As the learner gets them: the exact posterior is computed from these very numbers.
        x = random.uniform(*c.inputs, c.context + c.queries).astype(np.float32).astype(np.float64)
        covariance = process.covariance(x, x) + process.noise**2 * np.eye(len(x))
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise TaskContractError(
                f"The covariance of {len(x)} points is not positive definite in float64 with noise={process.noise}; "
                "expected more noise. Set tasks.noise=0.001 or more."
            ) from None
        y = root @ random.standard_normal(len(x))
        points, values = (torch.from_numpy(part.astype(np.float32))[:, None] for part in (x, y))
        k = c.context
        return Episode(points[:k], values[:k], points[k:], values[k:])

    def process(self, ref: TaskRef, seed: int) -> Process:
        """The Gaussian process that the task of ``ref`` was drawn from, its true hyper-parameters."""
        random = rng(seed, self.fingerprint, ref.split, ref.step, ref.index)
        return self._process(ref.split, random)

    def posterior(
        self, refs: Sequence[TaskRef], seed: int, episodes: Episode, x: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the targets under the true process, given the support set.

        Args:
            refs: names of T tasks.
            seed: seed of the run.
            episodes: their data ``[T, ...]``.
            x: points ``[T, M, 1]`` in place of the queries.

        Returns:
            Two float64 tensors ``[T, M, 1]``; the noise is in the standard deviation.
        """
        asked = episodes.query_x if x is None else x
        parts = (part.detach().cpu().double().numpy()[..., 0] for part in (*episodes, asked))
        support_x, support_y, _, _, points = parts
        found = [
            self.process(ref, seed).posterior(*given)
            for ref, *given in zip(refs, support_x, support_y, points, strict=True)
        ]
        mean, scale = (torch.from_numpy(np.stack(part))[..., None] for part in zip(*found, strict=True))
        return mean, scale

    def exact(self, refs: Sequence[TaskRef], seed: int, episodes: Episode) -> Metrics:
        """Scores ``[T]`` of the posterior under the true process, per query.

        Returns:
            ``exact_log_likelihood`` in nats, ``exact_loss``, its negative, and ``exact_mse``.
        """
        mean, scale = self.posterior(refs, seed, episodes)
        error = episodes.query_y.detach().cpu().double() - mean
        likelihood = (-0.5 * (error / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)).mean((1, 2))
        found = {"log_likelihood": likelihood, "loss": -likelihood, "mse": error.square().mean((1, 2))}
        return {f"exact_{name}": values.to(episodes.query_y) for name, values in found.items()}

    def _process(self, split: Split, random: np.random.Generator) -> Process:
        """The first random numbers of a task."""
        c, kernels = self.config, self._kernels(split)
        length, scale, period = (float(random.uniform(*bounds)) for bounds in (c.length, c.scale, c.period))
        kernel = kernels[int(random.integers(len(kernels)))] if len(kernels) > 1 else kernels[0]
        return Process(kernel, length, scale, period, c.noise)

    def _kernels(self, split: Split) -> tuple[Kernel, ...]:
        c = self.config
        found = c.test_kernel if split == "meta_test" and c.test_kernel is not None else c.kernel
        return found if isinstance(found, tuple) else (found,)


def _drawn(random: np.random.Generator, bounds: NumberOrBounds) -> int:
    return int(random.integers(bounds[0], bounds[1] + 1)) if isinstance(bounds, tuple) else bounds
