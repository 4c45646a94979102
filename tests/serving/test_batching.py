"""Requests that arrive together are computed together, and each gets its own result."""

import asyncio
import threading

import pytest

from distmeta.serving.batching import Batcher, Overloaded


def run(work):
    return asyncio.run(work())


def test_what_arrives_during_a_call_is_computed_in_the_next_one():
    release, calls = threading.Event(), []

    def compute(jobs):
        calls.append(list(jobs))
        if len(calls) == 1:
            release.wait(10)
        return [10 * job for job in jobs]

    async def work():
        batcher = Batcher(compute, most=3)
        first = asyncio.create_task(batcher(0))
        while not calls:
            await asyncio.sleep(0)
        others = [asyncio.create_task(batcher(n)) for n in range(1, 6)]
        await asyncio.sleep(0.01)  # the loop goes on while the first call computes
        release.set()
        found = await asyncio.gather(first, *others)
        await batcher.close()
        return found

    assert run(work) == [0, 10, 20, 30, 40, 50]
    assert calls == [[0], [1, 2, 3], [4, 5]]


def test_one_failing_job_fails_alone():
    def compute(jobs):
        return [ValueError(f"{job} is odd") if job % 2 else job for job in jobs]

    async def work():
        batcher = Batcher(compute, most=8)
        found = await asyncio.gather(*(batcher(n) for n in range(4)), return_exceptions=True)
        await batcher.close()
        return found

    found = run(work)
    assert found[::2] == [0, 2]
    assert [str(error) for error in found[1::2]] == ["1 is odd", "3 is odd"]


def test_a_call_that_fails_answers_every_job_and_the_next_call_works():
    calls = []

    def compute(jobs):
        calls.append(len(jobs))
        if len(calls) == 1:
            raise RuntimeError("broken")
        return jobs

    async def work():
        batcher = Batcher(compute, most=8)
        broken = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
        whole = await batcher(3)
        await batcher.close()
        return broken, whole

    broken, whole = run(work)
    assert [str(error) for error in broken] == ["broken", "broken"]
    assert whole == 3


def test_a_client_that_left_is_not_computed_and_harms_nobody():
    computed = []

    def compute(jobs):
        computed.extend(jobs)
        return jobs

    async def work():
        batcher = Batcher(compute, most=8, wait=0.05)
        tasks = [asyncio.create_task(batcher(n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        return found

    found = run(work)
    assert found[0] == 0
    assert isinstance(found[1], asyncio.CancelledError)
    assert found[2] == 2
    assert computed == [0, 2]


def test_a_lone_client_never_waits_for_others():
    async def work():
        batcher = Batcher(lambda jobs: jobs, most=8, wait=3600)
        found = [await batcher(n) for n in range(3)]
        await batcher.close()
        return found

    assert run(work) == [0, 1, 2]


def test_together_the_next_call_waits_for_more():
    sizes = []

    def compute(jobs):
        sizes.append(len(jobs))
        return jobs

    async def work():
        batcher = Batcher(compute, most=2, wait=3600)  # ends when it is full
        await asyncio.gather(batcher(0), batcher(1))
        later = asyncio.create_task(batcher(2))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sizes == [2]
        await asyncio.gather(later, batcher(3))
        await batcher.close()

    run(work)
    assert sizes == [2, 2]


def test_too_many_waiting_are_refused():
    release = threading.Event()

    def compute(jobs):
        release.wait(10)
        return jobs

    async def work():
        batcher = Batcher(compute, most=1, most_waiting=2)
        tasks = [asyncio.create_task(batcher(0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher(n)) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher(3)
        release.set()
        found = await asyncio.gather(*tasks)
        await batcher.close()
        return found

    assert run(work) == [0, 1, 2]
