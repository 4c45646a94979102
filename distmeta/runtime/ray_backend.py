"""The same worker and server classes as Ray actors, on a cluster of this machine or on a given one.

The only file of the runtime that imports ray.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any

# Set before ray is imported: it reads them once. Reporting and reminders are off unless the user asks for them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import cloudpickle, exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distmeta.errors import ClusterTooSmall, DistmetaError, RuntimeFailure, WorkerLost
from distmeta.runtime.backend import SERVER, Backend, Resources, lost


def _reach(address: str | None) -> None:
    """Raise at once where nothing listens: ray.init would try for a minute.

    Raises:
        OSError, ValueError: no, or not an address.
    """
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("expected auto or HOST:PORT, such as 10.0.0.5:6379")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's own answer to SIGTERM: ray.init sets one that exits without a checkpoint."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
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
        RuntimeFailure: there is no cluster at ``address``.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        by_value: Sequence[types.ModuleType] = (),
        search_path: Sequence[str] = (),
    ) -> None:
        self._search_path = tuple(search_path)
        self._names: dict[str, str] = {}
        self._owner = not ray.is_initialized()
        if self._owner:
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address is None:
                slots = max(cpus or 0, os.cpu_count() or 1)
                options |= {"num_cpus": slots, "include_dashboard": False}
            try:
                _reach(address)
                with _own_sigterm():
                    ray.init(address=address or "local", **options)
            except Exception as error:  # noqa: BLE001  a bare Exception is what Ray raises when it starts too slowly
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
                ray.shutdown()  # what it had started by then
                if address is None:
                    raise RuntimeFailure(
                        f"Ray did not start on this machine: {reason}. Run the command again (a busy machine can be "
                        "too slow for it), or with --backend local."
                    ) from None
                raise RuntimeFailure(
                    f"Could not reach the Ray cluster at {address!r}: {reason}. Start one with `ray start --head`, "
                    "give its address, or run with --backend local."
                ) from None
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)

    def enter(self) -> None:
        """Put the process's own answer to SIGTERM back: Ray's C++ aborts, and only the main thread can change that."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

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
        actor = ray.remote(**options)(kind).remote(*args, **kwargs)
        self._names[actor._actor_id.hex()] = name
        return actor

    def call(self, actor: Any, method: str, *args: Any, parts: int = 1) -> Any:
        """See :meth:`Backend.call`."""
        refs = getattr(actor, method).options(num_returns=parts).remote(*args)
        return tuple(refs) if parts > 1 else refs

    def wait(self, refs: Sequence[Any], timeout: float) -> list[Any]:
        """See :meth:`Backend.wait`."""
        if not refs:
            time.sleep(min(timeout, 0.01))
            return []
        unique = list(dict.fromkeys(refs))
        ready, _ = ray.wait(unique, num_returns=1, timeout=timeout, fetch_local=False)
        if ready and len(unique) > 1:
            ready, _ = ray.wait(unique, num_returns=len(unique), timeout=0, fetch_local=False)
        return list(ready)

    def fetch(self, ref: Any) -> Any:
        """See :meth:`Backend.fetch`."""
        try:
            return ray.get(ref)
        except exceptions.RayTaskError as error:
            raise self._translate(error.cause, str(error)) from None
        except exceptions.RayError as error:
            raise self._translate(error, str(error)) from None

    def _translate(self, cause: BaseException, text: str) -> DistmetaError:
        if isinstance(cause, DistmetaError):
            return cause
        if isinstance(cause, exceptions.RayActorError):
            name = self._names.get(str(cause.actor_id), "an actor")
            if cause.__context__ is None and getattr(cause, "_actor_init_failed", False):
                return RuntimeFailure(f"{name} could not start: {text}")
            return lost(name, "died: " + str(cause).strip().splitlines()[0])
        if isinstance(cause, exceptions.RayError):  # an object or a node is gone, and what was computed with it
            return WorkerLost(f"A result was lost on its way: {str(cause).strip().splitlines()[0]}")
        return RuntimeFailure(f"A worker raised {type(cause).__name__}: {cause}. Its traceback:\n{text}")

    def put(self, value: Any) -> Any:
        """See :meth:`Backend.put`."""
        return ray.put(value)

    def kill(self, actor: Any) -> None:
        """See :meth:`Backend.kill`."""
        with contextlib.suppress(exceptions.RayError, ValueError):
            ray.kill(actor)

    def close(self) -> None:
        """Disconnects; a cluster that was started here ends."""
        if self._owner:
            ray.shutdown()
