"""Runs as a user sees them: train, resume, evaluate and inspect, each on a run directory."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from distmeta.config import flatten
from distmeta.errors import ConfigError, ServerLost
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job, load_job
from distmeta.experiment.settings import Outer, Runtime
from distmeta.figures import learner_pictures as pictures
from distmeta.figures import run_curves as report
from distmeta.files import write_json
from distmeta.intervals import EvaluationReport
from distmeta.learners import base
from distmeta.learners.base import FastModel, MetaLearner
from distmeta.runtime.backend import Backend, LocalBackend
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.driver import Driver, Trained
from distmeta.runtime.events import Event
from distmeta.tasks.base import TaskDistribution
from distmeta.tracking.git_state import git_tags
from distmeta.tracking.metrics_file import read_metrics
from distmeta.tracking.tracker import DatasetInput, Tracker, writing
from distmeta.types import TaskRef

Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Place:
    """Where a run computes and where it is recorded.

    Args:
        backend: ``"local"`` (this process), ``"ray"``, or a :class:`Backend` of your own.
        address: of a running Ray cluster; a cluster of this machine is started when left out.
        tracking: whether MLflow records the run; the local files are always written.
        tracking_uri: of MLflow; its own default when left out.
        tracking_required: fail when MLflow cannot be reached at the start.
        watch: called with every event of the run.

    Raises:
        ConfigError: there is no such backend, or it takes no address.
    """

    backend: Literal["local", "ray"] | Backend = "local"
    address: str | None = None
    tracking: bool = False
    tracking_uri: str | None = None
    tracking_required: bool = False
    watch: Watch = field(default=lambda event: None)

    def __post_init__(self) -> None:
        if self.backend not in ("local", "ray") and not isinstance(self.backend, Backend):
            raise ConfigError(f"There is no backend {self.backend!r}; expected 'ray' or 'local'.")
        if self.backend == "local" and self.address is not None:
            raise ConfigError(
                f"The local backend has no cluster at {self.address!r}. Use --backend ray, or leave the address out."
            )


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Args:
        run_dir: its folder.
        step: outer steps done.
        params_sha256: digest of the final meta-parameters.
        best_step: the step whose parameters were judged best on meta-validation (the last step without validation).
        test: meta-test report of those parameters.
        how_to_open: the command that opens the curves; empty without MLflow.
    """

    run_dir: Path
    step: int
    params_sha256: str
    best_step: int
    test: EvaluationReport | None
    how_to_open: str = ""

    def __repr__(self) -> str:
        test = {name: self.test.text(name) for name in self.test.metrics} if self.test else None
        return f"RunResult({str(self.run_dir)!r}, step={self.step}, best_step={self.best_step}, test={test})"


def meta_train(
    experiment: Experiment | Job,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    place: Place | None = None,
) -> RunResult:
    """Run an experiment to its end.

    Args:
        experiment: what to run, or a loaded job file (kept in the run directory, for the command line to resume it).
        run_dir: a new folder; ``runs/NAME-TIME`` when left out.
        resume: go on from the last checkpoint in ``run_dir``.
        place: where it computes and where it is recorded; this process when left out.

    Returns:
        The result; the model with its parameters is in the checkpoints of the run directory.

    Raises:
        ConfigError: the run directory exists already (nothing is overwritten), cannot be written, or is not a run.
        DistmetaError: see the tree in :mod:`distmeta.errors`.
    """
    result, _ = _run(experiment, run_dir, resume, place or Place())
    return result


def require_new(run_dir: Path | str) -> None:
    """Raise if something is there already: nothing is overwritten.

    Raises:
        ConfigError: the folder is not empty, no folder, or cannot be read.
    """
    folder = Path(run_dir)
    is_folder = os.path.isdir(folder)  # not Path.is_dir, which raises where a folder on the way may not be read
    try:
        names = set(os.listdir(folder)) if is_folder else set()
    except OSError as error:
        raise _cannot_write(folder, error) from None
    # What a run leaves that ended before it could begin is nothing to be lost, and nothing to be resumed.
    if ".lock" in names and names <= {".lock", "job.py", "experiment.json"}:
        return
    if names or (os.path.exists(folder) and not is_folder):
        raise ConfigError(
            f"The run directory {folder} exists already; expected a new one, so that nothing is overwritten. Use "
            f"`distmeta resume {folder}`, or another --run-dir."
        )


