"""Lake's runs as tasks, on a small dataset of the same form: two runs of two classes."""

import sys

import numpy as np
import pytest
import torch

from distmeta import LakeRuns, from_arrays
from distmeta.errors import ConfigError, TaskContractError
from distmeta.tasks import lake_runs
from distmeta.types import TaskRef

RUN_CLASSES = ["run01/class01", "run01/class02", "run02/class01", "run02/class02"]


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    """A dataset of noise: two classes to train on, two to validate on, and the four classes of two runs."""
    monkeypatch.setattr(lake_runs, "RUNS", 2)
    monkeypatch.setattr(lake_runs, "WAYS", 2)
    counts = [20] * 4 + [2] * 4
    x = np.random.default_rng(0).integers(0, 256, (sum(counts), 1, 28, 28)).astype(np.uint8)
    splits = {"meta_train": range(2), "meta_validation": range(2, 4), "meta_test": range(4, 8)}
    names = ["Zero/character01", "Zero/character02", "One/character01", "One/character02", *RUN_CLASSES]
    from_arrays(x, np.repeat(np.arange(8), counts), tmp_path / "runs", splits=splits, class_names=names)
    return tmp_path / "runs"


def test_task_i_is_run_i(runs_dir):
    tasks = LakeRuns(runs_dir, ways=2, train_queries=3)
    tasks.check()
    assert tasks.count("meta_train") is None
    runs = tasks.dataset.split("meta_test")
    for i in (0, 1):
        one = tasks.episode(TaskRef("meta_test", 0, i), seed=i)
        assert (one.support_y.tolist(), one.query_y.tolist(), one.ways) == ([0, 1], [0, 1], 2)
        classes = np.array([2 * i, 2 * i + 1])
        assert tasks.class_names(TaskRef("meta_test", 0, i), seed=i) == tuple(RUN_CLASSES[2 * i : 2 * i + 2])
        for x, row in ((one.support_x, 0), (one.query_x, 1)):
            expected = runs.gather(classes, np.array([row, row]))
            assert torch.equal((x * 255).round().to(torch.uint8), torch.from_numpy(expected))
    assert len(tasks.take(20)) == 2
    assert set(tasks.class_names(TaskRef("meta_train", 0, 0), 0)) == {"Zero/character01", "Zero/character02"}
    assert [len(part) for part in tasks.episode(TaskRef("meta_train", 0, 0), 0)] == [2, 2, 6, 6]
    with pytest.raises(TaskContractError, match=r"There are 2 runs, 0 to 1; run 2 was asked for.*test_tasks=2"):
        tasks.episode(TaskRef("meta_test", 0, 2), 0)


def test_more_test_tasks_than_runs_are_refused_before_training(runs_dir, tmp_path):
    import distmeta

    experiment = distmeta.Experiment(
        learner=distmeta.Siamese(distmeta.mlp((8,), head=False)), tasks=LakeRuns(runs_dir, ways=2)
    )
    with pytest.raises(ConfigError, match=r"test_tasks=600, but meta_test has 2 different tasks. Set .*test_tasks=2"):
        distmeta.meta_train(experiment, run_dir=tmp_path / "run")


def test_a_finished_run_is_evaluated_on_as_many_runs_as_there_are(runs_dir, tmp_path, monkeypatch):
    import distmeta
    from distmeta.run.evaluating import evaluate
    from distmeta.run.results import EvaluationRequest

    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "job.py").write_text(
        "from distmeta import *\n"
        f"experiment = Experiment(learner=Siamese(mlp((8,), head=False)), tasks=LakeRuns({str(runs_dir)!r}, ways=2), "
        "outer=Outer(iterations=1, meta_batch_size=1), evaluation=Evaluation(every=0, test_tasks=2))"
    )
    monkeypatch.chdir(tmp_path)
    done = distmeta.meta_train(distmeta.load_job("job.py"), run_dir="run")
    assert evaluate("run").report.tasks == 2
    assert evaluate("run").report.mean("accuracy") == done.test.mean("accuracy")
    with pytest.raises(ConfigError, match=r"--tasks=3, but meta_test has 2 different tasks\. Set --tasks=2 or less"):
        evaluate("run", EvaluationRequest(tasks=3))


@pytest.mark.parametrize("settings", [{"ways": 5}, {"shots": 2}, {"queries": 2}, {"rotations": "all"}])
def test_the_protocol_is_fixed(settings):
    with pytest.raises(TaskContractError, match=r"Lake's runs are 20-way 1-shot.*tasks.train_ways"):
        LakeRuns(**settings)
    with pytest.raises(TaskContractError, match="20-way 1-shot"):
        LakeRuns().with_config(**settings)


def test_other_data_are_not_the_runs(digits_dir):
    with pytest.raises(TaskContractError, match=r"expected the 400 of Lake's runs.*distmeta data build omniglot-runs"):
        LakeRuns(digits_dir, train_ways=2).check()


def test_classes_without_runs_names(runs_dir, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (80, 1, 8, 8)).astype(np.uint8)
    from_arrays(x, np.repeat(np.arange(8), 10), tmp_path / "other", splits="50/0/50")
    with pytest.raises(TaskContractError, match="Lake's runs"):
        LakeRuns(tmp_path / "other", ways=2).check()
