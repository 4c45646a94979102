"""What a service computes: many requests in one call, each with its own result or its own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distmeta.errors import DistmetaError
from distmeta.learners.labels import Labels
from distmeta.serving.kept import Kept
from distmeta.serving.predictor import AdaptedModel, Predictor
from distmeta.serving.requests import Refused
from distmeta.serving.settings import ServiceSettings
from distmeta.serving.together import Answer, Question


@dataclass(frozen=True)
class Lesson:
    """The support set of one task, prepared; what a service keeps of a task.

    Args:
        id: of the task.
        support_x: ``[S, ...]``.
        labels: ``[S]``, or floats ``[S, D]`` in regression.
    """

    id: str
    support_x: torch.Tensor
    labels: Labels

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self.support_x.nbytes + 100 * len(self.support_x)


@dataclass(frozen=True)
class Job:
    """One request.

    Args:
        lesson: the task.
        query_x: ``[M, ...]`` what is asked; ``None`` only learns the task.
        explain: whether to answer with what decided.
        keep: whether to keep what was learned for the next request about the task.
    """

    lesson: Lesson
    query_x: torch.Tensor | None
    explain: bool = False
    keep: bool = False


Values = dict[str, Any]
"""The body of an answer, ready for JSON."""


class Answering:
    """Computes jobs with one learner, and keeps what was learned of some tasks. For one thread.

    Args:
        predictor: the learner.
        settings: how much is kept.
    """

    def __init__(self, predictor: Predictor, settings: ServiceSettings) -> None:
        self.predictor = predictor
        most_bytes = int(settings.max_kept * 2**20)
        self._adapted = Kept[AdaptedModel](settings.max_tasks, most_bytes, 60 * settings.keep_minutes)
        self._model_size = sum(p.nbytes for p in predictor.params.values())

    def __call__(self, jobs: Sequence[Job]) -> list[Values | Exception]:
        """The results of jobs, in their order; tasks of equal shapes are learned together.

        A job that fails has its error for a result, and changes no other.
        """
        results: dict[int, Values | Exception] = {}
        for place, job in enumerate(jobs):
            if job.keep and (fast := self._adapted.get(job.lesson.id)) is not None:
                results[place] = self._alone(job, fast)
        asked_once = [n for n, job in enumerate(jobs) if job.query_x is not None and not job.explain and not job.keep]
        if asked_once:
            results |= self._together(jobs, asked_once)
        results |= self._learned(jobs, [n for n in range(len(jobs)) if n not in results])
        return [results[place] for place in range(len(jobs))]

    def prepared(self, requests: Sequence[Callable[[], Job]]) -> list[Values | Exception]:
        """The results of requests, each of which is prepared here first; one that is refused changes no other."""
        results: dict[int, Values | Exception] = {}
        jobs: dict[int, Job] = {}
        for place, prepare in enumerate(requests):
            try:
                jobs[place] = prepare()
            except Exception as error:  # noqa: BLE001 (each request gets its own answer or its own error)
                results[place] = error
        results |= zip(jobs, self(list(jobs.values())), strict=True)
        return [results[place] for place in range(len(requests))]

    def forget(self, task_id: str) -> None:
        """Forget what was learned of a task."""
        self._adapted.drop(task_id)

    def _together(self, jobs: Sequence[Job], places: list[int]) -> dict[int, Values | Exception]:
        """Learn tasks and answer their queries, nothing else."""
        asked = [Question(jobs[n].lesson.support_x, jobs[n].lesson.labels, _asked(jobs[n])) for n in places]
        try:
            return {n: _values(answer) for n, answer in zip(places, self.predictor.predict_all(asked), strict=True)}
        except Exception as error:  # noqa: BLE001 (each request gets its own answer or its own error)
            if len(places) == 1:
                return {places[0]: _own(error)}
        found: dict[int, Values | Exception] = {}
        for place in places:
            found |= self._together(jobs, [place])
        return found

    def _learned(self, jobs: Sequence[Job], places: list[int]) -> dict[int, Values | Exception]:
        """Learn tasks, keep them where that is asked for, and answer."""
        lessons = [(jobs[n].lesson.support_x, jobs[n].lesson.labels) for n in places]
        try:
            models = self.predictor.adapt_all(lessons) if lessons else []
        except Exception as error:  # noqa: BLE001
            if len(places) == 1:
                return {places[0]: _own(error)}
            found: dict[int, Values | Exception] = {}
            for place in places:
                found |= self._learned(jobs, [place])
            return found
        for place, fast in zip(places, models, strict=True):
            lesson = jobs[place].lesson
            if jobs[place].keep:
                learned = sum(p.nbytes for p in fast.fast.learned.values())
                self._adapted.put(lesson.id, fast, learned + self._model_size + lesson.size)
        return {place: self._alone(jobs[place], fast) for place, fast in zip(places, models, strict=True)}

    def _alone(self, job: Job, fast: AdaptedModel) -> Values | Exception:
        """The answer to one job by its learned task."""
        try:
            classes = fast.classes_
            if job.query_x is None:
                return {"classes": None if classes is None else classes.tolist()}
            values = _values(Answer.of(fast.fast, job.query_x))
            if job.explain and classes is not None:
                values["explanations"] = _explanations(fast.fast.explain(job.query_x), job.lesson.labels)
        except Exception as error:  # noqa: BLE001
            return _own(error)
        return values

    def run(self, sequence: Any) -> Values:
        """The outputs of a sequence learner, ``[L, outputs]``."""
        found = self.predictor.run(sequence)
        _require_finite(found)
        return {"outputs": found.tolist()}


def _asked(job: Job) -> torch.Tensor:
    assert job.query_x is not None
    return job.query_x


def _values(answer: Answer) -> Values:
    _require_finite(answer.logits)
    if answer.classes is None:
        return answer.numbers
    return {
        "predictions": answer.predictions.tolist(),
        "classes": answer.classes.tolist(),
        "probabilities": answer.probabilities.tolist(),
    }


def _explanations(found: dict[str, torch.Tensor], labels: Any) -> list[Values]:
    """What decided, for each query: support examples by falling weight, or the logits by inner step."""
    explanations: list[Values] = []
    for part, rows in found.items():
        for row in rows:
            if part == "support_weights":
                _require_finite(row.numpy())
                order = row.argsort(descending=True, stable=True).tolist()
                support = [{"index": n, "label": labels[n], "weight": float(row[n])} for n in order]
                explanations.append({"support": support})
            else:
                _require_finite(row.numpy())
                explanations.append({part: row.tolist()})
    return explanations


def _require_finite(numbers: Any) -> None:
    if not np.isfinite(numbers).all():
        raise Refused(
            422,
            "The model's answer is no finite number: the inputs are far from those that it was trained on. Scale them "
            "as the training data were.",
        )


def _own(error: Exception) -> Exception:
    """What the client is told: an error of the package about its input, or what is then reported as ours."""
    return Refused(422, error.message) if isinstance(error, DistmetaError) else error


__all__ = ["Answering", "Job", "Lesson", "Values"]
