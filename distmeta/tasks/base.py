"""Task distributions p(T): every task a pure function of (fingerprint, run seed, split, step, index)."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from distmeta import config
from distmeta.errors import TaskContractError, line_of
from distmeta.seeding import rng
from distmeta.types import SPLITS, Episode, Split, TaskRef, TaskSpec

Metrics = dict[str, torch.Tensor]


_PARTS = ("support_x", "support_y", "query_x", "query_y")


class TaskDistribution(config.Configurable, ABC):
    """p(T). A subclass says what its tasks look like (:attr:`spec`) and draws one from a generator (:meth:`draw`).

    Iterating gives a few meta-test tasks; :meth:`take` gives any number from any split.

    Example:
        >>> import distmeta
        >>> task = next(iter(distmeta.Sinusoids(shots=5)))
        >>> x, y = task.sample()
        >>> task.id, tuple(x.shape)
        ('meta_test/0', (5, 1))
    """

    @property
    @abstractmethod
    def spec(self) -> TaskSpec:
        """Shapes of the tasks that the learner is judged on."""

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tasks of one split, where training tasks differ from test tasks."""
        return self.spec

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """64 hex digits that change when the data behind the tasks changes."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have tasks."""
        return SPLITS

    @abstractmethod
    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """One task; every random number comes from ``random``."""

    def at_step(self, split: Split, random: np.random.Generator) -> Self:
        """The distribution as it is in one outer step.

        The tasks of a step are stacked and must have the same shapes: what changes these, the length of a sequence say,
        is drawn here, once for all tasks of the step. Evaluation tasks are all of step 0.
        """
        return self

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """The task that ``ref`` names in a run with ``seed``; override where tasks are a list and not drawn."""
        return self.draw(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, ref.index))

    def count(self, split: Split) -> int | None:
        """How many different tasks ``split`` has; ``None`` where they are drawn without end."""
        return None

    def classes(self, split: Split) -> int | None:
        """How many classes the tasks of ``split`` are drawn from, without rotated ones; ``None`` without classes."""
        return None

    def check(self) -> None:
        """Everything that can be checked before a worker starts: data present, enough classes, enough examples.

        Raises:
            DataError: the dataset is absent or damaged.
            TaskContractError: the settings ask for more than the data hold.
        """
        for split in self.splits:
            self.check_split(split)

    def check_split(self, split: Split) -> None:
        """As :meth:`check`, for one split: all that evaluation needs. Errors as of :meth:`check`."""
        self.episode(TaskRef(split, 0, 0), seed=0)

    def baseline(self, episodes: Episode) -> Metrics:
        """What no learning at all achieves on stacked tasks ``[T, ...]``: the yardstick beside every result.

        Classification: ``baseline_accuracy`` of the nearest support example by Euclidean distance on the raw inputs.
        Regression: ``baseline_loss``, the mean squared error of predicting the mean of the support targets. Sequences:
        none here, a distribution of them has its own.
        """
        return _baseline(episodes)

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts for the run's record, such as the dataset's name and source."""
        return {"name": type(self).__name__, "source": type(self).__name__}

    def episode(self, ref: TaskRef, seed: int) -> Episode:
        """The task that ``ref`` names in a run with ``seed``; errors as of :meth:`episodes`."""
        return self.episodes([ref], seed).map(lambda part: part[0])

    def episodes(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """The tasks of a chunk, stacked: ``[T, ...]``.

        Args:
            refs: T names of tasks of one split and step.
            seed: of the run.

        Raises:
            TaskContractError: a task has NaN or infinite numbers, labels out of range, or shapes other than
                :meth:`spec_of` says; it carries the task's name.
        """
        drawn: list[Episode] = []
        split, step = refs[0].split, refs[0].step
        now = self.at_step(split, rng(seed, self.fingerprint, split, step, "shapes"))
        for ref in refs:
            drawn.append(now.draw_ref(ref, seed))
            now._require_shapes(ref, drawn[-1])
        stacked = Episode.stack(drawn)
        flaws = (self._flaw(name, part, refs[0].split) for name, part in zip(_PARTS, stacked, strict=True))
        if any(flaws):  # one look at the whole chunk; only a bad one is searched
            for ref, episode in zip(refs, drawn, strict=True):
                self._require_sound(ref, episode)
        return stacked

    def _require_shapes(self, ref: TaskRef, episode: Episode) -> None:
        spec = self.spec_of(ref.split)
        row = {"x": spec.input_shape, "y": (spec.outputs,) if spec.kind == "regression" else ()}
        if spec.kind == "sequence" and episode.query_y.dim() > 1:  # S symbols or B bits per step
            symbols = episode.query_y.shape[1]
            whole = symbols == spec.outputs if episode.query_y.is_floating_point() else spec.outputs % symbols == 0
            row["y"] = (symbols if whole else spec.outputs,)
        for name, part in zip(_PARTS, episode, strict=True):
            expected = (spec.support if name.startswith("support") else spec.queries, *row[name[-1]])
            if part.shape != expected:
                raise TaskContractError(
                    f"{name} of a task from {type(self).__name__} has shape {list(part.shape)}; expected "
                    f"{list(expected)} by its spec. Give every task the same number of examples, of the same shape.",
                    task_ref=ref,
                )

    def _require_sound(self, ref: TaskRef, episode: Episode) -> None:
        for name, part in zip(_PARTS, episode, strict=True):
            flaw = self._flaw(name, part[None], ref.split)
            if flaw:
                raise TaskContractError(f"{name} of a task from {type(self).__name__} has {flaw}", task_ref=ref)

    def _flaw(self, name: str, part: torch.Tensor, split: Split) -> str | None:
        """What is wrong with the numbers of one part of stacked tasks."""
        spec = self.spec_of(split)
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            return (
                "NaN or infinite values; expected finite numbers. Mend the function that draws the task, or the data "
                "that it reads."
            )
        if name[-1] != "y" or spec.kind == "regression" or not part.numel():
            return None
        lowest, highest = (0, spec.outputs - 1) if spec.kind == "classification" else self._range(part, spec)
        if part.min() < lowest or part.max() > highest:
            return (
                f"labels from {float(part.min()):g} to {float(part.max()):g}; expected {lowest} to {highest}. Number "
                "the classes of every task from 0."
            )
        return None

    @staticmethod
    def _range(targets: torch.Tensor, spec: TaskSpec) -> tuple[int, int]:
        """Lowest and highest target of stacked sequences; -1 is not scored."""
        if targets.is_floating_point():
            return -1, 1
        symbols = targets.shape[2] if targets.dim() == 3 else 1
        return -1, spec.outputs // symbols - 1

    def take(self, count: int = 20, *, split: Split = "meta_test", seed: int = 0) -> list[Task]:
        """The first ``count`` tasks of ``split``: the same ones for every learner and every run."""
        limit = self.count(split)
        return [Task(self, TaskRef(split, 0, index), seed) for index in range(min(count, limit or count))]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.take())


@dataclass(frozen=True)
class Task:
    """One task; it holds no data until asked.

    Args:
        distribution: where it comes from.
        ref: its name.
        seed: seed of the run.
    """

    distribution: TaskDistribution
    ref: TaskRef
    seed: int

    @property
    def id(self) -> str:
        """``split/index``."""
        return f"{self.ref.split}/{self.ref.index}"

    @property
    def episode(self) -> Episode:
        """Support and query set."""
        return self.distribution.episode(self.ref, self.seed)

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The labelled examples to learn from: ``support_x [N*K, ...]`` and ``support_y [N*K]``."""
        episode = self.episode
        return episode.support_x, episode.support_y


