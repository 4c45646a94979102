"""MANN's loss by hand, and that it learns to remember."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distmeta import MANN, Experiment, FewShot, LabelSequences, TaskSpec, mann
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.testing import check_gradient
from distmeta.types import Episode


def judge(prediction, targets):
    return MANN(nn.Identity()).sequence_loss(prediction, targets)


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
    with pytest.raises(LearnerContractError, match=r"targets are bits .* Use NTM"):
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


def test_it_learns_to_remember():
    """Three random patterns per sequence: their labels can only be known by remembering them."""
    ways, length, pattern = 3, 9, 12
    random = torch.Generator().manual_seed(0)
    learner = MANN(mann(48, slots=16, width=12, reads=2)).bind(TaskSpec((pattern + ways,), ways, "sequence", 0, length))
    adam, seen = torch.optim.Adam(learner.model.parameters(), 1e-2), []
    for _ in range(700):  # 400 are enough for the slowest of three initialisations
        order = torch.stack([torch.randperm(length, generator=random) % ways for _ in range(32)])
        patterns = torch.randint(0, 2, (32, ways, pattern), generator=random) * 2.0 - 1
        x = patterns.gather(1, order[..., None].expand(-1, -1, pattern))
        code = nn.functional.one_hot(order, ways).float()
        losses, metrics = learner.sequence_loss(
            learner.model(torch.cat([x, code.roll(1, 1) * (torch.arange(length) > 0)[:, None]], -1)), order
        )
        adam.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
        adam.step()
        seen.append(metrics)
    last = {name: float(torch.cat([metrics[name] for metrics in seen[-20:]]).mean()) for name in seen[0]}
    assert last["accuracy_instance_1"] < 0.7
    assert last["accuracy_instance_2"] > 0.8
    assert last["accuracy_instance_3"] > 0.8


def test_wrong_tasks_and_networks_are_refused_with_the_fix(glyphs_dir):
    with pytest.raises(LearnerContractError, match="learns from sequences; the tasks are classification"):
        check_gradient(Experiment(learner=MANN(mann()), tasks=FewShot(str(glyphs_dir))))
    with pytest.raises(ModelContractError, match=r"mann\(\)"):
        check_gradient(Experiment(learner=MANN(nn.Linear(38, 7)), tasks=sequences(data=str(glyphs_dir))))


def test_the_picture_shows_labels_beliefs_and_where_the_heads_were():
    spec = TaskSpec((5,), 2, "sequence", 0, 6)
    learner = MANN(mann(size=8, slots=6, width=4, reads=2)).bind(spec)
    targets = torch.tensor([[0, 1, -1, 0, 1, 1]])
    episodes = Episode.sequence(torch.rand(6, 5), targets[0]).map(lambda part: part[None])
    panels = learner.pictures(learner.init_meta_params(np.random.default_rng(0)), episodes)["memory"].panels
    assert {name: part.shape for name, part in panels.items()} == {
        "label": (2, 6), "predicted": (2, 6), "write weights": (6, 6), "read weights": (6, 6),
    }  # fmt: skip
    assert panels["label"].T.tolist() == [[1, 0], [0, 1], [0, 0], [1, 0], [0, 1], [0, 1]]
    np.testing.assert_allclose(panels["predicted"].sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(panels["read weights"].sum(0), 1, rtol=1e-5)
