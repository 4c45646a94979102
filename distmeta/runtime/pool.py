"""The worker pool: leases shares of a batch, survives losses, duplicates stragglers. Who did what changes no result."""

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
    WorkerOutOfMemory,
    WorkerTimeout,
)
from distmeta.experiment.settings import Runtime
from distmeta.runtime.backend import Backend, Resources
from distmeta.runtime.chunks import Share
from distmeta.runtime.failure_policy import Decision, decide, should_speculate
from distmeta.runtime.worker import Worker, WorkerInfo, WorkerSetup
from distmeta.types import ChunkResult

MAX_DEATHS = 4
"""Workers that may be lost with the same share before its tasks are blamed."""

MAX_DEATHS_OF_MEMORY = 2
"""The same, of a worker that has the memory for itself."""

OUT_OF_MEMORY = (
    "If workers die of memory, resume with fewer --workers, for the same bits; a smaller runtime.chunk_size needs a "
    "new run."
)

Headers = tuple[ChunkResult, ...]
"""The results of a share, one for each of its chunks."""

Submit = Callable[[Any, Share], tuple[Any, Any]]
"""(worker, share) -> (reference to the headers, reference to a payload or None)."""

Deliver = Callable[[Share, Any], Any]
"""(share, payload reference) -> a reference that becomes ready when the payload has arrived."""


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
    share: Share
    member: _Member
    started: float
    headers: Headers | None = None
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
    """Some workers; the lost ones are replaced.

    Args:
        backend: where they run.
        setup: what each is given.
        runtime: numbers of workers, leases, losses and seconds.
        tell: receives a line when the pool becomes smaller: a worker that has too little memory is not replaced as long
            as there are others.

    Raises:
        ConfigError: more GPUs asked for than there are.
    """

    def __init__(
        self, backend: Backend, setup: WorkerSetup, runtime: Runtime, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self._backend, self._setup, self._runtime, self._tell = backend, setup, runtime, tell
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
        self._shrunk = -math.inf  # when the pool became smaller
        self._seconds: deque[float] = deque(maxlen=101)  # per task
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
                self._lose(member, error, member.started)
        return tuple(infos)

    def begin(
        self,
        shares: Sequence[Share],
        submit: Submit,
        deliver: Deliver | None = None,
        *,
        holds: Callable[[Share], bool] = lambda share: False,
    ) -> Batch:
        """Lease the first shares of a batch to the workers that have room; returns at once.

        Args:
            shares: what to compute, each once, whatever happens to the workers on the way.
            submit: starts a share on a worker.
            deliver: passes a payload on, without waiting for its arrival; ``None`` where results are in the headers.
            holds: whether a payload waits in :attr:`Batch.held` instead.
        """
        batch = Batch(self, shares, submit, deliver, holds)
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

    def _crowded(self, error: DistmetaError, began: float) -> bool:
        """Whether a worker failed because several shared the memory, for work that began at this time."""
        return isinstance(error, WorkerOutOfMemory) and (self.size > 1 or began < self._shrunk)

    def _lose(self, member: _Member, error: DistmetaError, began: float) -> None:
        now = time.monotonic()
        if self._crowded(error, began):
            self.counters.losses += 1
            self._backend.kill(member.actor)
            if began < self._shrunk:  # beside one that is gone now: there may be room enough
                self._members[self._members.index(member)] = self._start()
                return
            self._members.remove(member)
            self.size, self._shrunk = self.size - 1, now
            others = f"the other {self.size} workers" if self.size > 1 else "one worker"
            self._tell(f"{member.name} had too little memory. Going on with {others}, for the same bits.")
            return
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
    """One pass of a pool over the shares of a batch, from :meth:`WorkerPool.begin`.

    A batch that is left before its end costs nothing but the time of the workers that are computing its shares.
    """

    def __init__(
        self,
        pool: WorkerPool,
        shares: Sequence[Share],
        submit: Submit,
        deliver: Deliver | None,
        holds: Callable[[Share], bool],
    ) -> None:
        self._pool, self._submit, self._deliver, self._holds = pool, submit, deliver, holds
        self._backend, self._runtime = pool._backend, pool._runtime
        self._shares = {share.id: share for share in shares}
        self._pending = deque(shares)
        self._headers: dict[int, Headers] = {}
        self._held: dict[int, tuple[Any, _Lease]] = {}  # payloads that whoever wants them has not asked for
        self._sent: dict[int, tuple[Any, _Lease]] = {}  # payloads under way to where they were delivered
        self._attempts: dict[int, int] = dict.fromkeys(self._shares, 0)
        self._deaths: dict[int, int] = dict.fromkeys(self._shares, 0)  # workers lost while they computed a share
        self._failed_on: dict[int, set[_Member]] = {share_id: set() for share_id in self._shares}

    def results(self) -> list[ChunkResult]:
        """Wait until every share is computed and its payload held or on its way.

        Returns:
            The headers of all chunks, in their order.

        Raises:
            FailureBudgetExceeded: workers were lost too often.
            DistmetaError: what a worker raised, with the task that reproduces it.
        """
        while len(self._headers) < len(self._shares):
            self._step()
        return [header for share_id in self._shares for header in self._headers[share_id]]

    @property
    def held(self) -> list[tuple[Share, Any]]:
        """Shares whose payload was not delivered, and the payload, in the order of the shares."""
        return [(self._shares[share_id], payload) for share_id, (payload, _) in sorted(self._held.items())]

    def settle(self) -> bool:
        """Deliver what was held, wait until all payloads have arrived; what was lost of them is computed again.

        Returns:
            Whether any was still on its way.

        Raises:
            DistmetaError: as :meth:`results`; and what kept the receiver from taking a payload.
        """
        anything = bool(self._sent or self._held)
        self._holds = lambda share: False
        for share_id, (payload, lease) in self._held.items():
            assert self._deliver is not None
            self._sent[share_id] = self._deliver(lease.share, payload), lease
        self._held = {}
        while self._sent:
            for share_id, (arrival, lease) in self._sent.items():
                del self._headers[share_id]
                self._pool._running[arrival] = lease
            self._sent = {}
            try:
                self.results()
            finally:
                # Arrivals that nobody waits for any more; running shares stay: their workers are busy.
                self._pool._running = {r: lease for r, lease in self._pool._running.items() if lease.headers is None}
        return anything

    def abandon(self) -> None:
        """Forget the shares that workers have, which will not be computed: what they are computed from never came."""
        for ref, lease in list(self._pool._running.items()):
            if lease.batch is self:
                del self._pool._running[ref]
                lease.member.leases.discard(lease)

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
            # One round gives every worker one more share, so that a small batch spreads over all of them.
            for member in sorted(free, key=lambda m: len(m.leases)):
                if len(member.leases) < self._runtime.leases_per_worker and (share := self._next(member, free)):
                    self._start(share, member)
        if not self._pending:
            self._speculate([m for m in free if not m.leases])

    def _next(self, member: _Member, free: list[_Member]) -> Share | None:
        """The next share for ``member``: not one that failed on it, while there is another worker to try."""
        for share in self._pending:
            failed_on = self._failed_on[share.id]
            if member not in failed_on or all(other in failed_on for other in free):
                self._pending.remove(share)
                return share
        return None

    def _speculate(self, idle: list[_Member]) -> None:
        per_task = statistics.median(self._pool._seconds) if self._pool._seconds else None
        now = time.monotonic()
        copies = Counter(lease.share.id for lease in self._own())
        slow = [
            lease
            for lease in self._own()
            if should_speculate(
                now - lease.started,
                median=None if per_task is None else per_task * lease.share.size,
                floor=self._runtime.speculate_after,
            )
            and copies[lease.share.id] == 1
        ]
        for member, lease in zip(idle, slow, strict=False):
            self._pool.counters.duplicates += 1
            self._start(lease.share, member)

    def _start(self, share: Share, member: _Member) -> None:
        headers, payload = self._submit(member.actor, share)
        lease = _Lease(self, share, member, time.monotonic(), payload=payload)
        member.leases.add(lease)
        self._pool._running[headers] = lease

    def _own(self) -> list[_Lease]:
        """Leases of this batch; those of earlier ones only keep their workers busy."""
        return [lease for lease in self._pool._running.values() if lease.batch is self]

    def _advance(self, ref: Any, lease: _Lease) -> None:
        """Headers, or the arrival of a payload, are there."""
        share_id = lease.share.id

        def act() -> None:
            value = self._backend.fetch(ref)
            if lease.headers is None:
                lease.headers = value
                lease.member.leases.discard(lease)
                for queued in lease.member.leases:  # its turn comes only now
                    queued.started = time.monotonic()
                self._pool._seconds.append(sum(header.seconds for header in lease.headers) / lease.share.size)
                if lease.batch is not self:
                    return
                payload, lease.payload = lease.payload, None  # it is kept by whoever has not received it yet
                if self._deliver is not None and share_id not in self._headers:
                    if self._holds(lease.share):
                        self._held[share_id] = payload, lease
                    else:
                        self._sent[share_id] = self._deliver(lease.share, payload), lease
            self._headers.setdefault(share_id, lease.headers)

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
            if self._is_elsewhere(lease.share):
                return  # a duplicate failed; the other one decides
            self._failed_on[lease.share.id].add(member)
            self._attempts[lease.share.id] += 1
            attempts = self._attempts[lease.share.id]
            limits = {"max_losses": self._runtime.max_losses, "window": self._runtime.loss_window}
            if decide(error, attempts=attempts, losses=[], now=0.0, **limits) is Decision.FAIL:  # type: ignore[arg-type]
                raise
            self._pending.appendleft(lease.share)

    def _is_elsewhere(self, share: Share) -> bool:
        return share.id in self._headers or any(lease.share.id == share.id for lease in self._own())

    def _lost(self, member: _Member, error: DistmetaError, failed: _Lease | None) -> None:
        """Put everything that the member held, and what was lost on the way from it, back into the queue."""
        lost = [] if failed is None else [failed]
        for ref, lease in list(self._pool._running.items()):
            if lease.member is member and lease.headers is None:
                lost.append(self._pool._running.pop(ref))
        held = [lease for lease in lost if lease.headers is None]
        oldest = min(held, key=lambda lease: lease.started, default=None)
        began = time.monotonic() if oldest is None else oldest.started
        if oldest is not None and oldest.batch is self:
            # The oldest is the one it computed. A share that kills every worker must not go on killing them; but where
            # the workers' memory was too little together, it is not to blame.
            memory = isinstance(error, WorkerOutOfMemory)
            self._deaths[oldest.share.id] += not self._pool._crowded(error, began)
            if self._deaths[oldest.share.id] >= (MAX_DEATHS_OF_MEMORY if memory else MAX_DEATHS):
                seen = f"{self._deaths[oldest.share.id]} workers in turn were lost with {oldest.share}: {error.message}"
                fix = f"Expected at most one. If they take long, raise runtime.chunk_timeout. {OUT_OF_MEMORY}"
                if memory:
                    fix = (
                        "Each had the memory of the machine for itself. Start anew with a smaller runtime.chunk_size, "
                        "or, where there are inner steps, with learner.gradient=mixed."
                    )
                raise RuntimeFailure(f"{seen} {fix}", task_ref=oldest.share.refs[0], raw=error.raw)
        again = {lease.share.id: lease.share for lease in lost if lease.batch is self}
        self._pending.extendleft(
            share for _, share in sorted(again.items(), reverse=True) if not self._is_elsewhere(share)
        )
        if member in self._pool._members:
            self._pool._lose(member, error, began)

    def _expire(self) -> None:
        now = time.monotonic()
        for lease in list(self._pool._running.values()):
            age = now - lease.started
            if lease.headers is None and age > self._runtime.chunk_timeout and lease.member in self._pool._members:
                limit = self._runtime.chunk_timeout
                self._lost(
                    lease.member, WorkerTimeout(f"{lease.member.name} held {lease.share} for over {limit:g} s."), None
                )
        if any(member.kernel is not None for member in self._pool._members):
            return  # a replacement that finds no room is waited for while others do the work
        for member in list(self._pool._members):
            if member.kernel is None and now - member.started > self._runtime.startup_timeout:
                limit = self._runtime.startup_timeout
                self._lost(member, WorkerTimeout(f"{member.name} did not start in {limit:g} s."), None)
