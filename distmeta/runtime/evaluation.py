"""Distributed evaluation on fixed task indices, so that two models are judged on the very same tasks."""

from __future__ import annotations

from typing import Any

from distmeta.errors import ConfigError
from distmeta.intervals import EvaluationReport
from distmeta.runtime import chunks
from distmeta.runtime.backend import Backend
from distmeta.runtime.pool import WorkerPool
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Split


def require_tasks(tasks: TaskDistribution, split: Split, name: str, wanted: int) -> None:
    """Raise if a split has fewer different tasks than are asked for.

    Args:
        tasks: the distribution.
        split: which classes.
        name: of the setting or option that asks.
        wanted: how many.

    Raises:
        ConfigError: says how many there are.
    """
    count = tasks.count(split)
    if count is not None and wanted > count:
        raise ConfigError(f"{name}={wanted}, but {split} has {count} different tasks. Set {name}={count} or less.")


def caution(tasks: TaskDistribution, split: Split) -> str:
    """What the interval over the tasks of ``split`` does not tell; empty where there are classes enough.

    It is that of the mean over all tasks of *these* classes: with few of them, others may do far better or worse.
    """
    classes = tasks.classes(split)
    if classes is None or classes >= 20:
        return ""
    return (
        f"{split} has {classes} classes: the interval tells how sure the mean is for these, not how others would do. "
        "More classes in that split would tell."
    )


def evaluate(
    backend: Backend,
    pool: WorkerPool,
    vector: Any,
    *,
    version: int,
    split: Split,
    tasks: int,
    seed: int,
    chunk_size: int,
) -> EvaluationReport:
    """Judge the meta-parameters on tasks 0 to ``tasks - 1`` of ``split``, over the workers of ``pool``.

    Args:
        backend: of the pool.
        pool: the workers.
        vector: reference to the flat parameters ``[P]``.
        version: of the parameters.
        split: which classes.
        tasks: how many tasks.
        seed: of the tasks.
        chunk_size: tasks per call.
    """
    parts = chunks.split(tasks, chunk_size, split=split, step=0)
    results = pool.run(
        parts,
        lambda worker, chunk: (backend.call(worker, "evaluate_chunk", chunk, version, vector, seed), None),
        lambda header, payload: None,
    )
    return EvaluationReport(split, seed, chunks.metrics(results))
