"""``bench overhead`` and ``bench scaling``: what distribution costs a training step, and what more workers bring."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from distmeta.bench import cases
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.record import Row
from distmeta.bench.statistics import interval_text, paired_ratio
from distmeta.bench.stepping import SteppedRun, Steps
from distmeta.bench.wording import counted
from distmeta.data.picture_workers import cpus
from distmeta.errors import ConfigError
from distmeta.experiment.experiment import Experiment
from distmeta.run.place import Place
from distmeta.runtime import chunks
from distmeta.runtime.backend import Backend, LocalBackend


@contextmanager
def _on_ray(what: cases.What, address: str | None, workers: int) -> Iterator[Backend]:
    """A Ray cluster with room for so many workers."""
    runtime = cases.experiment_of(what).runtime.replace(workers=workers)
    with Place(backend="ray", address=address).open(what, runtime) as backend:
        yield backend


def _parameters(experiment: Experiment) -> int:
    return sum(p.numel() for p in cases.ready(experiment).model.parameters())


class Overhead(Benchmark):
    """A training step on the local backend and on Ray with one worker, with the same chunks.

    Args:
        what: what is trained.
        address: a running Ray cluster; one of this machine is started when left out.

    Raises:
        DistmetaError: the experiment cannot run.
    """

    kind, unit, better = "overhead", "ms/step", "lower"

    def __init__(self, what: cases.What, *, address: str | None = None) -> None:
        super().__init__()
        self._what, self._address = what.with_overrides({"runtime.workers": 1}), address
        self._experiment = e = cases.experiment_of(self._what)
        parts = len(chunks.split(e.outer.meta_batch_size, e.runtime.tasks_per_call, split="meta_train", step=0))
        self.case = cases.case_of(e, "learner", "tasks", "outer", "runtime", parameters=_parameters(e))
        self.title = (
            f"one training step of {type(e.learner).__name__}, {e.name}: {counted(e.outer.meta_batch_size, 'task')} "
            f"in {counted(parts, 'chunk')}, one worker, {counted(e.runtime.threads, 'thread')}"
        )
        self.fixed = ("runtime.workers",)
        self._lost = ""

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distmeta-bench-")))
            tell("starting Ray")
            ray = stack.enter_context(_on_ray(self._what, self._address, 1))
            local = LocalBackend()
            stack.callback(local.close)
            variants = []
            for backend in (local, ray):
                tell(f"starting a worker on {backend.name}")
                run = stack.enter_context(SteppedRun(self._experiment, backend, folder / backend.name))
                variants.append(Steps(run))
            tell("steps in turn")
            # As many threads as the local worker: torch has one number for the process.
            here, there = self.beside_limits(budget, variants, (self._experiment.runtime.threads,))
        ratio, low, high = paired_ratio(there, here)
        rows = [Row({"backend": "local"}, here), Row({"backend": "ray"}, there)]
        added = rows[1].median - rows[0].median
        self._lost = (
            f"Ray adds {added:.2f} ms to a step, {ratio - 1:.1%} ("
            f"{interval_text(f'{low - 1:.1%}', f'{high - 1:.1%}', len(here))})."
        )
        return [rows[0], replace(rows[1], figures={"added_ms": added, "lost_share": ratio - 1})]

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        return (self._lost,)


class Scaling(Benchmark):
    """Training steps per second with more and more workers of one thread, all on one Ray cluster.

    Args:
        what: what is trained.
        workers: numbers of workers; 1, 2, 4, ... and all cores when left out.
        address: a running Ray cluster; one of this machine is started when left out.

    Raises:
        ConfigError: a step has fewer chunks than there are workers.
        DistmetaError: the experiment cannot run.
    """

    kind, unit, better = "scaling", "steps/s", "higher"

    def __init__(self, what: cases.What, *, workers: Sequence[int] | None = None, address: str | None = None) -> None:
        super().__init__()
        self._what, self._address = what.with_overrides({"runtime.threads": 1}), address
        self._experiment = e = cases.experiment_of(self._what)
        tasks, size = e.outer.meta_batch_size, e.runtime.tasks_per_call
        self._parts = len(chunks.split(tasks, size, split="meta_train", step=0))
        self._workers = sorted({1, *(workers or (n for n in _doubling(cpus()) if n <= self._parts))})
        most = self._workers[-1]
        if most > self._parts:
            raise ConfigError(
                f"--workers {most}: a step has {counted(self._parts, 'chunk')} (outer.meta_batch_size={tasks}, "
                f"runtime.chunk_size={size}), so {most - self._parts} would have nothing to do; expected at most "
                f"{self._parts}. Make smaller chunks: --set runtime.chunk_size={max(1, tasks // most)}."
            )
        self.case = cases.case_of(e, "learner", "tasks", "outer", "runtime", parameters=_parameters(e))
        self.title = (
            f"training steps of {type(e.learner).__name__}, {e.name}, by workers of one thread on Ray: "
            f"{counted(tasks, 'task')} in {counted(self._parts, 'chunk')}"
        )
        self.fixed = ("runtime.threads", "runtime.workers")

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distmeta-bench-")))
            tell("starting Ray")
            ray = stack.enter_context(_on_ray(self._what, self._address, sum(self._workers)))
            variants = []
            for count in self._workers:
                tell(f"starting {counted(count, 'worker')}")
                sized = self._experiment.with_overrides({"runtime.workers": count})
                variants.append(Steps(stack.enter_context(SteppedRun(sized, ray, folder / str(count)))))
            tell("steps in turn")
            found = [tuple(1e3 / value for value in values) for values in self.beside_limits(budget, variants, (1,))]
        rows = [Row({"workers": count}, values) for count, values in zip(self._workers, found, strict=True)]
        return [
            replace(row, figures={"efficiency": paired_ratio(row.repetitions, found[0])[0] / row.at["workers"]})
            for row in rows
        ]

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        found = [
            "Efficiency is the speed by that of one worker in the same round, by the number of workers; its median."
        ]
        for count in self._workers:
            rounds = math.ceil(self._parts / count)
            if self._parts % count:
                found.append(
                    f"{self._parts} chunks of equal cost on {count} workers take {rounds} rounds: at most "
                    f"{self._parts / rounds / count:.0%} efficient."
                )
        if self._workers[-1] > cpus() and self._address is None:
            found.append(
                f"This machine has {counted(cpus(), 'core')} for {self._workers[-1]} workers, which take turns."
            )
        return found


def _doubling(cores: int) -> list[int]:
    """1, 2, 4, ... up to ``cores``, and ``cores`` itself."""
    return sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
