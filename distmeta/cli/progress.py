"""Progress of a run and of a build: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import typer

from distmeta.cli import console
from distmeta.runtime.events import Event

_QUIET_S = 2.5
"""Longest silence on a terminal while a run starts."""

_FIRST_LINE_S = 10.0
"""Seconds until a part of the start is shown again where lines stay, as in a log file; then 20, 40, 80, ..."""

_STEPS_S = 10.0
"""Seconds between lines of steps."""


@contextmanager
def bar(text: str, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Progress of something that is counted.

    Args:
        text: what is done.
        quiet: show nothing.

    Returns:
        A function to call with how many are done, of how many.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not console.err.is_terminal:
        shown = time.monotonic()

        def line(done: int, total: int | None) -> None:
            nonlocal shown
            if not quiet and time.monotonic() - shown >= 5:
                shown = time.monotonic()
                console.err.print(f"{text}: {done:,}{f' of {total:,}' if total else ''}")

        with interruptible():
            yield line
        return
    with interruptible(), Progress(*columns, console=console.err, disable=quiet, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def watching(quiet: bool) -> Iterator[View]:
    """A view of a run; ctrl-C ends it with a message that names the way on."""
    with interruptible(), View(quiet) as view:
        yield view


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C prints how to go on and exits with 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        console.err.print(str(interrupt) or "Interrupted.")
        raise typer.Exit(130) from None


class View:
    """Shows the events of a run: the parts of its start as they begin, then its steps.

    While a part of the start lasts, its name is shown again: on a terminal every few seconds, in a log after 10, 20 and
    40 seconds, and so on.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._quiet, self._lines = quiet, not console.err.is_terminal
        self._progress = Progress(*columns, console=console.err, disable=quiet or self._lines)
        self._task: Any = None
        self._last = 0.0
        self._first: tuple[float, int] | None = None  # when lines of steps began, and at which step
        self._phase: tuple[str, float] | None = None  # the part of the start that goes on, and since when
        self._again = 0.0  # when the part of the start that goes on is shown again
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="distmeta-progress", daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        if not self._quiet:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phase = None
        self._ended.set()
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.kind == "step":
            self._phase = None
            self._step(event)
        elif event.kind == "phase":
            self.phase(event.text)
        elif not self._quiet:
            prefix = f"step {event.step}: validation " if event.kind == "validation" else ""
            self._print(f"{prefix}{event.text}")

    def phase(self, text: str) -> None:
        """Show that a part of the start begins."""
        now = time.monotonic()
        self._again = now + (_FIRST_LINE_S if self._lines else _QUIET_S)
        self._phase = (text, now)
        if not self._quiet:
            self._print(f"{text} ...")

    def _print(self, text: str) -> None:
        self._progress.console.print(text)

    def _tick(self) -> None:
        while not self._ended.wait(0.25):
            self.remind(time.monotonic())

    def remind(self, now: float) -> None:
        """Show the part of the start that goes on, where it is time again.

        Args:
            now: by the clock of :func:`time.monotonic`, seconds.
        """
        phase = self._phase
        if phase is not None and now >= self._again:
            self._again = now + (now - phase[1] if self._lines else _QUIET_S)
            self._print(f"  {phase[0]}: {now - phase[1]:.0f} s")

    def _step(self, event: Event) -> None:
        values = event.values
        numbers = f"{values['runtime/tasks_per_second']:.0f} tasks/s  loss {values['train/loss']:.3f}"
        if "train/accuracy" in values:
            numbers += f"  acc {values['train/accuracy']:.1%}"
        total = event.of
        if self._lines and not self._quiet:
            now = time.monotonic()
            if now - self._last >= _STEPS_S or event.step == total:
                self._last = now
                self._first = self._first or (now, event.step)
                since, step = self._first
                time_left = ""
                if step < event.step < total:
                    left = (total - event.step) * (now - since) / (event.step - step)
                    time_left = f"  left {datetime.timedelta(seconds=round(left))}"
                console.err.print(f"step {event.step}/{total}  {numbers}{time_left}")
            return
        if self._task is None:
            self._task = self._progress.add_task("meta-training", total=total, numbers="")
        self._progress.update(self._task, completed=event.step, numbers=numbers)
