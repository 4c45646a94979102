"""The MLflow side of tracking: what a run directory holds and a server lacks is carried there.

Two facts keep rows unique in MLflow without bookkeeping of our own. On every connection the sender asks the run for the
highest step it holds of each metric and skips what is not above it; and a row is always sent with the time stamped in
the file, by which MLflow's SQL stores recognise a repeated request whose answer was lost. The price: the steps of one
metric must not decrease, and the first value logged for a step stays.

This is the only module that imports mlflow, and it does so when it connects, never on import.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from distmeta.errors import RuntimeFailure
from distmeta.tracking.metrics_file import METRICS_FILE, parse_row
from distmeta.tracking.mlflow_errors import explain
from distmeta.tracking.tracking_record import TrackingRecord
from distmeta.tracking.tracking_uri import artifact_location, require_unlocked

_METRICS_PER_BATCH = 1000
# MLflow takes 100 pairs and 1 MB a request; 40 values of 5,000 characters stay below both, at 4 bytes a character.
_PAIRS_PER_BATCH = 40
_VALUE_MAX = 5000
_KEY_MAX = 250
_DIGEST_LENGTH = 32

_RUN_KEY_TAG = "distmeta.run_key"

_T = TypeVar("_T")


class _Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    value: float
    timestamp: int
    step: int


class MlflowLink:
    """Carry a run directory's contents to MLflow. Used by one thread at a time; ``lock`` guards the shared record.

    Args:
        live: the run goes on: its status in MLflow becomes RUNNING.
    """

    def __init__(
        self, run_dir: Path, record: TrackingRecord, uri: str, warn: Callable[[str], None], *, live: bool
    ) -> None:
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
        """Continue after ``sent_rows``: the file was rewritten, or is to be compared with the server from its start."""
        with self.lock:
            self._record.sent_rows = sent_rows
            self._record.save(self._run_dir)
            self._offset = None
            self._rewinds += 1

    def pump(self, abandoned: threading.Event, *, final: bool = False) -> tuple[int, int]:
        """Send what is pending, and with ``final`` the status too; returns the rows and artifacts sent."""
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
        """A client whose run exists.

        Raises:
            Exception: MLflow's own, those of its database and of its HTTP client.
        """
        if self._client is None:
            require_unlocked(self._uri)
            client = prepared_mlflow().MlflowClient(tracking_uri=self._uri)
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
                return str(client.create_experiment(name, artifact_location=artifact_location(self._uri, name)))
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
            client.log_inputs(record.run_id, [dataset_entity(record.dataset)])
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
                row = _points(parse_row(line))
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
                problem = RuntimeFailure(f"artifact {artifact.path}: {explain(error).seen}")
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


def prepared_mlflow() -> Any:
    """The mlflow module, set to be brief and quiet; what the user set stays as it is."""
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
def quiet() -> Iterator[None]:
    """Drop what MLflow and urllib3 log from this thread only: schema migrations, retries."""
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
    """Turn MLflow's "no such run" into :class:`_NotThere`; a server that is down stays what it is."""
    import mlflow

    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _NotThere from None
        raise


def dataset_entity(dataset: dict[str, Any]) -> Any:
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


def _points(row: dict[str, Any] | None) -> list[_Point]:
    if row is None:
        return []
    step, timestamp = row.pop("step"), round(row.pop("time") * 1000)
    return [_Point(_safe_key(key), value, timestamp, step) for key, value in row.items()]


def _safe_key(key: str) -> str:
    """A name that MLflow takes; one bad name would make it refuse the whole batch, again and again."""
    parts = [part for part in re.sub(r"[^\w.\- /:]", "_", key).split("/") if part not in {"", ".", ".."}]
    return "/".join(parts)[:_KEY_MAX] or "_"


def _batches(items: list[_T], size: int) -> Iterable[list[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
