"""Experiment tracking: every metric goes to a local file first, and from there to MLflow.

::

    Tracker.metrics() --append--> RUN/metrics.jsonl --read by--> one daemon thread --log_batch--> MLflow
                                  (the truth)        offset in RUN/tracking.json

There is no queue. The sender reads the file from the row it sent last, so a server that is slow, down or absent can
neither block training, nor fill the memory, nor lose a row; :func:`sync` later replays what is missing.

Two facts keep rows unique in MLflow without bookkeeping of our own. On every connection the sender asks the run for the
highest step it holds of each metric and skips what is not above it; and a row is always sent with the time stamped in
the file, by which MLflow's SQL stores recognise a repeated request whose answer was lost. The price: the steps of one
metric must not decrease, and the first value logged for a step stays.

This is the only module that imports mlflow, and it does so in the sender, never on import.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from distmeta.errors import RuntimeFailure
from distmeta.files import write_json, write_whole

METRICS_FILE = "metrics.jsonl"
RECORD_FILE = "tracking.json"

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_PERIOD_S = 2.0
_BACKOFF_MAX_S = 60.0
_METRICS_PER_BATCH = 1000
# MLflow takes 100 pairs and 1 MB a request; 40 values of 5,000 characters stay below both, at 4 bytes a character.
_PAIRS_PER_BATCH = 40
_VALUE_MAX = 5000
_KEY_MAX = 250
_DIGEST_LENGTH = 32

_RUN_KEY_TAG = "distmeta.run_key"

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class DatasetInput:
    """The dataset of a run, shown by MLflow under "Datasets used".

    Args:
        name: what people call it, for example ``"omniglot"``.
        digest: the dataset's fingerprint, 64 hex digits. MLflow keeps the first 32 as the digest; the whole fingerprint
            is in the dataset's profile.
        source: where it lies: a path, or a URI such as ``s3://bucket/omniglot``.
        input_shape: shape of one input, for example ``(1, 28, 28)``.
        contexts: the splits in use, for example ``("meta_train", "meta_validation")``.

    Example:
        >>> DatasetInput("glyphs", "ab" * 32, "/data/glyphs", (1, 28, 28), ("meta_train",)).digest[:4]
        'abab'
    """

    name: str
    digest: str
    source: str
    input_shape: tuple[int, ...]
    contexts: tuple[str, ...]


@dataclass(frozen=True)
class SyncReport:
    """What :func:`sync` had to send.

    Args:
        rows_sent: rows of ``metrics.jsonl`` of which MLflow lacked at least one metric.
        artifacts_sent: files and folders uploaded.
        run_id: the MLflow run, which is now complete.
    """

    rows_sent: int
    artifacts_sent: int
    run_id: str


class Tracker:
    """Records one run: parameters, metrics, artifacts, status.

    Nothing but ``required=True`` lets MLflow stop a run: all calls to it are made by one background thread, which backs
    off while the server does not answer and says so once.

    Constructed on the directory of an earlier run, it continues that run in MLflow, unless ``uri`` names a store that
    does not hold it.

    Args:
        run_dir: directory of the run; ``metrics.jsonl`` and ``tracking.json`` are kept there.
        experiment: name of the MLflow experiment, created when absent.
        run_name: name of the run, for people.
        uri: MLflow tracking URI. None: that of the run being continued, else ``MLFLOW_TRACKING_URI``, else MLflow's
            default store, ``sqlite:///mlflow.db`` in the current directory.
        enabled: False keeps the local files only; :func:`sync` can send them later.
        required: :meth:`start` fails when the run cannot be created or continued in MLflow.
        warn: called with one plain sentence when MLflow does not take the run's data, possibly from the background
            thread. None: a warning of the logger ``distmeta.runtime.tracking``.

    Raises:
        RuntimeFailure: ``tracking.json`` of an earlier run cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tracker = Tracker(Path(folder), experiment="demo", run_name="first", enabled=False)
        ...     tracker.start({"inner_lr": 0.4}, tags={}, dataset=None)
        ...     tracker.metrics(0, {"train/loss": 1.5})
        ...     tracker.close("FINISHED")
        ...     read_metrics(Path(folder))[0]["train/loss"]
        1.5
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        experiment: str,
        run_name: str,
        uri: str | None = None,
        enabled: bool = True,
        required: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        run_dir = Path(run_dir).resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        record = _Record.load(run_dir)
        if record is None:
            resolved = _resolve_uri(uri)
            record = _Record(experiment=experiment, run_name=run_name, uri=_without_password(resolved))
        else:
            resolved = _continued_uri(uri, record)
            record.uri = _without_password(resolved)
        self._run_dir = run_dir
        self._record = record
        self._enabled = enabled
        self._required = required
        self._warn = warn or _logger.warning
        self._link = _Link(run_dir, record, resolved, self._warn, live=True)
        self._file: BinaryIO | None = None
        self._closed = False
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._sender: threading.Thread | None = None
        self._unsent: str | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the server has answered."""
        return self._record.run_id

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str], dataset: DatasetInput | None) -> None:
        """Describes the run and starts the sender.

        MLflow does not let a parameter change. When a run is continued with other values, the new ones become tags
        named ``distmeta.changed.<parameter>``.

        Args:
            params: the flattened settings; values are stored as text.
            tags: for example those of :func:`git_tags`.
            dataset: what the run learns from.

        Raises:
            RuntimeFailure: tracking is required and the run cannot be created or continued in MLflow.
        """
        assert self._sender is None, "start() is called once"
        with self._link.lock:
            record = self._record
            record.params = {key: str(value) for key, value in params.items()}
            record.tags = {**_source_tags(), **tags}
            record.dataset = asdict(dataset) if dataset else None
            record.described = False
            record.status, record.ended = "RUNNING", None
            record.save(self._run_dir)
        if not self._enabled:
            return
        if self._required:
            try:
                with _quiet():
                    self._link.connect()
            except Exception as error:  # noqa: BLE001  whatever it is, it is the failure asked for
                raise RuntimeFailure(
                    f"MLflow at {record.uri} does not take the run ({_reason(error)}), and tracking is required. "
                    f"Start the server, give another --tracking-uri, or leave out --tracking-required."
                ) from None
        self._sender = threading.Thread(target=self._send, name="distmeta-tracking", daemon=True)
        self._sender.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row to ``metrics.jsonl`` and hands it to the operating system: a killed process loses no row.

        Args:
            step: the outer step; it must not decrease for any one metric.
            values: numbers by name; NaN and infinities are kept.

        Raises:
            OSError: the run directory cannot be written, so its checkpoints cannot either.
        """
        assert not {"step", "time"} & values.keys(), f"'step' and 'time' are taken: {sorted(values)}"
        row = {"step": int(step), "time": round(time.time(), 3)}
        line = json.dumps({**row, **{key: _to_json(float(value)) for key, value in values.items()}})
        if self._file is None:
            self._file = _open_for_append(self._run_dir / METRICS_FILE)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Notes a file or folder for upload; it is read when it is sent. Noted again, it is sent again.

        Args:
            path: the file or folder.
            folder: folder among the run's artifacts; None is the top.
        """
        path = Path(path).resolve()
        # Relative to the run directory where possible: a run that was moved can still be synced.
        name = str(path.relative_to(self._run_dir) if path.is_relative_to(self._run_dir) else path)
        with self._link.lock:
            for artifact in self._record.artifacts:
                if (artifact.path, artifact.folder) == (name, folder):
                    artifact.noted += 1
                    break
            else:
                self._record.artifacts.append(_Artifact(name, folder))
            self._record.save(self._run_dir)

    def truncate(self, step: int) -> None:
        """Drops the rows above ``step``: what a crashed run logged after the checkpoint it is resumed from.

        Rows that MLflow already has stay there, and their repetition is not sent.

        Args:
            step: the step of the checkpoint; its own row stays.
        """
        path = self._run_dir / METRICS_FILE
        self._close_file()
        with self._link.lock:
            kept, kept_sent = [], 0
            for number, line in enumerate(_whole_lines(path)):
                row = _parse(line)
                if row is not None and row["step"] <= step:
                    kept.append(line)
                    kept_sent += number < self._record.sent_rows
            write_whole(path, b"".join(kept))
            self._link.rewind(kept_sent)

    def close(self, status: RunStatus, deadline: float = 60.0) -> None:
        """Sends what is left, ends the run in MLflow, and warns with one line when that did not work. Never raises.

        Args:
            status: how the run ended.
            deadline: seconds to wait for the server.
        """
        if self._closed:
            return
        self._closed = True
        self._close_file()
        with self._link.lock:
            self._record.status, self._record.ended = status, _now_ms()
            with contextlib.suppress(OSError):
                self._record.save(self._run_dir)
        if self._sender is None:
            return
        self._unsent = f"it did not take everything within {deadline:g} s"
        self._closing.set()
        self._sender.join(deadline)
        self._abandoned.set()
        if self._unsent is not None:
            self._warn(
                f"MLflow at {self._record.uri} lacks part of this run: {self._unsent}. Nothing is lost; "
                f"`distmeta track sync {shlex.quote(str(self._run_dir))}` fills in what is missing."
            )

    def how_to_open(self) -> str:
        """Where to look at the run: the run's URL for a server, else the command that opens the UI on its store.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     tracker = Tracker(Path(folder), experiment="demo", run_name="first", uri="sqlite:////data/mlflow.db")
            ...     tracker.how_to_open()
            'mlflow ui --backend-store-uri sqlite:////data/mlflow.db'
        """
        record = self._record
        if not self._enabled:
            return f"distmeta track sync {shlex.quote(str(self._run_dir))}"
        if record.uri.startswith(("http://", "https://")):
            base = record.uri.rstrip("/")
            return f"{base}/#/experiments/{record.experiment_id}/runs/{record.run_id}" if record.run_id else base
        if record.uri.startswith("databricks"):
            return record.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(record.uri)}"

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _send(self) -> None:
        """Body of the background thread. Whatever goes wrong in MLflow ends here."""
        failures = 0
        with _quiet():
            while not self._closing.is_set():
                try:
                    self._link.pump(self._abandoned)
                    failures = 0
                except Exception as error:  # noqa: BLE001  a tracking outage must never reach training
                    failures += 1
                    if failures == 1:
                        self._warn(
                            f"MLflow at {self._record.uri} does not take this run's data ({_reason(error)}). Training "
                            f"goes on; metrics are kept in {self._run_dir / METRICS_FILE} and sent when it does."
                        )
                self._closing.wait(_PERIOD_S if not failures else min(_PERIOD_S * 2**failures, _BACKOFF_MAX_S))
            # A second try, since a connection that was idle for long often fails once.
            for _ in range(2):
                try:
                    self._link.pump(self._abandoned, final=True)
                    if not self._abandoned.is_set():
                        self._unsent = None
                    return
                except Exception as error:  # noqa: BLE001  as above
                    self._unsent = _reason(error)
                    self._abandoned.wait(1.0)


def sync(run_dir: Path, uri: str | None = None) -> SyncReport:
    """Sends what MLflow lacks of a run that has ended: rows, artifacts, status; creates the run where it never was.

    Calling it again sends nothing again.

    Args:
        run_dir: directory of the run.
        uri: MLflow tracking URI; None is the one the run was started with. A store that does not hold the run gets
            all of it as a new run, and is the one that later calls talk to.

    Raises:
        RuntimeFailure: the directory holds no run, or MLflow does not take its data.
    """
    run_dir = Path(run_dir).resolve()
    record = _Record.load(run_dir)
    if record is None:
        raise RuntimeFailure(
            f"{run_dir} has no {RECORD_FILE}; expected the directory of a run, as `distmeta train` left it."
        )
    resolved = _continued_uri(uri, record)
    record.uri = _without_password(resolved)
    link = _Link(run_dir, record, resolved, _logger.warning, live=False)
    # From the first row: what the server holds decides, also after it was restored from an old backup.
    link.rewind(0)
    try:
        with _quiet():
            rows, artifacts = link.pump(threading.Event(), final=True)
    except Exception as error:  # noqa: BLE001  MLflow raises its own, those of requests and of the database
        raise RuntimeFailure(
            f"MLflow at {record.uri} did not take everything of {run_dir} ({_reason(error)}). "
            f"Nothing is lost; run `distmeta track sync` again when it does, or give another --tracking-uri."
        ) from None
    assert record.run_id is not None
    return SyncReport(rows, artifacts, record.run_id)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, oldest first; a last line that a killed process left torn is dropped.

    Args:
        run_dir: directory of the run; one without the file has no rows.

    Raises:
        RuntimeFailure: a line before the last is not a JSON object.
    """
    path = Path(run_dir) / METRICS_FILE
    rows = []
    for number, line in enumerate(_whole_lines(path), start=1):
        row = _parse(line)
        if row is None:
            raise RuntimeFailure(f"{path}, line {number}, is not a row of metrics: {line[:60]!r}. Remove that line.")
        rows.append(row)
    return rows


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """The state of the code as MLflow tags; empty outside a git checkout.

    A submitted job runs in a copy without ``.git``; there the environment says what was captured at submission:
    ``DISTMETA_GIT_SHA``, ``DISTMETA_GIT_BRANCH``, ``DISTMETA_GIT_DIRTY``.

    Args:
        folder: in the checkout; the current directory when left out.

    Returns:
        ``mlflow.source.git.commit``, ``mlflow.source.git.branch`` (absent on a detached head) and
        ``distmeta.git_dirty`` (``"true"`` when tracked files were changed).
    """
    environ = os.environ
    if environ.get("DISTMETA_GIT_SHA"):
        commit, branch = environ["DISTMETA_GIT_SHA"], environ.get("DISTMETA_GIT_BRANCH")
        dirty = environ.get("DISTMETA_GIT_DIRTY")
    else:
        there = ("-C", str(folder or Path.cwd()))
        found = _git(*there, "rev-parse", "HEAD")
        if not found:
            return {}
        commit, branch = found, _git(*there, "symbolic-ref", "--short", "-q", "HEAD")
        changes = _git(*there, "status", "--porcelain", "--untracked-files=no")
        dirty = None if changes is None else str(bool(changes))
    tags = {"mlflow.source.git.commit": commit}
    if branch:
        tags["mlflow.source.git.branch"] = branch
    if dirty:
        tags["distmeta.git_dirty"] = "true" if dirty.lower() in {"1", "true", "yes"} else "false"
    return tags


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- tracking.json ---------------------------------------------------------------------------------------------------


