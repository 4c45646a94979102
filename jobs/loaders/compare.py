"""How loaders that are common in this field seed their tables, and what becomes of the stream: `python compare.py`.

Each loader is a few lines of our own that seed in the named way and then draw from numpy's global generator: one
process per rank and worker, batches in turn from each worker. The figures are fractions of equal tables (20 rows, 3
columns), byte for byte. The last loader is distmeta's: a table is a function of (seed, step, index), whoever draws it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

import distmeta
from distmeta.types import Split, TaskRef

RANKS, WORKERS, STEPS, TABLES = 4, 2, 100, 8
Numbers = npt.NDArray[np.float64]
Run = list[list[str]]
"""Digests of the tables of one rank, by step."""


@distmeta.task_distribution
def tables(random: np.random.Generator, split: Split) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The tables that all loaders draw: normal inputs, a linear target."""
    x = random.normal(size=(20, 2))
    y = x @ random.normal(size=(2, 1))
    return x[:10], y[:10], x[10:], y[10:]


class Loader:
    """One process per worker with a state of its own; worker w makes the batches w, w + W, w + 2W ...

    Args:
        seeding: how a process is seeded when it starts.
        unseeded: entropy of this process, for ``"never"``.
    """

    def __init__(self, seeding: Literal["alike", "by worker", "with the step", "never"], unseeded: int = 0) -> None:
        self.seeding, self.unseeded = seeding, unseeded

    def seed(self, seed: int, rank: int, worker: int, start: int) -> list[int]:
        """What the generator of a worker's process is seeded with when training starts or goes on at step ``start``."""
        return {
            "alike": [seed + worker],
            "by worker": [worker + 100 * rank],  # and 10,000 per epoch: a resumed run begins with epoch 0 again
            "with the step": [seed + rank + start, worker],
            "never": [self.unseeded, rank, worker],
        }[self.seeding]

    def run(self, rank: int, steps: Iterable[int], seed: int = 0, workers: int = WORKERS) -> Run:
        """Tables of one rank from the first of ``steps`` on, as of a start there."""
        listed = list(steps)
        states = [np.random.RandomState(self.seed(seed, rank, worker, listed[0])) for worker in range(workers)]
        batches = [states[i % workers].normal(size=(TABLES, 20, 3)) for i, _ in enumerate(listed)]
        return [[_digest(table) for table in batch] for batch in batches]


class Ours(Loader):
    """distmeta's: rank r of R is given the refs r, r + R ... of a step, as chunks are leased to workers."""

    def __init__(self) -> None:
        super().__init__("alike")

    def run(self, rank: int, steps: Iterable[int], seed: int = 0, workers: int = WORKERS) -> Run:
        """Tables of one rank; its workers draw in chunks of another size when there are more of them."""
        found = []
        for step in steps:
            refs = [TaskRef("meta_train", step, rank + RANKS * i) for i in range(TABLES)]
            drawn = [tables.episodes(refs[i::workers], seed) for i in range(workers)]
            where = [(drawn[index % workers], index // workers) for index in range(TABLES)]
            found.append([_digest(*(part[i].numpy() for part in episodes)) for episodes, i in where])
        return found


def figures(loader: Loader, second: Loader | None = None) -> dict[str, float]:
    """The fractions of equal tables.

    Args:
        loader: a loader.
        second: the same one in another process, where that is another one.

    Returns:
        Between two ranks at the same step; between 2 and 3 workers; after a resume and without it; of these, the tables
        that had been drawn before the resume; between two runs of one seed; between two seeds.
    """
    again = second or loader
    half = range(STEPS // 2, STEPS)
    whole = loader.run(0, range(STEPS))
    resumed, rest = again.run(0, half), whole[STEPS // 2 :]
    seen = {table for batch in whole[: STEPS // 2] for table in batch}
    return {
        "equal on two ranks": _equal(whole, loader.run(1, range(STEPS))),
        "equal with 3 workers for 2": _equal(whole, loader.run(0, range(STEPS), workers=3)),
        "equal after a resume": _equal(rest, resumed),
        "seen before the resume": float(np.mean([table in seen for batch in resumed for table in batch])),
        "equal in a second run": _equal(whole, again.run(0, range(STEPS))),
        "equal with another seed": _equal(whole, again.run(0, range(STEPS), seed=1)),
    }


def overlap(loader: Loader) -> float:
    """Fraction of the tables of rank 1 that rank 0 draws, too, when it is resumed at step 1, or has 101 workers."""
    if loader.seeding == "by worker":
        mine, theirs = loader.run(0, range(101), workers=101)[100:], loader.run(1, range(1), workers=101)
    else:
        mine, theirs = loader.run(0, range(1, 51)), loader.run(1, range(50))
    known = {table for batch in mine for table in batch}
    return float(np.mean([table in known for batch in theirs for table in batch]))


def _equal(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    return float(np.mean([a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]))


def _digest(*parts: Numbers) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


LOADERS: dict[str, tuple[Loader, Loader | None]] = {
    "every rank seeded alike": (Loader("alike"), None),
    "seeded by worker, rank and epoch": (Loader("by worker"), None),
    "seeded again with the step": (Loader("with the step"), None),
    "never seeded": (Loader("never", 1), Loader("never", 2)),
    "distmeta": (Ours(), None),
}


def main() -> None:
    """Print the figures of every loader as a table in Markdown."""
    for number, (name, (loader, second)) in enumerate(LOADERS.items()):
        found = figures(loader, second)
        if number == 0:
            print(f"| a loader | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        print(f"| {name} | {' | '.join(f'{100 * value:.0f} %' for value in found.values())} |")
    for name, how in (
        ("seeded again with the step", "is resumed at step 1"),
        ("seeded by worker, rank and epoch", "has a worker 100"),
    ):
        print(f"{name}: {100 * overlap(LOADERS[name][0]):.0f} % of the tables of rank 1 are rank 0's when it {how}")


if __name__ == "__main__":
    main()
