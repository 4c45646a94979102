"""Where the time of a step goes: spans measured in every process, one clock for all of them, shares that add up.

A step lasts from the version of the parameters that it starts from until the next version is there. In every moment of
it, a worker that draws episodes or computes is counted for that; one that has nothing to do waits for other workers as
long as one of them works, then for the server that adds gradients (``reduce``) and takes the outer step (``apply``);
what is left is ``transfer``: calls and arrays on their way between processes, and the driver's own work. So the parts
of all workers together are the workers times the length of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from distmeta.types import Span

PARTS = ("sample", "compute", "transfer", "reduce", "apply", "wait")
"""The parts of a step, see above."""

STEP = "runtime/step_seconds"
"""The metric of the whole; those of the parts are named by :func:`metric`."""

_WORK = {"sample": "sample", "compute": "compute", "flatten": "compute"}
_SERVER = ("reduce", "apply")
# Between processes of one machine this is one clock; it does not jump when the wall clock is set.
_WALL = time.time() - time.perf_counter()


def now() -> float:
    """Seconds since 1970, comparable between the processes of a machine to microseconds."""
    return _WALL + time.perf_counter()


def metric(part: str) -> str:
    """The name of the metric of one of :data:`PARTS`.

    Example:
        >>> metric("compute")
        'runtime/compute_seconds'
    """
    return f"runtime/{part}_seconds"


class Laps:
    """Spans that follow each other without a gap, as one process measures its own work.

    Example:
        >>> laps = Laps()
        >>> laps.lap("sample")
        >>> laps.lap("compute")
        >>> [span.name for span in laps.spans], laps.spans[0].end == laps.spans[1].start
        (['sample', 'compute'], True)
    """

    def __init__(self) -> None:
        self._at = now()
        self.spans: list[Span] = []

    def lap(self, name: str) -> None:
        """End the span that has been going on, under this name."""
        end = now()
        self.spans.append(Span(name, self._at, end))
        self._at = end

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return self.spans[-1].end - self.spans[0].start


class Clocks:
    """The clocks of the other processes, by what the driver knows of calls: none begins before it was sent.

    Clocks of one machine agree. That of another machine is moved only as far as causality asks for, to the middle of
    what it allows: an error of up to half the time that the fastest call spent under way stays.

    Example:
        >>> clocks = Clocks()
        >>> clocks.observe("worker-0", sent=10.0, began=13.2, ended=13.6, received=11.0)
        >>> [span.start for span in clocks.aligned("worker-0", [Span("compute", 13.2, 13.6)])]
        [10.3]
    """

    def __init__(self) -> None:
        self._bounds: dict[str, tuple[float, float]] = {}

    def observe(self, process: str, *, sent: float, began: float, ended: float, received: float) -> None:
        """Take note of a call: sent and received by the driver's clock, began and ended by that of the process."""
        low, high = self._bounds.get(process, (-math.inf, math.inf))
        self._bounds[process] = max(low, sent - began), min(high, received - ended)

    def aligned(self, process: str, spans: Iterable[Span]) -> list[Span]:
        """Spans of a process by the driver's clock."""
        low, high = self._bounds.get(process, (0.0, 0.0))
        shift = 0.0 if low <= 0.0 <= high else (low + high) / 2
        return [Span(span.name, round(span.start + shift, 7), round(span.end + shift, 7)) for span in spans]


def moments(
    start: float, end: float, workers: int, work: Iterable[Span], server: Iterable[Span]
) -> Iterator[tuple[float, float, Mapping[str, int]]]:
    """Cut a step where something begins or ends.

    Args:
        start: of the step, seconds.
        end: of the step.
        workers: how many there are.
        work: what workers did.
        server: what the server did.

    Yields:
        Start, end, and how many workers are counted for which part.
    """
    edges: list[tuple[float, str, int]] = [(end, "", 0)]
    for name, span in [(_WORK[s.name], s) for s in work] + [(s.name, s) for s in server]:
        begins, ends = min(max(span.start, start), end), min(max(span.end, start), end)
        if ends > begins:
            edges += [(begins, name, 1), (ends, name, -1)]
    going = dict.fromkeys((*PARTS,), 0)
    at = start
    for time_, name, change in sorted(edges):
        if time_ > at:
            busy = going["sample"] + going["compute"]
            idle = "wait" if busy else next((part for part in _SERVER if going[part]), "transfer")
            counted = {part: going[part] for part in ("sample", "compute") if going[part]}
            yield at, time_, {**counted, idle: max(0, workers - busy)}
            at = time_
        if name:
            going[name] += change


def breakdown(start: float, end: float, workers: int, work: Iterable[Span], server: Iterable[Span]) -> dict[str, float]:
    """Seconds of a step by part, of the mean worker: they add up to the step. Arguments as of :func:`moments`.

    Example:
        >>> found = breakdown(0.0, 10.0, 2, [Span("compute", 1, 7), Span("compute", 1, 5)], [Span("apply", 8, 9)])
        >>> {part: seconds for part, seconds in found.items() if seconds}
        {'compute': 5.0, 'transfer': 3.0, 'apply': 1.0, 'wait': 1.0}
    """
    found = dict.fromkeys(PARTS, 0.0)
    for begins, ends, counts in moments(start, end, workers, work, server):
        for part, count in counts.items():
            found[part] += count * (ends - begins) / workers
    return found


def summary(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Five lines: where the time of the steps went.

    Args:
        rows: metrics by name, one of each step; those without the parts, as of older runs, are left out.

    Returns:
        The lines; none where no row has the parts.

    Example:
        >>> row = {STEP: 0.02, **dict.fromkeys(map(metric, PARTS), 0.001), metric("compute"): 0.015}
        >>> print(summary([row])[1])
        compute           15.00 ms   75.0 %  adapt, differentiate, one flat vector
    """
    timed = [row for row in rows if STEP in row and all(metric(part) in row for part in PARTS)]
    if not timed:
        return []
    mean = {name: sum(row[name] for row in timed) / len(timed) for name in (STEP, *map(metric, PARTS))}
    whole = mean[STEP]
    lines = []
    for label, parts, what in (
        ("sample", ("sample",), "draw episodes"),
        ("compute", ("compute",), "adapt, differentiate, one flat vector"),
        ("transfer", ("transfer",), "calls and arrays on their way, the driver"),
        ("reduce and apply", ("reduce", "apply"), "the server adds gradients, takes the outer step"),
        ("wait", ("wait",), "for other workers"),
    ):
        seconds = sum(mean[metric(part)] for part in parts)
        share = seconds / whole if whole else 0.0
        lines.append(f"{label:<16} {seconds * 1e3:>6.2f} ms {share * 100:>6.1f} %  {what}")
    return lines
