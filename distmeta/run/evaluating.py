"""Evaluate finished runs: on fixed task indices, against another run, on other data, over shots and inner steps.

Every result is also written to ``RUN_DIR/evaluations/``, under a new name each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from distmeta.config import flatten
from distmeta.errors import ConfigError, DistmetaError
from distmeta.experiment.experiment import Experiment
from distmeta.figures import learner_pictures
from distmeta.files import write_record
from distmeta.learners.pictures import Curves
from distmeta.run.finished_run import FinishedRun, PreparedEvaluation
from distmeta.run.results import Comparison, EvaluationRequest, EvaluationResult, Sweep, TaskSelection
from distmeta.runtime.evaluation import cautions
from distmeta.types import Split, TaskRef

Over = Literal["shots", "inner_steps", "lengths"]


def evaluate(run_dir: Path | str, request: EvaluationRequest | None = None) -> EvaluationResult:
    """Evaluate the best parameters of a run that was started from a job file, over the workers.

    Args:
        run_dir: its folder.
        request: on which tasks; 600 of meta_test, in this process, when left out.

    Returns:
        The numbers, as ``.report``, and what they belong to.

    Raises:
        CheckpointNotFound: the run has no checkpoint yet.
        CheckpointMismatch: the job or the dataset is not the one of the training.
        ConfigError: the data have no such split or another shape, or a setting cannot be changed after training.
    """
    request = request or EvaluationRequest()
    run = FinishedRun.open(run_dir, request)
    prepared = run.on(request)
    run.directory.require_writable()
    (found,) = _compute(run, [prepared], request, run.selection(request))
    write_record(run.directory.reserve_evaluation(request.split), found.to_dict())
    return found


def compare(run_a: Path | str, run_b: Path | str, request: EvaluationRequest | None = None) -> Comparison:
    """Evaluate two runs on the same tasks.

    Args:
        run_a: the one; the result is kept in its folder, and the seed is its ``evaluation.seed`` when left out.
        run_b: the other.
        request: on which tasks, for both.

    Raises:
        ConfigError: task i of the one run is not task i of the other: other data, ways, shots or queries.
    """
    request = request or EvaluationRequest()
    a, b = FinishedRun.open(run_a, request), FinishedRun.open(run_b, request)
    on_a, on_b, selection = a.on(request), b.on(request), a.selection(request)
    _require_same_tasks(on_a, on_b, selection)
    a.directory.require_writable()
    (first,) = _compute(a, [on_a], request, selection)
    (second,) = _compute(b, [on_b], request, selection)
    comparison = Comparison(first, second, a.directory.reserve_evaluation("against"))
    write_record(comparison.kept, comparison.to_dict())
    return comparison


def sweep(run_dir: Path | str, over: Over, values: Sequence[int], request: EvaluationRequest | None = None) -> Sweep:
    """Evaluate a run at several numbers of shots (a data-efficiency curve), inner steps, or lengths; draw the curve.

    Task i has the same classes at every number of shots, and its support sets grow: that of 5 shots holds that of 1.

    Args:
        run_dir: its folder.
        over: ``"shots"``, ``"inner_steps"``, or ``"lengths"`` of sequences.
        values: the numbers.
        request: on which tasks otherwise.

    Raises:
        ConfigError: the tasks have no shots, or the learner takes no inner steps.
    """
    request = request or EvaluationRequest()
    run = FinishedRun.open(run_dir, request)
    key = _key(run.job.experiment, over, request.split)
    prepared = [run.on(replace(request, overrides={**request.overrides, key: value})) for value in values]
    run.directory.require_writable()
    found = _compute(run, prepared, request, run.selection(request))
    path = run.directory.reserve_evaluation(over)
    result = Sweep(key, tuple(values), found, path.with_suffix(".png"))
    write_record(path, result.to_dict())
    learner_pictures.draw(_curves(result, over, run.directory.record.name), result.picture)
    return result


def _compute(
    run: FinishedRun, prepared: Sequence[PreparedEvaluation], request: EvaluationRequest, selection: TaskSelection
) -> tuple[EvaluationResult, ...]:
    """Evaluate each of ``prepared`` on one backend."""
    place, directory = request.place, run.directory
    consequence = "the code evaluated is not the code that was trained"
    place.warn_of_changed_code(directory.changed_code(run.job), consequence)
    for text in cautions(prepared[0].experiment.tasks, request.split):
        place.say(text)
    try:
        with place.open(run.job, prepared[0].experiment.runtime) as backend:
            place.phase(f"evaluating {directory.path}")
            return tuple(one.evaluate(selection, place, backend) for one in prepared)
    except DistmetaError as error:
        directory.keep_raw_text(error)
        raise


def _require_same_tasks(a: PreparedEvaluation, b: PreparedEvaluation, selection: TaskSelection) -> None:
    """Raise unless task i is the same data in both runs: pairs are compared by task index. Data are compared."""
    for index in (0, selection.tasks - 1):
        ref = TaskRef(selection.split, 0, index)
        one, other = (list(run.experiment.tasks.episode(ref, selection.seed)) for run in (a, b))
        if len(one) == len(other) and all(
            x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(one, other, strict=True)
        ):
            continue
        settings = [flatten(run.experiment.identity()["tasks"]) for run in (a, b)]
        differing = [
            f"tasks.{key} is {settings[0].get(key)} and {settings[1].get(key)}"
            for key in sorted({*settings[0], *settings[1]})
            # Training tasks may differ: they are not what is compared.
            if settings[0].get(key) != settings[1].get(key) and not key.startswith("train_")
        ]
        raise ConfigError(
            f"{a.run.directory.path} and {b.run.directory.path} cannot be compared task by task, since task "
            f"{selection.split}/{index} is not the same: {'; '.join(differing) or 'the tasks draw other data'}. "
            "Evaluate both on the same tasks: --set a "
            "setting for both, such as --set tasks.queries=5, or --data DIR for one dataset."
        )


def _key(experiment: Experiment, over: Over, split: Split) -> str:
    """The setting behind ``over``."""
    known = experiment.keys()
    if over == "shots":
        if "tasks.shots" not in known:
            raise ConfigError(
                f"--shots: the run's tasks ({type(experiment.tasks).__name__}) have no setting shots. Drop it."
            )
        if split == "meta_train":
            raise ConfigError("--shots is for tasks of held-out classes. Use --split meta_validation or meta_test.")
        return "tasks.shots"
    if over == "lengths":
        if "tasks.length" not in known:
            raise ConfigError(
                f"--lengths: the run's tasks ({type(experiment.tasks).__name__}) have no setting length. Drop it; it "
                "is for sequences."
            )
        return "tasks.length"
    for key in ("learner.test_inner_steps", "learner.inner_steps"):
        if key in known:
            return key
    raise ConfigError(
        f"--inner-steps: {type(experiment.learner).__name__} takes no inner steps, it learns a task in one look. Drop "
        "it; it is for learners that adapt by gradient descent."
    )


_AXES = {
    "shots": "shots: labelled examples per class",
    "inner_steps": "inner steps",
    "lengths": "length of the sequences",
}


def _curves(result: Sweep, over: Over, name: str) -> Curves:
    reports = [one.report for one in result.results]
    common = [metric for metric in reports[0].metrics if all(metric in report.metrics for report in reports)]
    first = result.results[0]
    where = f"{first.trained_on} to {first.evaluated_on}, " if first.cross_domain else ""
    return Curves(
        title=f"{name}: {where}{first.report.tasks} {first.report.split} tasks",
        x_label=_AXES[over],
        x=result.values,
        values={metric: [report.values(metric) for report in reports] for metric in common},
    )


__all__ = ["Comparison", "EvaluationRequest", "EvaluationResult", "Sweep", "compare", "evaluate", "sweep"]
