"""Several tasks learned, or learned and asked, in one vectorised call: those of equal shapes and numbers of classes.

What cannot be vectorised is left out of the results, for the caller to compute alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from distmeta.learners.base import MetaLearner
from distmeta.learners.fast_model import FastModel, require_examples
from distmeta.learners.functional import evaluating, ordinary_tensors
from distmeta.learners.labels import Classes, Labels, is_regression
from distmeta.types import Episode, Params

Array = npt.NDArray[Any]

_AT_ONCE = 2**17  # numbers of the inputs of one call: beyond it memory grows, and the time per task hardly falls


COVERAGE = 0.9
"""Probability of the intervals that go with the answers of a regression."""


class Question(NamedTuple):
    """One task and what is asked about it, prepared (:meth:`Predictor.inputs`).

    Args:
        support_x: ``[S, ...]``.
        labels: ``[S]``, any hashable values; floats ``[S, D]`` for regression.
        query_x: ``[M, ...]``.
    """

    support_x: torch.Tensor
    labels: Labels
    query_x: torch.Tensor


@dataclass(frozen=True)
class Answer:
    """What a learner predicts for the queries of one task.

    Args:
        classes: the labels ``[N]``; ``None`` in regression.
        logits: ``[M, N]``; in regression the values ``[M, D]``.
        interval: lower and upper ends ``[M, D]`` of the central interval of probability :data:`COVERAGE`; ``None`` of
            classes, and of learners that predict values alone.

    Example:
        >>> answer = Answer(np.array(["ant", "cat"]), np.array([[0.0, 2.0]]))
        >>> answer.predictions.tolist(), answer.probabilities.round(2).tolist()
        (['cat'], [[0.12, 0.88]])
    """

    classes: Array | None
    logits: Array
    interval: tuple[Array, Array] | None = None

    @classmethod
    def of(cls, fast: FastModel, query_x: torch.Tensor) -> Answer:
        """What an adapted model answers about queries ``[M, ...]``."""
        classes = None if fast.classes_ is None else np.asarray(fast.classes_)
        if not fast.has_distributions:
            return cls(classes, fast.logits(query_x).numpy())
        found = fast.predict_distribution(query_x)
        low, high = (found.quantile(0.5 + side * COVERAGE / 2).numpy() for side in (-1, 1))
        return cls(None, found.mean.numpy(), (low, high))

    @property
    def numbers(self) -> dict[str, Any]:
        """Of a regression, ready for JSON: ``values``, and ``intervals`` where there are any."""
        found: dict[str, Any] = {"values": self.logits.tolist()}
        if self.interval is not None:
            low, high = self.interval
            found["intervals"] = {"coverage": COVERAGE, "low": low.tolist(), "high": high.tolist()}
        return found

    @property
    def predictions(self) -> Array:
        """The most likely label of each query ``[M]``; in regression the values."""
        return self.logits if self.classes is None else self.classes[self.logits.argmax(-1)]

    @property
    def probabilities(self) -> Array:
        """``[M, N]``, columns in the order of :attr:`classes`."""
        return np.asarray(torch.from_numpy(np.ascontiguousarray(self.logits)).softmax(-1))


class Together:
    """One learner, for many tasks at a time.

    Args:
        learner: as it is in evaluation, its model built.
        params: the meta-parameters.
        most_classes: how many classes a task may have; ``None`` for any number.
    """

    def __init__(self, learner: MetaLearner, params: Params, most_classes: int | None) -> None:
        self._learner, self._params, self._most_classes = learner, params, most_classes
        self._independent: bool | None = None

    def learned(self, tasks: Sequence[tuple[torch.Tensor, Labels]]) -> dict[int, Params]:
        """What the support sets of tasks teach, by the place of the task."""
        coded = [_coded(x, labels) for x, labels in tasks]
        found: dict[int, Params] = {}
        if self._learner.loops:
            return found
        for _, ways, places in self._groups([(coded[n], tuple(x.shape)) for n, (x, _) in enumerate(tasks)]):
            support_x = torch.stack([tasks[n][0] for n in places])
            support_y = torch.stack([coded[n][1] for n in places])
            episodes = Episode(support_x, support_y, support_x[:, :0], support_y[:, :0], ways=ways, outputs=ways)
            with ordinary_tensors(), evaluating(self._learner.model):
                values = self._learner.chunk_learned(self._params, episodes)
            for row, n in enumerate(places):
                found[n] = {name: value[row] for name, value in values.items()}
        return found

    def answers(self, questions: Sequence[Question]) -> dict[int, Answer]:
        """The answers to questions, by place."""
        coded = [_coded(question.support_x, question.labels) for question in questions]
        shapes = [
            # Queries are filled up to a power of two.
            (tuple(q.support_x.shape), tuple(q.query_x.shape[1:]), 1 << max(len(q.query_x) - 1, 0).bit_length())
            for q in questions
        ]
        found: dict[int, Answer] = {}
        for (*_, asked), ways, places in self._groups(list(zip(coded, shapes, strict=True))):
            first = questions[places[0]]
            if not self._vectorises(first) or not min(map(len, first)):
                continue
            at_once = max(1, _AT_ONCE // ((len(first.support_x) + asked) * max(1, first.support_x[0].numel())))
            parts = -(-len(places) // at_once)
            for number in range(parts):  # of equal sizes: a small rest would cost as much as a whole part
                part = places[number * len(places) // parts : (number + 1) * len(places) // parts]
                logits = self._logits_of([questions[n] for n in part], [coded[n][1] for n in part], ways, asked)
                for row, n in enumerate(part):
                    classes = coded[n][0]
                    assert classes is not None  # a group has classes
                    rows = logits[row, : len(questions[n].query_x), :ways]
                    found[n] = Answer(np.asarray(classes.values), rows.numpy())
        return found

    def _groups(
        self, tasks: Sequence[tuple[tuple[Classes | None, torch.Tensor], tuple[Any, ...]]]
    ) -> Iterator[tuple[tuple[Any, ...], int, list[int]]]:
        """Places of classifications of one shape and number of classes that the model can tell apart, two or more."""
        together: dict[tuple[tuple[Any, ...], int], list[int]] = {}
        for place, ((classes, _), shape) in enumerate(tasks):
            if classes is not None and len(classes) <= (self._most_classes or len(classes)):
                together.setdefault((shape, len(classes)), []).append(place)
        for (shape, ways), places in together.items():
            if len(places) > 1:
                yield shape, ways, places

    def _logits_of(self, questions: list[Question], targets: list[torch.Tensor], ways: int, asked: int) -> torch.Tensor:
        """Logits ``[T, asked, outputs]`` of T questions of equal shapes."""
        query_x = torch.stack([_filled(question.query_x, asked) for question in questions])
        support_x, support_y = torch.stack([question.support_x for question in questions]), torch.stack(targets)
        episodes = Episode(support_x, support_y, query_x, support_y[:, :0], ways=ways, outputs=ways)
        with ordinary_tensors(), evaluating(self._learner.model):
            return self._learner.chunk_answers(self._params, episodes)

    def _vectorises(self, question: Question) -> bool:
        """Whether tasks can be learned and asked in one vectorised call; measured once, on the first task."""
        if self._independent is None and self._learner.config.vectorise in ("vmap", "vmap-2"):
            fast = self._learner.adapt(question.support_x, question.labels, params=self._params)
            self._independent = fast.inputs_are_independent
        return bool(self._independent)


def _coded(x: torch.Tensor, labels: Labels) -> tuple[Classes | None, torch.Tensor]:
    """The classes of a task and its labels as positions ``[S]``; no classes and floats ``[S, D]`` in regression."""
    labels = require_examples(x, labels)
    if is_regression(labels):
        return None, torch.as_tensor(labels)
    return Classes.of(labels)


def _filled(x: torch.Tensor, count: int) -> torch.Tensor:
    """``x [M, ...]`` with its last row repeated up to ``count`` rows."""
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])


__all__ = ["COVERAGE", "Answer", "Question", "Together"]