@dataclass
class _Artifact:
    path: str
    folder: str | None
    # Counts, not a flag: an artifact noted again while it is being sent is still pending afterwards.
    noted: int = 1
    sent: int = 0


@dataclass
class _Record:
    """What must survive the process: enough to continue the run, and to create it when it never was."""

    experiment: str
    run_name: str
    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    sent_rows: int = 0
    status: str = "RUNNING"
    started: int = field(default_factory=_now_ms)
    ended: int | None = None
    # Marks the run in MLflow, to find one whose creation succeeded but whose answer was lost.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    creating: bool = False
    described: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None
    artifacts: list[_Artifact] = field(default_factory=list)

    @classmethod
    def load(cls, run_dir: Path) -> _Record | None:
        path = run_dir / RECORD_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["artifacts"] = [_Artifact(**artifact) for artifact in values.get("artifacts", [])]
            return cls(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError):
            raise RuntimeFailure(
                f"{path} is not a tracking record. Move it away, and the run is tracked anew from {METRICS_FILE}."
            ) from None

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / RECORD_FILE, asdict(self))


# --- the MLflow side -------------------------------------------------------------------------------------------------


class _Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    value: float
    timestamp: int
    step: int


class _Link:
    """Carries a run directory's contents to MLflow. Used by one thread at a time; ``lock`` guards the shared record.

    Args:
        live: the run goes on: its status in MLflow becomes RUNNING.
    """

    def __init__(self, run_dir: Path, record: _Record, uri: str, warn: Callable[[str], None], *, live: bool) -> None:
        self.lock = threading.RLock()
        self._run_dir = run_dir
        self._record = record
        self._uri = uri
        self._warn = warn
        self._live = live
        self._client: Any = None
        self._params_there: dict[str, str] = {}
        self._status_there = ""
        self._highest: dict[str, int] = {}
        self._offset: int | None = None
        self._rewinds = 0
        self._refused: set[tuple[str, int]] = set()

    def rewind(self, sent_rows: int) -> None:
        """Goes on after ``sent_rows``: the file was rewritten, or is to be compared with the server from its start."""
        with self.lock:
            self._record.sent_rows = sent_rows
            self._record.save(self._run_dir)
            self._offset = None
            self._rewinds += 1

    def pump(self, abandoned: threading.Event, *, final: bool = False) -> tuple[int, int]:
        """Sends what is pending, and with ``final`` the status too; returns the rows and artifacts sent."""
        try:
            client = self.connect()
            self._describe(client)
            rows = self._send_rows(client, abandoned)
        except Exception:
            # Connecting again asks the server what it holds: the request may have arrived and its answer got lost.
            self._client = None
            raise
        if final and not abandoned.is_set():
            self._finish(client)
        artifacts = self._send_artifacts(client, abandoned, final=final)
        return rows, artifacts

    def connect(self) -> Any:
        """A client whose run exists."""
        if self._client is None:
            client = _prepared_mlflow().MlflowClient(tracking_uri=self._uri)
            run = self._find_run(client) or self._create_run(client)
            if run.info.lifecycle_stage != "active":
                raise RuntimeFailure(
                    f"run {run.info.run_id} is deleted there; `mlflow runs restore --run-id {run.info.run_id}` "
                    f"brings it back"
                )
            if self._live and run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            # The protocol message, since RunData.metrics leaves out the steps.
            self._highest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._params_there = dict(run.data.params)
            self._status_there = "RUNNING" if self._live else run.info.status
            self._client = client
        return self._client

    def _find_run(self, client: Any) -> Any:
        record = self._record
        if record.run_id is not None:
            with contextlib.suppress(_NotThere), _not_there():
                return client.get_run(record.run_id)
            # Another store, or a store made anew: all of the run is missing there.
            with self.lock:
                record.run_id = record.experiment_id = None
                record.creating = record.described = False
                for artifact in record.artifacts:
                    artifact.sent = 0
                self.rewind(0)
        if record.creating and record.experiment_id is not None:
            with contextlib.suppress(_NotThere), _not_there():
                found = client.search_runs([record.experiment_id], f"tags.`{_RUN_KEY_TAG}` = '{record.key}'")
                if found:
                    self._adopt(found[0])
                    return found[0]
        return None

    def _create_run(self, client: Any) -> Any:
        record = self._record
        experiment_id = self._experiment_id(client)
        with self.lock:
            record.experiment_id, record.creating = experiment_id, True
            record.save(self._run_dir)
        run = client.create_run(
            experiment_id, start_time=record.started, tags={_RUN_KEY_TAG: record.key}, run_name=record.run_name
        )
        self._adopt(run)
        return run

    def _adopt(self, run: Any) -> None:
        with self.lock:
            self._record.run_id, self._record.creating = run.info.run_id, False
            self._record.save(self._run_dir)

    def _experiment_id(self, client: Any) -> str:
        import mlflow

        name = self._record.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name, artifact_location=_artifact_location(self._uri, name)))
            except mlflow.MlflowException:
                # Another run of the same experiment may have been quicker.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _describe(self, client: Any) -> None:
        record = self._record
        if record.described:
            return
        from mlflow import entities

        params = {_safe_key(key): value[:_VALUE_MAX] for key, value in record.params.items()}
        tags = {key[:_KEY_MAX]: value[:_VALUE_MAX] for key, value in record.tags.items()}
        for key, value in params.items():
            if self._params_there.get(key, value) != value:
                tags[f"distmeta.changed.{key}"[:_KEY_MAX]] = value
        new = [entities.Param(key, value) for key, value in params.items() if key not in self._params_there]
        for batch in _batches(new, _PAIRS_PER_BATCH):
            client.log_batch(record.run_id, params=batch, synchronous=True)
        for tag_batch in _batches([entities.RunTag(key, value) for key, value in tags.items()], _PAIRS_PER_BATCH):
            client.log_batch(record.run_id, tags=tag_batch, synchronous=True)
        if record.dataset is not None:
            client.log_inputs(record.run_id, [_dataset_entity(record.dataset)])
        with self.lock:
            record.described = True
            record.save(self._run_dir)

    def _send_rows(self, client: Any, abandoned: threading.Event) -> int:
        from mlflow import entities

        sent = 0
        while not abandoned.is_set():
            with self.lock:
                rewinds = self._rewinds
                points, rows, offset = self._next_batch()
            if not rows:
                break
            fresh: list[list[_Point]] = []
            for row in points:
                news = [p for p in row if p.step > self._highest.get(p.key, -1)]
                self._highest.update({p.key: p.step for p in news})
                fresh.append(news)
            flat = [entities.Metric(*point) for row in fresh for point in row]
            for batch in _batches(flat, _METRICS_PER_BATCH):
                client.log_batch(self._record.run_id, metrics=batch, synchronous=True)
            sent += sum(bool(row) for row in fresh)
            with self.lock:
                if rewinds == self._rewinds:
                    self._record.sent_rows += rows
                    self._offset = offset
                    self._record.save(self._run_dir)
        return sent

    def _next_batch(self) -> tuple[list[list[_Point]], int, int]:
        """The points of the next rows, how many rows they are, and where in the file the one after them starts."""
        points: list[list[_Point]] = []
        rows = total = 0
        with contextlib.suppress(FileNotFoundError), (self._run_dir / METRICS_FILE).open("rb") as file:
            if self._offset is None:
                for _ in range(self._record.sent_rows):
                    file.readline()
                self._offset = file.tell()
            offset = file.seek(self._offset)
            while (line := file.readline()).endswith(b"\n"):
                row = _points(_parse(line))
                if rows and total + len(row) > _METRICS_PER_BATCH:
                    break
                points.append(row)
                rows, total, offset = rows + 1, total + len(row), offset + len(line)
            return points, rows, offset
        return [], 0, 0

    def _send_artifacts(self, client: Any, abandoned: threading.Event, *, final: bool) -> int:
        sent, problem = 0, None
        for artifact in list(self._record.artifacts):
            noted = artifact.noted
            if artifact.sent >= noted or abandoned.is_set():
                continue
            # Often refused for good (no credentials for the store): once more at the end, not every two seconds.
            if not final and (artifact.path, noted) in self._refused:
                continue
            path = self._run_dir / artifact.path
            if not path.exists():
                if final:
                    self._warn(f"Artifact {path} is not there any more; MLflow does not have it.")
                continue
            try:
                client.log_artifact(self._record.run_id, str(path), artifact.folder)
            except Exception as error:  # noqa: BLE001  one artifact must not hold up the others
                self._refused.add((artifact.path, noted))
                problem = RuntimeFailure(f"artifact {artifact.path}: {_reason(error)}")
                continue
            sent += 1
            with self.lock:
                artifact.sent = noted
                self._record.save(self._run_dir)
        if problem is not None:
            raise problem
        return sent

    def _finish(self, client: Any) -> None:
        record = self._record
        if record.status not in {"RUNNING", self._status_there}:
            client.set_terminated(record.run_id, status=record.status, end_time=record.ended)
            self._status_there = record.status


