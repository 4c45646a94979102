"""A trained run, opened once, and made ready for any number of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distmeta.errors import CheckpointDamaged, CheckpointNotFound, ConfigError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import frozen_digest
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.probe import require_equal_ways
from distmeta.run.directory import RunDirectory
from distmeta.run.place import Place
from distmeta.run.record import DatasetFacts
from distmeta.run.results import EvaluationRequest, EvaluationResult, TaskSelection
from distmeta.runtime.backend import Backend
from distmeta.runtime.checkpoint import Checkpoint
from distmeta.runtime.evaluation import evaluate_on, require_tasks
from distmeta.runtime.resuming import as_begun, require_same_experiment
from distmeta.runtime.worker import WorkerSetup
from distmeta.seeding import rng


def trained_checkpoints(
    directory: RunDirectory, say: Callable[[str], None] | None = None
) -> tuple[Checkpoint, Checkpoint]:
    """The last checkpoint of a run, and the one with the best meta-validation.

    Args:
        directory: of the run.
        say: receives a message where damaged checkpoints were passed over.

    Raises:
        CheckpointNotFound: there is no checkpoint yet.
        CheckpointDamaged: all of them are damaged, or the best one is.
    """
    store = directory.checkpoints()
    found = store.newest()
    if found.damaged and directory.record.status == "finished":
        # The best parameters may be among what was lost: others would be used under this run's name.
        raise CheckpointDamaged(
            f"{found.notice('the newest whole one is that of')} Expected the checkpoint that the run ended with. "
            f"`distmeta resume {directory.path}` does the lost steps again, with the same bits."
        )
    if found.damaged and say is not None:
        say(found.notice("evaluating by"))
    last = found.checkpoint
    try:
        return last, store.best(last)
    except CheckpointNotFound:  # a run that trains on may have removed it since: its newest one has a newer best
        last = store.newest().checkpoint
        return last, store.best(last)


def unfinished(directory: RunDirectory, last: Checkpoint) -> str:
    """What people should read of a run that did not end: its step of how many; empty for a finished one.

    Args:
        directory: of the run.
        last: its last checkpoint.
    """
    record = directory.record
    if record.status == "finished" or last.step >= record.iterations:
        return ""
    return f"step {last.step} of {record.iterations}, the run is not finished"


@dataclass(frozen=True)
class FinishedRun:
    """A run with a checkpoint, opened once: its job file run, its best parameters read.

    Args:
        directory: of the run.
        job: its job file, run once.
        last: the last checkpoint.
        best: the checkpoint with the best meta-validation.
    """

    directory: RunDirectory
    job: Job
    last: Checkpoint
    best: Checkpoint

    @classmethod
    def open(cls, run_dir: Path | str, request: EvaluationRequest | None = None) -> FinishedRun:
        """Open a run that was started from a job file.

        Args:
            run_dir: its folder.
            request: whether a changed job file is accepted, and who receives a message about damage.

        Raises:
            ConfigError: the folder holds no such run.
            CheckpointNotFound: it has no checkpoint yet.
            CheckpointDamaged: all of them are damaged, or the best one is.
        """
        directory = RunDirectory.open(run_dir)
        job = directory.job(accept_changed=request is not None and request.accept_changed)
        say = None if request is None else request.place.say
        last, best = trained_checkpoints(directory, say)
        if say is not None and (text := unfinished(directory, last)):
            say(f"note: {text}")
        return cls(directory, replace(job, experiment=as_begun(job.experiment, last.record["identity"])), last, best)

    def selection(self, request: EvaluationRequest) -> TaskSelection:
        """Number and seed of the tasks: those of this run where none were given."""
        experiment = _with_data(self.job.experiment, request.data)
        tasks, seed = request.tasks, request.seed
        if tasks is None:
            tasks = min(600, experiment.with_overrides(request.overrides).tasks.count(request.split) or 600)
        return TaskSelection(tasks, request.split, experiment.evaluation.seed if seed is None else seed)

    def on(self, request: EvaluationRequest) -> PreparedEvaluation:
        """This run on the requested tasks; everything is checked here, before any process is started.

        Raises:
            CheckpointMismatch: the job or the dataset is not the one of the training.
            ConfigError: the data have no such split or another shape, or a setting cannot be changed after training.
        """
        changed = {key: value for key, value in request.overrides.items() if not key.startswith("runtime.")}
        _require_changeable(changed)
        trained, split = _with_data(self.job.experiment, request.data), request.split
        experiment = as_begun(trained.with_overrides(request.overrides), self.last.record["identity"])
        tasks, original = experiment.tasks, self.directory.record.dataset or DatasetFacts.of(self.job.experiment)
        if split not in tasks.splits:
            have = ", ".join(tasks.splits)
            raise ConfigError(f"The dataset has no split {split}; it has {have}. Give --split one of these.")
        spec = trained.tasks.spec_of("meta_train")
        require_equal_ways(experiment.learner, spec, tasks.spec_of(split))
        bounds = {f"tasks.{key}": list(value) for key, value in tasks.config if _are_bounds(value)}
        if split == "meta_train" and bounds:
            each = ", ".join(f"{key}={value}" for key, value in bounds.items())
            raise ConfigError(
                f"Training tasks have other numbers in every step ({each}); an evaluation needs one. Give one for "
                f"each, such as --set {next(iter(bounds))}=5."
            )
        name = tasks.describe()["name"]
        any_columns = experiment.learner.model_kind == "set" and len(tasks.spec.input_shape) == 1
        if tuple(tasks.spec.input_shape) != original.input_shape and not any_columns:
            raise ConfigError(
                f"{self.directory.path} was trained on inputs of shape {list(original.input_shape)} ({original.name}); "
                f"{name} has {list(tasks.spec.input_shape)}. Build the data again with that shape "
                "(distmeta data build ... --size, --channels), or train on this one."
            )
        cross_domain = request.data is not None and trained.tasks.fingerprint != self.last.record["fingerprint"]
        tasks.check_split(split)
        if request.tasks is not None:
            require_tasks(tasks, split, "--tasks", request.tasks)
        engine = changed.get("learner.vectorise", self.last.record["engine"])
        learner = experiment.learner.bind(spec, trained.seed).in_main_memory().with_config(vectorise=engine)
        identity = self.last.record["identity"]
        if cross_domain:
            identity = {**identity, "tasks": {**identity["tasks"], "fingerprint": trained.tasks.fingerprint}}
        require_same_experiment(
            trained,
            identity,
            self.best.layout,
            frozen=frozen_digest(learner.model),
            layout=ParamLayout.of(learner.init_meta_params(rng(trained.seed, "init"))),
            fix="Restore the job, its model and its dataset (--data gives the dataset's new place), and leave out "
            "--set of settings that add or remove parameters.",
        )
        return PreparedEvaluation(self, experiment, learner, original.name, name, cross_domain, changed)


@dataclass(frozen=True)
class PreparedEvaluation:
    """A finished run on the tasks that it is to be evaluated on.

    Args:
        run: the run.
        experiment: with all changes.
        learner: bound to its model, its engine chosen.
        trained_on: name of the dataset of the training.
        evaluated_on: name of the dataset of the tasks.
        cross_domain: whether these are two datasets.
        changed: settings that differ from those of the run, by dotted key.
        controls: whether scikit-learn's methods are fitted to each support set too.
    """

    run: FinishedRun
    experiment: Experiment
    learner: MetaLearner
    trained_on: str
    evaluated_on: str
    cross_domain: bool
    changed: Mapping[str, Any]
    controls: bool = False

    def evaluate(self, selection: TaskSelection, place: Place, backend: Backend) -> EvaluationResult:
        """Compute over the workers of a pool of its own."""
        e, best = self.experiment, self.run.best
        which = "".join(f"{key}={value}: " for key, value in self.changed.items())
        report = evaluate_on(
            backend,
            WorkerSetup(self.learner, e.tasks, best.layout, e.seed, e.runtime.threads, self.controls),
            e.runtime,
            best.learned,
            version=best.step,
            split=selection.split,
            tasks=selection.tasks,
            seed=selection.seed,
            say=lambda text: place.say(which + text),
        )
        return EvaluationResult(
            self.run.directory.path,
            best.step,
            best.params_sha256,
            self.trained_on,
            self.evaluated_on,
            self.cross_domain,
            self.changed,
            report,
        )


def _with_data(experiment: Experiment, data: Path | str | None) -> Experiment:
    if data is None:
        return experiment
    known = experiment.keys()
    if "tasks.data" not in known:
        raise ConfigError(
            f"--data {data}: the run's tasks ({type(experiment.tasks).__name__}) read no dataset. Drop it."
        )
    return experiment.with_overrides({"tasks.data": str(data)})


def _are_bounds(value: Any) -> bool:
    """Whether a setting is drawn per step: two whole numbers, not the bounds of real ones, nor a list of names."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, int) for one in value)


def _require_changeable(changed: Mapping[str, Any]) -> None:
    for key in changed:
        if not key.startswith(("tasks.", "learner.")):
            raise ConfigError(
                f"--set {key}: the run is trained already; evaluation can change settings of tasks, learner and "
                "runtime only. Leave it out, or `distmeta train` a new run."
            )
        if key == "tasks.data":
            raise ConfigError("--set tasks.data: give --data DIR, which also checks that the shapes agree.")
