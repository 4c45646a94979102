"""The run directory: every file name in it, who holds it, and what it records.

::

    RUN_DIR/run.json            what the run is and how far it got (:class:`RunRecord`); .run.json.copy, the same
            experiment.json     its settings, for people
            job.py              a copy of the job file, for runs that have one
            code/               copies of the modules beside the job file that it imports
            .lock               held by the one process that works on the run, see :mod:`distmeta.run.lock`
            checkpoints/        see :mod:`distmeta.runtime.checkpoint`
            metrics.jsonl       see :mod:`distmeta.tracking.metrics_file`
            tracking.json       see :mod:`distmeta.tracking.tracking_record`
            result.json         the meta-test report
            curves.png, *.png   pictures
            report.json         what the report needs of the learner and the data: example tasks, dataset card
            report.html         the report, see :mod:`distmeta.run.reporting`
            profile.json        time line of some steps (Chrome trace), see :mod:`distmeta.runtime.timeline`
            evaluations/        later evaluations, one file each
            reproduction.json   ours beside the published number, for runs of a protocol card
            errors/             the full text of errors that came from elsewhere

Names without a module beside them are spelled in this file only; others ask a :class:`RunDirectory`.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError, DistmetaError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import JOB as _JOB
from distmeta.experiment.job import Job, load_job
from distmeta.files import read_record, sha256_of, write_record, write_whole
from distmeta.run import lock
from distmeta.run.kept_code import keep_modules, require_modules
from distmeta.run.lock import LOCK_FILE, cannot_write
from distmeta.run.record import DatasetFacts, KeptJob, LearnedFrom, RunRecord, Status
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.timeline import Timeline
from distmeta.tracking.metrics_file import METRICS_FILE, read_metrics
from distmeta.tracking.mlflow_errors import ERROR_FOLDER
from distmeta.tracking.tracking_record import RECORD_FILE, TrackingRecord

_RUN, _COPY, _EXPERIMENT, _CODE = "run.json", ".run.json.copy", "experiment.json", "code"
_CHECKPOINTS, _EVALUATIONS = "checkpoints", "evaluations"
_RESULT, _REPRODUCTION, _CURVES = "result.json", "reproduction.json", "curves"
_REPORT, _PAGE, _PROFILE = "report.json", "report.html", "profile.json"
NEEDED, KEPT, CODE = (_RUN, _EXPERIMENT), (_RESULT, _JOB), _CODE
"""What a run is used by, beside checkpoints: files that it needs, files that it may have, the folder of its code."""


class RunDirectory:
    """The folder of one run. Make one with :meth:`new` or :meth:`open`.

    Args:
        path: the folder.
        made: folders that did not exist before, the innermost first; :meth:`discard` removes them.

    Attributes:
        path: the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunDirectory.new(Path(folder) / "run", "demo").picture("curves").name
        'curves.png'
    """

    def __init__(self, path: Path, made: tuple[Path, ...] = ()) -> None:
        self.path = path
        self._made = made

    # -- which folder -------------------------------------------------------------------------------------------------

    @classmethod
    def new(cls, path: Path | str | None, name: str) -> RunDirectory:
        """A directory for a new run: ``path``, or ``runs/NAME-TIME`` with a number added until no one else has it.

        Args:
            path: a folder that is absent or empty.
            name: of the experiment.

        Raises:
            ConfigError: ``path`` holds something (nothing is overwritten), or cannot be read or made.
        """
        if path is not None:
            directory = cls(Path(path))
            directory.require_new()
            return directory
        stem = Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        above = [parent for parent in stem.parents if not parent.exists()]
        folder, n = stem, 1
        while True:
            try:
                folder.mkdir(parents=True)
                return cls(folder, (folder, *above))
            except FileExistsError:  # a run that was started in the same second
                n += 1
                folder = stem.with_name(f"{stem.name}-{n}")
            except OSError as error:
                raise cannot_write(folder, error) from None

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """The directory of an existing run, its record read.

        Raises:
            ConfigError: the folder holds no run.
            FileDamaged: its record is not as it was written.
        """
        directory = cls(Path(path))
        directory.record  # noqa: B018 (read now, so that a wrong folder is refused now)
        return directory

    def discard(self) -> None:
        """Remove the folders that :meth:`new` made, as far as they are empty: the run could not begin."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def require_new(self) -> None:
        """Raise if the folder holds something: nothing is overwritten.

        Raises:
            ConfigError: it does, or it cannot be read.
        """
        is_folder = os.path.isdir(self.path)  # not Path.is_dir, which raises where a parent may not be read
        try:
            names = set(os.listdir(self.path)) if is_folder else set()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        # A run that failed before its first step leaves only these files; the folder can be reused.
        if LOCK_FILE in names and names <= {LOCK_FILE, _JOB, _EXPERIMENT}:
            return
        if names or (os.path.exists(self.path) and not is_folder):
            raise ConfigError(
                f"The run directory {self.path} exists already; expected a new one, so that nothing is overwritten. "
                f"Use `distmeta resume {self.path}`, or another --run-dir."
            )

    # -- who holds it -------------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the directory, made if absent, against a second process; the lock ends with this process at the latest.

        Waits up to a second for it. The record is read anew, since its last holder may have changed it.

        Raises:
            ConfigError: another process holds it, or it cannot be written.
        """
        with lock.hold(self.path):
            self.__dict__.pop("record", None)
            yield

    def status(self) -> Status:
        """The status now.

        A run that is recorded as running on this machine and that no process holds was interrupted; of another machine
        only the record is known.
        """
        record = self.record
        if record.status != "running" or record.host != platform.node():
            return record.status
        if lock.is_held(self.path, record.pid):
            return "running"
        self.__dict__.pop("record", None)  # it may have ended since the record was read
        now = self.record.status
        return "interrupted" if now == "running" else now  # kill -9 leaves no time to record it

    # -- what it records ----------------------------------------------------------------------------------------------

    @cached_property
    def record(self) -> RunRecord:
        """``run.json``, read once.

        Raises:
            ConfigError: there is none.
            FileDamaged: it is not as it was written.
        """
        try:
            return RunRecord.from_dict(read_record(self.path / _RUN, undigested=True, fix=self._way_back()))
        except (OSError, KeyError, TypeError) as error:
            why = f"{_RUN} could not be read ({error})"
            if isinstance(error, FileNotFoundError):
                why = f"there is no {_RUN} in it" if self.path.is_dir() else "there is no such folder"
            raise ConfigError(
                f"{self.path} is not a run: {why}. Give the folder that `distmeta train` printed."
            ) from None

    def update(self, **changes: Any) -> None:
        """Write changed fields of the record, atomically.

        Raises:
            OSError: the disk refuses.
        """
        self._write(replace(self.record, **changes, updated=_now()))

    def begin(self, what: Experiment | Job, experiment: Experiment, *, resumed: bool) -> None:
        """Fill a new run's directory, or bring that of a resumed run up to date; the record is written last.

        Args:
            what: the experiment, or the job that it comes from.
            experiment: the experiment.
            resumed: whether the record of an earlier process is kept.

        Raises:
            ConfigError: the directory cannot be written.
        """
        job, code = None, None
        old = self.record if resumed else None
        if isinstance(what, Job):
            path = old.job.path if old is not None and old.job is not None else str(what.path)  # not that of the copy
            job, code = KeptJob(path, str(what.folder), dict(what.overrides)), dict(what.code)
        now: dict[str, Any] = {
            "status": "running",
            "error": None,
            "pid": os.getpid(),
            "host": platform.node(),
            "iterations": experiment.outer.iterations,
            "job": job,
            "code": code,
            "updated": _now(),
        }
        if old is None:
            record = RunRecord(
                name=experiment.name,
                created=_now(),
                dataset_fingerprint=experiment.tasks.fingerprint,
                dataset=DatasetFacts.of(experiment),
                learned_from=LearnedFrom.of(experiment),
                **now,
            )
        else:
            record = replace(old, **now)
        try:
            if isinstance(what, Job):  # also on resume, which may have been given another version of the file
                write_whole(self.path / _JOB, what.source.encode())
                keep_modules(self.path / _CODE, what)
            write_record(self.path / _EXPERIMENT, experiment.settings())
            self._write(record)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def job(self, overrides: Mapping[str, Any] | None = None, *, accept_changed: bool = False) -> Job:
        """Run the job file that the run keeps, with the overrides of the run and ``overrides`` on top.

        Args:
            overrides: settings by dotted key.
            accept_changed: take the file though it is not the one that the run wrote.

        Raises:
            ConfigError: the run was started from Python, or the file was changed or damaged.
        """
        kept = self.record.job
        if kept is None:
            raise ConfigError(
                f"{self.path} was started from Python, not from a job file; expected `{_JOB}` in it. Go on with "
                "distmeta.meta_train(experiment, run_dir=..., resume=True); to evaluate a run from here, train it from "
                "a job file."
            )
        path, folder, modules = self.path / _JOB, Path(kept.folder), self.path / _CODE
        if not accept_changed:
            self.require_own_job()
        return load_job(
            path,
            {**kept.overrides, **(overrides or {})},
            folder=folder if os.path.isdir(folder) else modules if modules.is_dir() else None,
            name=Path(kept.path).stem,
        )

    def own_job(self) -> Job:
        """Run the kept job file with the modules that the run keeps, those of the training, wherever the originals are.

        Raises:
            ConfigError: the run was started from Python, or a file was changed or damaged.
        """
        kept, modules = self.record.job, self.path / _CODE
        if kept is None or not modules.is_dir():  # nothing beside the job file, or a run of an earlier version
            return self.job()
        self.require_own_job()
        require_modules(modules, self.record.code or {})
        return load_job(self.path / _JOB, kept.overrides, folder=modules, name=Path(kept.path).stem)

    def code_files(self) -> dict[str, Path]:
        """The job file and the modules beside it, as kept: path in the job's folder, to file.

        Raises:
            ConfigError: one was changed or damaged, or the run was started from Python.
        """
        kept = self.record.job
        if kept is None:
            raise ConfigError(
                f"{self.path} was started from Python, not from a job file; expected `{_JOB}` in it. Train it from a "
                "job file."
            )
        self.require_own_job()
        modules = self.path / _CODE
        folder = modules if modules.is_dir() else Path(kept.folder)
        return {_JOB: self.path / _JOB, **require_modules(folder, self.record.code or {})}

    def changed_code(self, job: Job) -> tuple[str, ...]:
        """Paths of the job's code that differ from when the run was last started; none where that was not recorded."""
        was = self.record.code
        if not was:
            return ()
        return tuple(sorted(path for path in {*was, *job.code} if was.get(path) != job.code.get(path)))

    @property
    def settings(self) -> dict[str, Any]:
        """``experiment.json``: the settings of the run, nested.

        Raises:
            ConfigError: the file is absent.
            FileDamaged: it is not as it was written.
        """
        try:
            return read_record(self.path / _EXPERIMENT, undigested=True)
        except OSError as error:
            raise ConfigError(
                f"{self.path / _EXPERIMENT} could not be read ({error}). Restore it from a copy."
            ) from None

    def checkpoints(self, keep: int = 2) -> CheckpointStore:
        """The checkpoints of the run.

        Args:
            keep: how many of the last are kept, beside the best.
        """
        return CheckpointStore(self.path / _CHECKPOINTS, keep=keep)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, see :func:`distmeta.tracking.metrics_file.read_metrics`."""
        return read_metrics(self.path)

    @property
    def mlflow_run_id(self) -> str | None:
        """The run in MLflow, if it was created there."""
        record = TrackingRecord.load(self.path)
        return record.run_id if record else None

    # -- what it keeps ------------------------------------------------------------------------------------------------

    def picture(self, name: str = _CURVES) -> Path:
        """Path of the picture ``name``; of the learning curves when left out."""
        return self.path / f"{name}.png"

    def pictures(self) -> list[Path]:
        """The PNGs of how the learner learns, by name; the curves are not among them."""
        return sorted(path for path in self.path.glob("*.png") if path != self.picture())

    @property
    def page(self) -> Path:
        """Path of ``report.html``, which :mod:`distmeta.run.reporting` writes."""
        return self.path / _PAGE

    def keep_profile(self, timeline: Timeline) -> Path:
        """Write the time line of some steps."""
        path = self.path / _PROFILE
        write_whole(path, timeline.to_json().encode())
        return path

    def keep_result(self, values: Mapping[str, Any]) -> Path:
        """Write the meta-test report."""
        return self._keep(_RESULT, values)

    def result(self) -> dict[str, Any] | None:
        """``result.json``: the meta-test report with its per-task values; ``None`` where the run has none yet.

        Raises:
            FileDamaged: it is not as it was written.
        """
        return self._kept(_RESULT)

    def keep_report_facts(self, values: Mapping[str, Any]) -> Path:
        """Write what the report needs of the learner and the data, which are at hand at the end of a run only."""
        return self._keep(_REPORT, values)

    def report_facts(self) -> dict[str, Any] | None:
        """``report.json``; ``None`` where the run has none: it is not finished, or of an older version.

        Raises:
            FileDamaged: it is not as it was written.
        """
        return self._kept(_REPORT)

    def keep_reproduction(self, values: Mapping[str, Any]) -> Path:
        """Write the comparison with a published number."""
        return self._keep(_REPRODUCTION, values)

    def keep_raw_text(self, error: BaseException) -> None:
        """Write the full text of a library's error under a new name; the error's message then names the file.

        Args:
            error: one without such a text is left as it is.
        """
        if isinstance(error, DistmetaError) and error.raw:
            with suppress(OSError):  # the error itself is worth more than its text
                path = self._reserve(ERROR_FOLDER, type(error).__name__, "txt")
                path.write_text(error.raw, encoding="utf-8", errors="backslashreplace")
                error.with_note(f"Full text: {path}")

    def checks(self) -> dict[str, Callable[[], object]]:
        """By the name of each file besides ``run.json`` and the checkpoints: what raises if it is damaged."""
        modules = self.path / _CODE
        own = (self.path / name for name in (_EXPERIMENT, _RESULT, _REPORT, _REPRODUCTION))
        records = [path for path in (*own, *sorted((self.path / _EVALUATIONS).glob("*.json"))) if path.exists()]
        return {
            **{str(path.relative_to(self.path)): partial(read_record, path, undigested=True) for path in records},
            METRICS_FILE: self.metrics,
            RECORD_FILE: lambda: self.mlflow_run_id,
            _JOB: self.require_own_job,
            **({_CODE: partial(require_modules, modules, self.record.code or {})} if modules.is_dir() else {}),
        }

    def sources(self) -> list[Path]:
        """The files that describe the experiment, as far as they exist: settings and job."""
        return [path for path in (self.path / _EXPERIMENT, self.path / _JOB) if path.exists()]

    def uploads(self) -> list[Path]:
        """What :func:`distmeta.run.uploaded.put_together` needs, beside the sources and the best checkpoint."""
        return [path for path in (self.path / _RUN, self.path / _CODE) if path.exists()]

    def reserve_evaluation(self, kind: str, ending: str = "json") -> Path:
        """A new file ``evaluations/KIND-N.json``; two processes never get the same one."""
        return self._reserve(_EVALUATIONS, kind, ending)

    def require_writable(self) -> None:
        """Raise before anything is computed that could not be kept.

        Raises:
            ConfigError: evaluations cannot be written.
        """
        try:
            self.reserve_evaluation(".probe").unlink()
        except OSError as error:
            raise ConfigError(
                f"{self.path}/{_EVALUATIONS} cannot be written, where the result is kept: {error}. Fix its "
                "permissions, or evaluate a copy of the run."
            ) from None

    def _way_back(self) -> str:
        """How to restore a damaged record."""
        if not (self.path / _COPY).is_file():
            return "Restore it from a copy."
        where = shlex.quote(str(self.path))
        return f"The run keeps a copy of it: cp {where}/{_COPY} {where}/{_RUN}"

    def _write(self, record: RunRecord) -> None:
        write_record(self.path / _RUN, record.to_dict())
        write_record(self.path / _COPY, record.to_dict())
        self.__dict__["record"] = record  # what cached_property would have kept

    def _keep(self, name: str, values: Mapping[str, Any]) -> Path:
        write_record(self.path / name, values)
        return self.path / name

    def _kept(self, name: str) -> dict[str, Any] | None:
        try:
            return read_record(self.path / name, undigested=True)
        except FileNotFoundError:
            return None

    def _reserve(self, folder: str, kind: str, ending: str) -> Path:
        (self.path / folder).mkdir(exist_ok=True)
        n = 1
        while True:
            path = self.path / folder / f"{kind}-{n}.{ending}"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                n += 1
            else:
                return path

    def require_own_job(self) -> None:
        """Raise if the copy of the job file is not the one that the run wrote.

        Raises:
            ConfigError: it is not, or it cannot be read.
        """
        kept, path = self.record.job, self.path / _JOB
        if kept is None:
            return
        expected = (self.record.code or {}).get(_JOB)
        try:
            seen = sha256_of(path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error}. Restore it from the file that the run was started with, {kept.path}."
            ) from None
        if expected is not None and seen != expected:
            raise ConfigError(
                f"{path} is not the file that the run wrote (sha256 {seen[:12]}, expected {expected[:12]}): it was "
                f"damaged or edited. Restore it (the run was started with {kept.path}), or give --changed-code to go "
                "on with it as it is now."
            )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
