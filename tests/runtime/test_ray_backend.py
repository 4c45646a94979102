"""What Ray raises comes out as one short message with the fix; what it does once it is up is in test_invariants.py."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time

import pytest
import ray
from ray import cloudpickle, exceptions

from distmeta.errors import ContractError, RuntimeFailure, ServerLost, WorkerLost, WorkerOutOfMemory
from distmeta.runtime import ray_backend
from distmeta.runtime.backend import SERVER
from distmeta.runtime.ray_backend import RayBackend
from distmeta.runtime.ray_errors import translate

LOG = "[2026-01-31 12:00:00,123 E 12 34] (raylet) main.cc:12: Check failed.\n" * 40


@pytest.fixture
def starting(monkeypatch):
    """Returns a function that sets what ``ray.init`` raises; the calls of ``ray.shutdown`` are counted."""
    ended = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))

    def raising(error):
        def init(**options):
            raise error

        monkeypatch.setattr(ray, "init", init)
        return ended

    return raising


@pytest.mark.parametrize(
    ("error", "seen", "fix"),
    [
        # What Ray 2.60 raises when its processes are too slow, and when they answer too late.
        (Exception("The current node timed out during startup. This could happen ..."), "timed out", "Run the command"),
        (exceptions.RaySystemError("Failed to connect to GCS."), "Failed to connect to GCS", "Run the command again"),
        (TimeoutError(), "TimeoutError", "Run the command again"),
        (Exception(LOG + "It failed."), ": It failed. ", "Run the command again"),
        (
            ValueError("The configured object store size (9.0 GB) exceeds /dev/shm size (0.1 GB). This will harm"),
            "exceeds /dev/shm size",
            "Enlarge /dev/shm",
        ),
        (
            ValueError("Attempting to cap object store memory usage at 9 bytes, but the minimum allowed is 78643200."),
            "minimum allowed",
            "75 MiB or more",
        ),
        (FileNotFoundError(2, "No such file", "/nowhere"), "/nowhere", "set HOME and RAY_TMPDIR"),
        (OSError(30, "Read-only file system", "/root/.ray"), "/root/.ray", "set HOME and RAY_TMPDIR"),
        (OSError(28, "No space left on device"), "No space left", "Free that disk"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /long"), "AF_UNIX", "Set RAY_TMPDIR to a shorter path"),
        (OSError(98, "Address already in use"), "already in use", "Another program has that port"),
    ],
)
def test_ray_that_does_not_start_is_one_message(starting, error, seen, fix):
    ended = starting(error)
    with pytest.raises(RuntimeFailure) as caught:
        RayBackend()
    message = str(caught.value)
    assert message.startswith("Ray did not start on this machine: ")
    assert seen in message
    assert fix in message
    assert message.endswith("--backend local.")
    assert len(message) <= 400
    assert "\n" not in message
    assert str(error) in caught.value.raw
    assert ended == [True]


@contextlib.contextmanager
def other_program(answer):
    """A server that is not Ray, on a port of its own; gives its address."""
    ended = threading.Event()

    def serve():
        with contextlib.ExitStack() as kept:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    connection = kept.enter_context(server.accept()[0])
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another program than Ray listens there"),
        (b"-ERR unknown command\r\n", "another program than Ray listens there"),
        (b"220", "another program than Ray listens there"),
        (b"", "no answer within 0.5 s"),  # a head that is too busy, as well as a program that waits for more
    ],
)
def test_a_port_without_ray_is_found_at_once(starting, answer, seen, monkeypatch):
    starting(AssertionError("ray.init is not reached"))
    monkeypatch.setattr(ray_backend.require_grpc, "__defaults__", (0.5,))
    with other_program(answer) as address:
        before = time.monotonic()
        with pytest.raises(RuntimeFailure) as caught:
            RayBackend(address)
    assert time.monotonic() - before < 5
    assert str(caught.value) == (
        f"Could not reach the Ray cluster at {address!r}: {seen}. Start one with `ray start --head`, give its address, "
        "or run with --backend local."
    )


def test_a_grpc_server_is_let_through(starting):
    ended = starting(ConnectionError("reached"))
    with other_program(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address, pytest.raises(RuntimeFailure, match="reached"):
        RayBackend(address)
    assert ended == [True]


@pytest.mark.parametrize(
    ("home", "mode", "given"),
    [("/proc/nonexistent", None, True), ("/proc/nonexistent", "disabled", False), (None, None, False)],
)
def test_a_home_that_cannot_be_written_keeps_no_token(monkeypatch, tmp_path, home, mode, given):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home or str(tmp_path))
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what is set stays here
    before = dict(os.environ)
    with ray_backend._token():
        assert (len(os.environ.get("RAY_AUTH_TOKEN", "")) == 64) is given
        if given:
            os.environ["RAY_AUTH_MODE"] = "token"  # as ray.init does
    assert os.environ == before


def test_a_start_that_fails_changes_nothing_in_the_process(starting, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    handler, printing = signal.getsignal(signal.SIGTERM), ray._private.worker.print_to_stdstream
    seen = []

    def init(**options):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as ray.init does, also where it fails later
        seen.append((len(os.environ["RAY_AUTH_TOKEN"]), ray._private.worker.print_to_stdstream is printing))
        raise ConnectionError("too slow")

    starting(None)
    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises(RuntimeFailure, match="too slow"):
            RayBackend()
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert seen == [(64, False)]
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert ray._private.worker.print_to_stdstream is printing


@pytest.fixture
def opened(monkeypatch):
    """Returns a function that makes an open backend without a cluster, with the ``ray.shutdown`` that it is given."""

    def made(shutdown):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", shutdown)
        monkeypatch.setattr(ray, "cluster_resources", dict)
        monkeypatch.setattr(ray_backend, "_start", lambda address, cpus: "/tmp/session")
        monkeypatch.setattr(ray_backend, "_health", lambda logs, own: None)
        monkeypatch.setattr(ray_backend, "_farewell", None)
        return RayBackend()

    return made


def test_closing_lets_ray_print_again(opened):
    printing = ray._private.worker.print_to_stdstream
    backend = opened(lambda: None)
    assert ray._private.worker.print_to_stdstream is not printing
    thread = threading.Thread(target=backend.close)
    thread.start()
    thread.join()
    assert ray._private.worker.print_to_stdstream is printing


def test_no_backend_while_the_process_still_leaves_a_cluster(opened, monkeypatch):
    monkeypatch.setattr(ray_backend, "_SHUTDOWN_S", 0.05)
    printing, over = ray._private.worker.print_to_stdstream, threading.Event()
    backend = opened(lambda: over.wait(10))
    backend._gone = RuntimeFailure("Ray stopped.")
    backend.close()
    try:
        with pytest.raises(RuntimeFailure, match=r"still leaving the cluster .* `distmeta resume RUN_DIR`"):
            RayBackend()
    finally:
        over.set()
        ray_backend._farewell.join()
    assert ray._private.worker.print_to_stdstream is printing
    RayBackend().close()


def test_the_cluster_is_looked_at_every_16_seconds_at_least(monkeypatch):
    tries, looks = [], []
    backend = RayBackend.__new__(RayBackend)
    monkeypatch.setattr(backend, "_require_cluster", lambda **options: looks.append(options))

    def get(ref, timeout):
        tries.append(timeout)
        if len(tries) < 7:
            raise exceptions.GetTimeoutError
        return ref

    monkeypatch.setattr(ray, "get", get)
    assert backend.fetch("value") == "value"
    assert tries == [2, 4, 8, 16, 16, 16, 16]
    assert len(looks) == len(tries)


def died(text, *, init=False):
    return exceptions.RayActorError("ab", text, actor_init_failed=init)


DEATH = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tactor_id: ab\n\tpid: 7\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    f"unexpectedly exits with a connection error code 2. End of file. Some common causes include: ...\n{LOG}"
)


@pytest.mark.parametrize(
    ("cause", "name", "kind", "message"),
    [
        (
            died(DEATH),
            "worker-3",
            WorkerLost,
            "worker-3 died: Worker unexpectedly exits with a connection error code 2.",
        ),
        (died(DEATH), SERVER, ServerLost, f"{SERVER} died: Worker unexpectedly exits with a connection error code 2."),
        (died(LOG), "worker-3", WorkerLost, None),
        (
            died('Traceback\n  File "/me/job.py", line 7, in f\nKeyError: 3', init=True),
            "worker-3",
            RuntimeFailure,
            "worker-3 could not start: it raised KeyError: 3 (/me/job.py, line 7). Fix that line, then run the command "
            "again.",
        ),
        (
            exceptions.OutOfDiskError("Local disk is full"),
            "worker-3",
            RuntimeFailure,
            "Ray has no room for results: Local disk is full. Free disk in Ray's folder (/tmp, or RAY_TMPDIR "
            "elsewhere), or use fewer --workers. Then `distmeta resume RUN_DIR` goes on from the last checkpoint.",
        ),
        (
            exceptions.OutOfMemoryError(
                "1 worker(s) were killed due to the node running low on memory. Memory on\nmore"
            ),
            "an actor",
            WorkerOutOfMemory,
            "an actor was ended by Ray: 1 worker(s) were killed due to the node running low on memory.",
        ),
        (died(DEATH.replace("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY")), "worker-3", WorkerOutOfMemory, None),
        (died(DEATH.replace("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY")), SERVER, ServerLost, None),
        (exceptions.ObjectStoreFullError("Failed to put object"), "a", RuntimeFailure, None),
        (exceptions.RuntimeEnvSetupError("pip failed"), "a", RuntimeFailure, None),
        (
            exceptions.NodeDiedError("The node died.\n" + LOG),
            "a",
            WorkerLost,
            "A result was lost on its way: The node died.",
        ),
        (exceptions.RaySystemError(LOG), "a", WorkerLost, None),
        (exceptions.ObjectLostError("ab", None, ""), "a", WorkerLost, None),
    ],
)
def test_what_ray_raises_is_short_and_kept_whole(cause, name, kind, message):
    error = translate(cause, str(cause), name)
    assert type(error) is kind
    assert message in (None, error.message)
    assert len(error.message) <= 400
    assert "\n" not in error.message
    assert str(cause).strip() in error.raw


def test_what_cannot_be_sent_is_the_users_to_mend():
    """The value that was wrong: a raw TypeError that begins with the whole object."""
    ray_text = "Could not serialize the argument Net(\n  (0): Linear()\n) for a task or actor"

    @ray_backend._sendable()
    def send():
        try:
            cloudpickle.dumps(threading.Lock())
        except TypeError as error:
            raise TypeError(ray_text) from error

    with pytest.raises(ContractError) as caught:
        send()
    assert "cannot be sent to a worker: TypeError: cannot pickle '_thread.lock' object. Expected" in str(caught.value)
    assert ray_text in caught.value.raw
    with pytest.raises(exceptions.RayActorError), ray_backend._sendable():
        raise exceptions.RayActorError


def test_the_answer_to_sigterm_is_kept_also_by_another_thread(monkeypatch):
    """Ray's C++ sets a handler below Python's, and only the main thread could call signal.signal."""
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))

    def start() -> None:
        with ray_backend._own_sigterm():
            ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN

    try:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
