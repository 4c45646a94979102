"""Splitting a meta-batch into chunks and summing their gradients so that the bits do not depend on who computed what.

Floating point addition is not associative, so the order of additions is fixed by the chunk ids alone: an aligned binary
tree. Node ``(level, i)`` is the sum of ``(level-1, 2i)`` and ``(level-1, 2i+1)``; a node whose right sibling would lie
past the last chunk is passed up as it is. Any arrival order gives the same
sums; siblings are added as soon as both are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distmeta.calibration import Calibration
from distmeta.intervals import EvaluationReport
from distmeta.types import Chunk, ChunkResult, FloatArray, Split


def split(tasks: int, chunk_size: int, *, split: Split, step: int) -> tuple[Chunk, ...]:
    """``tasks`` tasks as chunks of ``chunk_size`` (the last may be smaller); never derived from the worker count.

    Example:
        >>> [(c.start, c.stop) for c in split(10, 4, split="meta_train", step=0)]
        [(0, 4), (4, 8), (8, 10)]
    """
    return tuple(
        Chunk(i, split, step, start, min(start + chunk_size, tasks))
        for i, start in enumerate(range(0, tasks, chunk_size))
    )


def metrics(results: Sequence[ChunkResult]) -> dict[str, FloatArray]:
    """The per-task numbers of all chunks, in order of task index: ``[tasks]`` each.

    Of the metrics that every chunk has, which are those that every task has, however they are split.
    """
    names = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    return {name: np.concatenate([result.metrics[name] for result in results]) for name in names}


def report(results: Sequence[ChunkResult], split: Split, seed: int) -> EvaluationReport:
    """The evaluation that chunks are the parts of, the same however tasks are split.

    Args:
        results: of all chunks, in order of task index.
        split: which classes.
        seed: of the tasks.
    """
    found = metrics(results)
    if "roc_auc" in found and np.isnan(found["roc_auc"]).all():  # no task has it
        del found["roc_auc"]
    sums = [result.calibration for result in results if result.calibration is not None]
    pooled = Calibration.of(np.concatenate(sums)) if len(sums) == len(results) else None
    return EvaluationReport(split, seed, found, pooled)


class TreeSum:
    """The sum of ``leaves`` vectors over the aligned binary tree, in any order of arrival.

    Args:
        leaves: how many vectors will come, ids 0 to ``leaves - 1``.

    Example:
        >>> tree = TreeSum(3)
        >>> for chunk_id in (2, 0, 1):
        ...     tree.add(chunk_id, np.full(2, 1.0, np.float32))
        >>> tree.total.tolist()
        [3.0, 3.0]
    """

    def __init__(self, leaves: int) -> None:
        self._leaves = leaves
        self._seen: set[int] = set()
        self._waiting: dict[tuple[int, int], FloatArray] = {}

    @property
    def complete(self) -> bool:
        """Whether every leaf has come."""
        return len(self._seen) == self._leaves

    def add(self, leaf: int, vector: FloatArray) -> None:
        """Add one leaf; the same leaf a second time changes nothing (a speculative duplicate has the same bits).

        Raises:
            IndexError: the leaf is not one of this tree.
        """
        if not 0 <= leaf < self._leaves:
            raise IndexError(f"leaf {leaf} of a tree with {self._leaves} leaves")
        if leaf in self._seen:
            return
        self._seen.add(leaf)
        level, index, width = 0, leaf, self._leaves
        while width > 1:
            sibling = index ^ 1
            if sibling < width:
                other = self._waiting.pop((level, sibling), None)
                if other is None:
                    break
                vector = vector + other if index < sibling else other + vector
            level, index, width = level + 1, index // 2, (width + 1) // 2
        self._waiting[level, index] = np.asarray(vector)

    @property
    def total(self) -> FloatArray:
        """The sum.

        Raises:
            ValueError: leaves are missing.
        """
        if not self.complete:
            missing = sorted(set(range(self._leaves)) - self._seen)
            raise ValueError(f"chunks {missing} are missing")
        (total,) = self._waiting.values()
        return total
