"""MANN's loss and its accuracies by instance, by hand; and that it learns to remember."""

import math

import pytest
import torch
from torch import nn

from distmeta import MANN, Experiment, FewShot, FunctionTasks, LabelSequences, Outer, conv4, mann, meta_train
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.instances import accuracies, instance
from distmeta.runtime.settings import Evaluation, Runtime
from distmeta.testing import check_gradient
from distmeta.types import Episode


def test_instances_are_counted_per_class_and_per_sequence():
    targets = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [2, -1, 2, -1, 0]])
    assert instance(targets).tolist() == [[1, 1, 2, 3, 2], [1, 2, 3, 4, 5], [1, 0, 2, 0, 1]]


def test_a_string_is_one_class_only_if_all_symbols_are_the_same():
    targets = torch.tensor([[[0, 1], [1, 0], [0, 1], [0, 0]]])
    assert instance(targets).tolist() == [[1, 1, 2, 1]]


def test_accuracies_by_hand():
    targets = torch.tensor([[0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    right = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 1]]).bool()
    found = accuracies(right, targets)
    assert {name: value.tolist() for name, value in found.items()} == {
        "accuracy": [0.5, pytest.approx(4 / 6)],
        "accuracy_instance_1": [0.0, 0.5],
        "accuracy_instance_2": [1.0, 0.5],
        "accuracy_instance_3": [0.5, 1.0],
    }


def test_the_tenth_instance_is_there_when_there_is_one():
    targets = torch.arange(20)[None] % 2
    found = accuracies(torch.arange(20)[None] >= 18, targets)
    assert [name.rsplit("_", 1)[1] for name in found if "instance" in name] == ["1", "2", "3", "4", "5", "10"]
    assert found["accuracy_instance_10"].tolist() == [1.0]
    assert "accuracy_instance_10" not in accuracies(torch.ones(1, 18).bool(), targets[:, :18])


def judge(prediction, targets):
    return MANN(nn.Identity()).judge(prediction, targets)


def test_the_loss_of_one_hot_labels_by_hand():
    prediction = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[0, 1, -1]])  # the last step is not scored
    losses, metrics = judge(prediction, targets)
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert losses.tolist() == [pytest.approx(expected, rel=1e-6)]
    assert metrics["accuracy"].tolist() == [0.5]


def test_the_loss_of_strings_by_hand():
    """Two symbols of three: the loss is summed over the symbols, and a label is right when both are."""
    prediction = torch.tensor([[[9.0, 0, 0, 0, 9, 0], [0, 9, 0, 0, 9, 0]]])
    targets = torch.tensor([[[0, 1], [1, 0]]])
    losses, metrics = judge(prediction, targets)
    right, wrong = math.log(1 + 2 * math.exp(-9)), 9 + math.log(1 + 2 * math.exp(-9))
    assert losses.tolist() == [pytest.approx((3 * right + wrong) / 2, rel=1e-5)]
    assert metrics["accuracy"].tolist() == [0.5]


def test_bits_are_refused():
    with pytest.raises(LearnerContractError, match="targets are bits .* Use NTM"):
        judge(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3))


def sequences(**changes):
    settings = {"data": "glyphs", "ways": 2, "length": 8, "size": 6, "rotations": "none", "augment": False} | changes
    return LabelSequences(**settings)


@pytest.mark.parametrize("labels", ["one-hot", "strings"])
@pytest.mark.parametrize("access", ["lru", "ntm"])
def test_the_meta_gradient_is_exact(labels, access, glyphs_dir):
    tasks = sequences(labels=labels, data=str(glyphs_dir))
    learner = MANN(mann(5, slots=6, width=4, reads=2, access=access))
    check_gradient(Experiment(learner=learner, tasks=tasks)).require()


def test_it_learns_to_remember(tmp_path, digits_dir):
    """Two classes of noisy patterns: a class seen once is known again far above chance."""
    result = meta_train(
        MANN(mann(32, slots=16, width=8, reads=2)),
        sequences(data=str(digits_dir), size=8),
        outer=Outer(iterations=400, meta_batch_size=16, lr=3e-3),
        runtime=Runtime(chunk_size=16),
        evaluation=Evaluation(every=0, test_tasks=200),
        run_dir=tmp_path / "run",
    )
    means = {name: float(values.mean()) for name, values in result.test.metrics.items()}
    assert means["accuracy_instance_1"] < 0.6
    assert means["accuracy_instance_2"] > 0.8
    assert means["accuracy_instance_4"] > 0.8


def test_wrong_tasks_and_networks_are_refused_with_the_fix(glyphs_dir):
    with pytest.raises(LearnerContractError, match="learns from sequences; the tasks are classification"):
        check_gradient(Experiment(learner=MANN(mann()), tasks=FewShot(str(glyphs_dir))))
    with pytest.raises(ModelContractError, match=r"mann\(\)"):
        check_gradient(Experiment(learner=MANN(nn.Linear(38, 7)), tasks=sequences(data=str(glyphs_dir))))
