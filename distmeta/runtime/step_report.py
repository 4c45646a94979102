"""What is recorded of a step: the means over its tasks, what was lost on the way, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from distmeta.runtime import chunks
from distmeta.runtime.backend import SERVER
from distmeta.runtime.chunks import Share
from distmeta.runtime.pool import WorkerPool
from distmeta.runtime.step_time import STEP, Clocks, Laps, breakdown, metric, now
from distmeta.runtime.timeline import Step, Timeline, Work
from distmeta.types import ChunkResult, ParamVersion


@dataclass
class Calls:
    """When the driver sent a step's shares, and had the answers, by chunk id.

    Args:
        ahead: the step was sent before the end of the one before was known to the driver.
    """

    ahead: bool
    sent: dict[int, float] = field(default_factory=dict)
    received: dict[int, float] = field(default_factory=dict)

    def send(self, share: Share) -> None:
        """Take note that a share is sent; of one that is sent again, the first time counts."""
        at = now()
        for chunk in share.chunks:
            self.sent.setdefault(chunk.id, at)

    def receive(self, share: Share) -> None:
        """Take note that a share's headers are there."""
        self.received.update(dict.fromkeys((chunk.id for chunk in share.chunks), now()))


class StepReports:
    """The records of all steps, on one clock.

    Args:
        timeline: keeps some of them for a picture.
    """

    def __init__(self, timeline: Timeline | None) -> None:
        self._timeline, self._clocks = timeline, Clocks()
        self._applied = 0.0  # when the newest version was there

    def begin(self, first: int, last: int) -> None:
        """Choose the steps for the picture: arguments as of :meth:`Timeline.begin`."""
        if self._timeline is not None:
            self._timeline.begin(first, last)

    def applied(self, header: ParamVersion, *, sent: float) -> None:
        """Take note of the call, sent at this time, that has just brought a header."""
        began, ended = header.spans[-1].start, header.spans[-1].end
        self._clocks.observe(SERVER, sent=sent, began=began, ended=ended, received=now())

    def metrics(
        self, calls: Calls, results: Sequence[ChunkResult], header: ParamVersion, laps: Laps, pool: WorkerPool
    ) -> dict[str, float]:
        """The numbers of one step, by their names in ``metrics.jsonl``.

        Args:
            calls: of the step.
            results: of all of its chunks.
            header: of the version that the step led to.
            laps: what the driver did.
            pool: the workers.
        """
        columns = chunks.metrics(results)
        for result in results:
            sent, received = calls.sent[result.chunk.id], calls.received[result.chunk.id]
            began, ended = result.spans[0].start, result.spans[-1].end
            self._clocks.observe(result.worker, sent=sent, began=began, ended=ended, received=received)
        server = self._clocks.aligned(SERVER, header.spans)
        work = [Work(r.worker, r.chunk, self._clocks.aligned(r.worker, r.spans)) for r in results]
        start = self._applied if calls.ahead else laps.spans[0].start
        self._applied = end = max(start, server[-1].end)
        spent = breakdown(start, end, pool.size, [span for one in work for span in one.spans], server)
        values = {f"train/{name}": float(np.mean(column, dtype=np.float64)) for name, column in columns.items()}
        values |= {
            "train/grad_norm": header.grad_norm,
            "train/lr": header.lr,
            "runtime/tasks_per_second": sum(r.chunk.size for r in results) / max(end - start, 1e-9),
            "runtime/worker_losses": pool.counters.losses,
            "runtime/duplicate_leases": pool.counters.duplicates,
            STEP: end - start,
            **{metric(part): seconds for part, seconds in spent.items()},
        }
        if self._timeline is not None and self._timeline.wants(header.version):
            names = sorted({*pool.names, *(one.worker for one in work)})
            self._timeline.add(Step(header.version, start, end, names, work, server, laps.spans, values))
        return values
