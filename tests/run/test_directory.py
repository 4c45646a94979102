"""The folder of a run that names none: its own, however many begin in the same second, and gone if it cannot begin."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

import distmeta
from distmeta import api
from distmeta.errors import ConfigError, TaskContractError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def experiment(tasks=None) -> distmeta.Experiment:
    return distmeta.Experiment(
        learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
        tasks=tasks or distmeta.Sinusoids(shots=4, queries=4),
        outer=distmeta.Outer(iterations=1, meta_batch_size=2),
        evaluation=distmeta.Evaluation(every=0, test_tasks=2),
        name="sines",
    )


def test_two_runs_that_begin_in_the_same_second_have_two_folders(monkeypatch):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2, 3, 4, 5, tzinfo=tz)

    driver, other = api.Driver, []

    def slow(*words):
        """Another run begins, and ends, while this one is still checked."""
        if not other:
            other.append(None)
            other[0] = distmeta.meta_train(experiment())
        return driver(*words)

    monkeypatch.setattr(api.datetime, "datetime", Stopped)
    monkeypatch.setattr(api, "Driver", slow)
    first = distmeta.meta_train(experiment())
    assert first.run_dir == Path("runs/sines-20310102-030405")
    assert other[0].run_dir == Path("runs/sines-20310102-030405-2")
    assert all(distmeta.inspect_run(run.run_dir)["status"] == "finished" for run in (first, other[0]))


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_cannot_begin_leaves_nothing(there):
    if there:
        Path("runs").mkdir()
    with pytest.raises(TaskContractError):
        distmeta.meta_train(experiment(distmeta.FunctionTasks(lambda random, split: None)))
    assert [path.name for path in Path().rglob("*")] == ["runs"] * there


def test_where_no_folder_can_be_made_the_message_names_the_fix():
    Path("runs").write_text("")
    with pytest.raises(ConfigError, match=r"runs/sines-\S+ cannot be written: .*another --run-dir"):
        distmeta.meta_train(experiment())
