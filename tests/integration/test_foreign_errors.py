"""What breaks outside distmeta ends a run in at most five lines with the fix; resuming gives the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import distmeta

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

COLUMNS = 100

JOB = """
import distmeta
from distmeta import MAML, Evaluation, Experiment, Outer, Runtime, Sinusoids

experiment = Experiment(
    learner=MAML(distmeta.mlp({hidden}), inner_lr=0.01),
    tasks=Sinusoids(shots=4, queries=4),
    outer=Outer(iterations={iterations}, meta_batch_size=4),
    runtime=Runtime(chunk_size=2, checkpoint_every=10, workers=1),
    evaluation=Evaluation(every=0, test_tasks=4),
)
"""


class World:
    """A folder with a job, a home and a Ray folder of its own; its command line runs there.

    Args:
        folder: short, since Ray's sockets lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        for name in ("home", "ray"):
            (folder / name).mkdir()
        self.environ = {
            **os.environ,
            "HOME": str(folder / "home"),
            "RAY_TMPDIR": str(folder / "ray"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        self.started: list[subprocess.Popen[bytes]] = []
        self.write_job()

    def write_job(self, iterations: int = 600, hidden: tuple[int, ...] = (8,)) -> None:
        (self.folder / "job.py").write_text(JOB.format(iterations=iterations, hidden=hidden))

    def start(self, *words: str, wrap: tuple[str, ...] = (), **environ: str) -> subprocess.Popen[bytes]:
        out, err = (self.folder / "out").open("wb"), (self.folder / "err").open("wb")
        with out, err:
            process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "distmeta", *words],
                cwd=self.folder,
                env=self.environ | environ,
                stdout=out,
                stderr=err,
            )
        self.started.append(process)
        return process

    def train(self, *words: str, tracking: bool = False, **options) -> subprocess.Popen[bytes]:
        extra = () if tracking else ("--no-tracking",)
        return self.start("train", "job.py", "--run-dir", "run", *extra, *words, **options)

    def finish(self, process: subprocess.Popen[bytes], timeout: float = 120) -> tuple[int, str]:
        """Wait; returns the exit code and standard error."""
        code = process.wait(timeout)
        return code, (self.folder / "err").read_text()

    def wait_for_rows(self, process: subprocess.Popen[bytes], rows: int = 25) -> None:
        deadline = time.monotonic() + 120
        metrics = self.run_dir / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, (self.folder / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def message(self, err: str) -> str:
        """The error, at most five lines as a terminal shows it; nothing of Ray's log around it."""
        assert err.count("error: ") == 1
        text = err[err.index("error: ") :].rstrip()
        shown = [line for part in text.splitlines() for line in textwrap.wrap(part, COLUMNS)]
        assert len(shown) <= 5, text
        assert " I " not in text
        assert "Traceback" not in err
        print(f"\n{len(shown)} lines:", *shown, sep="\n  ")
        return text

    def raw(self, message: str) -> str:
        """The text that the message names."""
        path = Path(message.rpartition("Full text: ")[2].strip())
        return (path if path.is_absolute() else self.folder / path).read_text()

    def same_as_unbroken(self) -> None:
        """Resume; the parameters are those of a run that nothing happened to."""
        code, err = self.finish(self.start("resume", "run", "--no-tracking", "--backend", "local"))
        assert code == 0, err
        job = distmeta.load_job(self.folder / "job.py")
        whole = distmeta.meta_train(job, run_dir=self.folder / "whole")
        assert distmeta.inspect_run(self.run_dir)["params_sha256"] == whole.params_sha256
        assert distmeta.inspect_run(self.run_dir)["status"] == "finished"

    def close(self) -> None:
        for process in self.started:
            for pid in (*descendants(process.pid), process.pid) if process.poll() is None else ():
                end(pid)
            process.wait()


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes below ``pid``, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def child(pid: int, program: str) -> int:
    """The process below ``pid`` that runs ``program``."""
    for found in descendants(pid):
        command = (Path("/proc") / str(found) / "cmdline").read_bytes().split(b"\0")[0]
        if os.path.basename(command).decode() == program:
            return found
    raise AssertionError(f"no {program} below {pid}")


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="fe", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = World(Path(folder))
        yield made
        made.close()


@pytest.mark.parametrize(
    ("program", "name", "seconds"),
    [("raylet", "this node's raylet", 30), ("gcs_server", r"its head (GCS)", 45)],
)
def test_a_killed_process_of_ray(world, program, name, seconds):
    world.write_job(iterations=1500)
    process = world.train()
    world.wait_for_rows(process)
    os.kill(child(process.pid, program), signal.SIGKILL)
    before = time.monotonic()
    code, err = world.finish(process, timeout=seconds)
    print(f"\n{program}: {time.monotonic() - before:.1f} s")
    assert code == 1
    message = world.message(err)
    assert f"Ray stopped: {name} no longer answers at " in message
    assert "Then `distmeta resume RUN_DIR`" in message
    assert f"{program}.out" in world.raw(message)
    assert "log" not in (world.folder / "out").read_text()
    assert distmeta.inspect_run(world.run_dir)["status"] == "failed"
    world.same_as_unbroken()


def test_an_object_store_of_80_mb_is_enough(world):
    """Ray moves to the disk what does not fit: slower, with the same bits."""
    world.write_job(iterations=3, hidden=(3000, 3000))  # 36 MB of parameters, and as much for each gradient
    code, err = world.finish(world.train(RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES="80000000"), timeout=300)
    assert code == 0, err
    whole = distmeta.meta_train(distmeta.load_job(world.folder / "job.py"), run_dir=world.folder / "whole")
    assert distmeta.inspect_run(world.run_dir)["params_sha256"] == whole.params_sha256


def test_an_object_store_of_80_mb_and_a_full_disk(world):
    world.write_job(iterations=3, hidden=(3000, 3000))
    process = world.train(
        RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES="80000000",
        RAY_local_fs_capacity_threshold="0.0001",  # the disk counts as full
    )
    code, err = world.finish(process, timeout=300)
    assert code == 1
    message = world.message(err)
    assert "Ray has no room for results: Local disk is full. Free disk in Ray's folder" in message
    assert "OutOfDiskError" in world.raw(message)
    assert distmeta.inspect_run(world.run_dir)["status"] == "failed"
    world.same_as_unbroken()


def shared_memory(size: str, then: str = "") -> tuple[str, ...]:
    """A command that runs the rest in a mount namespace with a /dev/shm of its own."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    command = ("unshare", "--mount", "sh", "-c")
    if subprocess.run([*command, mount], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    return (*command, f'{mount} && {then} exec "$@"', "sh")


def test_shared_memory_that_is_small_or_full_at_the_start(world):
    """Ray takes the disk instead."""
    world.write_job(iterations=20)
    full = shared_memory("40m", "head -c 39M /dev/zero > /dev/shm/x;")
    code, err = world.finish(world.train(wrap=full))
    assert code == 0, err
    whole = distmeta.meta_train(distmeta.load_job(world.folder / "job.py"), run_dir=world.folder / "whole")
    assert distmeta.inspect_run(world.run_dir)["params_sha256"] == whole.params_sha256


def test_shared_memory_that_fills_up(world):
    """Another program takes what Ray counts on: writing there would crash Ray and this process without a word."""
    filling = shared_memory("300m", "(until [ -e fill ]; do sleep 0.1; done; head -c 1G /dev/zero > /dev/shm/x) &")
    world.write_job(iterations=40, hidden=(2000, 2000))  # 16 MB of parameters
    process = world.train(wrap=filling, RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES="200000000")
    world.wait_for_rows(process, rows=3)
    (world.folder / "fill").touch()
    before = time.monotonic()
    code, err = world.finish(process, timeout=120)
    print(f"\n/dev/shm: {time.monotonic() - before:.1f} s")
    assert code == 1
    assert "/dev/shm" in world.message(err)
    assert distmeta.inspect_run(world.run_dir)["status"] == "failed"
    world.same_as_unbroken()


@pytest.fixture
def locked(world) -> Iterator[sqlite3.Connection]:
    """MLflow's database, held by another program."""
    code, err = world.finish(world.train("--backend", "local", "--set", "outer.iterations=2", tracking=True))
    assert code == 0, err
    world.run_dir.rename(world.folder / "earlier")
    holder = sqlite3.connect(world.folder / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    yield holder
    holder.close()


def test_a_locked_database_of_mlflow_does_not_stop_a_run(world, locked):
    world.write_job(iterations=30)
    code, err = world.finish(world.train("--backend", "local", tracking=True))
    assert code == 0, err
    lines = [line for line in err.splitlines() if "MLflow" in line]
    assert 1 <= len(lines) <= 2
    assert any("(the database is locked). End the program that holds it" in line for line in lines) or (
        "the database is locked" in lines[-1]
    )
    assert all(len(textwrap.wrap(line, COLUMNS)) <= 5 for line in lines)
    print(*lines, sep="\n")
    locked.execute("ROLLBACK")
    code, err = world.finish(world.start("track", "sync", "run"))
    assert code == 0, err
    whole = distmeta.meta_train(distmeta.load_job(world.folder / "job.py"), run_dir=world.folder / "whole")
    assert distmeta.inspect_run(world.run_dir)["params_sha256"] == whole.params_sha256


def test_a_locked_database_of_mlflow_where_tracking_is_required(world, locked):
    world.write_job(iterations=30)
    code, err = world.finish(world.train("--backend", "local", "--tracking-required", tracking=True), timeout=60)
    assert code == 1
    message = world.message(err)
    assert "does not take the run (the database is locked), and tracking is required. End the program" in message
    assert "sqlite3.OperationalError" in world.raw(message)
    locked.execute("ROLLBACK")
    world.same_as_unbroken()


def test_a_wrong_tracking_uri_is_refused_before_anything_starts(world):
    code, err = world.finish(world.train("--tracking-uri", "htp://localhost:5000", tracking=True), timeout=60)
    assert code == 1
    assert "MLflow has no store 'htp:...' (--tracking-uri htp://localhost:5000). Did you mean 'http:'?" in (
        world.message(err)
    )
    assert not world.run_dir.exists()
    assert list((world.folder / "ray").iterdir()) == []


def test_a_port_of_ray_that_never_answers(world):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, err = world.finish(world.train("--address", address), timeout=60)
    assert code == 1
    message = world.message(err)
    assert f"Could not reach the Ray cluster at '{address}': no answer within 10 s" in message
    assert "Start one with `ray start --head`" in message


def test_ports_that_ray_likes_are_not_needed(world):
    """A cluster of this machine takes free ones."""
    world.write_job(iterations=3)
    held = []
    for port in (6379, 8265, 10001, 52365):
        try:
            held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:  # somebody has it: as well
            continue
    code, err = world.finish(world.train())
    for server in held:
        server.close()
    assert code == 0, err


def test_a_home_that_cannot_be_written_is_no_obstacle(world):
    world.write_job(iterations=3)
    del world.environ["RAY_AUTH_MODE"]  # its token is what Ray writes there
    code, err = world.finish(world.train(HOME="/proc/nonexistent"))
    assert code == 0, err


def test_a_folder_of_ray_that_cannot_be_written(world):
    code, err = world.finish(world.train(RAY_TMPDIR="/proc/nonexistent"), timeout=60)
    assert code == 1
    message = world.message(err)
    assert "'/proc/nonexistent'. Ray needs folders that it can write: set HOME and RAY_TMPDIR" in message
    assert "FileNotFoundError" in world.raw(message)


def test_an_error_of_the_user_s_code_in_a_worker(world):
    job = (world.folder / "job.py").read_text()
    broken = """
class Broken(Sinusoids):
    drawn = 0

    def draw(self, split, random):
        Broken.drawn += 1
        if Broken.drawn > 20:  # in a worker, not in the checks before
            raise ZeroDivisionError("no amplitude")
        return super().draw(split, random)

"""
    (world.folder / "job.py").write_text(
        job.replace("experiment =", broken + "experiment =").replace("tasks=Sinusoids", "tasks=Broken")
    )
    code, err = world.finish(world.train())
    assert code == 1
    message = world.message(err)
    line = 1 + (world.folder / "job.py").read_text().splitlines().index(
        '            raise ZeroDivisionError("no amplitude")'
    )
    assert "error: A worker raised ZeroDivisionError: no amplitude (" in message
    assert f"job.py, line {line}). Fix that line, then `distmeta resume RUN_DIR`." in message
    assert "in train_chunk" in world.raw(message)
