"""Where a run computes and where it is recorded; opening and closing the backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from distmeta.errors import ConfigError, listed
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.experiment.settings import Runtime
from distmeta.runtime.backend import Backend, LocalBackend
from distmeta.runtime.events import Event
from distmeta.tracking.tracking_uri import require_store

Watch = Callable[[Event], None]
"""Receives every event of a run."""


@dataclass(frozen=True)
class Place:
    """Where a run computes and where it is recorded.

    Args:
        backend: ``"local"`` (this process), ``"ray"``, or a :class:`Backend` of your own.
        address: running Ray cluster; a cluster of this machine is started when left out.
        tracking: whether MLflow records the run; the local files are always written.
        tracking_uri: tracking URI for MLflow; its own default when left out.
        tracking_required: fail when MLflow cannot be reached at the start.
        watch: called with every event of the run.

    Raises:
        ConfigError: there is no such backend, it takes no address, or MLflow has no such kind of store.

    Example:
        >>> with Place().open() as backend:
        ...     backend.name
        'local'
    """

    backend: Literal["local", "ray"] | Backend = "local"
    address: str | None = None
    tracking: bool = False
    tracking_uri: str | None = None
    tracking_required: bool = False
    watch: Watch = field(default=lambda event: None)

    def __post_init__(self) -> None:
        if self.backend not in ("local", "ray") and not isinstance(self.backend, Backend):
            raise ConfigError(f"There is no backend {self.backend!r}; expected 'ray' or 'local'.")
        if self.backend == "local" and self.address is not None:
            raise ConfigError(
                f"The local backend has no cluster at {self.address!r}. Use --backend ray, or leave the address out."
            )
        if self.tracking:
            require_store(self.tracking_uri)

    def say(self, text: str, step: int = 0) -> None:
        """Send a message to the watcher."""
        self.watch(Event("message", step, text=text))

    def warn_of_changed_code(self, changed: tuple[str, ...], consequence: str) -> None:
        """Warn that the job's code has changed. Changed settings are refused; only people can tell what code does.

        Args:
            changed: paths of the files that changed; nothing is sent where there are none.
            consequence: what follows if the change is one of what is computed.
        """
        if changed:
            self.say(
                f"{listed(changed)}: not as when the run was last started. If that changes what is computed, "
                f"{consequence}: restore the code, or `distmeta train` a new run."
            )

    def phase(self, text: str) -> None:
        """Tell the watcher which part of the work has begun."""
        self.watch(Event("phase", 0, text=text))

    def sized(self, experiment: Experiment) -> Experiment:
        """``experiment`` with one worker where it computes in this process and asks for no number."""
        local = self.backend == "local" or isinstance(self.backend, LocalBackend)
        if local and experiment.runtime.workers is None:
            return experiment.with_overrides({"runtime.workers": 1})
        return experiment

    @contextmanager
    def open(self, what: Experiment | Job | None = None, runtime: Runtime | None = None) -> Iterator[Backend]:
        """The backend, open inside the ``with`` block; one that was given stays open after it.

        Args:
            what: the job whose classes are sent to the workers, if any.
            runtime: numbers of workers and threads, by which a cluster that is started here is sized.

        Raises:
            RuntimeFailure: there is no cluster at the address, or Ray does not start.
        """
        with self.opening(what, runtime) as opening:
            yield opening.backend()

    @contextmanager
    def opening(self, what: Experiment | Job | None = None, runtime: Runtime | None = None) -> Iterator[Opening]:
        """Like :meth:`open`, but Ray starts in the background once :meth:`Opening.begin` was called."""
        given = self.backend
        if isinstance(given, Backend):
            yield Opening(lambda: given)
            return
        opening = Opening(
            lambda: self._start(what, runtime or Runtime()),
            self.phase,
            begins="starting Ray" if self.address is None else f"connecting to the Ray cluster at {self.address}",
            background=given == "ray",
        )
        try:
            yield opening
        finally:
            opening.close()

    def _start(self, what: Experiment | Job | None, runtime: Runtime) -> Backend:
        if self.backend == "local":
            return LocalBackend()
        from distmeta.runtime.ray_backend import RayBackend  # a local run needs no ray installed

        modules, folders = ((what.module,), (str(what.folder),)) if isinstance(what, Job) else ((), ())
        slots = (runtime.workers or 0) * runtime.threads
        return RayBackend(self.address, cpus=slots, by_value=modules, search_path=folders)


class Opening:
    """A backend that is started early and waited for later.

    Args:
        start: starts and returns it.
        phase: receives what begins, where that may take seconds.
        begins: the first of these.
        background: whether it starts in a thread of its own, which then owns it.
    """

    def __init__(
        self,
        start: Callable[[], Backend],
        phase: Callable[[str], None] = lambda text: None,
        *,
        begins: str = "starting Ray",
        background: bool = False,
    ) -> None:
        self._start, self._phase, self._begins, self._background = start, phase, begins, background
        self._backend: Backend | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._started, self._closing = threading.Event(), threading.Event()

    def begin(self) -> None:
        """Start it in the background; a backend that starts in no time waits until it is asked for."""
        if self._background and self._thread is None:
            self._phase(self._begins)
            self._thread = threading.Thread(target=self._own, name="distmeta-backend", daemon=True)
            self._thread.start()

    def backend(self) -> Backend:
        """Wait for the backend.

        Raises:
            RuntimeFailure: it did not start.
        """
        self.begin()
        if self._thread is not None:
            if not self._started.is_set():
                self._phase("waiting for Ray")
            while not self._started.wait(0.1):  # in short waits: a long one would hold ctrl-C back until it ends
                pass
            if self._error is not None:
                raise self._error
        elif self._backend is None:
            self._backend = self._start()
        assert self._backend is not None
        return self._backend

    def close(self) -> None:
        """Release what was started, also where nothing asked for it."""
        if self._thread is not None:
            self._closing.set()
            try:
                self._phase("leaving Ray")
            finally:
                while self._thread.is_alive():
                    self._thread.join(0.1)
        elif self._backend is not None:
            self._backend.close()

    def _own(self) -> None:
        # The thread stays until the end: Linux ends Ray's processes with the thread that started them.
        try:
            self._backend = self._start()
        except BaseException as error:  # noqa: BLE001 (raised where the backend is waited for)
            self._error = error
        self._started.set()
        self._closing.wait()
        if self._backend is not None:
            self._backend.close()
