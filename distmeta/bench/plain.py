"""``bench plain``: the gradient of each learner beside the plainest PyTorch code for the same batch."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from distmeta.bench import cases, plain_steps
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.record import Row
from distmeta.bench.statistics import median, paired_ratio
from distmeta.bench.wording import counted
from distmeta.config import did_you_mean
from distmeta.data.picture_workers import cpus
from distmeta.errors import ConfigError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.settings import Outer, Runtime
from distmeta.learners.base import MetaLearner
from distmeta.learners.in_context import InContext
from distmeta.learners.mann import MANN
from distmeta.learners.matching_net import MatchingNet
from distmeta.learners.metric import MetricLearner
from distmeta.learners.ntm import NTM
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.protonet import ProtoNet
from distmeta.learners.reptile import Reptile
from distmeta.learners.siamese import Siamese
from distmeta.models.backbones import conv4
from distmeta.models.mann import mann
from distmeta.models.ntm import ntm
from distmeta.models.table_transformer import table_transformer
from distmeta.runtime.backend import LocalBackend
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.tasks.algorithmic import CopyTask
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.tables import Tables
from distmeta.types import Episode, Params, TaskRef

TOLERANCE = 1e-6
"""Relative difference of the gradients in float64 above which a learner's ratio is not reported."""

_CHECKED = 2
_REPETITION_S = 0.05


@dataclass(frozen=True)
class Work:
    """One learner with a batch, and the plain code for it.

    Args:
        learner: with a factory of its model.
        tasks: from which the batch is drawn.
        size: tasks in the batch.
        chunk: tasks per call of the learner.
        plain: see :mod:`distmeta.bench.plain_steps`.
        batch: the batch in words.
    """

    learner: MetaLearner
    tasks: TaskDistribution
    size: int
    chunk: int
    plain: plain_steps.Backward
    batch: str


def _metric(name: str) -> MetricLearner:
    # The networks of jobs/: strided blocks for Siamese networks, which cost a third.
    if name == "ProtoNet":
        return ProtoNet(conv4(64, pool="max", head=False))
    if name == "MatchingNet":
        return MatchingNet(conv4(64, pool="max", head=False), temperature=plain_steps.TEMPERATURE)
    return Siamese(conv4(64, pool="stride", head=False), margin=plain_steps.MARGIN)


def works(size: int = 28) -> dict[str, list[Work]]:
    """The batches that the papers and ``jobs/`` train on, by learner.

    Args:
        size: height and width of images, pixels.

    Example:
        >>> list(works())
        ['Reptile', 'ProtoNet', 'MatchingNet', 'Siamese', 'MANN', 'NTM', 'InContext']
    """
    ten = cases.RandomImages(ways=5, shots=10, queries=1, size=size)
    reptile = Reptile(
        conv4(64),
        inner_lr=plain_steps.REPTILE_RATE,
        inner_steps=plain_steps.REPTILE_STEPS,
        inner_batch=plain_steps.REPTILE_BATCH,
    )
    found = {"Reptile": [Work(reptile, ten, 5, 5, plain_steps.reptile, "5 tasks of 5 ways")]}
    metric = (
        ("ProtoNet", 60, plain_steps.PROTONET),
        ("MatchingNet", 20, plain_steps.MATCHING),
        ("Siamese", 20, plain_steps.SIAMESE),
    )
    for name, ways, plain in metric:
        large, small = (cases.RandomImages(ways=n, shots=1, queries=5, size=size) for n in (ways, 5))
        found[name] = [
            Work(_metric(name), large, 1, 1, plain, f"1 task of {ways} ways"),
            Work(_metric(name), small, 16, 8, plain, "16 tasks of 5 ways"),
        ]
    labels = cases.RandomSequences()
    found["MANN"] = [Work(MANN(mann()), labels, 16, 16, plain_steps.mann, "16 sequences of 50")]
    copies = CopyTask(min_length=20)
    found["NTM"] = [Work(NTM(ntm()), copies, 16, 16, plain_steps.ntm, "16 sequences of 41")]
    # A share of the rows that has an example of every class, almost always.
    tables = Tables(rows=50, support=(30, 30), features=3, classes=(2, 2))
    learner = InContext(table_transformer(), standardise="inputs")
    found["InContext"] = [Work(learner, tables, 50, 25, plain_steps.in_context, "50 tables of 50 rows")]
    return found


