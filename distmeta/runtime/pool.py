"""The worker pool: leases chunks, survives losses, duplicates stragglers. Results never depend on who did what."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distmeta.errors import (
    ConfigError,
    DistmetaError,
    FailureBudgetExceeded,
    RuntimeFailure,
    WorkerLost,
    WorkerTimeout,
)
from distmeta.experiment.settings import Runtime
from distmeta.runtime.backend import Backend, Resources
from distmeta.runtime.failure_policy import Decision, decide, should_speculate
from distmeta.runtime.worker import Worker, WorkerInfo, WorkerSetup
from distmeta.types import Chunk, ChunkResult

MAX_DEATHS = 4
"""Workers that may be lost with the same chunk before the chunk is blamed."""

OUT_OF_MEMORY = (
    "If workers die of memory, resume with fewer --workers, for the same bits; a smaller runtime.chunk_size needs a "
    "new run."
)

Submit = Callable[[Any, Chunk], tuple[Any, Any]]
"""(worker, chunk) -> (reference to the header, reference to a payload or None)."""

Deliver = Callable[[ChunkResult, Any], Any]
"""(header, payload reference) -> a reference that becomes ready when the payload has arrived, or None."""


def _deliver_nothing(header: ChunkResult, payload: Any) -> None:
    """Results that are in the header have no payload."""


@dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    info: Any  # reference to WorkerInfo until it has joined
    started: float
    kernel: str | None = None
    leases: set[_Lease] = field(default_factory=set)


@dataclass(eq=False)
class _Lease:
    batch: Batch
    chunk: Chunk
    member: _Member
    started: float
    header: ChunkResult | None = None
    payload: Any = None


def describe(infos: Sequence[WorkerInfo], backend: Backend) -> str:
    """How many workers there are, where, and what they compute with, in a line."""
    return f"{len(infos)} worker{'s' * (len(infos) > 1)} on {backend.name}: {infos[0].kernel}"


@dataclass
class PoolCounters:
    """Failures that the pool has recovered from since it was started."""

    losses: int = 0
    duplicates: int = 0


class WorkerPool:
    """A fixed number of workers; the lost ones are replaced.

    Args:
        backend: where they run.
        setup: what each is given.
        runtime: numbers of workers, leases, losses and seconds.

    Raises:
        ConfigError: more GPUs asked for than there are.
    """

    def __init__(self, backend: Backend, setup: WorkerSetup, runtime: Runtime) -> None:
        self._backend, self._setup, self._runtime = backend, setup, runtime
        self.size = runtime.workers or backend.default_workers(runtime.threads)
        gpus = runtime.gpus_per_worker
        if gpus is None:
            # Several workers may share a GPU, in parts that fill it; a GPU is not split for fewer workers than GPUs.
            gpus = 1.0 / math.ceil(self.size / backend.gpus()) if backend.gpus() else 0.0
        elif gpus and not backend.gpus():
            raise ConfigError(f"runtime.gpus_per_worker={gpus:g} but there is no GPU; set it to 0.")
        self._resources = Resources(cpus=runtime.threads, gpus=gpus, timeout=runtime.startup_timeout)
        self.counters = PoolCounters()
        self.kernel: str | None = None
        self._loss_times: list[float] = []
        self._seconds: deque[float] = deque(maxlen=101)
        # By reference to what is awaited. A straggler stays here when its batch is done: its worker is not free yet.
        self._running: dict[Any, _Lease] = {}
        self._named = 0
        self._members = [self._start() for _ in range(self.size)]

    def join(self) -> tuple[WorkerInfo, ...]:
        """Wait until every worker has started.

        Raises:
            RuntimeFailure: one did not start in ``startup_timeout`` seconds, they died too often, or kernels differ.
        """
        infos: list[WorkerInfo] = []
        while len(infos) < self.size:
            member = self._members[len(infos)]
            if not self._backend.wait([member.info], timeout=self._runtime.startup_timeout):
                self._backend.require(self.size, self._resources)
                raise WorkerTimeout(
                    f"{member.name} did not start in {self._runtime.startup_timeout:g} s. Ask for fewer workers "
                    "(--workers), or give them longer (--set runtime.startup_timeout=600)."
                )
            try:
                infos.append(self._admit(member))
            except WorkerLost as error:
                self._lose(member, error)
        return tuple(infos)

    def begin(self, chunks: Sequence[Chunk], submit: Submit, deliver: Deliver = _deliver_nothing) -> Batch:
        """Lease the first chunks of a batch to the workers that have room; returns at once.

        Args:
            chunks: what to compute, every chunk once, whatever happens to the workers on the way.
            submit: starts a chunk on a worker.
            deliver: passes a payload on, without waiting for its arrival.
        """
        batch = Batch(self, chunks, submit, deliver)
        batch.lease()
        return batch

    @property
    def names(self) -> list[str]:
        """The workers that there are now."""
        return [member.name for member in self._members]

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            self._backend.kill(member.actor)

    # -- members --------------------------------------------------------------------------------------------------

    def _start(self) -> _Member:
        name = f"worker-{self._named}"
        self._named += 1
        gpu = self._resources.gpus > 0
        actor = self._backend.spawn(Worker, name, self._resources, name, self._setup, gpu=gpu)
        return _Member(name, actor, self._backend.call(actor, "info"), time.monotonic())

    def _admit(self, member: _Member) -> WorkerInfo:
        info: WorkerInfo = self._backend.fetch(member.info)
        member.kernel = info.kernel
        self.kernel = self.kernel or info.kernel
        if info.kernel != self.kernel:
            raise RuntimeFailure(
                f"{member.name} on {info.host} computes with [{info.kernel}], the others with [{self.kernel}]; "
                "expected one kind, or results would depend on who computed what. Use nodes of one kind (--workers N, "
                "or a label selector of the cluster)."
            )
        return info

    def _lose(self, member: _Member, error: DistmetaError) -> None:
        now = time.monotonic()
        self._loss_times.append(now)
        self.counters.losses += 1
        limits = {"max_losses": self._runtime.max_losses, "window": self._runtime.loss_window}
        if decide(error, attempts=0, losses=self._loss_times, now=now, **limits) is Decision.GIVE_UP:  # type: ignore[arg-type]
            raise FailureBudgetExceeded(
                f"{self.counters.losses} workers were lost, the last with: {error.message} Expected at most "
                f"{self._runtime.max_losses} in {self._runtime.loss_window:g} s. Nothing is lost: `distmeta resume "
                f"RUN_DIR` goes on from the last checkpoint. {OUT_OF_MEMORY}",
                raw=error.raw,
            )
        self._backend.kill(member.actor)
        self._members[self._members.index(member)] = self._start()


class Batch:
    """One pass of a pool over some chunks, from :meth:`WorkerPool.begin`.

    A batch that is left before its end costs nothing but the time of the workers that are computing its chunks.
    """

    def __init__(self, pool: WorkerPool, chunks: Sequence[Chunk], submit: Submit, deliver: Deliver) -> None:
        self._pool, self._submit, self._deliver = pool, submit, deliver
        self._backend, self._runtime = pool._backend, pool._runtime
        self._chunks = {chunk.id: chunk for chunk in chunks}
        self._pending = deque(chunks)
        self._headers: dict[int, ChunkResult] = {}
        self._sent: dict[int, tuple[Any, _Lease]] = {}  # payloads under way to where they were delivered
        self._attempts: dict[int, int] = dict.fromkeys(self._chunks, 0)
        self._deaths: dict[int, int] = dict.fromkeys(self._chunks, 0)  # workers lost while they computed a chunk
        self._failed_on: dict[int, set[_Member]] = {chunk_id: set() for chunk_id in self._chunks}

    def results(self) -> list[ChunkResult]:
        """Wait until every chunk is computed and its payload on its way.

        Returns:
            The headers, in the order of the chunks.

        Raises:
            FailureBudgetExceeded: workers were lost too often.
            DistmetaError: what a worker raised, with the task that reproduces it.
        """
        while len(self._headers) < len(self._chunks):
            self._step()
        return [self._headers[chunk_id] for chunk_id in self._chunks]

    def settle(self) -> bool:
        """Wait until the payloads have arrived; chunks whose payload was lost are computed again.

        Returns:
            Whether any was still on its way.

        Raises:
            DistmetaError: as :meth:`results`; and what kept the receiver from taking a payload.
        """
        anything = bool(self._sent)
        while self._sent:
            for chunk_id, (arrival, lease) in self._sent.items():
                del self._headers[chunk_id]
                self._pool._running[arrival] = lease
            self._sent = {}
            try:
                self.results()
            finally:
                # Arrivals that nobody waits for any more; running chunks stay: their workers are busy.
                self._pool._running = {r: lease for r, lease in self._pool._running.items() if lease.header is None}
        return anything

    def _step(self) -> None:
        """Lease what can be leased, wait for one answer, act on all that are there."""
        self.lease()
        running = self._pool._running
        waiting = list(running) + [m.info for m in self._pool._members if m.kernel is None]
        for ref in self._backend.wait(waiting, timeout=1.0):
            if ref in running:
                self._advance(ref, running.pop(ref))
        for member in list(self._pool._members):
            if member.kernel is None and self._backend.wait([member.info], timeout=0):
                self._guard(member, lambda m=member: self._pool._admit(m))  # type: ignore[misc]
        self._expire()

    def lease(self) -> None:
        """Lease what can be leased."""
        free = [m for m in self._pool._members if m.kernel is not None]
        for _ in range(self._runtime.leases_per_worker):
            # One round gives every worker one more chunk, so that a small batch spreads over all of them.
            for member in sorted(free, key=lambda m: len(m.leases)):
                if len(member.leases) < self._runtime.leases_per_worker and (chunk := self._next(member, free)):
                    self._start(chunk, member)
        if not self._pending:
            self._speculate([m for m in free if not m.leases])

    def _next(self, member: _Member, free: list[_Member]) -> Chunk | None:
        """The next chunk for ``member``: not one that failed on it, while there is another worker to try."""
        for chunk in self._pending:
            failed_on = self._failed_on[chunk.id]
            if member not in failed_on or all(other in failed_on for other in free):
                self._pending.remove(chunk)
                return chunk
        return None

    def _speculate(self, idle: list[_Member]) -> None:
        median = statistics.median(self._pool._seconds) if self._pool._seconds else None
        now = time.monotonic()
        copies = Counter(lease.chunk.id for lease in self._own())
        slow = [
            lease
            for lease in self._own()
            if should_speculate(now - lease.started, median=median, floor=self._runtime.speculate_after)
            and copies[lease.chunk.id] == 1
        ]
        for member, lease in zip(idle, slow, strict=False):
            self._pool.counters.duplicates += 1
            self._start(lease.chunk, member)

    def _start(self, chunk: Chunk, member: _Member) -> None:
        header, payload = self._submit(member.actor, chunk)
        lease = _Lease(self, chunk, member, time.monotonic(), payload=payload)
        member.leases.add(lease)
        self._pool._running[header] = lease

    def _own(self) -> list[_Lease]:
        """Leases of this batch; those of earlier ones only keep their workers busy."""
        return [lease for lease in self._pool._running.values() if lease.batch is self]

    def _advance(self, ref: Any, lease: _Lease) -> None:
        """A header or the arrival of a payload is there."""
        chunk_id = lease.chunk.id

        def act() -> None:
            value = self._backend.fetch(ref)
            if lease.header is None:
                lease.header = value
                lease.member.leases.discard(lease)
                for queued in lease.member.leases:  # its turn comes only now
                    queued.started = time.monotonic()
                self._pool._seconds.append(value.seconds)
                if lease.batch is not self:
                    return
                arrival = None if chunk_id in self._headers else self._deliver(value, lease.payload)
                lease.payload = None  # it is kept by whoever has not received it yet
                if arrival is not None:
                    self._sent[chunk_id] = arrival, lease
            self._headers.setdefault(chunk_id, lease.header)

        self._guard(lease.member, act, lease)

    def _guard(self, member: _Member, act: Callable[[], Any], lease: _Lease | None = None) -> None:
        try:
            act()
        except (WorkerLost, WorkerTimeout) as error:
            self._lost(member, error, lease)
        except DistmetaError as error:
            if lease is None:
                raise
            member.leases.discard(lease)
            if lease.batch is not self:
                return
            if self._is_elsewhere(lease.chunk):
                return  # a duplicate failed; the other one decides
            self._failed_on[lease.chunk.id].add(member)
            self._attempts[lease.chunk.id] += 1
            attempts = self._attempts[lease.chunk.id]
            limits = {"max_losses": self._runtime.max_losses, "window": self._runtime.loss_window}
            if decide(error, attempts=attempts, losses=[], now=0.0, **limits) is Decision.FAIL:  # type: ignore[arg-type]
                raise
            self._pending.appendleft(lease.chunk)

    def _is_elsewhere(self, chunk: Chunk) -> bool:
        return chunk.id in self._headers or any(lease.chunk.id == chunk.id for lease in self._own())

    def _lost(self, member: _Member, error: DistmetaError, failed: _Lease | None) -> None:
        """Put everything that the member held, and what was lost on the way from it, back into the queue."""
        lost = [] if failed is None else [failed]
        for ref, lease in list(self._pool._running.items()):
            if lease.member is member and lease.header is None:
                lost.append(self._pool._running.pop(ref))
        held = [lease for lease in lost if lease.header is None]
        if held and (oldest := min(held, key=lambda lease: lease.started)).batch is self:
            # The oldest is the one it computed. A chunk that kills every worker must not go on killing them.
            self._deaths[oldest.chunk.id] += 1
            if self._deaths[oldest.chunk.id] >= MAX_DEATHS:
                raise RuntimeFailure(
                    f"{self._deaths[oldest.chunk.id]} workers in turn were lost with {oldest.chunk}: {error.message} "
                    f"Expected at most one. If the chunk takes long, raise runtime.chunk_timeout. {OUT_OF_MEMORY}",
                    task_ref=oldest.chunk.refs[0],
                    raw=error.raw,
                )
        again = {lease.chunk.id: lease.chunk for lease in lost if lease.batch is self}
        self._pending.extendleft(
            chunk for _, chunk in sorted(again.items(), reverse=True) if not self._is_elsewhere(chunk)
        )
        if member in self._pool._members:
            self._pool._lose(member, error)

    def _expire(self) -> None:
        now = time.monotonic()
        for lease in list(self._pool._running.values()):
            age = now - lease.started
            if lease.header is None and age > self._runtime.chunk_timeout and lease.member in self._pool._members:
                limit = self._runtime.chunk_timeout
                self._lost(
                    lease.member, WorkerTimeout(f"{lease.member.name} held {lease.chunk} for over {limit:g} s."), None
                )
        if any(member.kernel is not None for member in self._pool._members):
            return  # a replacement that finds no room is waited for while others do the work
        for member in list(self._pool._members):
            if member.kernel is None and now - member.started > self._runtime.startup_timeout:
                limit = self._runtime.startup_timeout
                self._lost(member, WorkerTimeout(f"{member.name} did not start in {limit:g} s."), None)
