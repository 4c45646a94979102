"""Distributed evaluation on fixed task indices, so that two models are judged on the very same tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distmeta.runtime import chunks
from distmeta.runtime.backend import Backend
from distmeta.runtime.pool import WorkerPool
from distmeta.types import FloatArray, Split


@dataclass(frozen=True)
class EvaluationReport:
    """Per-task numbers of an evaluation and their means.

    Args:
        split: which classes.
        seed: of the evaluation tasks.
        metrics: name to per-task values ``[tasks]``, in order of task index.

    Example:
        >>> report = EvaluationReport("meta_test", 0, {"accuracy": np.array([0.8, 1.0])})
        >>> report.text("accuracy")
        '90.00 % ± 19.60'
    """

    split: Split
    seed: int
    metrics: Mapping[str, FloatArray]

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(next(iter(self.metrics.values())))

    def mean(self, name: str) -> float:
        """Mean over tasks."""
        return float(np.mean(self.metrics[name], dtype=np.float64))

    def ci95(self, name: str) -> float:
        """Half width of the 95 % interval of the mean, 1.96 s / sqrt(n); infinite for one task."""
        values = np.asarray(self.metrics[name], dtype=np.float64)
        return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf

    def text(self, name: str) -> str:
        """``mean ± half width``; accuracies in per cent."""
        scale, unit, digits = (100.0, " %", 2) if "accuracy" in name else (1.0, "", 4)
        return f"{scale * self.mean(name):.{digits}f}{unit} ± {scale * self.ci95(name):.{digits}f}"

    def summary(self) -> dict[str, float]:
        """``name`` and ``name_ci95`` for every metric."""
        return {
            key: value
            for name in self.metrics
            for key, value in ((name, self.mean(name)), (f"{name}_ci95", self.ci95(name)))
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the summary and the per-task values."""
        per_task = {name: [round(float(v), 6) for v in values] for name, values in self.metrics.items()}
        return {"split": self.split, "seed": self.seed, "tasks": self.tasks, **self.summary(), "per_task": per_task}


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
    names = results[0].metrics
    return EvaluationReport(split, seed, {name: np.concatenate([r.metrics[name] for r in results]) for name in names})
