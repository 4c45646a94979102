"""Splitting a meta-batch into chunks and summing their gradients so that the bits do not depend on who computed what.

Floating point addition is not associative, so the order of additions is fixed by the chunk ids alone: an aligned binary
tree. Node ``(level, i)`` is the sum of ``(level-1, 2i)`` and ``(level-1, 2i+1)``; a node whose right sibling would lie
past the last chunk is passed up as it is. Any arrival order gives the same
sums; siblings are added as soon as both are there.

A worker is sent a *share*, adjacent chunks, and adds up what are whole nodes in it. So how a batch is shared out, which
depends on workers and time, is free to change from step to step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distmeta.calibration import Calibration
from distmeta.intervals import EvaluationReport, may_be_absent
from distmeta.types import Chunk, ChunkResult, FloatArray, Split, TaskRef


@dataclass(frozen=True)
class Share:
    """The unit of dispatch: adjacent chunks of a batch, which a worker computes in one call, one after the other.

    Args:
        chunks: at least one.
        of: chunks of the whole batch.

    Example:
        >>> share = Share(split(40, 4, split="meta_train", step=0)[3:8], 10)
        >>> print(share, share.nodes)
        tasks 12 to 31 of meta_train, step 0 ((3, 4), (4, 8))
    """

    chunks: tuple[Chunk, ...]
    of: int

    @property
    def id(self) -> int:
        """That of the first chunk: different in every share of a batch."""
        return self.chunks[0].id

    @property
    def stop(self) -> int:
        """The id after that of the last chunk."""
        return self.chunks[-1].id + 1

    @property
    def size(self) -> int:
        """Number of tasks."""
        return sum(chunk.size for chunk in self.chunks)

    @property
    def refs(self) -> tuple[TaskRef, ...]:
        """One :class:`TaskRef` per task, in order."""
        return tuple(ref for chunk in self.chunks for ref in chunk.refs)

    @property
    def nodes(self) -> tuple[tuple[int, int], ...]:
        """The fewest nodes of the tree that the chunks are, as ``(first, stop)`` of their chunk ids."""
        found, at = [], self.id
        while at < self.stop:
            width = 1
            while at % (2 * width) == 0 and min(at + 2 * width, self.of) <= self.stop and at + width < self.of:
                width *= 2
            found.append((at, min(at + width, self.of)))
            at += width
        return tuple(found)

    def __str__(self) -> str:
        first, last = self.chunks[0], self.chunks[-1]
        return f"tasks {first.start} to {last.stop - 1} of {first.split}, step {first.step}"


def shares(parts: Sequence[Chunk], count: int) -> tuple[Share, ...]:
    """All chunks of a batch in ``count`` shares, whose numbers of chunks differ by one at most.

    Example:
        >>> [len(share.chunks) for share in shares(split(40, 4, split="meta_train", step=0), 4)]
        [3, 3, 2, 2]
    """
    least, more = divmod(len(parts), count)
    edges = [i * least + min(i, more) for i in range(count + 1)]
    return tuple(Share(tuple(parts[a:b]), len(parts)) for a, b in itertools.pairwise(edges) if b > a)


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
    values = metrics(results)
    found = {name: one for name, one in values.items() if not (may_be_absent(name) and np.isnan(one).all())}
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
        self.add_node(leaf, leaf + 1, vector)

    def add_node(self, first: int, stop: int, vector: FloatArray) -> None:
        """Add a node that is a sum already, over the leaves ``first`` to ``stop - 1``; again, it changes nothing.

        Raises:
            IndexError: this is no node of the tree, or a part of it has come in another way.
        """
        level = max(stop - first - 1, 0).bit_length()
        if (
            not 0 <= first < stop <= self._leaves
            or first % (1 << level)
            or stop != min(first + (1 << level), self._leaves)
        ):
            raise IndexError(f"leaves {first} to {stop - 1} are no node of a tree with {self._leaves} leaves")
        leaves = set(range(first, stop))
        if leaves <= self._seen:
            return
        if leaves & self._seen:
            raise IndexError(f"leaves {sorted(leaves & self._seen)} have come without the others of their node")
        self._seen |= leaves
        index, width = first >> level, -(-self._leaves >> level)
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