def _prepared_mlflow() -> Any:
    """The mlflow module, told to be brief and quiet; what the user set stays as it is."""
    for name, value in {
        # With MLflow's own 7 retries of 120 s a dead server holds a call for minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    # Warnings of these packages about their own code; under `python -W error` they would fail every call. Added once:
    # every change of the filters makes Python show again what it has shown already.
    pattern: Any = re.compile(r"(mlflow|alembic|sqlalchemy)(\.|$)")
    if not any(entry[3] == pattern for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=pattern.pattern)
    import mlflow

    # Loggers do not filter what their children hand up, handlers do; urllib3 has no handler of its own.
    targets: list[logging.Filterer] = [
        logging.getLogger("urllib3.connectionpool"),
        logging.getLogger("urllib3.util.retry"),
    ]
    for name in ("mlflow", "alembic", "sqlalchemy.engine"):
        targets.extend(logging.getLogger(name).handlers)
    for target in targets:
        if _not_from_quiet_thread not in target.filters:
            target.addFilter(_not_from_quiet_thread)
    return mlflow


_this_thread = threading.local()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what MLflow and urllib3 log from this thread only: schema migrations, retries."""
    _this_thread.quiet = True
    try:
        yield
    finally:
        _this_thread.quiet = False


def _not_from_quiet_thread(record: logging.LogRecord) -> bool:
    return not getattr(_this_thread, "quiet", False)


class _NotThere(Exception):
    pass


@contextlib.contextmanager
def _not_there() -> Iterator[None]:
    """Turns MLflow's "no such run" into :class:`_NotThere`; a server that is down stays what it is."""
    import mlflow

    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _NotThere from None
        raise


def _dataset_entity(dataset: dict[str, Any]) -> Any:
    """MLflow's dataset input. Built from entities: the Dataset classes want to load the data or to guess its source."""
    import numpy as np
    from mlflow import entities
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.types import Schema, TensorSpec

    source_type, source = _dataset_source(dataset["source"])
    inputs = TensorSpec(np.dtype(np.float32), (-1, *dataset["input_shape"]), name="x")
    return entities.DatasetInput(
        entities.Dataset(
            name=dataset["name"],
            digest=dataset["digest"][:_DIGEST_LENGTH],
            source_type=source_type,
            source=json.dumps(source),
            schema=json.dumps(TensorDatasetSchema(features=Schema([inputs])).to_dict()),
            profile=json.dumps({"fingerprint": dataset["digest"], "splits": list(dataset["contexts"])}),
        ),
        # One input can have one context only.
        [entities.InputTag("mlflow.data.context", ", ".join(dataset["contexts"]))],
    )


def _dataset_source(source: str) -> tuple[str, dict[str, Any]]:
    """A source type that MLflow can load again from its description, where there is one."""
    scheme = urlsplit(source).scheme
    if scheme in {"http", "https"}:
        return "http", {"url": source}
    if "://" in source and scheme != "file":
        return scheme, {"uri": source}
    if scheme == "file" or Path(source).is_absolute():
        return "local", {"uri": source}
    return "code", {"tags": {"source": source}}


# --- small helpers ---------------------------------------------------------------------------------------------------


def _points(row: dict[str, Any] | None) -> list[_Point]:
    if row is None:
        return []
    step, timestamp = row.pop("step"), round(row.pop("time") * 1000)
    return [_Point(_safe_key(key), value, timestamp, step) for key, value in row.items()]


def _safe_key(key: str) -> str:
    """A name that MLflow takes; one bad name would make it refuse the whole batch, again and again."""
    parts = [part for part in re.sub(r"[^\w.\- /:]", "_", key).split("/") if part not in {"", ".", ".."}]
    return "/".join(parts)[:_KEY_MAX] or "_"


def _to_json(value: float) -> float | str:
    # JSON has no NaN: Python's spelling of it would make the file unreadable for others.
    return value if math.isfinite(value) else str(value)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        values = {key: float(value) for key, value in row.items() if key != "step"}
        return {"step": int(row["step"]), "time": values.pop("time"), **values}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _whole_lines(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _open_for_append(path: Path) -> BinaryIO:
    """Opened after cutting off a torn last line: the next row must not be glued to it."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(sum(len(line) for line in _whole_lines(path)))
    return path.open("ab")


def _resolve_uri(uri: str | None) -> str:
    """The store meant by ``uri``, independent of the current directory, so that sync finds it from elsewhere."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///")
        return uri if database in {"", ":memory:"} else f"sqlite:///{Path(database).absolute()}"
    if ":" not in uri and not uri.startswith("databricks"):
        return Path(uri).absolute().as_uri()
    return uri


def _continued_uri(uri: str | None, record: _Record) -> str:
    """``uri`` if given, else the recorded one, with the credentials of the environment if it names the same store."""
    if uri is not None:
        return _resolve_uri(uri)
    from_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    return from_environment if _without_password(from_environment) == record.uri else record.uri


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside a SQLite store, where MLflow would take the current directory; any other store knows its own place."""
    if not uri.startswith("sqlite:///") or uri.endswith("memory:"):
        return None
    folder = re.sub(r"[^\w.-]+", "-", experiment).strip(".-") or "experiment"
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / folder).as_uri()


def _source_tags() -> dict[str, str]:
    """The tags that MLflow's fluent interface would set: who ran what."""
    tags = {"mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    # A container's user often has no name.
    with contextlib.suppress(KeyError, OSError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git(*arguments: str) -> str | None:
    try:
        # Optional locks off: tracking must not make a concurrent git command of the user fail.
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _reason(error: BaseException) -> str:
    """The cause in a few words; MLflow's messages repeat the request and may show its credentials."""
    if isinstance(error, OSError) and error.filename:
        return f"{(error.strerror or type(error).__name__).lower()}: {error.filename}"
    text = re.sub(r"//[^/@\s]+@", "//", str(error)).strip() or type(error).__name__
    known = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|(timed out)|(unable to open database file)", text)
    if known:
        return next(group for group in known.groups() if group).strip().lower()
    first = text.splitlines()[0]
    return (first if len(first) <= 200 else first[:197] + "...").rstrip(".")


def _batches(items: list[_T], size: int) -> Iterable[list[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
