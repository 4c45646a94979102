"""Experiment tracking: every metric goes to a local file first, and from there to MLflow.

::

    Tracker.metrics() --append--> RUN/metrics.jsonl --read by--> one daemon thread --log_batch--> MLflow
                                  (the truth)        offset in RUN/tracking.json

There is no queue. The sender reads the file from the row it sent last, so a server that is slow, down or absent can
neither block training, nor fill the memory, nor lose a row; :func:`sync` later replays what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from distmeta.errors import RuntimeFailure, listed
from distmeta.files import write_whole
from distmeta.tracking.git_state import source_tags
from distmeta.tracking.metrics_file import METRICS_FILE, format_row, open_for_append, parse_row, whole_lines
from distmeta.tracking.mlflow_errors import explain
from distmeta.tracking.mlflow_link import MlflowLink, quiet
from distmeta.tracking.tracking_record import RECORD_FILE, Artifact, TrackingRecord, now_ms
from distmeta.tracking.tracking_uri import continued_uri, resolve_uri, without_password

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_PERIOD_S = 2.0

_BACKOFF_MAX_S = 60.0

_logger = logging.getLogger(__name__)


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
    """Record one run: parameters, metrics, artifacts, status.

    Nothing but ``required=True`` lets MLflow stop a run: all calls to it are made by one background thread, which backs
    off while the server does not answer and warns once.

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
            thread. None: a warning of the logger ``distmeta.tracking.tracker``.

    Raises:
        RuntimeFailure: ``tracking.json`` of an earlier run cannot be read.

    Example:
        >>> import tempfile
        >>> from distmeta.tracking.metrics_file import read_metrics
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
        record = TrackingRecord.load(run_dir)
        if record is None:
            resolved = resolve_uri(uri)
            record = TrackingRecord(experiment=experiment, run_name=run_name, uri=without_password(resolved))
        else:
            resolved = continued_uri(uri, record)
            record.uri = without_password(resolved)
        self._run_dir = run_dir
        self._record = record
        self._enabled = enabled
        self._required = required
        self._warn = warn or _logger.warning
        self._link = MlflowLink(run_dir, record, resolved, self._warn, live=True)
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
        """Describe the run and start the sender.

        MLflow does not let a parameter change. When a run is continued with other values, the new ones become tags
        named ``distmeta.changed.<parameter>``.

        Args:
            params: the flattened settings; values are stored as text.
            tags: for example those of :func:`git_tags`.
            dataset: what the run learns from.

        Raises:
            RuntimeFailure: tracking is required and the run cannot be created or continued in MLflow, or the run
                directory cannot be written.
        """
        assert self._sender is None, "start() is called once"
        with writing(self._run_dir), self._link.lock:
            record = self._record
            record.params = {key: str(value) for key, value in params.items()}
            record.tags = {**source_tags(), **tags}
            record.dataset = asdict(dataset) if dataset else None
            record.described = False
            record.status, record.ended = "RUNNING", None
            record.save(self._run_dir)
        if not self._enabled:
            return
        if self._required:
            try:
                with quiet():
                    self._link.connect()
            except Exception as error:  # noqa: BLE001  whatever it is, it is the failure asked for
                why = explain(error)
                raise RuntimeFailure(
                    f"MLflow at {record.uri} does not take the run ({why.seen}), and tracking is required. {why.fix} "
                    "Or leave out --tracking-required.",
                    raw=why.raw,
                ) from None
        self._sender = threading.Thread(target=self._send, name="distmeta-tracking", daemon=True)
        self._sender.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row to ``metrics.jsonl`` and hand it to the operating system: a killed process loses no row.

        Args:
            step: the outer step; it must not decrease for any one metric.
            values: numbers by name; NaN and infinities are kept.

        Raises:
            RuntimeFailure: the run directory cannot be written, so its checkpoints cannot either.
        """
        assert not {"step", "time", "crc32"} & values.keys(), f"'step', 'time' and 'crc32' are taken: {sorted(values)}"
        line = format_row(int(step), round(time.time(), 3), {key: float(value) for key, value in values.items()})
        with writing(self._run_dir):
            if self._file is None:
                self._file = open_for_append(self._run_dir / METRICS_FILE)
            self._file.write(line)
            self._file.flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file or folder for upload (read when sent). Queuing it again uploads it again.

        Args:
            path: the file or folder.
            folder: folder among the run's artifacts; None is the top.

        Raises:
            RuntimeFailure: the run directory cannot be written.
        """
        path = Path(path).resolve()
        # Relative to the run directory where possible: a run that was moved can still be synced.
        name = str(path.relative_to(self._run_dir) if path.is_relative_to(self._run_dir) else path)
        with writing(self._run_dir), self._link.lock:
            for artifact in self._record.artifacts:
                if (artifact.path, artifact.folder) == (name, folder):
                    artifact.noted += 1
                    break
            else:
                self._record.artifacts.append(Artifact(name, folder))
            self._record.save(self._run_dir)

    def truncate(self, step: int) -> None:
        """Drop the rows above ``step``: what a crashed run logged after the checkpoint it is resumed from.

        Rows that MLflow already has stay there, and their repetition is not sent.

        Args:
            step: the step of the checkpoint; its own row stays.

        Raises:
            RuntimeFailure: the run directory cannot be written.
        """
        path = self._run_dir / METRICS_FILE
        self._close_file()
        with writing(self._run_dir), self._link.lock:
            kept, kept_sent, damaged = [], 0, []
            for number, line in enumerate(whole_lines(path)):
                row = parse_row(line)
                if row is None:
                    damaged.append(str(number + 1))
                elif row["step"] <= step:
                    kept.append(line)
                    kept_sent += number < self._record.sent_rows
            write_whole(path, b"".join(kept))
            self._link.rewind(kept_sent)
        if damaged:
            self._warn(f"{path}: line {listed(damaged)} is damaged and was dropped; the other numbers are whole.")

    def close(self, status: RunStatus, deadline: float = 60.0) -> None:
        """Send what is left, end the run in MLflow, and warn with one line when that did not work. Never raises.

        Args:
            status: how the run ended.
            deadline: seconds to wait for the server.
        """
        if self._closed:
            return
        self._closed = True
        self._close_file()
        with self._link.lock:
            self._record.status, self._record.ended = status, now_ms()
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
        """How to open the run: the run's URL for a server, else the command that opens the UI on its store.

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
            with contextlib.suppress(OSError):  # a full disk was reported by metrics()
                self._file.close()
            self._file = None

    def _send(self) -> None:
        """Body of the background thread. Whatever goes wrong in MLflow ends here."""
        failures = 0
        with quiet():
            while not self._closing.is_set():
                try:
                    self._link.pump(self._abandoned)
                    failures = 0
                except Exception as error:  # noqa: BLE001  a tracking outage must never reach training
                    failures += 1
                    if failures == 1:
                        why = explain(error)
                        self._warn(
                            f"MLflow at {self._record.uri} does not take this run's data ({why.seen}). {why.fix} "
                            f"Training goes on; metrics are kept in {self._run_dir / METRICS_FILE} and sent when it "
                            f"does.{why.keep(self._run_dir)}"
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
                    self._unsent = explain(error).seen
                    self._abandoned.wait(1.0)


@contextlib.contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn a disk that refuses a file of the run into an error with the fix.

    Raises:
        RuntimeFailure: it does.
    """
    try:
        yield
    except OSError as error:
        raise RuntimeFailure(
            f"The run directory {run_dir} cannot be written: {error}. Free the disk, or fix its permissions, then "
            f"`distmeta resume {shlex.quote(str(run_dir))}`."
        ) from None