class Plain(Benchmark):
    """How many times as fast as plain code a learner computes the gradient of a batch; the data are in memory.

    Args:
        learners: by class name; all of :func:`works` when left out.
        threads: CPU threads.
        size: height and width of images, pixels.

    Raises:
        ConfigError: there is no such learner, or there are fewer cores.
    """

    kind, unit, better = "plain", "times as fast", "higher"
    seconds = 60.0

    def __init__(self, learners: Sequence[str] | None = None, *, threads: int = 1, size: int = 28) -> None:
        super().__init__()
        known = works(size)
        chosen = list(known) if learners is None else list(dict.fromkeys(learners))
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ConfigError(
                f"--learners: there is no plain code for {unknown[0]!r}; expected some of {', '.join(known)}."
                f"{did_you_mean(unknown[0], known)}"
            )
        if threads > cpus():
            raise ConfigError(
                f"--threads {threads}: this process may use {counted(cpus(), 'core')}; expected at most as many."
            )
        self._threads = threads
        self._works = {name: known[name] for name in chosen}
        self.case = {"size": size, "threads": threads}
        self.title = f"gradients of learners, times as fast as the plainest PyTorch code, {counted(threads, 'thread')}"
        self._notes: list[str] = []

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        pairs: list[tuple[dict[str, str], tuple[Callable[[], float], Callable[[], float]]]] = []
        with contextlib.closing(LocalBackend()):  # puts back the settings of this process that a worker changes
            for name, some in self._works.items():
                for work in some:
                    tell(f"comparing gradients: {name}, {work.batch}")
                    both = self._both(name, work)
                    if both is not None:
                        pairs.append(({"learner": name, "batch": work.batch}, both))
            if not pairs:
                raise ConfigError(f"There is nothing to measure: {' '.join(self._notes)}")
            tell(f"{2 * len(pairs)} variants in turn")
            found = self.beside_limits(budget, [one for _, both in pairs for one in both], (self._threads,))
        rows = []
        for i, (at, _) in enumerate(pairs):
            ours, plain = found[2 * i], found[2 * i + 1]
            _, low, high = paired_ratio(plain, ours)
            figures = {"at_least": low, "at_most": high, "ms": median(ours) * 1e3, "plain_ms": median(plain) * 1e3}
            rows.append(Row(at, tuple(b / a for a, b in zip(ours, plain, strict=True)), figures))
        return rows

    def _both(self, name: str, work: Work) -> tuple[Callable[[], float], Callable[[], float]] | None:
        """The learner and the plain code, ready to be measured; ``None`` where they compute something else."""
        e = Experiment(
            learner=work.learner,
            tasks=work.tasks,
            outer=Outer(meta_batch_size=work.size),
            runtime=Runtime(chunk_size=work.chunk),
            name=name,
        )
        learner = cases.ready(e)
        params = {key: p.detach() for key, p in learner.starting_params(rng(e.seed, "init")).items()}
        # The measured process is set up as a worker's is: threads, malloc, deterministic kernels.
        Worker("bench", WorkerSetup(learner, e.tasks, ParamLayout.of(params), e.seed, self._threads))
        episodes = e.tasks.episodes([TaskRef("meta_train", 0, i) for i in range(work.size)], e.seed)
        model = copy.deepcopy(learner.model).train()
        exact_model = copy.deepcopy(model).double()
        exact = episodes.map(lambda part: part[:_CHECKED]).to(torch.device("cpu"), torch.float64)
        expected = _plain_gradient(work, exact_model, exact)
        ours = _gradient(
            learner.with_model(copy.deepcopy(learner.model).double()),
            {key: p.double() for key, p in params.items()},
            _chunks(exact, work.chunk),
        )
        off = sum(float((ours[key] - expected[key]).square().sum()) for key in ours) ** 0.5
        off /= sum(float(value.square().sum()) for value in expected.values()) ** 0.5
        if not off <= TOLERANCE:  # so too where it is NaN
            self._notes.append(
                f"{name}, {work.batch}, is not timed: its gradient differs from that of the plain code by {off:.1e} of "
                f"its size; expected at most {TOLERANCE:g}."
            )
            return None
        return (
            _Timed(partial(_gradient, learner, params, _chunks(episodes, work.chunk)), self._threads),
            _Timed(partial(_plain_gradient, work, model, episodes), self._threads),
        )

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        return (
            f"The gradients of both were compared before, for {_CHECKED} tasks in float64: they are at most "
            f"{TOLERANCE:g} of their size apart.",
            "Plain code is a loop over tasks with a backward pass for each, in the settings of a worker's process; "
            "MANN, NTM and InContext are the same network on one batch. Learners have their default engine. at "
            "least and at most: 95 % interval, where there are three repetitions or more.",
            *self._notes,
        )


class _Timed:
    """A variant that measures seconds per call."""

    def __init__(self, work: Callable[[], object], threads: int) -> None:
        self._work, self._threads, self._calls = work, threads, 1
        self()  # the first call is slower
        self._calls = max(1, round(_REPETITION_S / self()))

    def __call__(self) -> float:
        torch.set_num_threads(self._threads)
        started = time.perf_counter()
        for _ in range(self._calls):
            self._work()
        return (time.perf_counter() - started) / self._calls


def _chunks(episodes: Episode, size: int) -> list[Episode]:
    return [episodes.map(lambda part, i=i: part[i : i + size]) for i in range(0, len(episodes.query_x), size)]  # type: ignore[misc]


def _gradient(learner: MetaLearner, params: Params, parts: Sequence[Episode]) -> Params:
    """The learner's gradient, summed over the batch."""
    found: Params = {}
    for part in parts:
        gradient = learner.at_step(0).meta_gradient(params, part).gradient
        found = gradient if not found else {key: found[key] + gradient[key] for key in gradient}
    return found


def _plain_gradient(work: Work, model: torch.nn.Module, episodes: Episode) -> Params:
    """The plain code's."""
    model.zero_grad()
    work.plain(model, episodes)
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
