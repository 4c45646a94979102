"""Labels of a kept task come back as they were; what JSON cannot have is refused."""

import json

import numpy as np
import pytest
import torch

import distmeta
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import ConfigError, FileDamaged, LearnerContractError
from distmeta.serving.kept_task import KeptTask, task_files
from distmeta.serving.predictor import Predictor
from distmeta.serving.sealed import write_sealed
from distmeta.types import TaskSpec

X = torch.eye(4)


def adapted(labels, learner=None):
    learner = learner or distmeta.ProtoNet(torch.nn.Flatten())
    predictor = Predictor(
        learner,
        dict(learner.model.named_parameters()),
        TaskSpec((4,), 4, "classification", 4, 4),
        Preprocessing((4,)),
        {},
    )
    return predictor.adapt(X, labels)


def kept(labels, folder, **options):
    write_sealed(folder, task_files(adapted(labels).fast, labels))
    return KeptTask.read(folder)


@pytest.mark.parametrize(
    "labels",
    [
        ["ant", "bee", "ant", "кот"],
        [7, 7, 2**70, -3],
        [True, False, True, True],
        ["a", None, 3, False],
        np.array(["x", "y", "x", "y"]),
        np.array([3, 1, 1, 3], np.int16),
        torch.tensor([30, 7, 7, 30]),
    ],
    ids=str,
)
def test_labels_come_back(labels, tmp_path):
    found = kept(labels, tmp_path / "a")
    listed = labels if isinstance(labels, list) else labels.tolist()
    again = found.labels if isinstance(found.labels, list) else found.labels.tolist()
    assert again == listed
    assert list(map(type, again)) == list(map(type, listed))
    assert torch.equal(found.support_x, X)
    assert not found.transductive


@pytest.mark.parametrize("label", [("a", 1), b"a", frozenset()])
def test_other_labels_are_refused_with_the_fix(label, tmp_path):
    with pytest.raises(LearnerContractError, match=r"cannot be kept in a file; .* Adapt with str\(label\)"):
        kept([label, "b", "b", "b"], tmp_path / "a")


def test_what_was_learned_is_not_learned_again(tmp_path):
    learner = distmeta.MAML(torch.nn.Linear(4, 2), inner_steps=3)
    fast = adapted(["a", "b", "a", "b"], learner)
    files = task_files(fast.fast, ["a", "b", "a", "b"])
    write_sealed(tmp_path / "a", files)
    found = KeptTask.read(tmp_path / "a")
    assert list(found.learned) == ["weight", "bias"]
    assert all(torch.equal(found.learned[name], value) for name, value in fast.fast.learned.items())
    assert not torch.equal(found.learned["weight"], learner.model.weight)


def test_targets_of_a_regression_come_back(tmp_path):
    learner, targets = distmeta.MAML(torch.nn.Linear(4, 1)), torch.rand(4, 1)
    predictor = Predictor(
        learner, dict(learner.model.named_parameters()), TaskSpec((4,), 1, "regression", 4, 4), Preprocessing((4,)), {}
    )
    write_sealed(tmp_path / "a", task_files(predictor.adapt(X, targets).fast, targets))
    assert torch.equal(KeptTask.read(tmp_path / "a").labels, targets)
    write_sealed(tmp_path / "b", task_files(predictor.adapt(X, targets.numpy()).fast, targets.numpy()))
    assert torch.equal(KeptTask.read(tmp_path / "b").labels, targets)


def test_a_learner_without_a_job_file_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"no job file.*Train it from a job file"):
        adapted([0, 1, 2, 3]).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("change", [{"labels": [[1], 2, 3, 4]}, {"learned": ["gone"]}, {"format": 2}, {"labels": 3}])
def test_a_task_that_is_none_is_named(change, tmp_path):
    from distmeta.files import record_bytes

    files = task_files(adapted([0, 1, 2, 3]).fast, [0, 1, 2, 3])
    values = json.loads(files["task/task.json"])
    values.pop("digest")
    files["task/task.json"] = record_bytes({**values, **change})
    write_sealed(tmp_path / "a", files)
    with pytest.raises(FileDamaged, match=r"task/task\.json"):
        KeptTask.read(tmp_path / "a")


def test_an_export_is_no_kept_task(tmp_path):
    write_sealed(tmp_path / "a", {"export.json": b"{}"})
    with pytest.raises(FileDamaged, match=r"no learned task; .* distmeta\.load"):
        KeptTask.read(tmp_path / "a")
