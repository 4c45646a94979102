"""Distributed evaluation on fixed task indices, so that two models are evaluated on the very same tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distmeta.errors import ConfigError
from distmeta.experiment.settings import Runtime
from distmeta.intervals import EvaluationReport
from distmeta.runtime import chunks
from distmeta.runtime.backend import Backend
from distmeta.runtime.pool import WorkerPool, describe
from distmeta.runtime.worker import WorkerSetup
from distmeta.tasks.base import TaskDistribution
from distmeta.types import FloatArray, Split


def require_tasks(tasks: TaskDistribution, split: Split, name: str, wanted: int) -> None:
    """Raise if a split has fewer different tasks than are asked for.

    Args:
        tasks: the distribution.
        split: which classes.
        name: the setting or option that asks.
        wanted: how many.

    Raises:
        ConfigError: there are fewer; names how many.
    """
    count = tasks.count(split)
    if count is not None and wanted > count:
        raise ConfigError(f"{name}={wanted}, but {split} has {count} different tasks. Set {name}={count} or less.")


def few_classes_warning(tasks: TaskDistribution, split: Split) -> str:
    """A warning when ``split`` has fewer than 20 classes: the interval then says little about new classes.

    The interval is that of the mean over all tasks of *these* classes; empty where there are enough.
    """
    classes = tasks.classes(split)
    if classes is None or classes >= 20:
        return ""
    return (
        f"{split} has {classes} classes: the interval is that of the mean over tasks of these classes; others may "
        "differ by more. More classes in that split would show it."
    )


def cautions(tasks: TaskDistribution, split: Split) -> list[str]:
    """What to tell people about results on ``split``: too few classes, or classes that are not new."""
    return [text for text in (few_classes_warning(tasks, split), tasks.caution(split)) if text]


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
    """Evaluate the meta-parameters on tasks 0 to ``tasks - 1`` of ``split``, over the workers of ``pool``.

    Args:
        backend: where the pool runs.
        pool: the workers.
        vector: reference to the flat parameters ``[P]``.
        version: outer steps behind the parameters.
        split: which classes.
        tasks: how many tasks.
        seed: root of the tasks' random numbers.
        chunk_size: tasks per call.
    """
    parts = chunks.split(tasks, chunk_size, split=split, step=0)
    batch = pool.begin(
        chunks.shares(parts, len(parts)),
        lambda worker, share: (backend.call(worker, "evaluate", share, version, vector, seed), None),
    )
    return chunks.report(batch.results(), split, seed)


def evaluate_on(
    backend: Backend,
    setup: WorkerSetup,
    runtime: Runtime,
    vector: FloatArray,
    *,
    version: int,
    split: Split,
    tasks: int,
    seed: int,
    say: Callable[[str], None],
) -> EvaluationReport:
    """:func:`evaluate` with a pool of its own.

    Args:
        backend: where the workers run.
        setup: what each worker is given.
        runtime: numbers of workers, leases and tasks per call.
        vector: the flat parameters ``[P]``.
        version: outer steps behind the parameters.
        split: which classes.
        tasks: how many tasks.
        seed: root of the tasks' random numbers.
        say: receives a line about the workers.
    """
    pool = WorkerPool(backend, setup, runtime, say)
    try:
        infos = pool.join()
        say(describe(infos, backend))
        return evaluate(
            backend,
            pool,
            backend.put(vector),
            version=version,
            split=split,
            tasks=tasks,
            seed=seed,
            chunk_size=runtime.tasks_per_call,
        )
    finally:
        pool.close()
