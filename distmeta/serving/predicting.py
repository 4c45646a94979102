"""``distmeta predict``: a few labelled examples from disk, then the answers about others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.errors import ConfigError, DataError
from distmeta.serving.examples import Examples
from distmeta.serving.predictor import Predictor
from distmeta.serving.together import COVERAGE, Answer

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What a learner answered about some inputs.

    Args:
        name: of the learner's run.
        support: what it learned from.
        query: what it was asked about.
        classes: labels ``[N]``; empty in regression.
        values: probabilities ``[B, N]``; in regression the values ``[B, 1]``.
        support_x: prepared inputs ``[S, ...]``, as the network saw them.
        query_x: prepared inputs ``[B, ...]``.
        interval: lower and upper ends ``[B, 1]`` of a regression's intervals; ``None`` where there are none.
    """

    name: str
    support: Examples
    query: Examples
    classes: tuple[str, ...]
    values: Array
    support_x: Array = field(repr=False)
    query_x: Array = field(repr=False)
    interval: tuple[Array, Array] | None = field(default=None, repr=False)

    @property
    def labels(self) -> list[str]:
        """The most likely label of each input; empty in regression."""
        return [self.classes[place] for place in self.values.argmax(1)] if self.classes else []

    @property
    def accuracy(self) -> float | None:
        """Fraction of right answers, where the labels are known."""
        if not self.classes or self.query.labels is None:
            return None
        return float(np.mean([a == b for a, b in zip(self.labels, self.query.labels, strict=True)]))

    def ranked(self, row: int) -> list[tuple[str, float]]:
        """Labels of one input with their probabilities, the most likely first."""
        order = np.argsort(-self.values[row], kind="stable")
        return [(self.classes[place], float(self.values[row, place])) for place in order]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows: list[dict[str, Any]] = []
        for row, name in enumerate(self.query.names):
            one: dict[str, Any] = {"input": name}
            if self.classes:
                ranked = self.ranked(row)
                one |= {"label": ranked[0][0], "probabilities": dict(ranked)}
            else:
                one |= {"value": float(self.values[row, 0])}
                if self.interval is not None:
                    one["interval"] = [float(end[row, 0]) for end in self.interval]
            if self.query.labels is not None:
                one["true"] = self.query.labels[row] if self.classes else float(self.query.labels[row])
            rows.append(one)
        found: dict[str, Any] = {
            "learner": self.name,
            "classes": list(self.classes),
            "support": len(self.support.names),
        }
        if self.interval is not None:
            found["coverage"] = COVERAGE
        if self.accuracy is not None:
            found["accuracy"] = self.accuracy
        return {**found, "answers": rows}


def answer(predictor: Predictor, support: Examples, query: Examples) -> Answers:
    """Learn the task of ``support``, and answer about ``query``.

    Raises:
        DataError: an input cannot be converted.
        LearnerContractError: more classes than the learner has outputs.
        ConfigError: the learner takes no such examples.
    """
    spec, labels = predictor.spec, support.labels or ()
    classes: tuple[str, ...] = ()
    interval: tuple[Array, Array] | None = None
    if spec.kind == "sequence":
        raise ConfigError(
            f"{predictor} reads sequences that hold their labels; expected a learner with a support set. Use "
            "distmeta.load(...).run(sequence)."
        )
    if support.pictures != predictor.preprocessing.pictures:
        takes = "pictures: give folders" if predictor.preprocessing.pictures else "rows of numbers: give CSV files"
        raise ConfigError(f"{predictor} takes {takes} with --support and --query.")
    support_x, query_x = (predictor.inputs(_given(part)) for part in (support, query))
    if spec.kind == "regression":
        if spec.outputs != 1:
            raise ConfigError(f"{predictor} gives {spec.outputs} numbers; a CSV file has one. Use distmeta.load(...).")
        targets = np.array([[_target(label, name)] for label, name in zip(labels, support.names, strict=True)])
        for label, name in zip(query.labels or (), query.names, strict=False):
            _target(label, name)
        fast = predictor.learner.adapt(support_x, targets.astype(np.float32), params=predictor.params)
        found = Answer.of(fast, query_x)
        values, interval = found.logits, found.interval
    else:
        fast = predictor.learner.adapt(support_x, list(labels), params=predictor.params)
        assert fast.classes_ is not None
        values, classes = fast.predict_proba(query_x).numpy(), tuple(str(label) for label in fast.classes_.tolist())
    name = str(predictor.card.get("name", ""))
    return Answers(name, support, query, classes, values, support_x.numpy(), query_x.numpy(), interval)


def _given(examples: Examples) -> Sequence[Any] | Array:
    return examples.inputs if isinstance(examples.inputs, np.ndarray) else list(examples.inputs)


def _target(label: str, name: str) -> float:
    try:
        return float(label)
    except ValueError:
        raise DataError(
            f"{name}: the target {label!r} is no number; the learner predicts numbers. Repair it."
        ) from None


__all__ = ["Answers", "answer"]
