"""Tracking never stops training, loses no row and repeats none: against a real SQLite store and a real MLflow server.

The server stands behind a gate that can be shut (requests fail) or deaf (they arrive, but their answers get lost).
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distmeta.errors import RuntimeFailure
from distmeta.files import read_record, write_record
from distmeta.tracking import tracking_record
from distmeta.tracking.metrics_file import read_metrics
from distmeta.tracking.tracker import DatasetInput, SyncReport, Tracker, sync
from helpers import free_ports

DATASET = DatasetInput(
    name="glyphs",
    digest="0123456789abcdef" * 4,
    source="/data/glyphs",
    input_shape=(1, 28, 28),
    contexts=("meta_train", "meta_validation"),
)


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path) -> Iterator[None]:
    """No setting of the developer's reaches the test, and none that MLflow makes outlives it."""
    before, cwd = dict(os.environ), Path.cwd()
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DISTMETA_")):
            del os.environ[name]
    (tmp_path / "home").mkdir()
    os.environ["HOME"] = str(tmp_path / "home")
    os.chdir(tmp_path)
    yield
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """URI of a SQLite store of the test's own."""
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}/health"))
        assert process.poll() is None, (folder / "log").read_text()
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Gate:
    """A proxy before the server: ``state(path)`` says per request whether it is "open", "shut" or "deaf"."""

    def __init__(self, target: int) -> None:
        gate = self
        self.state: Callable[[str], str] = lambda path: "open"
        self.seen: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                state = gate.state(self.path)
                gate.seen.append(self.path)
                self.close_connection = True
                if state == "shut":
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", target, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "accept-encoding"}}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                if state == "deaf":
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = forward

            def log_message(self, *args: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._proxy.server_port}"
        self._thread = threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def set(self, state: str) -> None:
        self.state = lambda path: state

    def close(self) -> None:
        self._proxy.shutdown()
        self._thread.join()
        self._proxy.server_close()


@pytest.fixture
def gate(server: int) -> Iterator[Gate]:
    gate = Gate(server)
    yield gate
    gate.close()


@pytest.fixture
def said() -> list[str]:
    return []


def _tracker(run_dir: Path, uri: str | None, said: list[str], **options: object) -> Tracker:
    settings = {"experiment": run_dir.parent.name, "run_name": run_dir.name, "warn": said.append, **options}
    return Tracker(run_dir, uri=uri, **settings)  # type: ignore[arg-type]


def _log(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.metrics(step, {"train/loss": 1 / (step + 1), "train/accuracy": step / 100})


def _record(run_dir: Path) -> dict[str, object]:
    return read_record(run_dir / "tracking.json")


def _run(uri: str, run_id: str | None) -> object:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)


def _steps(uri: str, run_id: str | None, key: str = "train/loss") -> list[int]:
    """The steps MLflow holds of one metric, duplicates included."""
    import mlflow

    return sorted(m.step for m in mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run_id, key))


def _artifacts(uri: str, run_id: str, folder: str | None = None) -> set[str]:
    import mlflow

    return {f.path for f in mlflow.MlflowClient(tracking_uri=uri).list_artifacts(run_id, folder)}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- the local file --------------------------------------------------------------------------------------------------


def test_importing_the_module_and_local_tracking_do_not_import_mlflow() -> None:
    code = """
import sys, pathlib
from distmeta.tracking.tracker import Tracker
tracker = Tracker(pathlib.Path("run"), experiment="e", run_name="r", enabled=False)
tracker.start({}, {}, None)
tracker.metrics(0, {"loss": 1.0})
tracker.close("FINISHED")
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_row_has_step_time_and_values_as_plain_json(tmp_path: Path, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", None, said, enabled=False)
    tracker.metrics(3, {"loss": 0.5, "nan": math.nan, "up": math.inf, "down": -math.inf})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    row = json.loads(line, parse_constant=refuse)
    assert list(row)[:2] == ["step", "time"]
    assert (row["step"], row["loss"]) == (3, 0.5)
    (read,) = read_metrics(tmp_path / "run")
    assert math.isnan(read["nan"])
    assert (read["up"], read["down"]) == (math.inf, -math.inf)
    tracker.close("FINISHED")


def test_a_killed_process_leaves_every_row(tmp_path: Path, said: list[str]) -> None:
    code = """
