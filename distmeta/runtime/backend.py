"""Where the plain worker and server classes run: the one narrow seam between the runtime and a cluster.

:class:`LocalBackend` runs them in this process, one call at a time: for debugging, tests and fault injection, through
the same door as Ray.
"""

from __future__ import annotations

import itertools
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from distmeta.errors import (
    DistmetaError,
    RuntimeFailure,
    ServerLost,
    WorkerLost,
    WorkerOutOfMemory,
    first_sentence,
    line_of,
)

SERVER = "parameter-server"
"""Name of the one actor that is not a worker."""


@dataclass(frozen=True)
class Resources:
    """What one actor needs.

    Args:
        cpus: CPU threads; 0 for an actor that mostly waits.
        gpus: GPUs, fractions allowed.
        timeout: seconds it may take to start.
    """

    cpus: float
    gpus: float
    timeout: float


class Backend(ABC):
    """Starts actors, calls their methods without waiting, and moves results by reference."""

    name: str
    overlaps = True
    """Whether calls return before the work is done, so that the next work can be sent early."""
    overhead = 0.0
    """Seconds that a call takes from the processors besides its work: small work shares a call."""

    @abstractmethod
    def default_workers(self, threads: int) -> int:
        """Workers that fit when the user names no number."""

    @abstractmethod
    def gpus(self) -> float:
        """GPUs there are."""

    def require(self, workers: int, resources: Resources) -> None:  # noqa: B027 (optional)
        """Raise if there is no room for ``workers`` such actors; called when one that was spawned does not start.

        Raises:
            ClusterTooSmall: with what there is.
        """

    @abstractmethod
    def spawn(self, kind: type, name: str, resources: Resources, *args: Any, **kwargs: Any) -> Any:
        """Start ``kind(*args, **kwargs)`` as an actor; returns a handle at once."""

    @abstractmethod
    def call(self, actor: Any, method: str, *args: Any, parts: int = 1) -> Any:
        """Call a method; returns a reference, or ``parts`` references for a method that returns a tuple.

        References among ``args`` are passed on without their values coming through here.
        """

    @abstractmethod
    def wait(self, refs: Sequence[Any], timeout: float) -> list[Any]:
        """The references that are ready, as soon as there is one or after ``timeout`` seconds."""

    @abstractmethod
    def fetch(self, ref: Any) -> Any:
        """The value of a reference.

        Raises:
            WorkerLost: the actor is gone, or the value went with it.
            DistmetaError: what the method raised; a :class:`RuntimeFailure` with its traceback for any other error.
        """

    @abstractmethod
    def put(self, value: Any) -> Any:
        """A reference to a value of ours, stored once."""

    @abstractmethod
    def kill(self, actor: Any) -> None:
        """End an actor."""

    def close(self) -> None:  # noqa: B027 (optional)
        """Release what this backend started."""


def lost(name: str, how: str, raw: str = "") -> RuntimeFailure:
    """The error for an actor that is gone; the server and a worker are replaced in different ways.

    Args:
        name: of the actor.
        how: what happened, without a full stop.
        raw: the whole text of the cluster about it.
    """
    return (ServerLost if name == SERVER else WorkerLost)(f"{name} {how}.", raw=raw)


def raised(kind: str, text: str, trace: str) -> RuntimeFailure:
    """The error for code of the user, or of a library, that raised in an actor.

    Args:
        kind: class of what it raised.
        text: its message.
        trace: its traceback, kept whole.

    Example:
        >>> print(raised("KeyError", "'x'", 'File "/home/me/job.py", line 7, in model'))
        A worker raised KeyError: 'x' (/home/me/job.py, line 7). Fix that line, then `distmeta resume RUN_DIR`.
    """
    what = f"{kind}: {first_sentence(text)}" if text.strip() else kind
    seen = f"A worker raised {what} ({line_of(trace)})."
    # torch has no class of its own for a CPU.
    if "OutOfMemory" in kind or kind == "MemoryError" or (kind == "RuntimeError" and "can't allocate memory" in text):
        return WorkerOutOfMemory(seen, raw=trace)
    return RuntimeFailure(f"{seen} Fix that line, then `distmeta resume RUN_DIR`.", raw=trace)


