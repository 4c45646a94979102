"""The same worker and server classes as Ray actors, on a cluster of this machine or on a given one.

The only file of the runtime that imports ray, with ray_errors.py.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import math
import os
import pickle
import secrets
import signal
import threading
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Set before ray is imported: it reads them once. Reporting and reminders are off unless the user asks for them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A cluster of this machine: Ray's own 15 leaves its workers a thirtieth of a core that another process wants too.
os.environ.setdefault("RAY_worker_niceness", "0")
# Likewise: through the object store, a vector of some 100 KB takes the raylet two calls, and longer than in the call.
os.environ.setdefault("RAY_max_direct_call_object_size", str(2**20))

import ray
from ray import cloudpickle, exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmeta.errors import ClusterTooSmall, ContractError, DistmetaError, RuntimeFailure, first_sentence
from distmeta.runtime.backend import SERVER, Backend, Resources, raised
from distmeta.runtime.cluster_health import (
    SHARED_MEMORY,
    ClusterHealth,
    Service,
    parse_address,
    patience_with_head,
    require_grpc,
    shared_memory_free,
)
from distmeta.runtime.ray_errors import cannot_reach, did_not_start, translate

_SHUTDOWN_S = 20.0
_LONGEST_GET_S = 16.0
# The thread in which this process leaves a cluster that is gone; until it ends, Ray counts as connected to that one.
_farewell: threading.Thread | None = None


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's own answer to SIGTERM: ray.init sets two, in C++ and Python, that leave no checkpoint."""
    # signal.signal works in the main thread only, and Ray may start in another; Python's own way below it works in any.
    get, set_ = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype, set_.restype, set_.argtypes = ctypes.c_void_p, ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    handler, below = signal.getsignal(signal.SIGTERM), get(signal.SIGTERM)
    try:
        yield
    finally:
        set_(signal.SIGTERM, below)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class RayBackend(Backend):
    """Actors on a Ray cluster.

    Args:
        address: ``None`` starts a cluster of this machine for the run; ``"auto"`` or ``HOST:PORT`` connects to one
            that runs.
        cpus: CPU slots of a cluster that is started here; the machine's CPUs when left out. More slots than CPUs let
            workers take turns.
        by_value: modules whose classes are sent along, such as a job file that workers cannot import.
        search_path: folders of modules that workers import, such as a job file's neighbours.

    Raises:
        RuntimeFailure: there is no cluster at ``address``, or this process is still leaving one that is gone.
    """

    name = "ray"
    overhead = 3e-3  # of driver, raylet, worker and server together, gradients of some 100 KB

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        by_value: Sequence[types.ModuleType] = (),
        search_path: Sequence[str] = (),
    ) -> None:
        if _farewell is not None and _farewell.is_alive():
            raise RuntimeFailure(
                "Ray is still leaving the cluster that stopped earlier in this process; expected no connection. Wait, "
                "or go on in a new process: `distmeta resume RUN_DIR`."
            )
        self._search_path = tuple(search_path)
        self._names: dict[str, str] = {}
        self._gone: DistmetaError | None = None
        self._owner = not ray.is_initialized()
        free = shared_memory_free()
        session: str | None = None
        self._messages: collections.deque[str] = collections.deque(maxlen=20)
        with contextlib.ExitStack() as undo:
            if self._owner:
                undo.enter_context(_kept(self._messages))
                if address is None:
                    undo.enter_context(_token())
                session = _start(address, cpus)
            self._health = _health(Path(session) / "logs" if session else None, own=self._owner and address is None)
            store = int(ray.cluster_resources().get("object_store_memory", 0))
            # Ray puts the object store elsewhere when there is no room for all of it here.
            self._store_in_shared_memory = self._owner and address is None and free is not None and free >= store
            for module in by_value:
                cloudpickle.register_pickle_by_value(module)
            self._undo = undo.pop_all()

    def default_workers(self, threads: int) -> int:
        """One worker per ``threads`` CPUs of the cluster, or one per GPU where there are GPUs."""
        resources = ray.cluster_resources()
        return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1) // threads))

    def gpus(self) -> float:
        """GPUs of the cluster."""
        return float(ray.cluster_resources().get("GPU", 0.0))

    def require(self, workers: int, resources: Resources) -> None:
        """See :meth:`Backend.require`: a cluster that can grow had ``resources.timeout`` seconds to do so."""
        needed = {"CPU": workers * resources.cpus, "GPU": workers * resources.gpus}
        there = ray.cluster_resources()
        if any(v > there.get(k, 0.0) + 1e-9 for k, v in needed.items()):
            have = " and ".join(f"{there.get(k, 0.0):g} {k}" for k in needed)
            fit = math.floor(min(there.get(k, 0.0) / (v / workers) for k, v in needed.items() if v))
            raise ClusterTooSmall(
                f"{workers} workers need {needed['CPU']:g} CPU and {needed['GPU']:g} GPU; the cluster has {have} after "
                f"{resources.timeout:g} s. Use --workers {max(fit, 1)}, or add nodes."
            )

    def spawn(self, kind: type, name: str, resources: Resources, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`Backend.spawn`. Actors are not restarted by Ray: the pool replaces them, within its budget."""
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_restarts": 0,
        }
        if name == SERVER:
            # A cluster puts an actor without CPUs on any node; losing that node would lose the newest parameters. The
            # driver's own node is the one that the run cannot do without anyway.
            node = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        if self._search_path:
            # Ray sends its workers the driver's folder at most, and a job file's neighbours may be elsewhere.
            known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            path = os.pathsep.join(p for p in (*self._search_path, *known) if p)
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        with self._translated(name), _sendable():
            actor = ray.remote(**options)(kind).remote(*args, **kwargs)
        self._names[actor._actor_id.hex()] = name
        return actor

    def call(self, actor: Any, method: str, *args: Any, parts: int = 1) -> Any:
        """See :meth:`Backend.call`."""
        with self._translated(self._name(actor)):
            refs = getattr(actor, method).options(num_returns=parts).remote(*args)
        return tuple(refs) if parts > 1 else refs

    def wait(self, refs: Sequence[Any], timeout: float) -> list[Any]:
        """See :meth:`Backend.wait`."""
        if not refs:
            time.sleep(min(timeout, 0.01))
            return []
        unique = list(dict.fromkeys(refs))
        deadline = time.monotonic() + timeout
        while True:
            self._require_cluster()
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(unique, num_returns=1, timeout=min(left, 1.0), fetch_local=False)
            if ready or left <= 1.0:
                break
        if ready and len(unique) > 1:
            ready, _ = ray.wait(unique, num_returns=len(unique), timeout=0, fetch_local=False)
        return list(ready)

    def fetch(self, ref: Any) -> Any:
        """See :meth:`Backend.fetch`."""
        patience = 2.0
        while True:
            self._require_cluster(period=0.05)  # Ray ends a process that reads from the store of a dead raylet
            try:
                with self._translated("an actor"):
                    return ray.get(ref, timeout=patience)
            except _NotYet:
                # A transfer that was cut short begins anew, so each try is given more time than the last; but Ray ends
                # this process a minute after the head is gone, and the cluster is only looked at between tries.
                patience = min(2 * patience, _LONGEST_GET_S)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, DistmetaError):
                raise error.cause from None
            if not isinstance(error.cause, exceptions.RayError):
                raise raised(type(error.cause).__name__, str(error.cause), str(error)) from None
            raise self._failure(error.cause, str(error), name) from None
        except exceptions.GetTimeoutError:
            raise _NotYet from None
        except exceptions.RayError as error:
            raise self._failure(error, str(error), name) from None

    def _failure(self, cause: exceptions.RayError, text: str, name: str) -> DistmetaError:
        """The error for one of Ray's; that of the whole cluster where it is gone."""
        try:
            self._require_cluster(at_once=True)
        except DistmetaError as error:
            return error
        if isinstance(cause, exceptions.RayActorError):
            name = self._names.get(str(cause.actor_id), name)
        return translate(cause, text, name)

    def _name(self, actor: Any) -> str:
        return self._names.get(actor._actor_id.hex(), "an actor")

    def _require_cluster(self, *, at_once: bool = False, period: float = 1.0) -> None:
        """Raise if the cluster is gone.

        Raises:
            RuntimeFailure: with the end of the log of the process that is gone.
        """
        if self._gone is None and (service := self._health.gone(at_once=at_once, period=period)):
            host, port = service.address
            free = shared_memory_free() if self._store_in_shared_memory else None
            why = "It was killed, or ran out of memory: free some, or use fewer --workers."
            if free is not None and free < 2**20:
                why = f"{SHARED_MEMORY} is full: delete files there, or enlarge it (docker run --shm-size=4g)."
            text = "\n".join([*self._messages, self._health.log_of(service)])
            self._gone = RuntimeFailure(
                f"Ray stopped: {service.name} no longer answers at {host}:{port}. {why} Then `distmeta resume RUN_DIR` "
                "goes on from the last checkpoint.",
                raw=text,
            )
        if self._gone is not None:
            raise self._gone

    def put(self, value: Any) -> Any:
        """See :meth:`Backend.put`."""
        self._require_cluster(at_once=True)
        size, free = getattr(value, "nbytes", 0), shared_memory_free()
        if self._store_in_shared_memory and free is not None and free < size:
            raise RuntimeFailure(  # Ray's raylet would crash writing it, and end this process
                f"{SHARED_MEMORY} has {free / 1e6:.1f} MB left; expected {size / 1e6:.1f} MB for the meta-parameters. "
                "Delete files there, or enlarge it (docker run --shm-size=4g); then `distmeta resume RUN_DIR`."
            )
        with self._translated("the object store"):
            return ray.put(value)

    def kill(self, actor: Any) -> None:
        """See :meth:`Backend.kill`."""
        if self._gone is None:  # a cluster that is gone has no actors, and would be waited for
            with contextlib.suppress(exceptions.RayError, ValueError):
                ray.kill(actor)

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends."""
        global _farewell  # noqa: PLW0603 (Ray has one connection per process)
        if not self._owner:
            return
        if self._gone is None:
            self._leave()
            return
        # Ray says good-bye to processes that are gone, for as long as it takes.
        _farewell = threading.Thread(target=self._leave, name="distmeta-farewell", daemon=True)
        _farewell.start()
        _farewell.join(_SHUTDOWN_S)

    def _leave(self) -> None:
        """Disconnect, then put back what was changed in this process for the cluster."""
        with self._undo:
            ray.shutdown()


class _NotYet(Exception):
    """A value did not arrive in the time given."""


def _start(address: str | None, cpus: int | None) -> str:
    """Start or reach a cluster; returns the folder of its session on this machine.

    Raises:
        RuntimeFailure: there is none.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"num_cpus": max(cpus or 0, os.cpu_count() or 1), "include_dashboard": False}
    try:
        if address not in (None, "auto", "local"):
            require_grpc(parse_address(str(address)))
        with _own_sigterm():
            return str(ray.init(address=address or "local", **options).address_info["session_dir"])
    except Exception as error:  # noqa: BLE001  a bare Exception is what Ray raises when it starts too slowly
        ray.shutdown()  # what it had started by then
        raise (did_not_start(error) if address is None else cannot_reach(address, error)) from None