import os, pathlib, signal
from distmeta.tracking.tracker import Tracker
tracker = Tracker(pathlib.Path("run"), experiment="e", run_name="r", enabled=False)
tracker.start({}, {}, None)
for step in range(50):
    tracker.metrics(step, {"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(50))


def test_a_torn_last_line_is_dropped_and_never_glued_to_the_next_row(tmp_path: Path, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", None, said, enabled=False)
    tracker.metrics(0, {"loss": 1.0})
    tracker.close("KILLED")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 1, "time": 17')
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0]

    tracker = _tracker(tmp_path / "run", None, said, enabled=False)
    tracker.metrics(1, {"loss": 2.0})
    tracker.close("FINISHED")
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]


def test_truncate_drops_what_came_after_the_checkpoint(tmp_path: Path, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", None, said, enabled=False)
    _log(tracker, range(10))
    tracker.truncate(5)
    _log(tracker, range(6, 8))
    tracker.close("FINISHED")
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(8))
    assert not list((tmp_path / "run").glob("*.partial"))


# --- what MLflow holds -----------------------------------------------------------------------------------------------


def test_a_run_is_complete_in_mlflow(tmp_path: Path, store: str, said: list[str]) -> None:
    import mlflow.data

    tracker = _tracker(tmp_path / "run", store, said)
    params = {f"learner.option_{n}": n for n in range(150)} | {"long": "x" * 9000}
    tracker.start(params, {"mlflow.source.git.commit": "c0ffee", "note": "y" * 9000}, DATASET)
    _log(tracker, range(600))
    (tmp_path / "curve.png").write_bytes(b"picture")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "weights").write_bytes(b"numbers")
    tracker.artifact(tmp_path / "curve.png", folder="plots")
    tracker.artifact(tmp_path / "run" / "model")
    tracker.close("FINISHED")

    assert said == []
    run = _run(store, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert len(run.data.params) == 151
    assert run.data.params["learner.option_149"] == "149"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert _steps(store, tracker.run_id) == list(range(600))
    assert _artifacts(store, tracker.run_id) == {"plots", "model"}
    assert _artifacts(store, tracker.run_id, "plots") == {"plots/curve.png"}
    assert _artifacts(store, tracker.run_id, "model") == {"model/weights"}

    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("glyphs", DATASET.digest[:32])
    assert json.loads(used.dataset.profile)["fingerprint"] == DATASET.digest
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "meta_train, meta_validation")]
    assert '"shape": [-1, 1, 28, 28]' in json.loads(used.dataset.schema)["mlflow_tensorspec"]["features"]
    assert mlflow.data.get_source(used).uri == "/data/glyphs"

    record = _record(tmp_path / "run")
    assert record["run_id"] == tracker.run_id
    assert record["sent_rows"] == 600
    assert record["uri"] == store


def test_names_and_values_that_mlflow_refuses_do_not_block_the_rest(
    tmp_path: Path, store: str, said: list[str]
) -> None:
    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({"odd=key": None}, {}, None)
    tracker.metrics(0, {"loss@50%": 1.0, "../up": 2.0, "nan": math.nan, "inf": math.inf, "x" * 300: 3.0})
    tracker.close("FINISHED")
    assert said == []
    held = _run(store, tracker.run_id).data
    assert held.params == {"odd_key": "None"}
    assert {"loss_50_", "up", "nan", "inf", "x" * 250} == set(held.metrics)