def _baseline(episodes: Episode) -> Metrics:
    support_x, support_y, query_x, query_y = episodes
    if not support_y.shape[1]:
        return {}
    if query_y.is_floating_point():
        guess = support_y.mean(1, keepdim=True)
        return {"baseline_loss": (guess - query_y).square().flatten(1).mean(1)}
    distance = torch.cdist(query_x.flatten(2), support_x.flatten(2))
    nearest = support_y.gather(1, distance.argmin(-1))
    return {"baseline_accuracy": (nearest == query_y).float().mean(1)}


Drawn = Episode | tuple[Any, Any, Any, Any]


class FunctionTasks(TaskDistribution):
    """A task distribution from a function ``(random, split) -> (support_x, support_y, query_x, query_y)``.

    The function must take every random number from the ``numpy.random.Generator`` it is given, and return arrays or
    tensors of the same shapes each time: int64 labels 0..N-1 for classification, floats for regression.

    Args:
        function: the function.
        version: change it when data outside the function's own source changes; it is part of the fingerprint.

    Example:
        >>> @task_distribution
        ... def lines(random, split):
        ...     slope, x = random.normal(), random.uniform(-1, 1, size=(20, 1))
        ...     return x[:10], slope * x[:10], x[10:], slope * x[10:]
        >>> lines.spec
        TaskSpec(input_shape=(1,), outputs=1, kind='regression', support=10, queries=10)
    """

    class Config(config.Config):
        """The settings of :class:`FunctionTasks`."""

        version: str = "1"

    def __init__(self, function: Callable[[np.random.Generator, Split], Drawn], **settings: Any) -> None:
        super().__init__(**settings)
        self.function = function
        # Read once: the file may change while the run goes on, and is not there at all on another node.
        try:
            self._source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt: the name has to do
            self._source = getattr(function, "__qualname__", type(function).__name__)
        self._spec: TaskSpec | None = None

    @property
    def spec(self) -> TaskSpec:
        """Read off a first training task."""
        if self._spec is None:
            self._spec = self._read_spec()
        return self._spec

    def _read_spec(self) -> TaskSpec:
        first = self.draw("meta_train", rng(0, "spec"))
        regression = first.query_y.is_floating_point()
        return TaskSpec(
            input_shape=tuple(first.query_x.shape[1:]),
            outputs=int(first.query_y.shape[-1]) if regression else int(first.support_y.max()) + 1,
            kind="regression" if regression else "classification",
            support=len(first.support_x),
            queries=len(first.query_x),
        )

    @property
    def fingerprint(self) -> str:
        """Over the function's source text and ``version``."""
        return hashlib.sha256(f"{self._source}\0{self.config.version}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The function's name."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"name": name, "source": f"function {name}"}

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Calls the function and turns what it returns into tensors.

        Raises:
            TaskContractError: the function fails, or returned something else than four arrays that fit together.
        """
        try:
            drawn = self.function(random, split)
        except Exception as error:
            raise TaskContractError(
                f"The task function fails: {type(error).__name__}: {error} ({line_of(error)}). It is called with a "
                f"numpy.random.Generator and the split, here '{split}'. Mend that line."
            ) from error
        if not isinstance(drawn, Episode):
            if not isinstance(drawn, tuple) or len(drawn) != 4:
                raise TaskContractError(
                    f"The task function returned {type(drawn).__name__}; expected "
                    "(support_x, support_y, query_x, query_y). Return four arrays or an Episode."
                )
            drawn = Episode(*(_tensor(part) for part in drawn))
        if drawn.query_y.is_floating_point() and drawn.query_y.dim() == 1:
            raise TaskContractError(
                f"The task function returned float targets of shape {list(drawn.query_y.shape)}; expected [n, D] for "
                "regression, or integer labels [n] for classification. Return y[:, None] for one number per input."
            )
        for half, x, y in (("support", drawn.support_x, drawn.support_y), ("query", drawn.query_x, drawn.query_y)):
            if len(x) != len(y):
                raise TaskContractError(
                    f"The task function returned {len(x)} {half} inputs and {len(y)} {half} targets; expected as many."
                )
        return drawn


def task_distribution(function: Callable[[np.random.Generator, Split], Drawn]) -> FunctionTasks:
    """Decorator form of :class:`FunctionTasks`."""
    return FunctionTasks(function)


def _tensor(value: Any) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor.long()
