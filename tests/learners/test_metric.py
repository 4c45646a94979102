"""Metric-based learners: their papers' equations, and what they take."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distmeta import MAML, Experiment, FewShot, FunctionTasks, MatchingNet, ProtoNet, conv4, mlp
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.contract import probe, require_equal_ways
from distmeta.learners.functional import trainable
from distmeta.learners.metric import cosine, squared_distance
from distmeta.types import Episode, TaskSpec

WAYS, SHOTS, DIM = 4, 3, 6


def episode(shots=SHOTS, ways=WAYS, seed=0):
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=random)
    x = torch.randn(ways * shots, DIM, dtype=torch.float64, generator=random)
    y = torch.arange(ways).repeat_interleave(shots)[order]
    query = torch.randn(7, DIM, dtype=torch.float64, generator=random)
    return Episode(x, y, query, torch.zeros(7, dtype=torch.long)).counted()


def encoder():
    torch.manual_seed(0)
    return nn.Linear(DIM, 5).double()


def test_protonet_is_a_linear_classifier():
    """Snell et al. 2017, equation 8: weights 2 c_k and biases -|c_k|^2, up to a constant per query."""
    learner, one = ProtoNet(encoder()), episode()
    logits = learner.query_logits(trainable(learner.model), one)
    features = learner.model(one.support_x)
    centres = torch.stack([features[one.support_y == k].mean(0) for k in range(WAYS)])
    linear = learner.model(one.query_x) @ (2 * centres).T - centres.square().sum(-1)
    torch.testing.assert_close(logits.log_softmax(-1), linear.log_softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_matching_is_attention_over_the_labels(distance):
    """Vinyals et al. 2016, equation 1, by a loop."""
    learner, one = MatchingNet(encoder(), distance=distance, temperature=0.5), episode()
    found = learner.query_logits(trainable(learner.model), one).exp()
    g, f = learner.model(one.support_x), learner.model(one.query_x)
    for i in range(len(f)):
        kernel = [
            F.cosine_similarity(f[i], g[j], dim=0) if distance == "cosine" else -(f[i] - g[j]).square().sum()
            for j in range(len(g))
        ]
        attention = (torch.stack(kernel) / 0.5).softmax(0)
        expected = torch.stack([attention[one.support_y == k].sum() for k in range(WAYS)])
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_matching_without_temperature_is_the_nearest_neighbour(distance):
    learner, one = MatchingNet(encoder(), distance=distance, temperature=1e-4), episode(shots=1)
    g, f = learner.model(one.support_x), learner.model(one.query_x)
    nearest = cosine(f, g).argmax(-1) if distance == "cosine" else squared_distance(f, g).argmin(-1)
    found = learner.query_logits(trainable(learner.model), one)
    assert torch.equal(found.argmax(-1), one.support_y[nearest])
    torch.testing.assert_close(found.exp().max(-1).values, torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [ProtoNet, MatchingNet])
def test_a_classifier_is_refused_with_the_fix(kind):
    spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    learner = kind(conv4(4)).bind(spec)
    with pytest.raises(ModelContractError, match=rf"{kind.__name__} needs an encoder.*conv4\(head=False\)"):
        probe(learner, spec, Episode(x, y, x, y))


def test_an_encoder_is_refused_by_maml_with_the_fix():
    spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    with pytest.raises(ModelContractError, match=r"MAML needs a classifier.*expected \[5, 5\].*ProtoNet"):
        probe(MAML(conv4(4, head=False)).bind(spec), spec, Episode(x, y, x, y))


def test_metric_learners_take_any_ways_at_test_and_classifiers_do_not():
    train, test = (TaskSpec((DIM,), ways, "classification", ways, ways) for ways in (6, 4))
    require_equal_ways(ProtoNet(mlp(head=False)), train, test)
    with pytest.raises(LearnerContractError, match=r"trained on 6-way.*tested on 4-way.*tasks.train_ways"):
        require_equal_ways(MAML(mlp()), train, test)


def test_more_ways_in_training_than_at_test(digits_dir, tmp_path):
    import distmeta

    tasks = FewShot(digits_dir, ways=3, shots=1, queries=2, train_ways=5, train_queries=3)
    assert (tasks.spec_of("meta_train").outputs, tasks.spec.outputs) == (5, 3)
    experiment = Experiment(
        learner=ProtoNet(mlp((16,), head=False)),
        tasks=tasks,
        outer=distmeta.Outer(iterations=30, meta_batch_size=4, lr=0.01),
        evaluation=distmeta.Evaluation(test_tasks=40, validation_tasks=10),
    )
    result = distmeta.meta_train(experiment, run_dir=tmp_path / "run")
    assert result.test.mean("accuracy") > 0.6
    assert result.test.metrics["accuracy"].shape == (40,)


def test_any_function_can_be_a_few_shot_distribution():
    def blobs(random, split):
        centres = random.normal(size=(3, DIM))
        y = [0, 1, 2, 0, 1, 2]
        return centres[y], y, centres[y] + 0.01, y

    assert FunctionTasks(blobs).spec.outputs == 3