def test_rows_with_more_metrics_than_a_request_takes(tmp_path: Path, store: str, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({}, {}, None)
    for step in range(2):
        tracker.metrics(step, {f"layer_{n}": float(n) for n in range(1200)})
    tracker.close("FINISHED")
    assert said == []
    assert len(_run(store, tracker.run_id).data.metrics) == 1200
    assert _steps(store, tracker.run_id, "layer_1199") == [0, 1]


def test_an_artifact_noted_again_is_sent_again(tmp_path: Path, store: str, said: list[str]) -> None:
    import mlflow

    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({}, {}, None)
    for text in ("first", "second"):
        (tmp_path / "run" / "report.txt").write_text(text)
        tracker.artifact(tmp_path / "run" / "report.txt")
        _until(lambda: all(a["sent"] == a["noted"] for a in _record(tmp_path / "run")["artifacts"]))
    tracker.close("FINISHED")
    uri = _run(store, tracker.run_id).info.artifact_uri
    assert mlflow.artifacts.load_text(f"{uri}/report.txt") == "second"


def test_an_artifact_that_is_gone_is_named_and_holds_nothing_up(tmp_path: Path, store: str, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({}, {}, None)
    tracker.artifact(tmp_path / "gone.png")
    _log(tracker, range(3))
    tracker.close("FAILED")
    assert said == [f"Artifact {tmp_path / 'gone.png'} is not there any more; MLflow does not have it."]
    assert _run(store, tracker.run_id).info.status == "FAILED"
    assert _steps(store, tracker.run_id) == [0, 1, 2]


# --- continuing a run ------------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_in_mlflow_without_duplicates(tmp_path: Path, store: str, said: list[str]) -> None:
    first = _tracker(tmp_path / "run", store, said)
    first.start({"outer.iterations": 10, "seed": 0}, {}, DATASET)
    _log(first, range(10))
    first.close("FAILED")
    assert _steps(store, first.run_id) == list(range(10))

    second = _tracker(tmp_path / "run", None, said)
    assert second.run_id == first.run_id
    second.truncate(5)
    second.start({"outer.iterations": 20, "seed": 0}, {}, DATASET)
    _until(lambda: _run(store, first.run_id).info.status == "RUNNING")
    for step in range(6, 20):
        # A row of its own, in places of the file that the first attempt had filled and sent.
        second.metrics(step, {"validation/loss": 0.5})
        _log(second, range(step, step + 1))
    second.close("FINISHED")

    assert said == []
    run = _run(store, first.run_id)
    assert run.info.status == "FINISHED"
    assert _steps(store, first.run_id) == list(range(20))
    assert _steps(store, first.run_id, "train/accuracy") == list(range(20))
    assert _steps(store, first.run_id, "validation/loss") == list(range(6, 20))
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "train/loss" in row] == list(range(20))
    assert run.data.params["outer.iterations"] == "10"
    assert run.data.tags["distmeta.changed.outer.iterations"] == "20"
    assert "distmeta.changed.seed" not in run.data.tags
    assert len(run.inputs.dataset_inputs) == 1


def test_rows_sent_just_before_a_kill_are_not_sent_twice(tmp_path: Path, store: str, said: list[str]) -> None:
    first = _tracker(tmp_path / "run", store, said)
    first.start({}, {}, None)
    _log(first, range(10))
    first.close("KILLED")
    # As if the process had died between MLflow's answer and the note of it.
    record = _record(tmp_path / "run")
    write_record(tmp_path / "run" / "tracking.json", {**record, "sent_rows": 4, "status": "RUNNING"})

    second = _tracker(tmp_path / "run", store, said)
    second.truncate(6)
    second.start({}, {}, None)
    _log(second, range(7, 12))
    second.close("FINISHED")
    assert _steps(store, first.run_id) == list(range(12))


def test_truncating_while_rows_are_on_their_way(tmp_path: Path, gate: Gate, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", gate.uri, said)
    _log(tracker, range(10))

    def state(path: str) -> str:
        # The first batch has the tags, the second the ten rows.
        if path.endswith("log-batch") and sum(seen.endswith("log-batch") for seen in gate.seen) == 1:
            tracker.truncate(4)
            for step in range(5, 10):
                tracker.metrics(step, {"validation/loss": 0.5})
        return "open"

    gate.state = state
    tracker.start({}, {}, None)
    _until(lambda: tracker.run_id is not None and _record(tmp_path / "run")["sent_rows"] >= 10)
    tracker.close("FINISHED")
    assert _steps(gate.uri, tracker.run_id) == list(range(10))
    assert _steps(gate.uri, tracker.run_id, "validation/loss") == list(range(5, 10))


# --- the server is down ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["start", "middle", "end"])
def test_an_outage_costs_nothing_and_sync_fills_in(
    outage: str, tmp_path: Path, gate: Gate, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "note.txt").write_text("kept")
    gate.set("shut" if outage == "start" else "open")
    tracker = _tracker(run_dir, gate.uri, said)
    tracker.start({"seed": 7}, {"phase": outage}, DATASET)
    _log(tracker, range(20))
    if outage != "start":
        _until(lambda: _record(run_dir)["sent_rows"] == 20)
        gate.set("shut")
    _log(tracker, range(20, 40))
    tracker.artifact(tmp_path / "note.txt")
    _until(lambda: bool(said) or outage == "end")
    if outage == "middle":
        gate.set("open")
    tracker.close("FINISHED")

    assert [row["step"] for row in read_metrics(run_dir)] == list(range(40))
    if outage == "middle":
        assert ["does not take this run's data" in line for line in said] == [True]
        assert sync(run_dir) == SyncReport(0, 0, tracker.run_id)
    else:
        assert "lacks part of this run" in said[-1]
        assert f"`distmeta track sync {run_dir}` fills in what is missing" in said[-1]
        assert "\n" not in said[-1]
        with pytest.raises(RuntimeFailure, match="Nothing is lost"):
            sync(run_dir)
        gate.set("open")
        report = sync(run_dir)
        assert (report.rows_sent, report.artifacts_sent) == (40 if outage == "start" else 20, 1)
        assert sync(run_dir) == SyncReport(0, 0, report.run_id)

    run_id = _record(run_dir)["run_id"]
    run = _run(gate.uri, run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == _record(run_dir)["ended"]
    assert run.data.params == {"seed": "7"}
    assert run.data.tags["phase"] == outage
    assert [used.dataset.digest for used in run.inputs.dataset_inputs] == [DATASET.digest[:32]]
    assert _steps(gate.uri, run_id) == list(range(40))
    assert _artifacts(gate.uri, run_id) == {"note.txt"}
    # Neither MLflow's links nor urllib3's retries reach the terminal.
    assert capfd.readouterr() == ("", "")


def test_lost_answers_make_neither_a_second_run_nor_a_second_row(tmp_path: Path, gate: Gate, said: list[str]) -> None:
    # Each kind of request that changes something arrives, but is not answered the first times.
    deaf = Counter({"runs/create": 2, "runs/log-batch": 6, "runs/log-inputs": 2, "experiments/create": 2})

    def state(path: str) -> str:
        name = path.removeprefix("/api/2.0/mlflow/").partition("?")[0]
        deaf[name] -= 1
        return "deaf" if deaf[name] >= 0 else "open"

    gate.state = state
    run_dir = tmp_path / "run"
    tracker = _tracker(run_dir, gate.uri, said)
    tracker.start({"seed": 7}, {}, DATASET)
    _log(tracker, range(5))
    tracker.close("FINISHED")
    for _ in range(6):
        try:
            sync(run_dir)
        except RuntimeFailure:
            continue
        break
    assert sync(run_dir).rows_sent == 0

    run_id = _record(run_dir)["run_id"]
    assert _steps(gate.uri, run_id) == list(range(5))
    # Both creations are one attempt of ours, which urllib3 repeated when the connection broke; the next attempt found
    # the run instead of making another.
    assert sum(path.endswith("runs/create") for path in gate.seen) == 2


def test_required_tracking_fails_at_the_start(tmp_path: Path, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", f"http://user:secret@127.0.0.1:{free_ports(1)[0]}", said, required=True)
    with pytest.raises(RuntimeFailure, match=r"connection refused.*tracking is required") as caught:
        tracker.start({}, {}, None)
    assert "secret" not in str(caught.value)
    tracker.close("FAILED")
    assert said == []


def test_required_tracking_starts_when_the_store_is_there(tmp_path: Path, store: str, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", store, said, required=True)
    tracker.start({}, {}, None)
    assert tracker.run_id is not None
    tracker.close("FINISHED")


def test_the_deadline_of_close_holds_for_a_server_that_hangs(tmp_path: Path, said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = _tracker(tmp_path / "run", f"http://127.0.0.1:{silent.getsockname()[1]}", said)
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "3"
        tracker.start({}, {}, None)
        _log(tracker, range(3))
        tracker.close("FINISHED", deadline=0.1)
        assert "it did not take everything within 0.1 s" in said[-1]
    assert len(read_metrics(tmp_path / "run")) == 3
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    tracker._sender.join()  # type: ignore[union-attr]


def test_by_default_a_warning_is_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(tmp_path / "run", experiment="e", run_name="r", uri=f"http://127.0.0.1:{free_ports(1)[0]}")
    with caplog.at_level(logging.WARNING):
        tracker.start({}, {}, None)
        tracker.close("FINISHED")
    assert {record.name for record in caplog.records} == {"distmeta.tracking.tracker"}
    assert all(record.exc_info is None for record in caplog.records)


def test_nothing_is_printed_even_where_warnings_are_errors() -> None:
    """A fresh default store, migrations included, in an interpreter of its own."""
    code = """
import pathlib
from distmeta.tracking.tracker import Tracker, sync
tracker = Tracker(pathlib.Path("run"), experiment="e", run_name="r", warn=lambda line: print(line))
tracker.start({"seed": 0}, {}, None)
tracker.metrics(0, {"loss": 1.0})
tracker.close("FINISHED")
assert sync(pathlib.Path("run")).rows_sent == 0
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("mlflow.db").exists()


# --- sync ------------------------------------------------------------------------------------------------------------


def test_sync_sends_a_run_that_was_tracked_locally_only(tmp_path: Path, store: str, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", None, said, enabled=False)
    tracker.start({"seed": 3}, {}, None)
    _log(tracker, range(4))
    (tmp_path / "run" / "config.yaml").write_text("seed: 3")
    tracker.artifact(tmp_path / "run" / "config.yaml")
    tracker.close("KILLED")
    assert not Path("mlflow.db").exists()

    # The directory was moved, as after a copy from a cluster.
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    report = sync(moved, store)
    assert (report.rows_sent, report.artifacts_sent) == (4, 1)
    assert sync(moved) == SyncReport(0, 0, report.run_id)
    assert _run(store, report.run_id).info.status == "KILLED"
    assert _steps(store, report.run_id) == [0, 1, 2, 3]
    assert _artifacts(store, report.run_id) == {"config.yaml"}


def test_sync_to_a_store_that_lacks_the_run_sends_all_of_it(
    tmp_path: Path, store: str, empty_store: Path, said: list[str]
) -> None:
    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({"seed": 3}, {}, DATASET)
    _log(tracker, range(4))
    (tmp_path / "run" / "config.yaml").write_text("seed: 3")
    tracker.artifact(tmp_path / "run" / "config.yaml")
    tracker.close("FINISHED")

    shutil.copy(empty_store, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    report = sync(tmp_path / "run", other)
    assert (report.rows_sent, report.artifacts_sent) == (4, 1)
    assert sync(tmp_path / "run") == SyncReport(0, 0, report.run_id)
    run = _run(other, report.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "3"})
    assert len(run.inputs.dataset_inputs) == 1


def test_sync_asks_the_server_not_its_own_notes(tmp_path: Path, store: str, said: list[str]) -> None:
    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({}, {}, None)
    _log(tracker, range(4))
    tracker.close("FINISHED")
    # As if the server had been restored from a backup: rows that are noted as sent are not there.
    later = [{"step": 4, "time": 5.0, "train/loss": 0.1}, {"step": 5, "time": 6.0, "train/loss": 0.1}]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in later)
    record = _record(tmp_path / "run")
    write_record(tmp_path / "run" / "tracking.json", {**record, "sent_rows": 6})
    assert sync(tmp_path / "run").rows_sent == 2
    assert _steps(store, tracker.run_id) == list(range(6))


def test_sync_names_a_run_that_is_deleted_on_the_server(tmp_path: Path, store: str, said: list[str]) -> None:
    import mlflow

    tracker = _tracker(tmp_path / "run", store, said)
    tracker.start({}, {}, None)
    tracker.close("FINISHED")
    mlflow.MlflowClient(tracking_uri=store).delete_run(tracker.run_id)
    with pytest.raises(RuntimeFailure, match=f"mlflow runs restore --run-id {tracker.run_id}"):
        sync(tmp_path / "run")


def test_sync_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"has no tracking\.json"):
        sync(tmp_path)
    (tmp_path / "tracking.json").write_text("[")
    with pytest.raises(RuntimeFailure, match="not a tracking record"):
        sync(tmp_path)
    (tmp_path / "tracking.json").unlink()
    (tmp_path / "tracking.json").mkdir()
    with pytest.raises(RuntimeFailure, match=r"json cannot be read: Is a directory; expected .*move it away, and"):
        sync(tmp_path)


def test_a_record_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(tracking_record, "read_record", refuse)
    with pytest.raises(RuntimeFailure, match=r"json cannot be read: Permission denied; .*Fix its permissions"):
        tracking_record.TrackingRecord.load(tmp_path)


# --- where to look, what ran -----------------------------------------------------------------------------------------


def test_how_to_open(tmp_path: Path, gate: Gate, said: list[str]) -> None:
    def opens(name: str, uri: str | None, **options: object) -> str:
        return _tracker(tmp_path / name, uri, said, **options).how_to_open()

    assert opens("default", None) == f"mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}"
    assert opens("relative", "sqlite:///a b.db") == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path / 'a b.db'}'"
    assert opens("down", "http://user:secret@mlflow.example/") == "http://mlflow.example"
    assert opens("local only", None, enabled=False) == f"distmeta track sync '{tmp_path / 'local only'}'"
    os.environ["MLFLOW_TRACKING_URI"] = "http://team.example"
    assert opens("environment", None) == "http://team.example"

    tracker = _tracker(tmp_path / "run", gate.uri, said)
    tracker.start({}, {}, None)
    tracker.close("FINISHED")
    experiment_id = _run(gate.uri, tracker.run_id).info.experiment_id
    assert tracker.how_to_open() == f"{gate.uri}/#/experiments/{experiment_id}/runs/{tracker.run_id}"


def test_passwords_stay_out_of_the_record_and_come_back_from_the_environment(
    tmp_path: Path, gate: Gate, said: list[str]
) -> None:
    full = gate.uri.replace("//", "//user:secret@")
    tracker = _tracker(tmp_path / "run", full, said)
    tracker.start({}, {}, None)
    tracker.close("FINISHED")
    assert "secret" not in (tmp_path / "run" / "tracking.json").read_text()
    os.environ["MLFLOW_TRACKING_URI"] = full
    assert _tracker(tmp_path / "run", None, said)._link._uri == full
    os.environ["MLFLOW_TRACKING_URI"] = "http://elsewhere.example"
    assert _tracker(tmp_path / "run", None, said)._link._uri == gate.uri