def sync(run_dir: Path, uri: str | None = None) -> SyncReport:
    """Send what MLflow lacks of a run that has ended: rows, artifacts, status; create the run where it never was.

    Calling it again sends nothing again.

    Args:
        run_dir: directory of the run.
        uri: MLflow tracking URI; None is the one the run was started with. A store that does not hold the run gets
            all of it as a new run, and is the one that later calls talk to.

    Raises:
        RuntimeFailure: the directory holds no run, or MLflow does not take its data.
    """
    run_dir = Path(run_dir).resolve()
    record = TrackingRecord.load(run_dir)
    if record is None:
        raise RuntimeFailure(
            f"{run_dir} has no {RECORD_FILE}; expected the directory of a run, as `distmeta train` left it."
        )
    resolved = continued_uri(uri, record)
    record.uri = without_password(resolved)
    link = MlflowLink(run_dir, record, resolved, _logger.warning, live=False)
    # From the first row: what the server holds decides, also after it was restored from an old backup.
    link.rewind(0)
    try:
        with quiet():
            rows, artifacts = link.pump(threading.Event(), final=True)
    except Exception as error:  # noqa: BLE001  MLflow raises its own, those of requests and of the database
        why = explain(error)
        raise RuntimeFailure(
            f"MLflow at {record.uri} did not take everything of {run_dir} ({why.seen}). {why.fix} Nothing is lost; run "
            f"`distmeta track sync` again then.{why.keep(run_dir)}",
            raw=why.raw,
        ) from None
    assert record.run_id is not None
    return SyncReport(rows, artifacts, record.run_id)
