"""Tables per second of one training step, beside the plainest PyTorch loop with the same network: ``tables.py``.

Both draw the same tables, standardise by support rows, clip and step AdamW, in chunks of 25 of 50 tables, on one
thread, in turn. Run it on a quiet machine.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F

from distmeta import InContext, Outer, Tables, table_transformer
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.chunks import Share, split
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng

SIZE, CHUNK, RATE = 50, 25, 1e-3


class Ours:
    """A step of the runtime, without processes around it."""

    def __init__(self, tasks: Tables) -> None:
        learner = InContext(table_transformer(), standardise="inputs").bind(tasks.spec_of("meta_train"), 0)
        params = learner.init_meta_params(rng(0, "init"))
        layout = ParamLayout.of(params)
        self._worker = Worker("worker-0", WorkerSetup(learner, tasks, layout, 0, 1))
        outer = Outer(optimizer="adamw", lr=RATE, clip_norm=1.0, meta_batch_size=SIZE)
        self._server = ParameterServer(outer, layout.flatten(params))
        self._vector = self._server.vector()

    def step(self, number: int) -> None:
        """Do step ``number``."""
        parts = split(SIZE, CHUNK, split="meta_train", step=number)
        for part in parts:
            _, gradient = self._worker.train_chunk(part, number, self._vector)
            self._server.accumulate(number, Share((part,), len(parts)), gradient[None])
        _, self._vector = self._server.apply(number)


class Plain:
    """The same in a loop of torch."""

    def __init__(self, tasks: Tables) -> None:
        self._tasks, self._model = tasks, table_transformer()(tasks.spec_of("meta_train"))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, weight_decay=0.0)

    def step(self, number: int) -> None:
        """Do step ``number``."""
        for part in split(SIZE, CHUNK, split="meta_train", step=number):
            e = self._tasks.episodes(part.refs, 0)
            mean, std = e.support_x.mean(1, keepdim=True), e.support_x.std(1, keepdim=True, correction=0)
            logits = self._model((e.support_x - mean) / std, e.support_y, (e.query_x - mean) / std)[..., : e.outputs]
            loss = F.cross_entropy(logits.flatten(0, 1), e.query_y.flatten(), reduction="sum")
            (loss / (SIZE * e.query_y.shape[1])).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def main(steps: int = 40) -> None:
    """Print tables per second of both, and quartiles of the ratio."""
    torch.set_num_threads(1)
    tasks = Tables()
    both: dict[str, Ours | Plain] = {"distmeta": Ours(tasks), "plain loop": Plain(tasks)}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for number in range(steps + 4):
        for name in sorted(both, reverse=number % 2 == 1):
            started = time.perf_counter()
            both[name].step(number)
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        print(f"{name}: {SIZE / statistics.median(values[4:]):.1f} tables/s")
    ratios = np.array(seconds["plain loop"][4:]) / np.array(seconds["distmeta"][4:])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"ratio {middle:.3f} (quartiles {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    main()