def _run(
    what: Experiment | Job, run_dir: Path | str | None, resume: bool, place: Place
) -> tuple[RunResult, tuple[Driver, Checkpoint]]:
    experiment = what.experiment if isinstance(what, Job) else what
    with _folder(run_dir, experiment.name) as folder:
        if not resume:
            require_new(folder)
        record = RunRecord.load(folder) if resume else None
        old_code = (record.values if record else {}).get("code") or {}
        store = CheckpointStore(folder / "checkpoints", keep=experiment.runtime.keep_checkpoints)
        driver = Driver(experiment, store, place.watch)  # what cannot begin ends here
    with _only_driver(folder):
        record = _write_run_directory(folder, what, experiment, record)
        tracker = Tracker(
            folder,
            experiment=experiment.name,
            run_name=folder.name,
            uri=place.tracking_uri,
            enabled=place.tracking,
            required=place.tracking_required,
            warn=lambda text: place.watch(Event("message", 0, text=text)),
        )
        backend = None
        try:
            backend = open_backend(place, what, experiment.runtime.workers, experiment.runtime.threads)
            if resume and isinstance(what, Job):
                say_changed_code(what, old_code, place.watch, "the steps to come are another experiment's")
            infos = driver.start(backend)
            tracker.truncate(driver.first_step)  # what a crash left after the last checkpoint is done again
            tracker.start(_params(experiment), _tags(what, experiment, infos[0].kernel), _dataset(experiment.tasks))
            trained = driver.train(tracker)
            with writing(folder):
                result = _finish(folder, experiment, driver, store, trained, tracker, record, place.watch)
        except KeyboardInterrupt:
            with suppress(OSError):  # a full disk: the record says "running" of a process that is gone
                record.update(status="interrupted")
            tracker.close("KILLED")
            raise KeyboardInterrupt(f"Interrupted. Go on with: distmeta resume {folder}") from None
        except BaseException as error:
            with suppress(OSError):
                record.update(status="failed", error=str(error))
            tracker.close("FAILED")
            raise
        else:
            result = replace(result, how_to_open=_close_finished(tracker, folder))
        finally:
            with suppress(ServerLost):
                driver.close()
            if backend is not None and backend is not place.backend:  # a backend that was given stays open
                backend.close()
    return result, (driver, trained.best)


def _finish(
    folder: Path,
    experiment: Experiment,
    driver: Driver,
    store: CheckpointStore,
    trained: Trained,
    tracker: Tracker,
    record: RunRecord,
    watch: Watch,
) -> RunResult:
    """Write and record what a run leaves behind."""
    final = store.load()
    test = trained.test
    if test is not None:
        if (record.values.get("step"), record.values["test"]) != (trained.step, test.summary()):  # else it is there
            tracker.metrics(trained.step, {f"test/{name}": value for name, value in test.summary().items()})
        write_json(folder / "result.json", {"best_step": trained.best.step, **test.to_dict()})
        tracker.artifact(folder / "result.json")
    curves = report.plot_curves(read_metrics(folder), folder / "curves.png", title=experiment.name)
    tracker.artifact(curves)
    drawn: list[Path] = []
    for name, draw in (("fit.png", _draw_fit), (f"{type(driver.learner).__name__}.pictures()", _draw_pictures)):
        try:
            drawn += draw(folder, experiment, driver, trained)
        except Exception as error:  # noqa: BLE001 (a user's tasks and pictures() may raise anything; the run is done)
            watch(Event("message", trained.step, text=f"{name} failed: {type(error).__name__}: {error}"))
    for path in (folder / "experiment.json", folder / "job.py", *drawn):
        if path.exists():
            tracker.artifact(path)
    for path in sorted(store.path(trained.best.step).iterdir()):  # a run that was resumed has one best, the last
        tracker.artifact(path, "best")
    record.update(
        status="finished", step=trained.step, stopped_early=trained.stopped_early, test=test.summary() if test else None
    )
    return RunResult(folder, trained.step, final.params_sha256, trained.best.step, test)


def _close_finished(tracker: Tracker, folder: Path) -> str:
    """Send the rest to MLflow; returns how to open it. The run is finished, also for who does not wait for that."""
    try:
        tracker.close("FINISHED")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"The run {folder} is finished; MLflow may lack part of it. Send that with: distmeta track sync {folder}"
        ) from None
    return tracker.how_to_open() if tracker.run_id else ""