@dataclass
class _LocalActor:
    name: str
    instance: Any = None
    error: BaseException | None = None
    alive: bool = True
    calls: itertools.count[int] = field(default_factory=itertools.count)


@dataclass(eq=False)
class _LocalRef:
    value: Any = None
    error: BaseException | None = None
    ready: bool = True


Fault = Callable[[str, str, int], Literal["lost", "hang"] | None]


class LocalBackend(Backend):
    """Everything in this process; imports neither ray nor mlflow.

    Args:
        fault: called before every call with the actor's name, the method and the number of the call; returns ``"lost"``
            to let the actor die, ``"hang"`` to let the call never answer, or nothing. For tests.

    Example:
        >>> backend = LocalBackend()
        >>> actor = backend.spawn(list, "worker-0", Resources(1, 0, 1), [3, 1, 2])
        >>> backend.fetch(backend.call(actor, "index", 2))
        2
    """

    name = "local"
    overlaps = False

    def __init__(self, fault: Fault | None = None) -> None:
        self._fault = fault
        self._threads = torch.get_num_threads()
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        self._fill: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]

    def default_workers(self, threads: int) -> int:
        """One: more would only take turns."""
        return 1

    def gpus(self) -> float:
        """CUDA devices that torch sees."""
        return float(torch.cuda.device_count())

    def spawn(self, kind: type, name: str, resources: Resources, *args: Any, **kwargs: Any) -> _LocalActor:
        """See :meth:`Backend.spawn`."""
        actor = _LocalActor(name)
        try:
            actor.instance = kind(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 (an actor's constructor may raise anything; raised at the first call)
            actor.error = error
        return actor

    def call(self, actor: _LocalActor, method: str, *args: Any, parts: int = 1) -> Any:
        """See :meth:`Backend.call`; the work is done here and now."""
        fault = self._fault(actor.name, method, next(actor.calls)) if self._fault and actor.alive else None
        if fault == "lost":
            actor.alive, actor.instance = False, None
        if fault == "hang":
            return tuple(_LocalRef(ready=False) for _ in range(parts)) if parts > 1 else _LocalRef(ready=False)
        error: BaseException | None = actor.error
        value: Any = None
        if not actor.alive:
            error = lost(actor.name, "was ended")
        if error is None:
            try:
                value = getattr(actor.instance, method)(
                    *(self.fetch(a) if isinstance(a, _LocalRef) else a for a in args)
                )
            except Exception as caught:  # noqa: BLE001 (kept and raised at fetch, as a cluster does)
                error = caught
        if parts == 1:
            return _LocalRef(value, error)
        return tuple(_LocalRef(None if error else value[i], error) for i in range(parts))

    def wait(self, refs: Sequence[Any], timeout: float) -> list[Any]:
        """See :meth:`Backend.wait`."""
        ready = [ref for ref in refs if ref.ready]
        if not ready:
            time.sleep(min(timeout, 0.01))
        return ready

    def fetch(self, ref: _LocalRef) -> Any:
        """See :meth:`Backend.fetch`."""
        if isinstance(ref.error, DistmetaError):
            raise ref.error
        if ref.error is not None:  # code of the user; as on a cluster
            text = "".join(traceback.format_exception(ref.error))
            raise raised(type(ref.error).__name__, str(ref.error), text) from ref.error
        if not ref.ready:
            raise RuntimeFailure("This call hangs, and its value was asked for.")
        return ref.value

    def put(self, value: Any) -> _LocalRef:
        """See :meth:`Backend.put`."""
        return _LocalRef(value)

    def kill(self, actor: _LocalActor) -> None:
        """See :meth:`Backend.kill`."""
        actor.alive, actor.instance = False, None

    def close(self) -> None:
        """Give torch its settings back, which in-process workers changed."""
        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(self._deterministic, warn_only=self._warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = self._fill  # type: ignore[attr-defined]
