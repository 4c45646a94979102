"""``--profile``: some steps after the warm-up, every process on one time line, as a Chrome trace.

The file opens in Perfetto (ui.perfetto.dev) and in ``chrome://tracing``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distmeta.runtime.backend import SERVER
from distmeta.runtime.step_time import moments, summary
from distmeta.types import Chunk, Span

DRIVER = "driver"
"""Name of the driver's line."""

WARM_UP = 5
"""Steps of a process that are left out: libraries load, memory grows."""


@dataclass(frozen=True)
class Work:
    """A chunk and what its worker did for it, by the driver's clock."""

    worker: str
    chunk: Chunk
    spans: Sequence[Span]


@dataclass(frozen=True)
class Step:
    """One step, by the driver's clock.

    Args:
        version: outer steps done with it.
        start: of the step, see :mod:`distmeta.runtime.step_time`.
        end: of the step.
        workers: names of the workers.
        work: the chunks.
        server: what the server did.
        driver: what the driver did.
        values: the step's metrics.
    """

    version: int
    start: float
    end: float
    workers: Sequence[str]
    work: Sequence[Work]
    server: Sequence[Span]
    driver: Sequence[Span]
    values: Mapping[str, float] = field(default_factory=dict)


class Timeline:
    """Keeps some steps of a run.

    Args:
        steps: how many; they begin after :data:`WARM_UP` steps, or earlier where the run would end before.

    Example:
        >>> timeline = Timeline(steps=1)
        >>> timeline.begin(first=0, last=3)
        >>> [version for version in range(1, 4) if timeline.wants(version)]
        [3]
    """

    def __init__(self, steps: int = 10) -> None:
        self._count, self._from = steps, WARM_UP
        self.steps: list[Step] = []

    def begin(self, first: int, last: int) -> None:
        """Choose the steps.

        Args:
            first: outer steps done before this process.
            last: outer steps there will be.
        """
        self._from = first + max(0, min(WARM_UP, last - first - self._count))

    def wants(self, version: int) -> bool:
        """Whether the step that leads to this version is one of them."""
        return self._from < version <= self._from + self._count

    def add(self, step: Step) -> None:
        """Keep a step; one that is done again after a failure takes the place of its first."""
        self.steps = [*(old for old in self.steps if old.version < step.version), step]

    @property
    def span(self) -> str:
        """Which steps they are, for people."""
        first, last = self.steps[0].version, self.steps[-1].version
        return f"step {first}" if first == last else f"steps {first} to {last}"

    def summary(self) -> list[str]:
        """Five lines: where the time of the steps went."""
        return summary([step.values for step in self.steps])

    def to_json(self) -> str:
        """The Chrome trace: complete events ("X") in microseconds since the first step, a process for each line."""
        names = [DRIVER, SERVER]
        for step in self.steps:
            names += [name for name in step.workers if name not in names]
        events: list[dict[str, Any]] = []
        for pid, name in enumerate(names):
            events.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}})
            events.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}})
        # The driver is told of a step's end a little later than it ends, when the next one is under way already.
        origin = min((s.start for step in self.steps for s in (*step.driver, _whole(step))), default=0.0)

        def draw(name: str, span: Span, args: Mapping[str, Any] | None = None) -> None:
            start, end = (round((at - origin) * 1e6, 3) for at in (span.start, span.end))
            events.append(
                {
                    "ph": "X",
                    "pid": names.index(name),
                    "tid": 0,
                    "name": span.name,
                    "ts": start,
                    "dur": round(end - start, 3),
                    "args": dict(args or {}),
                }
            )

        for step in self.steps:
            for name in (SERVER, *step.workers):
                draw(name, _whole(step), step.values if name == SERVER else None)
            if step.driver:
                draw(DRIVER, Span(_whole(step).name, step.driver[0].start, step.driver[-1].end))
            for span in step.driver:
                draw(DRIVER, span)
            for span in step.server:
                draw(SERVER, _inside(span, step))
            for name in step.workers:
                self._draw_worker(name, step, draw)
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})

    @staticmethod
    def _draw_worker(name: str, step: Step, draw: Any) -> None:
        """A worker's chunks, and what its gaps are counted for."""
        mine = sorted((work for work in step.work if work.worker == name), key=lambda work: work.spans[0].start)
        for work in mine:
            chunk = work.chunk
            args = {"tasks": chunk.size, "start": chunk.start, "stop": chunk.stop}
            draw(name, _inside(Span(f"chunk {chunk.id}", work.spans[0].start, work.spans[-1].end), step), args)
            for span in work.spans:
                draw(name, _inside(span, step))
        own = [span for work in mine for span in work.spans]
        others = [span for work in step.work if work.worker != name for span in work.spans]
        gap: Span | None = None
        for start, end, counts in moments(step.start, step.end, 1, [*own, *others], step.server):
            busy = any(span.start < end and span.end > start for span in own)
            part = "" if busy else next((p for p in counts if p not in ("sample", "compute")), "")
            if gap is not None and gap.name == part:
                gap = Span(part, gap.start, end)
                continue
            if gap is not None and gap.name:
                draw(name, gap)
            gap = Span(part, start, end)
        if gap is not None and gap.name:
            draw(name, gap)


def _whole(step: Step) -> Span:
    return Span(f"step {step.version}", step.start, step.end)


def _inside(span: Span, step: Step) -> Span:
    """Cut where clocks of several machines disagree."""
    start, end = (min(max(at, step.start), step.end) for at in (span.start, span.end))
    return Span(span.name, start, end)
