"""The report of a run, ``report.html``: collected from the run directory alone, without the job and without the data.

What only the end of a run has at hand (the trained learner, the data) is kept there by :func:`report_facts`.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distmeta.config import flatten
from distmeta.errors import ConfigError, DistmetaError, FileDamaged
from distmeta.experiment.experiment import Experiment
from distmeta.figures.picture_texts import picture_text
from distmeta.figures.report_record import Pairing, RunReport, ShownPicture
from distmeta.files import write_whole
from distmeta.intervals import EvaluationReport, paired
from distmeta.learners.base import MetaLearner
from distmeta.learners.pictures import Picture
from distmeta.run.dataset_card import dataset_card
from distmeta.run.directory import RunDirectory
from distmeta.run.example_tasks import example_tasks, task_digests
from distmeta.run.record import RunRecord
from distmeta.runtime.driver import Trained
from distmeta.runtime.evaluation import few_classes_warning
from distmeta.tracking.tracking_record import TrackingRecord


def report_facts(
    directory: RunDirectory,
    experiment: Experiment,
    learner: MetaLearner,
    trained: Trained,
    pictures: Mapping[str, Picture],
) -> dict[str, Any]:
    """What the report needs of the learner, the data and this process; JSON-ready.

    Args:
        directory: of the run.
        experiment: the experiment.
        learner: bound to its model.
        trained: the end of the loop.
        pictures: those that were drawn, by the name of their file.
    """
    import torch

    warnings = [] if trained.test is None else [few_classes_warning(experiment.tasks, trained.test.split)]
    record = TrackingRecord.load(directory.path)
    tags = record.tags if record else {}
    spec = experiment.tasks.spec
    environment = {
        "distmeta": sys.modules["distmeta"].__version__,  # loaded with this module; its public names are a floor above
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "computed on": str(trained.best.record["kernel"] or ""),
        "system": platform.platform(),
        "host": platform.node(),
        "git commit": tags.get("mlflow.source.git.commit", ""),
        "git state": {"true": "tracked files were changed", "false": "clean"}.get(
            tags.get("distmeta.git_dirty", ""), ""
        ),
    }
    examples, left_out = example_tasks(experiment, learner, trained.best, trained.test)
    return {
        "format": 1,
        "kind": spec.kind,
        "outputs": spec.outputs,
        "environment": {name: value for name, value in environment.items() if value},
        "warnings": [text for text in warnings if text],
        "pictures": {name: {"title": one.title, "text": picture_text(one)} for name, one in pictures.items()},
        "dataset": dataset_card(experiment.tasks),
        "task_digests": task_digests(experiment),
        "examples": examples,
        "examples_left_out": left_out,
    }


def collect(directory: RunDirectory, record: RunRecord | None = None) -> RunReport:
    """Everything that the report of a run states.

    Args:
        directory: of the run, finished or not.
        record: in place of the run's own: what it is about to be.

    Raises:
        FileDamaged: a record of the run is not as it was written.
        RuntimeFailure: its metrics or its record of the tracking are damaged.
    """
    status = directory.status() if record is None else record.status
    record = record or directory.record
    nested, result, facts = directory.settings, directory.result(), directory.report_facts()
    settings, missing = flatten(nested), []
    test = None
    if result is not None:
        test = EvaluationReport.from_dict(result)
    else:
        why = "the data have no meta_test split" if status == "finished" else f"the run is {status}"
        missing.append(f"There is no result: {why}.")
    if facts is None:
        missing.append(
            "Example tasks, dataset card, leak check and environment are recorded at the end of a run; this run "
            + ("was made by an older version." if status == "finished" else f"is {status}.")
        )
        facts = {}
    if left_out := facts.get("examples_left_out"):
        missing.append(
            f"{left_out} of {left_out + len(facts['examples'])} example tasks are left out: answering them took more "
            "than a minute at the end of the run. `distmeta resume RUN` answers them again, with the same result, once "
            "the machine has time."
        )
    learner, tasks = nested.get("learner", {}), nested.get("tasks", {})
    name = record.dataset.name if record.dataset else tasks.get("kind", "")
    ways, shots = tasks.get("ways"), tasks.get("shots")
    numbers = isinstance(ways, int) and isinstance(shots, int)
    chance = 1 / ways if isinstance(ways, int) and tasks.get("labels") != "strings" else None
    if facts.get("kind") == "classification":
        chance = 1 / facts["outputs"]
    return RunReport(
        name=record.name,
        folder=directory.path.resolve().name,
        learner=str(learner.get("kind", "")),
        tasks=f"{ways}-way {shots}-shot tasks of {name}" if numbers else name,
        status=status,
        error=record.error if status == "failed" else None,
        created=record.created,
        step=record.step,
        iterations=record.iterations,
        best_step=None if result is None else result.get("best_step"),
        test=test,
        chance=chance,
        policy=learner.get("batch_norm"),
        rows=directory.metrics(),
        pictures=tuple(_pictures(directory, facts.get("pictures", {}))),
        examples=tuple(facts.get("examples", ())),
        dataset=facts.get("dataset") or {"name": name, "fingerprint": record.dataset_fingerprint, "splits": {}},
        settings=settings,
        environment=facts.get("environment", {}),
        command=_command(record),
        job=record.job.path if record.job else None,
        warnings=(*facts.get("warnings", ()), *_doubts(test, chance)),
        missing=tuple(missing),
        task_settings={
            "fingerprint": record.dataset_fingerprint,
            **{key: value for key, value in flatten(tasks).items() if key != "data" and not _of_training(key)},
        },
        task_digests=tuple(facts.get("task_digests", ())),
    )


def _of_training(key: str) -> bool:
    """Whether a setting of the tasks is one of the training tasks only: these are not what is compared."""
    return key == "augment" or key.startswith(("train_", "min_", "max_"))


def _doubts(test: EvaluationReport | None, chance: float | None) -> list[str]:
    """What the numbers themselves cast doubt on."""
    found: list[str] = []
    if test is None:
        return found
    if test.tasks < 30:
        found.append(
            f"The test has {test.tasks} tasks: intervals assume a normal distribution of the mean, which so few do not "
            "ensure. If there are more, evaluate on them: distmeta evaluate RUN --tasks 600."
        )
    if chance is not None and {"accuracy", "baseline_accuracy"} <= test.metrics.keys():
        lower = test.mean("accuracy") - test.ci95("accuracy")
        if lower <= 1.01 * chance < test.mean("baseline_accuracy"):
            found.append(
                f"The accuracy is no better than guessing ({chance:.0%}), while nearest neighbour does better: the "
                "model has not learned."
            )
    return found


def _pictures(directory: RunDirectory, texts: Mapping[str, Mapping[str, str]]) -> list[ShownPicture]:
    from PIL import Image

    found = []
    for path in directory.pictures():
        known = texts.get(path.stem)
        with suppress(OSError):  # no picture, whatever its name ends with
            with Image.open(path) as image:
                width, height = image.size
            title = known["title"] if known else path.stem.replace("_", " ")
            text = known["text"] if known else f"Picture {path.stem} of the run, whose numbers were not recorded."
            found.append(ShownPicture(path.stem, title, text, path.read_bytes(), width, height))
    return found


def _command(record: RunRecord) -> str:
    """The command line that repeats a run; empty where it was started from Python."""
    if record.job is None:
        return ""
    words = ["distmeta", "train", record.job.path]
    for key, value in record.job.overrides.items():
        words += ["--set", f"{key}={_as_yaml(value)}"]
    return shlex.join(words)


def _as_yaml(value: Any) -> str:
    """A setting as ``--set`` reads it."""
    import yaml

    from distmeta.config import parse_overrides

    text = str(value)
    if isinstance(value, str) and parse_overrides([f"k={text}"])["k"] == value:
        return text
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def write_report(directory: RunDirectory, record: RunRecord | None = None) -> Path:
    """Write ``report.html`` of one run, the same bytes each time; returns its path.

    Args:
        directory: of the run.
        record: see :func:`collect`.

    Raises:
        OSError: the disk refuses.
    """
    from distmeta.figures.report_page import page_of_run

    write_whole(directory.page, page_of_run(collect(directory, record)).encode())
    return directory.page


def pair(a: RunReport, b: RunReport, places: tuple[int, int] = (0, 1)) -> Pairing:
    """Compare two runs on the tasks that both were tested on, if these are the same tasks.

    They are where the data of their first tasks are equal, by the digests that each run records; for runs of older
    versions, where the settings of the tasks are. Task i does not depend on how many there are: the shorter list of
    tasks is the beginning of the longer one.

    Args:
        a: the one run.
        b: the other.
        places: of both among the runs of a report.
    """
    if a.test is None or b.test is None:
        return Pairing(*places, {}, 0, f"{(a if a.test is None else b).folder} has no result")
    was, now = (
        {"split": test.split, "evaluation.seed": test.seed, **run.task_settings}
        for run, test in ((a, a.test), (b, b.test))
    )
    differing = [
        f"{key} is {_short(was.get(key))} and {_short(now.get(key))}"
        for key in dict.fromkeys((*was, *now))
        if was.get(key) != now.get(key)
    ]
    recorded = a.task_digests and b.task_digests
    same_data = a.task_digests == b.task_digests if recorded else not differing
    if not same_data or was["split"] != now["split"] or was["evaluation.seed"] != now["evaluation.seed"]:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        what = "; ".join(differing[:3]) + more if differing else "they draw other data"
        return Pairing(*places, {}, 0, f"the runs were tested on other tasks: {what}")
    count = min(a.test.tasks, b.test.tasks)
    first, second = (
        EvaluationReport(test.split, test.seed, {name: values[:count] for name, values in test.metrics.items()})
        for test in (a.test, b.test)
    )
    try:
        found = paired(first, second)
    except ConfigError as error:  # no number in common
        return Pairing(*places, {}, 0, error.message)
    # A baseline on the same tasks is the same number.
    kept = {name: one for name, one in found.items() if not name.startswith(("baseline", "exact"))}
    return Pairing(*places, kept, count)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 24 else text


@dataclass(frozen=True)
class Reported:
    """A report that was written.

    Args:
        path: the page.
        runs: the run directories.
        pairings: the first run beside each other one.
    """

    path: Path
    runs: tuple[Path, ...]
    pairings: tuple[Pairing, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "report": str(self.path),
            "runs": [str(path) for path in self.runs],
            "paired": [
                {
                    "a": str(self.runs[one.a]),
                    "b": str(self.runs[one.b]),
                    "tasks": one.tasks,
                    "why_not": one.why_not or None,
                    "difference": {
                        name: {"a": d.a, "b": d.b, "mean": d.mean, "ci95": d.ci95, "significant": d.significant}
                        for name, d in one.differences.items()
                    },
                }
                for one in self.pairings
            ],
        }


def report(run_dirs: Sequence[Path | str], out: Path | str | None = None) -> Reported:
    """Write the report of one run, or of several side by side with their paired differences.

    Args:
        run_dirs: the run directories, the first of which the others are compared with.
        out: the HTML file; ``report.html`` of the run when left out, or for several a new file in the ``evaluations``
            folder of the first.

    Raises:
        ConfigError: a folder holds no run, two are the same, or the file cannot be written.
        FileDamaged: a record of a run is not as it was written.
    """
    from distmeta.figures.report_page import page_of_run, page_of_runs

    directories = [RunDirectory.open(path) for path in run_dirs]
    places = [directory.path.resolve() for directory in directories]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise ConfigError(f"The run {twice} is given twice; expected different runs. Leave one out.")
    runs = [_collected(directory) for directory in directories]
    pairings = tuple(pair(runs[0], other, (0, i)) for i, other in enumerate(runs[1:], start=1))
    page = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs, pairings)
    target = Path(out) if out is not None else None
    try:
        if target is None:
            first = directories[0]
            target = first.page if len(runs) == 1 else first.reserve_evaluation("report", "html")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, page.encode())
    except OSError as error:
        raise ConfigError(f"The report cannot be written: {error}. Give another file with --out.") from None
    return Reported(target, tuple(Path(path) for path in run_dirs), pairings)


def _collected(directory: RunDirectory) -> RunReport:
    try:
        return collect(directory)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DistmetaError):
            raise
        raise FileDamaged(
            f"{directory.path}: a record is not one that a run writes ({type(error).__name__}: {error}). Restore it "
            "from a copy."
        ) from None
