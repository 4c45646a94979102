"""A run from its start to its meta-test: train, resume."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distmeta.config import did_you_mean, flatten
from distmeta.errors import ConfigError, ServerLost
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.experiment.settings import Outer, Runtime
from distmeta.learners.base import MetaLearner
from distmeta.run.directory import RunDirectory
from distmeta.run.finishing import RunResult, finish
from distmeta.run.place import Place
from distmeta.runtime.checkpoint import Checkpoint
from distmeta.runtime.driver import Driver
from distmeta.runtime.events import Event
from distmeta.runtime.timeline import Timeline
from distmeta.tasks.base import TaskDistribution
from distmeta.tracking.git_state import git_tags
from distmeta.tracking.tracker import DatasetInput, Tracker, writing


def meta_train(
    experiment: Experiment | Job,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    place: Place | None = None,
    profile: int | None = None,
) -> RunResult:
    """Run an experiment to its end.

    Args:
        experiment: what to run, or a loaded job file (kept in the run directory, for the command line to resume it).
        run_dir: a new folder; ``runs/NAME-TIME`` when left out.
        resume: go on from the last checkpoint in ``run_dir``.
        place: where it computes and where it is recorded; this process when left out.
        profile: keep the time line of so many steps after the warm-up as ``profile.json`` in the run directory, a
            Chrome trace.

    Returns:
        The result; the model with its parameters is in the checkpoints of the run directory.

    Raises:
        ConfigError: the run directory exists already (nothing is overwritten), cannot be written, or is not a run.
        DistmetaError: see the tree in :mod:`distmeta.errors`.
    """
    timeline = None if profile is None else Timeline(profile)
    result, _ = _run(experiment, run_dir, resume, place or Place(), timeline)
    return result


def _run(
    what: Experiment | Job, run_dir: Path | str | None, resume: bool, place: Place, timeline: Timeline | None = None
) -> tuple[RunResult, tuple[Driver, Checkpoint]]:
    experiment = what.experiment if isinstance(what, Job) else what
    directory = RunDirectory.open(run_dir or ".") if resume else RunDirectory.new(run_dir, experiment.name)
    store = directory.checkpoints(keep=experiment.runtime.keep_checkpoints)
    with ExitStack() as stack:
        if resume:
            stack.enter_context(directory.hold())  # before anything is read that another process may still write
        opening = stack.enter_context(place.opening(what, experiment.runtime))
        try:
            place.phase("checking tasks and data")
            # Raises where the experiment is invalid. Ray starts while the model is probed.
            driver = Driver(place.sized(experiment), store, place.watch, before_probe=opening.begin, timeline=timeline)
            experiment = driver.experiment
        except BaseException:
            directory.discard()
            raise
        with nullcontext() if resume else directory.hold():
            if not resume:
                directory.require_new()
            changed = directory.changed_code(what) if resume and isinstance(what, Job) else ()
            directory.begin(what, experiment, resumed=resume)
            tracker = Tracker(
                directory.path,
                experiment=experiment.name,
                run_name=directory.path.name,
                uri=place.tracking_uri,
                enabled=place.tracking,
                required=place.tracking_required,
                warn=place.say,
            )
            try:
                backend = opening.backend()
                place.warn_of_changed_code(changed, "the steps to come are another experiment's")
                infos = driver.start(backend)
                tracker.truncate(driver.first_step)  # rows after the last checkpoint, whose steps are done again
                tags = _tags(what, experiment, infos[0].kernel)
                tracker.start(flatten(experiment.settings()), tags, _dataset(experiment.tasks))
                with _kept(timeline, directory, place) as profiled:
                    trained = driver.train(tracker)
                with writing(directory.path):
                    result = replace(finish(directory, experiment, driver, trained, tracker, place), **profiled)
            except KeyboardInterrupt:
                with suppress(OSError):  # on a full disk the record stays "running", of a process that is gone
                    directory.update(status="interrupted")
                tracker.close("KILLED")
                raise KeyboardInterrupt(f"Interrupted. Go on with: distmeta resume {directory.path}") from None
            except BaseException as error:
                directory.keep_raw_text(error)
                with suppress(OSError):
                    directory.update(status="failed", error=str(error))
                tracker.close("FAILED")
                raise
            else:
                result = replace(result, how_to_open=_close_finished(tracker, directory.path))
            finally:
                with suppress(ServerLost):
                    driver.close()
    return result, (driver, trained.best)


@contextmanager
def _kept(timeline: Timeline | None, directory: RunDirectory, place: Place) -> Iterator[dict[str, Any]]:
    """Write the time line at the end, of a run that was interrupted too; fills in the fields of the result."""
    found: dict[str, Any] = {}
    try:
        yield found
    finally:
        if timeline is not None and timeline.steps:
            with writing(directory.path):
                path, lines = directory.keep_profile(timeline), tuple(timeline.summary())
                found |= {"profile": path, "profiled": timeline.span, "spent": lines}
    if timeline is not None and not timeline.steps:
        place.say("No profile is kept: this command did no outer step.")


def _close_finished(tracker: Tracker, folder: Path) -> str:
    """Flush to MLflow; returns how to open it. The run counts as finished even if the user interrupts the wait."""
    try:
        tracker.close("FINISHED")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"The run {folder} is finished; MLflow may lack part of it. Send that with: distmeta track sync {folder}"
        ) from None
    return tracker.how_to_open() if tracker.run_id else ""


def _tags(what: Experiment | Job, experiment: Experiment, kernel: str) -> dict[str, str]:
    return {
        **git_tags(what.folder if isinstance(what, Job) else None),
        "distmeta.dataset_fingerprint": experiment.tasks.fingerprint,
        "distmeta.kernel": kernel,
        "distmeta.identity": experiment.digest(),
        "distmeta.torch": torch.__version__,
    }


def _dataset(tasks: TaskDistribution) -> DatasetInput:
    facts = tasks.describe()
    shape = tuple(facts.get("input_shape", tasks.spec.input_shape))
    return DatasetInput(facts["name"], tasks.fingerprint, facts["source"], shape, tasks.splits)


def _print_progress(event: Event) -> None:
    """Print progress to stderr: every tenth of the steps, each meta-validation, each message."""
    if event.kind == "step":
        if event.of and event.step % max(1, event.of // 10) == 0:
            print(f"step {event.step}/{event.of}  loss {event.values['train/loss']:.3f}", file=sys.stderr)
    elif event.kind != "phase":
        print(f"step {event.step}: {event.text}", file=sys.stderr)


def train_learner(
    learner: MetaLearner,
    tasks: TaskDistribution,
    *,
    run_dir: Path | str | None = None,
    place: Place | None = None,
    **settings: Any,
) -> RunResult:
    """Run ``learner.train(tasks)``, then load the best parameters into the learner's model.

    Progress is printed to standard error; ``place=Place()`` is silent.

    ``settings`` are those of the outer loop (``iterations=2000``), or dotted: ``**{"runtime.workers": 2}``.
    """
    experiment = Experiment(
        learner=learner,
        tasks=tasks,
        runtime=Runtime(chunk_size=Outer().meta_batch_size),  # one process: one vectorised call per step is fastest
        name=type(learner).__name__.lower(),
    )
    dotted = {
        key if "." in key or key in ("seed", "name") else f"outer.{key}": value for key, value in settings.items()
    }
    known = experiment.keys()
    for key, setting in zip(settings, dotted, strict=True):
        if "." not in key and setting not in known:
            plain = [name.removeprefix("outer.") for name in known if name.startswith("outer.")] + ["seed", "name"]
            raise ConfigError(
                f"train() has no setting {key!r}.{did_you_mean(key, plain)} Settings: {', '.join(plain)}; others by "
                'dotted name, such as **{"runtime.workers": 2}.'
            )
    place = place or Place(watch=_print_progress)
    result, (driver, best) = _run(experiment.with_overrides(dotted), run_dir, False, place)
    learner.adopt(driver.learner.model, best.layout.unflatten(best.learned))
    return result


__all__ = ["meta_train", "train_learner"]
