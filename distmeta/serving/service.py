"""``distmeta serve``: a trained learner over HTTP, by Ray Serve. The only file of serving that imports ray."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError, RuntimeFailure, foreign
from distmeta.malloc import keep_freed_memory
from distmeta.runtime.ray_backend import RayBackend  # first: it sets Ray's environment
from distmeta.serving.answering import Lesson
from distmeta.serving.settings import ServiceSettings

# Read when Serve is imported, here and in the processes of a cluster that is started here. A replica computes in a
# thread of its own, so its requests need none.
os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")

import ray  # isort: skip

try:
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig
except ImportError as error:
    raise ConfigError(f"Ray Serve cannot be imported ({error}). Run: pip install 'distmeta[serve]'") from None

_NAME, _STORE = "distmeta", "distmeta-tasks"
_STOP_S, _LOOK_S = 20.0, 10.0


@dataclass(frozen=True)
class Service:
    """A service that answers.

    Args:
        url: where.
        logs: the folder of its logs, on this machine.
    """

    url: str
    logs: str

    def wait(self, until: threading.Event | None = None) -> None:
        """Wait until ``until`` is set; without it, until an interrupt.

        Raises:
            RuntimeFailure: the service does not run any more.
        """
        until = until or threading.Event()
        looked = time.monotonic()
        while not until.wait(0.5):  # in short waits: a long one would hold ctrl-C back until it ends
            if time.monotonic() > looked + _LOOK_S:
                self._require_running()
                looked = time.monotonic()

    def _require_running(self) -> None:
        """Raise if the service has failed."""
        try:
            found = serve.status().applications.get(_NAME)
        except Exception as error:  # noqa: BLE001 (Ray raises any of its errors where its head is gone)
            raise foreign(RuntimeFailure, "The service is gone", error, "Start it again.") from None
        if found is None or found.status in ("DEPLOY_FAILED", "DELETING", "NOT_STARTED"):
            seen = "was deleted" if found is None else f"is {found.status}: {found.message}"
            raise RuntimeFailure(f"The service {seen}. Its logs are in {self.logs}. Start it again.")


@contextlib.contextmanager
def serving(
    source: Path | str,
    settings: ServiceSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str | None = None,
) -> Iterator[Service]:
    """Serve a trained learner inside the ``with`` block; requests in flight at its end are answered.

    Args:
        source: what :func:`distmeta.load` takes; where the cluster is given, a path or URI that its nodes can read.
        settings: limits and batching.
        host: interface to listen on.
        port: TCP port; 0 takes a free one.
        replicas: processes that answer, one CPU each.
        address: a Ray cluster that runs, on which Serve is started, and ended; a cluster of this machine is started,
            and ended, when left out. The service listens on the cluster's head node.

    Raises:
        ConfigError: the port is taken, the host cannot be listened on, or Serve runs on the cluster already.
        RuntimeFailure: Ray or the service did not start.
    """
    if address is None or port == 0:
        port = _free_port(host, port)
    source = _everywhere(source)
    backend = RayBackend(address, cpus=replicas + 1)
    try:
        _require_no_other(address)
        with _quiet():
            url = _start(source, settings, host, port, replicas)
            logs = str(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve")
            try:
                yield Service(url, logs)
            finally:
                _stop()
    finally:
        backend.close()


def _start(source: str, settings: ServiceSettings, host: str, port: int, replicas: int) -> str:
    # Replicas keep learned tasks each for itself; what they learn from is kept beside them, so that any can answer.
    store = ray.remote(num_cpus=0, max_restarts=0)(_SharedStore).remote(settings) if replicas > 1 else None

    def build() -> Any:
        return _application(source, settings, store)

    at_once = settings.max_batch if settings.batch else 1
    deployment = serve.deployment(
        name="learner",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=max(4 * at_once, 32),
        max_queued_requests=256,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_STOP_S,
        health_check_timeout_s=120,
        max_constructor_retry_count=2,
        logging_config=LoggingConfig(enable_access_log=False),
    )(serve.ingress(build)())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        serve.run(deployment.bind(), name=_NAME, route_prefix="/")
    except Exception as error:  # noqa: BLE001 (Serve raises RuntimeError, RayError, ValueError ...)
        fix = "Its log, in Ray's session folder under logs/serve, has more."
        raise foreign(RuntimeFailure, "The service did not start", error, fix) from None
    return f"http://{'[' + host + ']' if ':' in host else host}:{port}"


def _application(source: str, settings: ServiceSettings, store: Any) -> Any:
    """The application, in a replica."""
    import torch

    from distmeta.serving.loading import load
    from distmeta.serving.web_app import make_app

    keep_freed_memory()
    torch.set_num_threads(1)  # of the replica's one CPU
    ours, theirs = logging.getLogger("distmeta"), logging.getLogger("ray.serve")
    for handler in theirs.handlers:
        ours.addHandler(handler)
    return make_app(load(source), settings, None if store is None else _Shared(store))


class _SharedStore:
    """The support sets of tasks, for several replicas: an actor."""

    def __init__(self, settings: ServiceSettings) -> None:
        from distmeta.serving.web_app import LocalStore

        self._store = LocalStore(settings)

    async def put(self, lesson: Lesson) -> bool:
        return await self._store.put(lesson)

    async def get(self, task_id: str) -> Lesson | None:
        return await self._store.get(task_id)

    async def drop(self, task_id: str) -> bool:
        return await self._store.drop(task_id)


class _Shared:
    """A replica's side of :class:`_SharedStore`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def put(self, lesson: Lesson) -> bool:
        return bool(await self._actor.put.remote(lesson))

    async def get(self, task_id: str) -> Lesson | None:
        found: Lesson | None = await self._actor.get.remote(task_id)
        return found

    async def drop(self, task_id: str) -> bool:
        return bool(await self._actor.drop.remote(task_id))


def _stop() -> None:
    """Take no more requests, answer those in flight, and end Serve."""
    for end in (lambda: serve.delete(_NAME), serve.shutdown):
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing to end
            end()


def _require_no_other(address: str | None) -> None:
    """Raise if Serve runs on the cluster: its port, limits and applications are another's."""
    if any(actor["name"].startswith("SERVE_CONTROLLER") for actor in ray.util.list_named_actors(all_namespaces=True)):
        raise ConfigError(
            f"Ray Serve runs on the cluster at {address} already; expected none, since a service has its own port. End "
            "it there with `serve shutdown`, or give another cluster."
        )


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        ConfigError: something listens there already, or there is no such interface.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            if os.name == "posix":
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
            tried.listen()
            return int(tried.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"The service cannot listen on {host}:{port}: {error.strerror or error}. Give another --port, or --port 0 "
            "for a free one."
        ) from None


def _everywhere(source: Path | str) -> str:
    """The source as another process finds it."""
    text = str(source)
    return text if text.startswith(("runs:/", "models:/")) else str(Path(text).resolve())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Serve's own log lines off the terminal; its files have them."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


__all__ = ["Service", "serving"]