@contextlib.contextmanager
def _token() -> Iterator[None]:
    """Give Ray its token through the environment where the home folder cannot keep it; take it back at the end.

    A cluster that is started here has one by default; nobody but its own processes needs it.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if (
        (mode or "token").lower() != "token"
        or os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or _home_keeps_token()
    ):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _forget_token()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        if mode is None:
            os.environ.pop("RAY_AUTH_MODE", None)  # set by ray.init
        _forget_token()


def _home_keeps_token() -> bool:
    folder = Path("~/.ray").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK) or (folder / "auth_token").exists()
    except OSError:
        return False


def _forget_token() -> None:
    """Let Ray read mode and token from the environment again: its C++ keeps what it read once."""
    raylet = ray._raylet  # not part of Ray's public interface
    if hasattr(raylet, "Config") and hasattr(raylet, "AuthenticationTokenLoader"):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _health(logs: Path | None, *, own: bool) -> ClusterHealth:
    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    raylet = (node["NodeManagerAddress"], int(node["NodeManagerPort"]))
    return ClusterHealth(
        [
            # Nobody restarts a raylet, nor the head of a cluster that was started here.
            Service("this node's raylet", "raylet", raylet, 1.0),
            Service(
                "its head (GCS)",
                "gcs_server",
                parse_address(context.gcs_address),
                1.0 if own else patience_with_head(),
                may_return=not own,
            ),
        ],
        logs,
    )


@contextlib.contextmanager
def _sendable() -> Iterator[None]:
    """Translate what is raised where an argument of an actor cannot be pickled; no actor was started then."""
    try:
        yield
    except (TypeError, AttributeError, RuntimeError, pickle.PickleError) as error:
        if isinstance(error, exceptions.RayError):
            raise
        cause = error.__cause__ or error  # Ray's own text begins with the whole object
        raise ContractError(
            f"The learner, its model or the tasks cannot be sent to a worker: {type(cause).__name__}: "
            f"{first_sentence(str(cause))}. Expected objects that pickle. Make locks, open files, generators and "
            "compiled functions where they are used, not in __init__; or run with --backend local.",
            raw="".join(traceback.format_exception(error)),
        ) from None


@contextlib.contextmanager
def _kept(messages: collections.deque[str]) -> Iterator[None]:
    """Keep what Ray would print about its own processes, a log of 40 lines when one ends, instead of printing it."""
    worker = ray._private.worker  # not part of Ray's public interface, so another version may print
    printing = getattr(worker, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    worker.print_to_stdstream = lambda data, **_: messages.append("\n".join(map(str, data.get("lines", ()))))
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
