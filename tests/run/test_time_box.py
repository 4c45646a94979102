"""The number of outer steps that fit into a time box, and the measurement behind it."""

import math

import pytest

from distmeta.experiment.cards import find
from distmeta.run.place import Place
from distmeta.run.time_box import Pace, measure


@pytest.mark.parametrize("every", [0, 7, 10, 1000])
def test_as_many_iterations_as_fit(every):
    experiment = (
        find("maml/sinusoid")
        .experiment()
        .with_overrides({"evaluation.every": every, "evaluation.validation_tasks": 20, "evaluation.test_tasks": 50})
    )
    pace = Pace(step=0.2, task=0.01, start=3.0)
    n = pace.iterations(experiment, 100.0)

    def needed(steps: int) -> float:
        return 3.0 + 0.2 * steps + 0.01 * 50 + (0.01 * 20 * math.ceil(steps / every) if every else 0)

    assert needed(n) <= 100 < needed(n + 1)
    assert pace.iterations(experiment, 3.0) < 1


def test_measuring_asks_for_no_more_tasks_than_there_are(monkeypatch):
    """Lake's runs are 20 tasks; a chunk, or all workers' chunks, may be more."""
    asked = []

    def evaluate(driver, checkpoint, split, tasks, seed):
        asked.append(tasks)

    monkeypatch.setattr("distmeta.run.time_box.Driver.evaluate", evaluate)
    settings = {"evaluation.test_tasks": 20, "evaluation.validation_tasks": 2, "runtime.chunk_size": 16}
    measure(find("maml/sinusoid").load(settings), Place(), seconds=0.1)
    assert asked == [16, 20]
