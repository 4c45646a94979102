"""A time box: how fast an experiment runs here, and how many outer steps fit into so many seconds."""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.run.place import Place
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.events import Event, NullLog


@dataclass(frozen=True)
class Pace:
    """How fast an experiment runs here, measured before it begins.

    Args:
        step: seconds per outer step.
        task: seconds per evaluation task, over all workers.
        start: seconds until the workers are there.
    """

    step: float
    task: float
    start: float = 0.0

    def iterations(self, experiment: Experiment, seconds: float) -> int:
        """Outer steps that fit into ``seconds``, with start, meta-validations and meta-test; 0 or less where none does.

        Example:
            >>> import distmeta
            >>> often = distmeta.Evaluation(every=100, validation_tasks=50, test_tasks=500)
            >>> learner = distmeta.MAML(distmeta.mlp((8,)))
            >>> e = distmeta.Experiment(learner=learner, tasks=distmeta.Sinusoids(), evaluation=often)
            >>> pace = Pace(step=0.5, task=0.1)
            >>> pace.iterations(e, 50 + 600 * 0.5 + 6 * 5), pace.iterations(e, 50 + 610 * 0.5 + 7 * 5)
            (600, 610)
        """
        settings = experiment.evaluation
        left = seconds - self.start - self.task * settings.test_tasks + 1e-9
        if not settings.every:
            return math.floor(left / self.step)
        # The last step is validated wherever it falls, so a part of a period costs a whole validation.
        validation = self.task * settings.validation_tasks
        periods, rest = divmod(left, settings.every * self.step + validation)
        return int(periods) * settings.every + max(0, math.floor((rest - validation) / self.step))


def measure(job: Job, place: Place, *, seconds: float) -> Pace:
    """Run an experiment for some seconds in a folder that is thrown away, and evaluate a few tasks.

    Args:
        job: the experiment.
        place: where it computes.
        seconds: after the first steps, which warm up and do not count; at least two steps are measured.
    """
    watch, runtime = _Stopwatch(seconds), job.experiment.runtime
    # Time steps only: no validation, no iteration limit.
    trial = place.sized(job.experiment).with_overrides({"evaluation.every": 0, "outer.iterations": 10**9})
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        driver = Driver(trial, store, watch)  # checks everything, before a backend is opened
        started = time.monotonic()
        with place.open(job, runtime) as backend, closing(driver):
            infos = driver.start(backend)
            ready = time.monotonic()
            place.phase("measuring")
            with suppress(_StopMeasuring):
                driver.train(NullLog())
            most = trial.evaluation.test_tasks  # as many as there are, at the most
            tasks = min(len(infos) * driver.experiment.runtime.tasks_per_call, most)
            while True:
                asked = time.monotonic()
                driver.evaluate(store.load(), "meta_test", tasks, trial.evaluation.seed)
                evaluated = time.monotonic() - asked
                if evaluated >= 1.0 or tasks == most:
                    break
                tasks = min(2 * tasks, most)  # too short to be exact, and the first time warms up
    return Pace(watch.seconds_per_step, evaluated / tasks, ready - started)


class _StopMeasuring(Exception):
    """Ends a measurement from within the loop."""


class _Stopwatch:
    """Watches steps; ends the run when it has seen enough of them."""

    def __init__(self, seconds: float, *, warm_up: int = 2) -> None:
        self._seconds, self._warm_up = seconds, warm_up
        self._times: list[float] = []

    def __call__(self, event: Event) -> None:
        if event.kind != "step":
            return
        self._times.append(time.monotonic())
        measured = len(self._times) - self._warm_up
        if measured >= 2 and self._times[-1] - self._times[self._warm_up - 1] >= self._seconds:
            raise _StopMeasuring

    @property
    def seconds_per_step(self) -> float:
        first = self._times[self._warm_up - 1]
        return (self._times[-1] - first) / (len(self._times) - self._warm_up)
