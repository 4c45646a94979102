"""``bench memory``: peak resident memory above the model by inner steps, each time in a fresh process."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distmeta.bench import cases, fresh
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.record import Row
from distmeta.bench.wording import counted
from distmeta.errors import ConfigError
from distmeta.experiment.job import Job
from distmeta.learners.memory_plan import peak_bytes
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime import chunks
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import TaskRef

_MIB = 2**20
_LINUX = platform.system() == "Linux"


class Memory(Benchmark):
    """The most memory that a worker needs for a chunk, beyond what it needs to hold the model.

    Args:
        what: whose learner, model and tasks; ``runtime.chunk_size`` tasks are computed.
        steps: inner steps; 1, 5 and 10 when left out, and one row where the learner has none.

    Raises:
        ConfigError: the learner has no inner steps.
        DistmetaError: the experiment cannot run.
    """

    kind, unit, better = "memory", "MiB", "lower"
    seconds = 60.0

    def __init__(self, what: cases.What, *, steps: Sequence[int] | None = None) -> None:
        super().__init__()
        self._what, e = what, cases.experiment_of(what)
        if steps is not None and not cases.has_inner_steps(e):
            raise ConfigError(
                f"--steps: {type(e.learner).__name__} has no inner steps; expected a learner that adapts by gradient "
                "steps. Leave --steps out."
            )
        self._steps: Sequence[int | None] = tuple(steps or (1, 5, 10)) if cases.has_inner_steps(e) else (None,)
        self._learner = learner = cases.ready(e)
        self.case = {
            **cases.case_of(
                e,
                *("learner", "tasks", "runtime"),
                parameters=sum(p.numel() for p in learner.model.parameters()),
                varied=("learner.inner_steps",),
            )
        }
        self.fixed = ("learner.inner_steps", "runtime.workers")
        self.title = (
            f"peak memory above the model: one chunk of {counted(e.runtime.tasks_per_call, 'task')} of "
            f"{type(e.learner).__name__}, {e.name}"
        )

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as folder:
            programs = [self._program(Path(folder), steps) for steps in self._steps]
            tell("processes in turn")
            found = budget.interleave([partial(_peak, program) for program in programs])
        rows = [
            Row({"chunk": self._chunk} if steps is None else {"steps": steps}, values)
            for steps, values in zip(self._steps, found, strict=True)
        ]
        figures = [{"times_the_first": row.median / rows[0].median} for row in rows]
        for row, steps, of_row in zip(rows, self._steps, figures, strict=True):
            predicted = self._predicted(steps)
            of_row |= {"predicted": predicted, "predicted_over_seen": predicted / row.median}
        return [replace(row, figures=of_row) for row, of_row in zip(rows, figures, strict=True)]

    def _predicted(self, steps: int | None) -> float:
        """MiB."""
        e, learner = cases.experiment_of(self._what), self._learner
        if steps is not None:
            learner = learner.with_config(inner_steps=steps, test_inner_steps=None)
        params = learner.starting_params(rng(e.seed, "init"))
        few = e.tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], e.seed)
        few = few.to(torch.device("cpu"), ParamLayout.of(params).torch_dtype)
        return peak_bytes(learner, params, few, self._chunk) / _MIB

    @property
    def _chunk(self) -> int:
        return cases.experiment_of(self._what).runtime.tasks_per_call

    def _program(self, folder: Path, steps: int | None) -> Sequence[str]:
        """The command of a process that measures one variant."""
        e = cases.experiment_of(self._what)
        # The engine is chosen here: the probe's own tasks would count as memory of the chunk.
        settings: dict[str, Any] = {"learner.vectorise": self._learner.config.vectorise}
        if steps is not None:
            settings["learner.inner_steps"] = steps
        path = folder / f"{steps}.pickle"
        # Classes of a job file cannot be imported there, so the file is run again; a factory's model can be sent.
        job = (self._what.path, dict(self._what.overrides)) if isinstance(self._what, Job) else None
        given = job or e.replace(learner=self._learner)
        path.write_bytes(pickle.dumps((given, settings)))
        return ("-m", "distmeta.bench.memory", str(path))

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        return (
            "Memory is the peak of a fresh worker process while it computes one chunk, less what it holds before: "
            "libraries, model, episodes, and what one task with the same settings has left behind.",
            "Predicted is what a run expects before it starts, of tensors counted on two tasks and few steps.",
        )


def _peak(program: Sequence[str]) -> float:
    """Run the process; MiB."""
    return float(json.loads(fresh.run(program)[1].splitlines()[-1]))


def measure(given: Any, settings: dict[str, Any]) -> float:
    """Compute one chunk in this process and return how far its memory rose, MiB.

    Args:
        given: an experiment, or the path of a job file and its overrides.
        settings: further settings by dotted key.
    """
    if isinstance(given, tuple):
        from distmeta.experiment.job import load_job

        given = load_job(given[0], given[1]).experiment
    e = given.with_overrides(settings)
    learner = e.learner.bind(e.tasks.spec_of("meta_train"), e.seed).in_main_memory()
    params = learner.starting_params(rng(e.seed, "init"))
    layout = ParamLayout.of(params)
    worker = Worker("bench", WorkerSetup(learner, e.tasks, layout, e.seed, e.runtime.threads))
    vector = layout.flatten(params)
    (one,), (chunk,) = (
        chunks.split(tasks, tasks, split="meta_train", step=0) for tasks in (1, e.runtime.tasks_per_call)
    )
    worker.train_chunk(one, 0, vector)  # libraries load their code, threads start
    _give_back()
    before = _forget_peak()
    worker.train_chunk(chunk, 0, vector)
    # A chunk that needs less than the first task has left behind raises nothing; 0 would have no ratio.
    return max(_peak_resident() - before, 4096) / _MIB


def _give_back() -> None:
    """Let malloc return what it keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> int:
    """Let the peak begin anew where the system can; returns the bytes that are resident now."""
    if not _LINUX:
        return _peak_resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak_resident() -> int:
    """Most bytes that were resident at a time."""
    if _LINUX:
        # Not getrusage: there the peak of a new process begins with that of the process that started it.
        return _status("VmHWM")
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _status(key: str) -> int:
    """A number of bytes in /proc/self/status."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def main() -> None:
    """Print the MiB of the variant in the file that the command line names."""
    # This module runs as __main__ here, and the file was written by the process that started this one.
    given, settings = pickle.loads(Path(sys.argv[1]).read_bytes())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    print(json.dumps(measure(given, settings)))


if __name__ == "__main__":
    main()
