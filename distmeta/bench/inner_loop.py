"""``bench inner-loop``: tasks per second of a learner and its model, by chunk size, inner steps and threads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from distmeta.bench import cases
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.flops import FLOPS, flops_per_task
from distmeta.bench.machine import LIMIT, timed
from distmeta.bench.record import Row
from distmeta.bench.statistics import paired_ratio
from distmeta.bench.wording import counted
from distmeta.data.picture_workers import cpus
from distmeta.errors import ConfigError
from distmeta.learners.base import MetaLearner
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.precision import require_for
from distmeta.runtime.backend import LocalBackend
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import Episode, Params, TaskRef

_REPETITION_S = 0.05
_FIXED = ("runtime.chunk_size", "runtime.threads", "runtime.workers")


class InnerLoop(Benchmark):
    """Meta-gradients of stacked tasks, nothing around them: no sampling, no transfer, no outer step.

    Args:
        what: whose learner, model and tasks.
        chunks: tasks per vectorised call.
        steps: inner steps; the learner's own number when left out.
        threads: CPU threads; one, and as many as there are cores, when left out.
        device: ``"cpu"`` or ``"cuda"``.
        limit_size: rows of the matrices whose products are the machine's limit.

    Raises:
        ConfigError: the learner has no inner steps, there are fewer cores than threads, or there is no such device.
        DistmetaError: the experiment cannot run.
    """

    kind, unit, better = "inner-loop", "tasks/s", "higher"

    def __init__(
        self,
        what: cases.What,
        *,
        chunks: Sequence[int] = (1, 4, 8, 16),
        steps: Sequence[int] | None = None,
        threads: Sequence[int] | None = None,
        device: str = "cpu",
        limit_size: int = 1024,
    ) -> None:
        super().__init__()
        self._experiment = experiment = cases.experiment_of(what)
        self._limit_size = limit_size
        if steps is not None and not cases.has_inner_steps(experiment):
            raise ConfigError(
                f"--steps: {type(experiment.learner).__name__} has no inner steps; expected a learner that adapts by "
                "gradient steps. Leave --steps out."
            )
        there = cpus()
        self._threads = tuple(threads) if threads else tuple(sorted({1, there if device == "cpu" else 1}))
        if max(self._threads) > there:
            raise ConfigError(
                f"--threads {max(self._threads)}: this process may use {counted(there, 'core')}; expected at most as "
                "many. Leave out the larger numbers."
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no CUDA device. Leave --device out, or install its driver.")
        require_for(experiment.learner.config.precision, gpu=device == "cuda")
        self.device = torch.device(device)
        self._steps: Sequence[int | None] = (None,) if steps is None else tuple(steps)
        self._learners = {step: self._ready(step) for step in self._steps}
        refs = [TaskRef("meta_train", 0, i) for i in range(max(chunks))]
        self._episodes, self._chunks = experiment.tasks.episodes(refs, experiment.seed), tuple(chunks)
        _, params = self._learners[self._steps[0]]
        self.case = {
            **cases.case_of(
                experiment,
                "learner",
                "tasks",
                parameters=sum(p.numel() for p in params.values()),
                varied=("learner.inner_steps",) if steps is not None else (),
            ),
            "device": device,
        }
        self.fixed = (*_FIXED, *(("learner.inner_steps",) if steps is not None else ()))
        self.title = f"meta-gradients of {type(experiment.learner).__name__}, {experiment.name}, on {device}"

    def _ready(self, steps: int | None) -> tuple[MetaLearner, Params]:
        e = self._experiment
        learner = cases.ready(e if steps is None else e.with_overrides({"learner.inner_steps": steps})).at_step(0)
        return learner.on(self.device), learner.starting_params(rng(e.seed, "init"))

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        with contextlib.closing(LocalBackend()):  # puts back the settings of this process that a worker changes
            # The measured process is set up as a worker's is: threads, malloc, deterministic kernels.
            learner, params = self._learners[self._steps[0]]
            setup = WorkerSetup(learner.in_main_memory(), self._experiment.tasks, ParamLayout.of(params), 0, 1)
            Worker("bench", setup, gpu=self.device.type == "cuda")
            return self._measure(budget, tell)

    def _measure(self, budget: Budget, tell: Tell) -> list[Row]:
        variants: list[_Variant] = []
        flops: dict[int | None, int] = {}
        for steps, (learner, params) in self._learners.items():
            theta = {name: p.detach().to(self.device) for name, p in params.items()}
            episodes = self._episodes.to(self.device, ParamLayout.of(params).torch_dtype)
            tell(f"counting operations{_with(steps)}")
            flops[steps] = flops_per_task(learner, theta, episodes)
            for threads in self._threads:
                for chunk in self._chunks:
                    part = episodes.map(partial(_first, chunk))
                    at = ({} if steps is None else {"steps": steps}) | {"threads": threads, "chunk": chunk}
                    variants.append(_Variant(at, learner, theta, part, self.device, steps))
        tell("warming up")
        for variant in variants:
            variant.warm()
        tell(f"{counted(len(variants), 'variant')} in turn")
        found = self.beside_limits(budget, variants, self._threads, self._limit_size)
        rows = []
        for variant, repetitions in zip(variants, found, strict=True):
            work = flops[variant.steps]
            row = Row(variant.at, repetitions)
            limit = next(one for one in self._limits if one.at["threads"] == variant.at["threads"])
            share = paired_ratio(row.repetitions, limit.repetitions)[0] * work / 1e9
            figures = {"mflop_per_task": work / 1e6, "limit_share": share}
            rows.append(replace(row, figures=figures if work else {}))
        return rows

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        engines = {
            "one batch" if learner.model_kind in ("sequence", "set") and not learner.loops else learner.config.vectorise
            for learner, _ in self._learners.values()
        }
        share = "The share is tasks/s times operations of a task, by the limit of the same round; its median."
        return (LIMIT, FLOPS, share, f"Engine: {', '.join(sorted(engines))}.")


def _first(count: int, part: torch.Tensor) -> torch.Tensor:
    return part[:count]


def _with(steps: int | None) -> str:
    return "" if steps is None else f", {counted(steps, 'inner step')}"


@dataclass
class _Variant:
    """One learner on so many tasks with so many threads."""

    at: dict[str, Any]
    learner: MetaLearner
    params: Params
    episodes: Episode
    device: torch.device
    steps: int | None
    calls: int = 1

    def warm(self) -> None:
        """Run once, and choose how many calls make a repetition."""
        self.calls = 1
        tasks = len(self.episodes.query_x)
        self.calls = max(1, round(_REPETITION_S * self() / tasks))

    def __call__(self) -> float:
        """Measure once, tasks per second."""
        torch.set_num_threads(self.at["threads"])
        return len(self.episodes.query_x) * self.calls / timed(self._compute, self.device)

    def _compute(self) -> None:
        for _ in range(self.calls):
            self.learner.meta_gradient(self.params, self.episodes)