def _draw_fit(folder: Path, experiment: Experiment, driver: Driver, trained: Trained) -> list[Path]:
    """Draw the first meta-test task of a regression of one number on one number; other tasks have no such picture."""
    tasks, spec, best = experiment.tasks, experiment.tasks.spec, trained.best
    if spec.kind != "regression" or spec.input_shape != (1,) or spec.outputs != 1 or "meta_test" not in tasks.splits:
        return []
    if "queries" in type(tasks.config).model_fields:
        tasks = tasks.with_config(queries=400)  # drawn after the support set, which stays as it is
    episode = tasks.episode(TaskRef("meta_test", 0, 0), experiment.evaluation.seed)
    order = episode.query_x[:, 0].argsort()
    x, y = episode.query_x[order], episode.query_y[order]
    params = best.layout.unflatten(best.vector)
    dtype = best.layout.torch_dtype
    fast = FastModel(driver.learner.for_evaluation(), params, episode.support_x.to(dtype), episode.support_y.to(dtype))
    before = driver.learner.forward(params, x.to(dtype)).detach()
    title = f"{experiment.name}: one meta-test task, before and after {spec.support} points"
    after = fast.predict(x.to(dtype))
    return [
        report.plot_regression(folder / "fit.png", episode.support_x, episode.support_y, x, y, before, after, title)
    ]


def _draw_pictures(folder: Path, experiment: Experiment, driver: Driver, trained: Trained) -> list[Path]:
    """Draw what the learner shows of itself on the first held-out tasks."""
    settings, layout = experiment.evaluation, trained.best.layout
    split = experiment.tasks.splits[-1]
    if split == "meta_train":
        return []
    refs = [TaskRef(split, 0, index) for index in range(min(100, settings.test_tasks))]
    episodes = experiment.tasks.episodes(refs, settings.seed).to(torch.device("cpu"), layout.torch_dtype)
    shown = driver.learner.for_evaluation().pictures(layout.unflatten(trained.best.vector), episodes)
    return [
        pictures.draw(replace(picture, title=f"{experiment.name}: {picture.title}"), folder / f"{name}.png")
        for name, picture in shown.items()
    ]


def inspect_run(run_dir: Path | str) -> dict[str, Any]:
    """What is known of a run, JSON-ready: status, step, ``params_sha256``, settings, dataset fingerprint.

    Raises:
        ConfigError: the folder holds no run.
    """
    folder = Path(run_dir)
    record = RunRecord.load(folder)
    store = CheckpointStore(folder / "checkpoints")
    last = store.load() if store.steps() else None
    status = record.values["status"]
    if status == "running" and record.values["host"] == platform.node() and not _alive(record.values["pid"]):
        status = "interrupted"  # kill -9 leaves no time to say so
    experiment = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    tracking = folder / "tracking.json"
    return {
        "run_dir": str(folder),
        "status": status,
        "step": last.step if last else 0,
        "iterations": record.values["iterations"],
        "params_sha256": last.params_sha256 if last else None,
        "dataset_fingerprint": record.values["dataset_fingerprint"],
        "best": last.record["best"] if last else None,
        "engine": last.record["engine"] if last else None,
        "kernel": last.record["kernel"] if last else None,
        "batch_norm": experiment["learner"].get("batch_norm"),
        "test": record.values.get("test"),
        "error": record.values.get("error") if status == "failed" else None,
        "mlflow_run_id": json.loads(tracking.read_text(encoding="utf-8")).get("run_id") if tracking.exists() else None,
        "experiment": experiment,
    }


def job_of(run_dir: Path, overrides: Mapping[str, Any]) -> Job:
    """The job file that a run keeps, with the overrides that it was started with and ``overrides`` on top.

    Raises:
        ConfigError: the folder holds no run, or one that was started from Python.
    """
    record = RunRecord.load(run_dir)
    kept = record.values["job"]
    if kept is None:
        raise ConfigError(
            f"{run_dir} was started from Python, not from a job file; expected `job.py` in it. Go on with "
            "distmeta.meta_train(experiment, run_dir=..., resume=True); to judge a run here, train it from a job file."
        )
    folder = Path(kept["folder"])
    return load_job(
        run_dir / "job.py",
        {**kept["overrides"], **overrides},
        folder=folder if os.path.isdir(folder) else None,
        name=Path(kept["path"]).stem,
    )


def open_backend(place: Place, what: Experiment | Job, workers: int | None, threads: int) -> Backend:
    """The backend that ``place`` names.

    Raises:
        RuntimeFailure: there is no cluster at its address.
    """
    if isinstance(place.backend, Backend):
        return place.backend
    if place.backend == "local":
        return LocalBackend()
    from distmeta.runtime.ray_backend import RayBackend  # a local run needs no ray installed

    modules, folders = ((what.module,), (str(what.folder),)) if isinstance(what, Job) else ((), ())
    return RayBackend(place.address, cpus=(workers or 0) * threads, by_value=modules, search_path=folders)


