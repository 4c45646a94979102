"""Requests that arrive together are computed together, in a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")


class Overloaded(Exception):
    """More requests wait than may."""


class _Waiting(NamedTuple, Generic[_Job, _Done]):
    job: _Job
    future: asyncio.Future[_Done]


class Batcher(Generic[_Job, _Done]):
    """Computes what waits in one call, while the event loop takes more.

    Whatever arrives during a call is computed in the next one. Where the last call had several jobs, the next waits a
    moment for more; a lone client never waits.

    Args:
        compute: results of some jobs, in their order; an exception is the result of a job that failed. Called in one
            thread, one call at a time.
        most: jobs in one call, at most.
        wait: seconds to wait for more jobs.
        most_waiting: jobs that wait, at most.

    Example:
        >>> async def both():
        ...     batcher = Batcher(lambda jobs: [(job, len(jobs)) for job in jobs])
        ...     try:
        ...         return await asyncio.gather(batcher("a"), batcher("b"))
        ...     finally:
        ...         await batcher.close()
        >>> asyncio.run(both())
        [('a', 2), ('b', 2)]
    """

    def __init__(
        self,
        compute: Callable[[Sequence[_Job]], Sequence[_Done | Exception]],
        *,
        most: int = 32,
        wait: float = 0.0,
        most_waiting: int = 1024,
    ) -> None:
        self._compute, self._most, self._wait, self._most_waiting = compute, most, wait, most_waiting
        self._waiting: asyncio.Queue[_Waiting[_Job, _Done]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="distmeta-compute")
        self._task: asyncio.Task[None] | None = None
        self._several = False

    async def __call__(self, job: _Job) -> _Done:
        """The result of one job.

        Raises:
            Overloaded: too many jobs wait already.
            Exception: what the job failed with.
        """
        if self._waiting.qsize() >= self._most_waiting:
            raise Overloaded
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        future: asyncio.Future[_Done] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Waiting(job, future))
        return await future

    async def close(self) -> None:
        """Compute what waits, then end the thread."""
        if self._task is not None:
            await self._waiting.join()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            taken = await self._next()
            wanted = [one for one in taken if not one.future.done()]  # a client that left wants no answer
            if wanted:
                results = await loop.run_in_executor(self._thread, self._results, [one.job for one in wanted])
                for one, result in zip(wanted, results, strict=True):
                    if one.future.done():
                        continue
                    if isinstance(result, Exception):
                        one.future.set_exception(result)
                    else:
                        one.future.set_result(result)
            self._several = len(wanted) > 1
            for _ in taken:
                self._waiting.task_done()

    async def _next(self) -> list[_Waiting[_Job, _Done]]:
        """What is computed next: one job at least."""
        taken = [await self._waiting.get()]
        await asyncio.sleep(0)  # what arrived in the same turn of the loop
        self._take_waiting(taken)
        if self._wait and (self._several or len(taken) > 1) and len(taken) < self._most:
            with_more = asyncio.get_running_loop().time() + self._wait
            while len(taken) < self._most and (left := with_more - asyncio.get_running_loop().time()) > 0:
                try:
                    taken.append(await asyncio.wait_for(self._waiting.get(), left))
                except TimeoutError:
                    break
                self._take_waiting(taken)
        return taken

    def _take_waiting(self, taken: list[_Waiting[_Job, _Done]]) -> None:
        while len(taken) < self._most and not self._waiting.empty():
            taken.append(self._waiting.get_nowait())

    def _results(self, jobs: list[_Job]) -> Sequence[_Done | Exception]:
        try:
            results = self._compute(jobs)
        except Exception as error:  # noqa: BLE001 (every request is answered, whatever failed)
            return [error] * len(jobs)
        return results


__all__ = ["Batcher", "Overloaded"]
