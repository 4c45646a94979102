"""Evaluation: each query without the others, in one batch where that is the same, and never where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distmeta.learners.functional import evaluating
from distmeta.learners.losses import of_task
from distmeta.learners.maml import MAML
from distmeta.learners.matching_net import MatchingNet
from distmeta.learners.over_tasks import unstack
from distmeta.learners.protonet import ProtoNet
from distmeta.learners.siamese import Siamese
from distmeta.types import Episode

TASKS, WAYS, QUERIES, DIM = 3, 4, 9, 6


class Counting(nn.Module):
    """Counts forward passes, and mixes the inputs of a batch as far as its gate is open."""

    def __init__(self, outputs, gate, norm):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 8), norm or nn.Identity(), nn.Tanh(), nn.Linear(8, outputs))
        self.gate = nn.Parameter(torch.tensor(gate))
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.layers(x + self.gate * x.amax(0))


def tasks():
    torch.manual_seed(0)
    y = torch.arange(WAYS).expand(TASKS, WAYS).contiguous()
    x = torch.randn(TASKS, WAYS, DIM, dtype=torch.float64)
    asked = torch.randint(WAYS, (TASKS, QUERIES))
    near = x.gather(1, asked[..., None].expand(-1, -1, DIM))
    return Episode(x, y, near + 0.8 * torch.randn_like(near), asked)


def build(kind, gate, norm, vectorise):
    torch.manual_seed(1)
    outputs = WAYS if kind is MAML else 5
    settings = {"inner_steps": 2, "adapt": "layers.*"} if kind is MAML else {}
    return kind(Counting(outputs, gate, norm).double(), vectorise=vectorise, **settings)


def expected(learner, params, episodes):
    """Logits of every query in a pass of its own, by the definition."""
    with evaluating(learner.model), torch.no_grad():
        alone = learner.with_config(vectorise="loop")
        return torch.stack([of_task(alone.query_logits_alone(params, one), one) for one in unstack(episodes)])


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("norm", [None, lambda: nn.BatchNorm1d(8, track_running_stats=False)])
@pytest.mark.parametrize("gate", [0.0, 1.0])
@pytest.mark.parametrize("kind", [MAML, ProtoNet, MatchingNet, Siamese])
def test_what_evaluation_reports_is_by_the_definition(kind, gate, norm, vectorise):
    learner, episodes = build(kind, gate, norm and norm(), vectorise), tasks()
    params = learner.meta_params
    with evaluating(learner.model), torch.no_grad():
        (found, logits), *others = learner.chunk_predictions(params, episodes)
    assert not others
    wanted = expected(learner, params, episodes)
    torch.testing.assert_close(logits, wanted, rtol=1e-8, atol=1e-10)
    right = (wanted.argmax(-1) == episodes.query_y).double().mean(-1)
    torch.testing.assert_close(found["accuracy_non_transductive"], right)
    losses, _ = zip(*(learner.meta_loss(params, one) for one in unstack(episodes)), strict=True)
    torch.testing.assert_close(found["loss"], torch.stack(losses).detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("gate", "most"), [(0.0, 9), (1.0, 8 + QUERIES)])
def test_passes_of_a_model_that_does_not_mix_do_not_grow_with_the_queries(gate, most):
    """A gate that opens in the middle of training is noticed: nothing is remembered from the first evaluation."""
    learner, one = build(MAML, 0.0, None, "loop"), tasks().map(lambda part: part[:1])
    params = {**learner.meta_params, "gate": torch.tensor(gate, dtype=torch.float64)}
    learner.evaluate(learner.meta_params, one)
    learner.model.batches.clear()
    learner.evaluate(params, one)
    assert len(learner.model.batches) <= most
    assert (len(learner.model.batches) > QUERIES) == bool(gate)


def test_a_support_set_is_learned_from_once():
    class Once(MAML):
        calls = 0

        def fast_params(self, params, episode):
            Once.calls += 1
            return super().fast_params(params, episode)

    torch.manual_seed(0)
    Once(Counting(WAYS, 0.0, nn.BatchNorm1d(8, track_running_stats=False)).double(), vectorise="loop").evaluate(
        build(MAML, 0.0, nn.BatchNorm1d(8, track_running_stats=False), "loop").meta_params, tasks()
    )
    assert Once.calls == TASKS
