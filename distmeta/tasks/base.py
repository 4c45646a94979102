"""Task distributions p(T): every task a pure function of (fingerprint, run seed, split, step, index)."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from distmeta import config
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import TaskContractError
from distmeta.seeding import rng, rngs
from distmeta.tasks import baselines
from distmeta.types import SPLITS, Episode, Metrics, Split, TaskRef, TaskSpec

_PARTS = ("support_x", "support_y", "query_x", "query_y")


class TaskDistribution(config.Configurable, ABC):
    """A distribution over tasks p(T). A subclass defines their shapes (:attr:`spec`) and draws one (:meth:`draw`).

    Iterating yields 20 meta-test tasks; :meth:`take` returns any number from any split.

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
        """Shapes of the tasks that the learner is evaluated on."""

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tasks of ``split``; override it if training tasks differ from test tasks."""
        return self.spec

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """64 hex digits that change when the data behind the tasks changes."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How the inputs were made, for what is given to a trained learner later; plain numbers by default."""
        return Preprocessing(tuple(self.spec.input_shape))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have tasks."""
        return SPLITS

    @abstractmethod
    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one task; every random number comes from ``random``."""

    def at_step(self, split: Split, random: np.random.Generator) -> Self:
        """The distribution at one outer step.

        The tasks of a step are stacked and must have the same shapes. Draw here what determines these shapes, such as
        the length of a sequence: it is drawn once for all tasks of the step. All evaluation tasks belong to step 0.
        """
        return self

    def shaped(self, ref: TaskRef, seed: int) -> Self:
        """The distribution that the task of ``ref`` is drawn from: :meth:`at_step` of its split and step.

        Override it, and :meth:`together`, if evaluation tasks differ in shape.
        """
        if type(self).at_step is TaskDistribution.at_step:
            return self
        return self.at_step(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, "shapes"))

    def together(self, refs: Sequence[TaskRef], seed: int) -> list[Sequence[TaskRef]]:
        """``refs`` in runs of equal shapes, in their order: what :meth:`episodes` can stack; all of them by default."""
        return [refs]

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """Draw the task that ``ref`` names in a run with ``seed``; override it if tasks are a list."""
        return self.draw(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, ref.index))

    def draw_refs(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """Draw the tasks of a chunk, stacked; by default one after the other, by :meth:`draw_ref`.

        Override it where tasks are cheaper drawn together. Every task must keep its bytes, and a subclass its own way
        of drawing one: see :meth:`draws_alone_as`.
        """
        drawn: list[Episode] = []
        checked = None
        for ref in refs:
            drawn.append(self.draw_ref(ref, seed))
            found = [(part.shape, part.dtype) for part in drawn[-1]]
            if found != checked:  # shapes like those of the task before are not checked again
                self._require_shapes(ref, drawn[-1])
                checked = found
        return Episode.stack(drawn)

    def draws_alone_as(self, kind: type[TaskDistribution]) -> bool:
        """Whether a single task is drawn by ``kind``'s :meth:`draw`, of a generator of its own.

        A subclass that replaced :meth:`draw` or :meth:`draw_ref` is not to be passed by.
        """
        return type(self).draw is kind.draw and type(self).draw_ref is TaskDistribution.draw_ref

    def generators(self, refs: Sequence[TaskRef], seed: int) -> list[np.random.Generator]:
        """The generators that :meth:`draw` gets for ``refs``."""
        found: list[np.random.Generator] = []
        for (split, step), some in itertools.groupby(refs, lambda ref: (ref.split, ref.step)):
            found += rngs(seed, self.fingerprint, split, step, ends=[ref.index for ref in some])
        return found

    def count(self, split: Split) -> int | None:
        """Number of different tasks of ``split``; ``None`` if there is no limit."""
        return None

    def classes(self, split: Split) -> int | None:
        """Number of classes that ``split`` draws from, rotated copies not counted; ``None`` without classes."""
        return None

    def class_names(self, ref: TaskRef, seed: int) -> tuple[str, ...] | None:
        """Names of the classes of the task that ``ref`` names, by label; ``None`` if classes have no names."""
        return None

    def caution(self, split: Split) -> str:
        """A sentence for people about results on ``split``, where one is needed; empty otherwise."""
        return ""

    def check(self) -> None:
        """Check all that can be checked before a worker starts: data present, enough classes, enough examples.

        Raises:
            DataError: the dataset is absent or damaged.
            TaskContractError: the settings ask for more than the data hold.
        """
        for split in self.splits:
            self.check_split(split)

    def check_split(self, split: Split) -> None:
        """Check one split, which is all that evaluation needs; raises the same errors as :meth:`check`."""
        self.episode(TaskRef(split, 0, 0), seed=0)

    def baseline(self, episodes: Episode) -> Metrics:
        """Score of a no-learning baseline on stacked tasks ``[T, ...]``, reported beside every result.

        Classification: ``baseline_accuracy`` of the nearest support example by Euclidean distance on the raw inputs;
        where inputs are vectors, also the accuracies of the nearest class mean and of a logistic probe. Regression:
        ``baseline_loss``, the mean squared error of predicting the mean of the support targets. Sequences have none by
        default; a distribution of sequences defines its own.
        """
        if not episodes.support_y.shape[1]:
            return {}
        if not episodes.query_y.is_floating_point() and bool((episodes.query_y < 0).any()):
            return baselines.of_padded(episodes)
        numbers = episodes.query_y.is_floating_point()
        return baselines.regression(episodes) if numbers else baselines.classification(episodes)

    def exact(self, refs: Sequence[TaskRef], seed: int, episodes: Episode) -> Metrics:
        """Score of the best prediction that there is, per task ``[T]``, where the distribution can compute it.

        Args:
            refs: names of the T tasks.
            seed: seed of the run.
            episodes: their data.

        Returns:
            Numbers named ``exact_NAME``, beside the learner's ``NAME``; none by default.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts for the run's record, such as the dataset's name and source."""
        return {"name": type(self).__name__, "source": type(self).__name__}

    def episode(self, ref: TaskRef, seed: int) -> Episode:
        """The task that ``ref`` names in a run with ``seed``; raises the same errors as :meth:`episodes`."""
        return self.episodes([ref], seed).map(lambda part: part[0])

    def episodes(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """The tasks of a chunk, stacked: ``[T, ...]``.

        Args:
            refs: names of T tasks, all of one split and step.
            seed: seed of the run.

        Raises:
            TaskContractError: a task has NaN or infinite numbers, labels out of range, or shapes that differ from
                :meth:`spec_of`; the error carries the task's name.
        """
        now = self.shaped(refs[0], seed)
        stacked = now.draw_refs(refs, seed)
        if type(now).draw_refs is not TaskDistribution.draw_refs:  # which checks every task before it stacks them
            for part in stacked:
                if len(part) != len(refs):
                    raise TaskContractError(
                        f"draw_refs of {type(self).__name__} returned {len(part)} tasks for {len(refs)} refs; expected "
                        "as many. Return a part [T, ...] of each kind, in the order of the refs."
                    )
            now._require_shapes(refs[0], stacked.map(lambda part: part[0]))
        spec = self.spec_of(refs[0].split)
        flaws = (now._flaw(name, part, spec) for name, part in zip(_PARTS, stacked, strict=True))
        if any(flaws):  # the whole chunk is checked at once; only a bad one is searched for the task
            for i, ref in enumerate(refs):
                now._require_valid_values(ref, stacked.map(lambda part, i=i: part[i]), spec)  # type: ignore[misc]
        if spec.kind == "classification" and (spec.outputs if spec.fewest is None else spec.fewest) < 2:
            raise TaskContractError(
                f"The tasks of {type(self).__name__} have one class, which leaves nothing to tell apart; expected two "
                "or more. Draw the examples of a task from several classes, numbered from 0."
            )
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

    def _require_valid_values(self, ref: TaskRef, episode: Episode, spec: TaskSpec) -> None:
        for name, part in zip(_PARTS, episode, strict=True):
            flaw = self._flaw(name, part[None], spec)
            if flaw:
                raise TaskContractError(f"{name} of a task from {type(self).__name__} has {flaw}", task_ref=ref)

    def _flaw(self, name: str, part: torch.Tensor, spec: TaskSpec) -> str | None:
        """Describe what is wrong with the values of one part of stacked tasks; ``None`` if nothing is."""
        if part.is_floating_point() and not _all_finite(part):
            return (
                "NaN or infinite values; expected finite numbers. Fix the function that draws the task, or the data "
                "that it reads."
            )
        if name[-1] != "y" or spec.kind == "regression" or not part.numel():
            return None
        lowest, highest = (
            (-1 if spec.padded else 0, spec.outputs - 1) if spec.kind == "classification" else self._range(part, spec)
        )
        least, most = (float(number) for number in part.aminmax())
        if least < lowest or most > highest:
            return (
                f"labels from {least:g} to {most:g}; expected {lowest} to {highest}. Number "
                "the classes of every task from 0."
            )
        return None

    @staticmethod
    def _range(targets: torch.Tensor, spec: TaskSpec) -> tuple[int, int]:
        """Lowest and highest allowed target of stacked sequences; -1 marks a step that is not scored."""
        if targets.is_floating_point():
            return -1, 1
        symbols = targets.shape[2] if targets.dim() == 3 else 1
        return -1, spec.outputs // symbols - 1

    def take(self, count: int = 20, *, split: Split = "meta_test", seed: int = 0) -> list[Task]:
        """The first ``count`` tasks of ``split``, the same for every learner and every run."""
        limit = self.count(split)
        return [Task(self, TaskRef(split, 0, index), seed) for index in range(min(count, limit or count))]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.take())


def _all_finite(numbers: torch.Tensor) -> bool:
    # One NaN or infinity makes a sum NaN or infinite. The sum is one pass; only where it overflows is each one asked,
    # which takes twenty times as long.
    return bool(torch.isfinite(numbers.sum())) or bool(torch.isfinite(numbers).all())


@dataclass(frozen=True)
class Task:
    """One task by name; its data are drawn on access.

    Args:
        distribution: the distribution that the task is drawn from.
        ref: name of the task.
        seed: seed of the run.
    """

    distribution: TaskDistribution
    ref: TaskRef
    seed: int

    @property
    def id(self) -> str:
        """Short name, ``split/index``."""
        return f"{self.ref.split}/{self.ref.index}"

    @property
    def episode(self) -> Episode:
        """Support and query set."""
        return self.distribution.episode(self.ref, self.seed)

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The support set: ``support_x [N*K, ...]`` and ``support_y [N*K]``."""
        episode = self.episode
        return episode.support_x, episode.support_y
