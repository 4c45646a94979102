"""Judging finished runs: on fixed task indices, against another run, on other data, over shots and inner steps.

Whatever is computed is also written to ``RUN_DIR/evaluations/``, under a new name each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from distmeta.config import flatten
from distmeta.errors import CheckpointMismatch, ConfigError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.figures import learner_pictures as pictures
from distmeta.files import write_json
from distmeta.intervals import Difference, EvaluationReport, paired
from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import frozen_digest
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.pictures import Curves
from distmeta.learners.probe import require_equal_ways
from distmeta.run import training as api
from distmeta.run.training import Place, RunRecord
from distmeta.runtime import evaluation
from distmeta.runtime.backend import Backend
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.events import Event
from distmeta.runtime.pool import WorkerPool
from distmeta.runtime.worker import WorkerSetup
from distmeta.seeding import rng
from distmeta.types import Split, TaskRef

Over = Literal["shots", "inner_steps", "lengths"]


@dataclass(frozen=True)
class Yardstick:
    """What a run is judged on, and where that is computed.

    Args:
        tasks: how many tasks; 600 when left out, or all of them where there are fewer.
        split: which classes.
        seed: of the tasks; the experiment's ``evaluation.seed`` when left out: the same tasks for every run.
        data: where the dataset is now, or another dataset of the same input shape: the judgement is then cross-domain.
        overrides: settings of the tasks (``tasks.ways`` for learners that take any number), of the learner
            (``learner.test_inner_steps``) and of the runtime.
        place: where to compute.

    Example:
        >>> Yardstick(tasks=100, overrides={"tasks.ways": 20}).split
        'meta_test'
    """

    tasks: int | None = None
    split: Split = "meta_test"
    seed: int | None = None
    data: Path | str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    place: Place = field(default_factory=Place)

    def of(self, run: _TrainedRun) -> Ruler:
        """Number and seed of the tasks: those of ``run`` where none were given."""
        tasks, seed = self.tasks, self.seed
        if tasks is None:
            tasks = min(600, run.experiment.tasks.count(self.split) or 600)
        return Ruler(tasks, self.split, run.experiment.evaluation.seed if seed is None else seed)


@dataclass(frozen=True)
class Ruler:
    """Which tasks exactly: the first ``tasks`` of ``split`` and ``seed``."""

    tasks: int
    split: Split
    seed: int


@dataclass(frozen=True)
class Judgement:
    """What was judged, on what, and the numbers.

    Args:
        run_dir: the run.
        step: whose parameters were judged: the best by meta-validation.
        params_sha256: their digest.
        trained_on: name of the dataset of the training.
        judged_on: name of the dataset of the tasks.
        cross_domain: whether these are two datasets.
        changed: settings that differ from those of the run, by dotted key.
        report: the numbers.
    """

    run_dir: Path
    step: int
    params_sha256: str
    trained_on: str
    judged_on: str
    cross_domain: bool
    changed: Mapping[str, Any]
    report: EvaluationReport

    @property
    def title(self) -> str:
        """What was judged on what, in a line."""
        report = self.report
        where = f", cross-domain: trained on {self.trained_on}, judged on {self.judged_on}" if self.cross_domain else ""
        other = "".join(f", {key}={value}" for key, value in self.changed.items())
        return f"{report.split}: {report.tasks} tasks of seed {report.seed}{where}{other}, mean ± 95 % interval"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: all of it, with the per-task values."""
        return {
            "run_dir": str(self.run_dir),
            "step": self.step,
            "params_sha256": self.params_sha256,
            "trained_on": self.trained_on,
            "judged_on": self.judged_on,
            "cross_domain": self.cross_domain,
            "changed": dict(self.changed),
            **self.report.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs on the very same tasks.

    Args:
        a: the one run.
        b: the other.
    """

    a: Judgement
    b: Judgement

    @property
    def differences(self) -> dict[str, Difference]:
        """``a - b`` of every number that both have, paired by task."""
        return paired(self.a.report, self.b.report)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: both judgements, and under ``difference`` the means of a - b with their half widths."""
        found = {
            name: {"a": d.a, "b": d.b, "mean": d.mean, "ci95": d.ci95, "clear": d.clear}
            for name, d in self.differences.items()
        }
        return {"difference": found, "a": self.a.to_dict(), "b": self.b.to_dict()}


@dataclass(frozen=True)
class Sweep:
    """One run judged at several values of one setting, everything else equal.

    Args:
        key: the setting.
        values: what it was set to.
        judgements: one per value.
        picture: the curve, as a PNG.
    """

    key: str
    values: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    picture: Path

    @property
    def title(self) -> str:
        """As of one judgement, without the setting that is swept."""
        first = self.judgements[0]
        others = {key: value for key, value in first.changed.items() if key != self.key}
        return replace(first, changed=others).title

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every judgement, with the per-task values."""
        return {
            "key": self.key,
            "values": list(self.values),
            "picture": str(self.picture),
            "judgements": [judgement.to_dict() for judgement in self.judgements],
        }


def evaluate(
    run_dir: Path | str,
    *,
    tasks: int | None = None,
    split: Split = "meta_test",
    seed: int | None = None,
    data: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    place: Place | None = None,
) -> EvaluationReport:
    """The numbers of :func:`judge`; the arguments are those of a :class:`Yardstick`."""
    return judge(run_dir, Yardstick(tasks, split, seed, data, overrides or {}, place or Place())).report


def judge(run_dir: Path | str, by: Yardstick | None = None) -> Judgement:
    """Judge the best parameters of a run that was started from a job file, over the workers.

    Args:
        run_dir: its folder.
        by: on what.

    Raises:
        CheckpointNotFound: the run has no checkpoint yet.
        CheckpointMismatch: the job or the dataset is not the one of the training.
        ConfigError: the data have no such split or another shape, or a setting cannot be changed after training.
    """
    by = by or Yardstick()
    run = _TrainedRun.open(run_dir, by)
    _require_writable(run.folder)
    with _backend(run, by) as backend:
        found = run.judge(by.of(run), by.place, backend)
    write_json(_reserve(run.folder, by.split), found.to_dict())
    return found


def compare(run_a: Path | str, run_b: Path | str, by: Yardstick | None = None) -> Comparison:
    """Judge two runs on the same tasks.

    Args:
        run_a: the one; what is found is kept in its folder, and the seed is its ``evaluation.seed`` when left out.
        run_b: the other.
        by: on what, for both.

    Raises:
        ConfigError: task i of the one run is not task i of the other: other data, ways, shots or queries.
    """
    by = by or Yardstick()
    a, b = _TrainedRun.open(run_a, by), _TrainedRun.open(run_b, by)
    ruler = by.of(a)
    _require_same_tasks(a, b, ruler)
    _require_writable(a.folder)
    found = []
    for run in (a, b):
        with _backend(run, by) as backend:
            found.append(run.judge(ruler, by.place, backend))
    comparison = Comparison(*found)
    write_json(_reserve(a.folder, "against"), comparison.to_dict())
    return comparison


def sweep(run_dir: Path | str, over: Over, values: Sequence[int], by: Yardstick | None = None) -> Sweep:
    """Judge a run at several numbers of shots (a data-efficiency curve), of inner steps, or lengths; draws the curve.

    Task i has the same classes at every number of shots, and its support sets grow: that of 5 shots holds that of 1.

    Args:
        run_dir: its folder.
        over: ``"shots"``, ``"inner_steps"``, or ``"lengths"`` of sequences.
        values: the numbers.
        by: on what else.

    Raises:
        ConfigError: the tasks have no shots, or the learner takes no inner steps.
    """
    by = by or Yardstick()
    key = _key(run_dir, over, by.split)
    runs = [_TrainedRun.open(run_dir, replace(by, overrides={**by.overrides, key: value})) for value in values]
    first = runs[0]
    _require_writable(first.folder)
    with _backend(first, by) as backend:
        found = tuple(run.judge(by.of(first), by.place, backend) for run in runs)
    path = _reserve(first.folder, over)
    result = Sweep(key, tuple(values), found, path.with_suffix(".png"))
    write_json(path, result.to_dict())
    pictures.draw(_curves(result, over, RunRecord.load(first.folder).values["name"]), result.picture)
    return result


# -- a run, ready to be judged ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TrainedRun:
    """The best parameters of a run and the learner that uses them, on the tasks that it is to be judged on."""

    folder: Path
    job: Job
    experiment: Experiment  # with all changes
    learner: MetaLearner  # bound to its model, its engine chosen
    best: Checkpoint
    trained_on: str
    judged_on: str
    cross_domain: bool
    changed: Mapping[str, Any]

    @classmethod
    def open(cls, run_dir: Path | str, by: Yardstick) -> _TrainedRun:
        """Everything is checked here; no process has been started then."""
        folder = Path(run_dir)
        changed = {key: value for key, value in by.overrides.items() if not key.startswith("runtime.")}
        _require_changeable(changed)
        record, job = RunRecord.load(folder), api.job_of(folder, {})
        store = CheckpointStore(folder / "checkpoints")
        last = store.load()
        best = store.load((last.record["best"] or {}).get("step"))

        trained = _with_data(job.experiment, by.data)
        judged, split = trained.with_overrides(by.overrides), by.split
        tasks, original = judged.tasks, record.values.get("dataset") or _facts(job.experiment)
        if split not in tasks.splits:
            have = ", ".join(tasks.splits)
            raise ConfigError(f"The dataset has no split {split}; it has {have}. Give --split one of these.")
        spec = trained.tasks.spec_of("meta_train")
        if split != "meta_train":
            require_equal_ways(judged.learner, spec, tasks.spec_of(split))
        if list(tasks.spec.input_shape) != list(original["input_shape"]):
            raise ConfigError(
                f"{folder} was trained on inputs of shape {list(original['input_shape'])} ({original['name']}); "
                f"{tasks.describe()['name']} has {list(tasks.spec.input_shape)}. Build the data again with that shape "
                "(distmeta data build ... --size, --channels), or train on this one."
            )
        cross_domain = by.data is not None and trained.tasks.fingerprint != last.record["fingerprint"]
        tasks.check_split(split)
        if by.tasks is not None:
            evaluation.require_tasks(tasks, split, "--tasks", by.tasks)
        engine = changed.get("learner.vectorise", last.record["engine"])
        learner = judged.learner.bind(spec, trained.seed).with_config(vectorise=engine)
        _require_same_experiment(trained, frozen_digest(learner.model), last.record["identity"], cross_domain)
        if ParamLayout.of(learner.init_meta_params(rng(trained.seed, "init"))) != best.layout:
            raise CheckpointMismatch(
                "The checkpoint's parameters have other names or shapes than the learner's; expected those of the "
                "training. Leave out --set of settings that add or remove parameters, and restore the job's model."
            )
        name = tasks.describe()["name"]
        return cls(folder, job, judged, learner, best, original["name"], name, cross_domain, changed)

    def judge(self, by: Ruler, place: Place, backend: Backend) -> Judgement:
        """Over the workers of a pool of its own."""
        runtime = self.experiment.runtime
        setup = WorkerSetup(
            self.learner, self.experiment.tasks, self.best.layout, self.experiment.seed, runtime.threads
        )
        pool = WorkerPool(backend, setup, runtime)
        try:
            infos = pool.join()
            workers = f"{len(infos)} worker{'s' * (len(infos) > 1)} on {backend.name}: {infos[0].kernel}"
            which = "".join(f"{key}={value}: " for key, value in self.changed.items())
            place.watch(Event("message", 0, text=which + workers))
            report = evaluation.evaluate(
                backend,
                pool,
                backend.put(self.best.vector),
                version=self.best.step,
                split=by.split,
                tasks=by.tasks,
                seed=by.seed,
                chunk_size=runtime.chunk_size,
            )
        finally:
            pool.close()
        return Judgement(
            self.folder,
            self.best.step,
            self.best.params_sha256,
            self.trained_on,
            self.judged_on,
            self.cross_domain,
            self.changed,
            report,
        )


@contextmanager
def _backend(run: _TrainedRun, by: Yardstick) -> Iterator[Backend]:
    runtime, place = run.experiment.runtime, by.place
    was = RunRecord.load(run.folder).values.get("code") or {}
    api.say_changed_code(run.job, was, place.watch, "this is not what was trained")
    if caution := evaluation.caution(run.experiment.tasks, by.split):
        place.watch(Event("message", 0, text=caution))
    backend = api.open_backend(place, run.job, runtime.workers, runtime.threads)
    try:
        yield backend
    finally:
        if backend is not place.backend:
            backend.close()


def _facts(experiment: Experiment) -> dict[str, Any]:
    """Of the dataset, for runs that did not note them when they began."""
    return {"name": experiment.tasks.describe()["name"], "input_shape": experiment.tasks.spec.input_shape}


def _with_data(experiment: Experiment, data: Path | str | None) -> Experiment:
    if data is None:
        return experiment
    known = experiment.keys()
    if "tasks.data" not in known:
        raise ConfigError(
            f"--data {data}: the run's tasks ({type(experiment.tasks).__name__}) read no dataset. Drop it."
        )
    return experiment.with_overrides({"tasks.data": str(data)})


def _require_changeable(changed: Mapping[str, Any]) -> None:
    for key in changed:
        if not key.startswith(("tasks.", "learner.")):
            raise ConfigError(
                f"--set {key}: the run is trained already; evaluation can change settings of tasks, learner and "
                "runtime only. Leave it out, or `distmeta train` a new run."
            )
        if key == "tasks.data":
            raise ConfigError("--set tasks.data: give --data DIR, which also checks that the shapes agree.")


def _require_same_experiment(
    trained: Experiment, frozen: str | None, was: Mapping[str, Any], cross_domain: bool
) -> None:
    if cross_domain:
        was = {**was, "tasks": {**was["tasks"], "fingerprint": trained.tasks.fingerprint}}
    changed = trained.changed(was, frozen)
    if changed:
        raise CheckpointMismatch(
            f"The run was started with {'; '.join(changed)}. Expected the same experiment. Restore the job and its "
            "dataset, or give --data with the dataset's new place."
        )


def _require_same_tasks(a: _TrainedRun, b: _TrainedRun, by: Ruler) -> None:
    """Pairs are compared by task index, so task i must be the same data in both runs: looked at, not inferred."""
    for index in (0, by.tasks - 1):
        ref = TaskRef(by.split, 0, index)
        one, other = (list(run.experiment.tasks.episode(ref, by.seed)) for run in (a, b))
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
            f"{a.folder} and {b.folder} cannot be compared task by task, since task {by.split}/{index} is not the "
            f"same: {'; '.join(differing) or 'the tasks draw other data'}. Judge both on the same tasks: --set a "
            "setting for both, such as --set tasks.queries=5, or --data DIR for one dataset."
        )


def _key(run_dir: Path | str, over: Over, split: Split) -> str:
    """The setting behind ``over``."""
    experiment = api.job_of(Path(run_dir), {}).experiment
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
    reports = [judgement.report for judgement in result.judgements]
    common = [metric for metric in reports[0].metrics if all(metric in report.metrics for report in reports)]
    first = result.judgements[0]
    where = f"{first.trained_on} to {first.judged_on}, " if first.cross_domain else ""
    return Curves(
        title=f"{name}: {where}{first.report.tasks} {first.report.split} tasks",
        x_label=_AXES[over],
        x=result.values,
        values={metric: [report.metrics[metric] for report in reports] for metric in common},
    )


# -- what is kept -----------------------------------------------------------------------------------------------------


def _require_writable(folder: Path) -> None:
    """Before anything is computed that could not be kept."""
    try:
        (folder / "evaluations").mkdir(exist_ok=True)
        _reserve(folder, ".probe").unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder}/evaluations cannot be written, where the result is kept: {error}. Fix its permissions, or "
            "evaluate a copy of the run."
        ) from None


def _reserve(folder: Path, kind: str) -> Path:
    """A new file ``evaluations/KIND-N.json``; two processes never get the same one."""
    n = 1
    while True:
        path = folder / "evaluations" / f"{kind}-{n}.json"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            n += 1
        else:
            return path


__all__ = ["Comparison", "Judgement", "Sweep", "Yardstick", "compare", "evaluate", "judge", "sweep"]
