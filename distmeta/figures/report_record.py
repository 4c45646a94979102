"""What a report states about a run: the record that its page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distmeta.intervals import Difference, EvaluationReport


@dataclass(frozen=True)
class ShownPicture:
    """A PNG of the run directory.

    Args:
        name: of the file, without its ending.
        title: heading.
        text: what it shows, with numbers, for who cannot see it.
        content: the PNG.
        width, height: in pixels.
    """

    name: str
    title: str
    text: str
    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class RunReport:
    """Everything that a report states about one run.

    Args:
        name: of the experiment.
        folder: name of the run directory.
        learner: name of the algorithm.
        tasks: the tasks in a few words, such as "5-way 1-shot tasks of glyphs".
        status: finished, or how far it got.
        error: what ended a failed run.
        created: when the run was started, ISO 8601.
        step: outer steps done; ``None`` where that is not recorded.
        iterations: outer steps that it was to have.
        best_step: the step whose parameters were tested.
        test: the meta-test report.
        chance: accuracy of guessing; ``None`` where tasks are no classification.
        policy: the learner's policy of batch norm, which makes the two accuracies differ.
        rows: of ``metrics.jsonl``.
        pictures: how the learner learns.
        examples: see :func:`distmeta.run.example_tasks.example_tasks`.
        dataset: see :func:`distmeta.run.dataset_card.dataset_card`; empty where the run did not record it.
        settings: flat, by dotted key.
        environment: by name.
        command: repeats the run; empty where it was started from Python.
        job: path of the job file that the run was started with.
        warnings: what limits the result.
        missing: what this report lacks, and why.
        task_settings: fingerprint of the data and settings of the test tasks, flat.
        task_digests: sha256 of the data of the first test tasks; empty where the run did not record them.
    """

    name: str
    folder: str
    learner: str
    tasks: str
    status: str
    error: str | None
    created: str
    step: int | None
    iterations: int
    best_step: int | None
    test: EvaluationReport | None
    chance: float | None
    policy: str | None
    rows: Sequence[Mapping[str, Any]]
    pictures: tuple[ShownPicture, ...]
    examples: tuple[Mapping[str, Any], ...]
    dataset: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    command: str
    job: str | None
    warnings: tuple[str, ...]
    missing: tuple[str, ...]
    task_settings: Mapping[str, Any]
    task_digests: tuple[str, ...]


@dataclass(frozen=True)
class Pairing:
    """Two runs beside each other.

    Args:
        a: place of the one among the runs.
        b: place of the other.
        differences: ``a - b`` by metric, paired by task; empty where that is not possible.
        tasks: how many tasks both were tested on.
        why_not: why there are no differences; empty where there are.
    """

    a: int
    b: int
    differences: Mapping[str, Difference]
    tasks: int
    why_not: str = ""
