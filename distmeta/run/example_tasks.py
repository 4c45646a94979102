"""A few tasks as the trained learner answers them: what a report shows of single examples."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch

from distmeta.experiment.experiment import Experiment
from distmeta.figures.thumbnails import matrix_address, picture_address
from distmeta.intervals import EvaluationReport
from distmeta.learners.base import MetaLearner
from distmeta.learners.fast_model import FastModel
from distmeta.learners.functional import vectorised
from distmeta.occurrences import occurrence
from distmeta.runtime.checkpoint import Checkpoint
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.baselines import unpadded
from distmeta.tasks.label_sequences import LabelSequences
from distmeta.types import Episode, Split, TaskRef

_FIRST = 3  # tasks, whatever their result
_SEARCHED = 100  # tasks among which the hardest is taken
_CLASSES, _SHOTS, _QUERIES = 20, 5, 40  # at most so many are shown: per task, per class, per task
_SECONDS = 60.0  # no further task is answered after that; far more than a model needs, also on a busy machine
_NUMBERS = 256  # of a vector
_GRID = 80  # places at which the curve of a regression is drawn


def example_tasks(
    experiment: Experiment, learner: MetaLearner, best: Checkpoint, test: EvaluationReport | None
) -> tuple[list[dict[str, Any]], int]:
    """The first three held-out tasks and the hardest of the first hundred, with their answers; JSON-ready.

    Args:
        experiment: the experiment.
        learner: bound to its model.
        best: the parameters.
        test: the meta-test report, whose numbers tell which task is the hardest.

    Returns:
        One record per task, none where no classes are held out; and how many tasks were left out because
        they took longer than a minute. ``kind`` is ``"classification"``, ``"regression"``, ``"bits"`` or ``"labels"``
        and decides which other keys a record has.
    """
    tasks, seed = experiment.tasks, experiment.evaluation.seed
    split = tasks.splits[-1]
    if split == "meta_train":
        return [], 0
    count = tasks.count(split) or experiment.evaluation.test_tasks
    chosen = dict.fromkeys(range(min(_FIRST, count)), "")
    if test is not None and (test.split, test.seed) == (split, seed):
        index, what = _hardest(test)
        chosen[index] = what
    found: list[dict[str, Any]] = []
    started = time.perf_counter()
    for index, hardest in chosen.items():
        if found and time.perf_counter() - started > _SECONDS:
            break
        head = {"index": index, "split": split, "hardest": hardest}
        found.append(head | _answered(tasks, learner, best, split, index, seed))
    return found, len(chosen) - len(found)


def task_digests(experiment: Experiment) -> list[str]:
    """sha256 of the data of the first held-out tasks: equal in runs whose tasks are the same data."""
    tasks, split = experiment.tasks, experiment.tasks.splits[-1]
    count = min(_FIRST, tasks.count(split) or _FIRST)
    found = []
    for index in range(count):
        digest = hashlib.sha256()
        for part in tasks.episode(TaskRef(split, 0, index), experiment.evaluation.seed):
            digest.update(f"{part.dtype}{list(part.shape)}".encode() + part.contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def _hardest(test: EvaluationReport) -> tuple[int, str]:
    """Index of the task with the worst number among the first ones, and which number that is."""
    # Examples are answered one query at a time: so is the number that they are chosen by, where there is one.
    for name, sign, what in (
        ("accuracy_non_transductive", 1, "lowest accuracy"),
        ("accuracy", 1, "lowest accuracy"),
        ("bit_errors", -1, "most wrong bits"),
        ("loss", -1, "highest loss"),
    ):
        if name in test.metrics:
            values = np.asarray(test.metrics[name], dtype=np.float64)[:_SEARCHED]
            return int((sign * values).argmin()), f"{what} of the first {len(values)} tasks"
    raise AssertionError("every evaluation has a loss")


def _answered(
    tasks: TaskDistribution, learner: MetaLearner, best: Checkpoint, split: Split, index: int, seed: int
) -> dict[str, Any]:
    ref = TaskRef(split, 0, index)
    episode = tasks.episode(ref, seed).to(torch.device("cpu"), best.layout.torch_dtype)
    if tasks.spec_of(split).padded:
        episode = unpadded(_stacked(episode), 0).map(lambda part: part[0])
    params = best.layout.unflatten(best.learned)
    baseline = {name: round(float(value), 6) for name, value in tasks.baseline(_stacked(episode)).items()}
    if tasks.spec.kind == "sequence":
        evaluator = learner.for_evaluation()
        evaluator.model.eval()
        with torch.no_grad(), vectorised(False):
            output = evaluator.query_logits(params, episode)
        if episode.query_y.is_floating_point():
            return _bits(episode, output)
        return _labels(tasks, episode, output, tasks.class_names(ref, seed)) | {"baseline": baseline}
    fast = learner.adapt(episode.support_x, episode.support_y, params=params)
    if fast.classes_ is None:
        return _regression(episode, fast) | {"baseline": baseline}
    names = tasks.class_names(ref, seed)
    return _classification(episode, fast, [int(label) for label in fast.classes_], names) | {"baseline": baseline}


def _classification(
    episode: Episode, fast: FastModel, labels: list[int], names: tuple[str, ...] | None
) -> dict[str, Any]:
    places = {label: torch.nonzero(episode.query_y == label)[:, 0].tolist() for label in labels}
    per_class = max(1, _QUERIES // len(labels))
    chosen = [i for label in labels[:_CLASSES] for i in places[label][:per_class]]
    # Only what is shown is answered: each query alone may cost a pass of the whole support set.
    probabilities = dict(zip(chosen, fast.predict_proba(episode.query_x[chosen]), strict=True))
    shown, right = [], 0
    for label in labels[:_CLASSES]:
        support = torch.nonzero(episode.support_y == label)[:, 0].tolist()
        queries = [
            _input(episode.query_x[i])
            | {
                "answer": labels[int(probabilities[i].argmax())],
                "probability": round(float(probabilities[i].max()), 4),
                "of_right": round(float(probabilities[i][labels.index(label)]), 4),
            }
            for i in places[label][:per_class]
        ]
        right += sum(one["answer"] == label for one in queries)
        shown.append(
            {
                "label": label,
                "name": names[label] if names is not None and label < len(names) else None,
                "support": [_input(episode.support_x[i]) for i in support[:_SHOTS]],
                "more_support": max(0, len(support) - _SHOTS),
                "queries": queries,
                "more_queries": max(0, len(places[label]) - per_class),
            }
        )
    return {
        "kind": "classification",
        "right": right,
        "of": len(chosen),
        "queries": len(episode.query_y),
        "classes": shown,
        "more_classes": max(0, len(labels) - _CLASSES),
    }


def _regression(episode: Episode, fast: FastModel) -> dict[str, Any]:
    answers = fast.logits(episode.query_x)
    record: dict[str, Any] = {
        "kind": "regression",
        "error": float((answers - episode.query_y).square().mean()),
        "support": len(episode.support_x),
        "target": _rounded(episode.query_y[:, 0]),
        "answer": _rounded(answers[:, 0]),
        "outputs": episode.query_y.shape[1],
    }
    if episode.query_x.shape[1:] == (1,):
        seen = torch.cat([episode.support_x, episode.query_x])
        grid = torch.linspace(float(seen.min()), float(seen.max()), _GRID, dtype=seen.dtype)[:, None]
        record |= {
            "curve_x": _rounded(grid[:, 0]),
            "curve_y": _rounded(fast.logits(grid)[:, 0]),
            "x": _rounded(episode.query_x[:, 0]),
            "support_x": _rounded(episode.support_x[:, 0]),
            "support_y": _rounded(episode.support_y[:, 0]),
        }
    return record


def _bits(episode: Episode, output: torch.Tensor) -> dict[str, Any]:
    scored = episode.query_y >= 0
    answer = output.sigmoid()
    wrong = ((answer > 0.5) != (episode.query_y > 0.5)) & scored
    blank = ~scored
    panels = {
        "input": episode.query_x.flatten(1),
        "target": episode.query_y.masked_fill(blank, torch.nan),
        "answer": answer.masked_fill(blank, torch.nan),
        "wrong bits": wrong.float().masked_fill(blank, torch.nan),
    }
    return {
        "kind": "bits",
        "wrong": int(wrong.sum()),
        "of": int(scored.sum()),
        "panels": [
            {"name": name, "rows": values.shape[1], "steps": values.shape[0], "picture": matrix_address(values.T)}
            for name, values in panels.items()
        ],
    }


def _labels(
    tasks: TaskDistribution, episode: Episode, output: torch.Tensor, names: tuple[str, ...] | None
) -> dict[str, Any]:
    symbols = episode.query_y if episode.query_y.dim() > 1 else episode.query_y[:, None]
    probabilities = output.reshape(*symbols.shape, -1).softmax(-1)
    answers, scored = probabilities.argmax(-1), (symbols >= 0).all(-1)
    right = (answers == symbols).all(-1) & scored
    seen = occurrence(episode.query_y[None])[0]
    images = tasks.images(episode) if isinstance(tasks, LabelSequences) else None
    steps = [
        ({} if images is None else _input(images[i]))
        | {
            "label": symbols[i].tolist(),
            "answer": answers[i].tolist(),
            "probability": round(float(probabilities[i].amax(-1).prod()), 4),
            "occurrence": int(seen[i]),
        }
        for i in range(min(len(symbols), _QUERIES))
        if scored[i]
    ]
    return {
        "kind": "labels",
        "right": int(right.sum()),
        "of": int(scored.sum()),
        "names": list(names) if names is not None and symbols.shape[1] == 1 else None,
        "steps": steps,
    }


def _input(x: torch.Tensor) -> dict[str, Any]:
    """One input, to be drawn: a picture, or the numbers of a vector; nothing for other shapes."""
    if x.dim() in (2, 3):
        return {"picture": picture_address(x.float().numpy())}
    return {"values": _rounded(x[:_NUMBERS])} if x.dim() == 1 else {}


def _stacked(episode: Episode) -> Episode:
    return episode.map(lambda part: part[None])


def _rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
