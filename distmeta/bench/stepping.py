"""Training loops that are advanced step by step, so that several can take turns."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from distmeta.experiment.experiment import Experiment
from distmeta.runtime.backend import Backend
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.events import Event, NullLog

_NEVER = 10**9


class _Ended(Exception):
    """The loop is not to go on."""


class SteppedRun:
    """The runtime's own training loop in a thread of its own, which stands still between calls of :meth:`advance`.

    No checkpoint is written and nothing is evaluated after the start. Entering the context starts the workers and does
    the first step.

    Args:
        experiment: what is trained.
        backend: where; it stays open.
        folder: an empty folder.

    Raises:
        DistmetaError: the experiment cannot run, or the workers do not start.
    """

    def __init__(self, experiment: Experiment, backend: Backend, folder: Path) -> None:
        self._experiment = experiment.with_overrides(
            {"outer.iterations": _NEVER, "evaluation.every": 0, "runtime.checkpoint_every": _NEVER}
        )
        self._backend, self._folder = backend, folder
        self._go: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()
        self._left, self._started = 1, 0.0
        self._thread = threading.Thread(target=self._train, name="distmeta-bench", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def advance(self, steps: int) -> float:
        """Do so many steps.

        Returns:
            Seconds that they took.

        Raises:
            DistmetaError: what ended the loop.
        """
        self._go.put(steps)
        return self._result()

    def _result(self) -> float:
        found = self._done.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _end(self) -> None:
        self._go.put(None)
        self._thread.join()

    def _train(self) -> None:
        try:
            # Before it stands still, a step leaves no work for the next one under way: that would be free of charge.
            driver = Driver(
                self._experiment, CheckpointStore(self._folder), self._watch, may_lease_ahead=lambda: self._left > 1
            )
            try:
                driver.start(self._backend)
                self._started = time.perf_counter()
                driver.train(NullLog())
            finally:
                driver.close()
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 (raised where the result is waited for)
            self._done.put(error)

    def _watch(self, event: Event) -> None:
        if event.kind != "step":
            return
        self._left -= 1
        if self._left:
            return
        self._done.put(time.perf_counter() - self._started)
        steps = self._go.get()
        if steps is None:
            raise _Ended
        self._left, self._started = steps, time.perf_counter()


class Steps:
    """A variant that measures milliseconds per step.

    Args:
        run: the loop.
        seconds: of one repetition, about.
    """

    def __init__(self, run: SteppedRun, seconds: float = 0.1) -> None:
        self._run = run
        run.advance(1)  # the first steps are slower: libraries load, memory grows
        self._steps = max(1, round(seconds / run.advance(2) * 2))

    def __call__(self) -> float:
        """Measure once, milliseconds per step."""
        return self._run.advance(self._steps) / self._steps * 1e3
