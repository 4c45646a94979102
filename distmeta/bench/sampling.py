"""``bench sampling``: microseconds per episode, as a worker draws them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from distmeta.bench import cases
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.record import Row
from distmeta.types import TaskRef

_REPETITION_S = 0.05


class Sampling(Benchmark):
    """Episodes of training tasks, stacked, each batch of another step; the data are warm.

    Args:
        what: whose tasks.
        batches: tasks drawn in one call.

    Raises:
        DataError: the dataset is absent or damaged.
        TaskContractError: the tasks cannot be drawn.
    """

    kind, unit, better = "sampling", "us", "lower"

    def __init__(self, what: cases.What, *, batches: Sequence[int] = (32,)) -> None:
        super().__init__()
        experiment = cases.experiment_of(what)
        self._tasks, self._seed, self._batches = experiment.tasks, experiment.seed, tuple(batches)
        self._tasks.check_split("meta_train")
        self.case = cases.case_of(experiment, "tasks")
        self.title = f"microseconds per episode of {type(self._tasks).__name__}, {experiment.name}"
        self._steps = itertools.count()

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        variants = []
        for batch in self._batches:
            tell(f"warming up, batches of {batch}")
            self._draw(batch, 1)
            calls = max(1, round(_REPETITION_S / (self._draw(batch, 1) * batch / 1e6)))
            variants.append(lambda batch=batch, calls=calls: self._draw(batch, calls))
        found = self.beside_limits(budget, variants, (1,))
        return [Row({"batch": batch}, values) for batch, values in zip(self._batches, found, strict=True)]

    def _draw(self, batch: int, calls: int) -> float:
        """Microseconds per episode."""
        named = [
            [TaskRef("meta_train", step, i) for i in range(batch)] for step in itertools.islice(self._steps, calls)
        ]
        started = time.perf_counter()
        for refs in named:
            self._tasks.episodes(refs, self._seed)
        return (time.perf_counter() - started) / (batch * calls) * 1e6