@dataclass(frozen=True)
class RunRecord:
    """``RUN_DIR/run.json``.

    Args:
        folder: of the run.
        values: JSON-ready facts.
    """

    folder: Path
    values: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read it.

        Raises:
            ConfigError: the folder holds no run.
        """
        try:
            return cls(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder} is not a run: run.json could not be read ({error}). Give the folder that `distmeta train` "
                "printed."
            ) from None

    def update(self, **changes: Any) -> RunRecord:
        """Write changed facts, atomically."""
        record = RunRecord(self.folder, {**self.values, **changes, "updated": _now()})
        write_json(self.folder / "run.json", record.values)
        return record


def _write_run_directory(
    folder: Path, what: Experiment | Job, experiment: Experiment, old: RunRecord | None
) -> RunRecord:
    """Fill a new run's directory, or bring that of the run ``old`` up to date: it keeps what it is resumed with."""
    job = None
    if isinstance(what, Job):
        job = {"path": str(what.path), "folder": str(what.folder), "overrides": dict(what.overrides)}
        if old is not None and old.values["job"] is not None:
            job["path"] = old.values["job"]["path"]  # not that of the copy
    facts = {
        "name": experiment.name,
        "created": _now(),
        "dataset_fingerprint": experiment.tasks.fingerprint,
        "dataset": {
            "name": experiment.tasks.describe()["name"],
            "input_shape": list(experiment.tasks.spec.input_shape),
        },
        "test": None,
        **(old.values if old else {}),
        "status": "running",
        "error": None,
        "pid": os.getpid(),
        "host": platform.node(),
        "iterations": experiment.outer.iterations,
        "job": job,
        "code": dict(what.code) if isinstance(what, Job) else None,
    }
    try:
        if isinstance(what, Job) and old is None:
            (folder / "job.py").write_text(what.source, encoding="utf-8")
        write_json(folder / "experiment.json", experiment.settings())
        return RunRecord(folder, facts).update()
    except OSError as error:
        raise _cannot_write(folder, error) from None


@contextmanager
def _folder(run_dir: Path | str | None, name: str) -> Iterator[Path]:
    """``run_dir``, or a folder with a new name that no other process can get; gone again if the run cannot begin.

    Raises:
        ConfigError: it cannot be made.
    """
    if run_dir:
        yield Path(run_dir)
        return
    stem = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    made = [parent for parent in stem.parents if not parent.exists()]
    folder, n = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:  # of a run that was started in the same second
            n += 1
            folder = stem.with_name(f"{stem.name}-{n}")
        except OSError as error:
            raise _cannot_write(folder, error) from None
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # others may have put something there by now
            for path in (folder, *made):
                path.rmdir()
        raise


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Hold the run directory, made if absent, against a second process; the lock ends with this one, however it ends.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise _cannot_write(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is working on the run {folder}; expected one at a time. Wait for it or end it; "
                f"`distmeta inspect {folder}` shows how far it is."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def say_changed_code(job: Job, was: Mapping[str, str], watch: Watch, then: str) -> None:
    """Settings and shapes are compared and refused; whether changed code means another experiment, people know.

    Args:
        job: as it is now.
        was: its code when the run was last started; empty where that was not noted.
        watch: is told.
        then: what follows if the change is one of what is computed.
    """
    changed = sorted(path for path in {*was, *job.code} if was and was.get(path) != job.code.get(path))
    if changed:
        text = (
            f"{', '.join(changed)}: not as when the run was last started. If that changes what is computed, {then}: "
            "restore the code, or `distmeta train` a new run."
        )
        watch(Event("message", 0, text=text))


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The run directory {folder} cannot be written: {error}. Give another --run-dir, or fix its permissions."
    )


def _params(experiment: Experiment) -> dict[str, Any]:
    return flatten(experiment.settings())


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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _say(event: Event) -> None:
    """What a run in a notebook or a script shows of itself: every tenth of its steps, and each meta-validation."""
    if event.kind == "step":
        if event.of and event.step % max(1, event.of // 10) == 0:
            print(f"step {event.step}/{event.of}  loss {event.values['train/loss']:.3f}", file=sys.stderr)
    else:
        print(f"step {event.step}: {event.text}", file=sys.stderr)


def _train_learner(
    learner: MetaLearner,
    tasks: TaskDistribution,
    *,
    run_dir: Path | str | None = None,
    place: Place | None = None,
    **settings: Any,
) -> RunResult:
    """What ``learner.train(tasks)`` does: the run, then the best parameters into the learner's model.

    A line of progress goes to standard error now and then; ``place=Place()`` is silent.

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
    result, (driver, best) = _run(experiment.with_overrides(dotted), run_dir, False, place or Place(watch=_say))
    learner._model = driver.learner.model
    base.attach(learner._model, learner)
    learner.load(best.layout.unflatten(best.vector))
    return result


base._TRAINER[:] = [_train_learner]

__all__ = [
    "Place",
    "RunResult",
    "inspect_run",
    "job_of",
    "meta_train",
]
