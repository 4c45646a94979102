"""Tasks per call, and how the gradient is computed, chosen by memory where a run leaves them open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distmeta.experiment.experiment import Experiment
from distmeta.learners.base import MetaLearner
from distmeta.learners.memory_plan import largest_chunk, planned
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.worker_memory import bytes_per_worker, workers_of
from distmeta.types import Episode, Params


@dataclass(frozen=True)
class Sized:
    """The experiment and the learner that a run begins with.

    Args:
        experiment: with a number in place of ``runtime.chunk_size="auto"``.
        learner: with a way to the gradient in place of ``gradient="auto"``.
        lines: for the user: what was chosen by which numbers, or that a chunk will not fit.
    """

    experiment: Experiment
    learner: MetaLearner
    lines: tuple[str, ...]


def sized_by_memory(experiment: Experiment, learner: MetaLearner, params: Params, episodes: Episode) -> Sized:
    """Choose chunks and how the gradient is computed where that is left open; warn where a chunk will not fit.

    Args:
        experiment: of the run.
        learner: bound to its model, its engine chosen.
        params: the meta-parameters.
        episodes: two or more training tasks, stacked.
    """
    runtime, batch = experiment.runtime, experiment.outer.meta_batch_size
    episodes = episodes.to(torch.device("cpu"), ParamLayout.of(params).torch_dtype)
    memory, workers = bytes_per_worker(runtime), workers_of(runtime)
    most = -(-batch // workers)
    tasks = min(most if runtime.chunk_size == "auto" else runtime.chunk_size, batch)
    lines = []
    if runtime.chunk_size == "auto":
        # Walked back where even one task at a time leaves no room for the graphs of all steps.
        least, _ = planned(learner, params, episodes, tasks=1, memory=memory)
        tasks, why = largest_chunk(least, params, episodes, most=most, memory=memory)
        experiment = experiment.with_overrides({"runtime.chunk_size": tasks})
        plural = "s" * (workers > 1)
        lines.append(
            f"runtime.chunk_size=auto is {tasks}, for {batch} tasks per step on {workers} worker{plural} (a chunk "
            f"is {why}). The run keeps it, and has the bits of runtime.chunk_size={tasks}."
        )
    learner, line = planned(learner, params, episodes, tasks=tasks, memory=memory)
    return Sized(experiment, learner, (*lines, *([line] if line else [])))
