"""The cost in bits, which targets it takes, and the data for a picture of the memory."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from distmeta import (
    NTM,
    CopyTask,
    Episode,
    FunctionTasks,
    MatchingNet,
    NGramsTask,
    Sinusoids,
    TaskSpec,
    conv4,
    lstm,
    mlp,
    ntm,
)
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.maml import MAML
from distmeta.learners.probe import probe
from distmeta.seeding import rng
from distmeta.types import TaskRef

TASKS = CopyTask(bits=3, length=4, min_length=1, max_length=4)
SMALL = {"size": 6, "slots": 33, "width": 3}


def judge(logits, targets):
    learner = NTM(ntm(**SMALL))
    return learner.sequence_loss(
        torch.tensor([logits], dtype=torch.float64), torch.tensor([targets], dtype=torch.float64)
    )


def test_the_cost_by_hand():
    """Three scored bits with probabilities 3/4, 1/4 and 1/2 of the right answer: log2 of 4/3, 4 and 2."""
    three = math.log(3)
    losses, metrics = judge([[three, 50.0], [three, -0.0]], [[1.0, -1.0], [0.0, 0.0]])
    assert metrics["bits"].tolist() == pytest.approx([math.log2(4 / 3) + 2 + 1])
    assert losses.tolist() == pytest.approx([math.log(4 / 3 * 4 * 2)])
    assert metrics["bit_errors"].tolist() == [1]


@given(st.integers(0, 10**6))
def test_what_is_not_scored_does_not_matter(seed):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 3, generator=random, dtype=torch.float64).requires_grad_()
    targets = torch.randint(-1, 2, (4, 5, 3), generator=random).double()
    learner = NTM(ntm(**SMALL))
    losses, metrics = learner.sequence_loss(logits, targets)
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert torch.equal(slope != 0, targets >= 0)
    changed = torch.where(targets < 0, -logits + 3, logits)
    other = learner.sequence_loss(changed, targets)
    assert torch.equal(losses, other[0])
    assert torch.equal(metrics["bit_errors"], other[1]["bit_errors"])
    wrong = ((logits > 0).double() != targets) & (targets >= 0)
    assert metrics["bit_errors"].tolist() == wrong.flatten(1).sum(1).tolist()


def test_an_even_guess_costs_the_baseline():
    episodes = TASKS.episodes([TaskRef("meta_test", 0, i) for i in range(3)], 0)
    _, metrics = NTM(ntm(**SMALL)).sequence_loss(torch.zeros_like(episodes.query_y), episodes.query_y)
    torch.testing.assert_close(metrics["bits"], TASKS.baseline(episodes)["baseline_bits"])


def test_a_model_is_judged_on_longer_sequences_than_it_was_trained_on():
    learner = NTM(ntm(**SMALL)).bind(TASKS.spec, seed=0)
    params = learner.init_meta_params(rng(0, "init"))
    for length in (4, 10, 50):
        episodes = TASKS.with_config(length=length).episodes([TaskRef("meta_test", 0, i) for i in range(2)], 0)
        found = learner.evaluate(params, episodes)
        assert set(found) == {"loss", "bits", "bit_errors"}
        # an untrained model guesses
        assert found["bits"].tolist() == pytest.approx([3 * length] * 2, rel=0.3)


@pytest.mark.parametrize("factory", [ntm(**SMALL), ntm("feedforward", **SMALL), ntm(heads=2, **SMALL), lstm(6, 1)])
def test_every_sequence_model_passes_the_probe(factory):
    for tasks in (TASKS, NGramsTask(order=3, length=12)):
        learner = NTM(factory).bind(tasks.spec, 0)
        episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
        assert probe(learner, tasks.spec_of("meta_train"), episodes).message is None


def test_what_it_cannot_take():
    episode = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    labels = Episode(*(part.long() if i % 2 else part for i, part in enumerate(episode)))
    with pytest.raises(LearnerContractError, match="NTM answers in bits; the tasks have targets of type int64"):
        probe(NTM(ntm(**SMALL)).bind(TASKS.spec), TASKS.spec, labels)
    sines = Sinusoids()
    with pytest.raises(LearnerContractError, match="NTM learns from sequences; the tasks are regression"):
        probe(NTM(mlp((4,))).bind(sines.spec), sines.spec, sines.episodes([TaskRef("meta_train", 0, 0)], 0))
    with pytest.raises(LearnerContractError, match="MAML learns from a support set; the tasks are sequences"):
        probe(MAML(mlp((4,))).bind(TASKS.spec), TASKS.spec, episode)
    with pytest.raises(LearnerContractError, match="MatchingNet learns from a support set; the tasks are sequences"):
        MatchingNet(conv4(head=False)).bind(TASKS.spec)  # the tasks, not the network that cannot be built for them
    with pytest.raises(ModelContractError, match="conv4 takes images"):
        NTM(conv4()).bind(TASKS.spec)
    with pytest.raises(ModelContractError, match="NTM needs a sequence model"):
        probe(NTM(torch.nn.Sequential(torch.nn.Flatten(0, 1), torch.nn.Linear(4, 3))), TASKS.spec, episode)
    with pytest.raises(LearnerContractError, match="one sequence that holds the labels too"):
        NTM(ntm(**SMALL)).adapt(torch.zeros(1, 2), torch.zeros(1))


@pytest.mark.parametrize("heads", [1, 2])
def test_the_data_of_a_picture_are_those_of_the_forward_pass(heads):
    learner = NTM(ntm(heads=heads, **SMALL)).bind(TASKS.spec, 0)
    params = {name: p + 0.1 for name, p in learner.init_meta_params(rng(0, "init")).items()}
    episode = TASKS.take(1)[0].episode
    panels = learner.memory_panels(params, episode)
    assert list(panels) == ["inputs", "outputs", "write weights", "read weights"]
    assert np.array_equal(panels["inputs"], episode.query_x.T.numpy())
    expected = learner.query_logits(params, episode).sigmoid().T.numpy()  # with these parameters, not the model's own
    assert np.isnan(panels["outputs"][:, :5]).all()
    np.testing.assert_allclose(panels["outputs"][:, 5:], expected[:, 5:], rtol=1e-5)
    for name in ("write weights", "read weights"):
        assert panels[name].shape == (33, 9)
        np.testing.assert_allclose(panels[name].sum(0), 1, rtol=1e-5)


def test_a_model_without_memory_has_no_weights_to_show():
    learner = NTM(lstm(6, 1)).bind(TASKS.spec, 0)
    panels = learner.memory_panels(learner.init_meta_params(rng(0, "init")), TASKS.take(1)[0].episode)
    assert list(panels) == ["inputs", "outputs"]


def test_users_may_write_their_own_sequence_tasks():
    """An Episode.sequence from a function, with bits for targets."""
    spec = TaskSpec((1,), 1, "sequence", 0, 6)

    class Parity(CopyTask):
        definition = "parity"
        channels = (1, 1)

        def steps(self, split):
            return 6

        def sequence(self, split, random):
            bits = random.integers(0, 2, (6, 1)).astype(np.float32)
            return bits, np.cumsum(bits, 0) % 2

    tasks = Parity()
    tasks.check()
    assert tasks.spec == spec
    learner = NTM(ntm(**SMALL)).bind(spec)
    assert learner.evaluate(learner.meta_params, tasks.episodes([TaskRef("meta_test", 0, 0)], 0))["bits"] > 0
    assert not isinstance(tasks, FunctionTasks)
