"""Tasks learned and asked together: every answer is that of the task alone."""

import numpy as np
import pytest
import torch
from torch import nn

from distmeta import MAML, MatchingNet, MetaLearner, ProtoNet, Reptile, Siamese, conv4
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import LearnerContractError
from distmeta.learners import find_learners
from distmeta.seeding import rng
from distmeta.serving.predictor import Predictor
from distmeta.serving.together import Question
from distmeta.types import TaskSpec
from set_models import reader

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, WAYS = 20, 5
SPEC = TaskSpec((1, SIDE, SIDE), WAYS, "classification", WAYS, WAYS)


class NearestMean(MetaLearner):
    """A user's algorithm with two forward passes."""

    def query_logits(self, params, episode):
        support, query = self.forward(params, episode.support_x), self.forward(params, episode.query_x)
        members = nn.functional.one_hot(episode.support_y, episode.ways).to(support)
        means = members.T @ support / members.sum(0)[:, None]
        return -(query[:, None] - means).square().sum(-1)


LEARNERS = {
    **{name: (kind, {}) for name, kind in find_learners().items() if kind.model_kind != "sequence"},
    "MAML of several steps": (MAML, {"inner_steps": 1, "test_inner_steps": 4}),
    "FOMAML": (MAML, {"first_order": True}),
    "ANIL": (MAML, {"adapt": "head"}),
    "Reptile with sgd": (Reptile, {"inner_optimizer": "sgd", "inner_batch": 4}),
    "Siamese koch": (Siamese, {"form": "koch"}),
    "MatchingNet full context": (MatchingNet, {"full_context": True, "features": 8}),
    "ProtoNet cosine": (ProtoNet, {"distance": "cosine"}),
    "NearestMean": (NearestMean, {}),
}


def predictor_of(name, norm="batch", vectorise="vmap", dtype=torch.float32):
    kind, values = LEARNERS[name]
    model = reader() if kind.model_kind == "set" else conv4(8, norm=norm, head=kind.model_kind == "classifier")
    learner = kind(model, vectorise=vectorise, **values).bind(SPEC, 0)
    learner.model.to(dtype)
    params = learner.init_meta_params(rng(0, "init"))
    learner.load(params)
    return Predictor(learner, params, SPEC, Preprocessing((1, SIDE, SIDE), "uint8"), {})


def question(seed, labels="abcde", shots=1, queries=2):
    random = torch.Generator().manual_seed(seed)
    centres = torch.rand(len(labels), 1, SIDE, SIDE, generator=random)
    support = [n for n in range(len(labels)) for _ in range(shots)]
    asked = torch.randint(len(labels), (queries,), generator=random).tolist()
    x = centres[support + asked]
    x = x + 0.3 * torch.rand(x.shape, generator=random)
    return Question(x[: len(support)], [labels[n] for n in support], x[len(support) :])


def alone(predictor, one):
    return predictor.adapt_all([(one.support_x, one.labels)])[0].fast.logits(one.query_x)


def off(a, b):
    return float((torch.from_numpy(a) - b).abs().max() / b.abs().max().clamp_min(1))


@pytest.mark.parametrize(
    ("norm", "dtype", "most"), [("batch", "float64", 1e-9), ("group", "float64", 1e-9), ("batch", "float32", 5e-5)]
)
@pytest.mark.parametrize("name", LEARNERS)
def test_together_as_alone_for_every_learner(name, norm, dtype, most):
    like = getattr(torch, dtype)
    predictor = predictor_of(name, norm, dtype=like)
    questions = [
        question(0),
        question(1, labels=["x", "y", "z"]),  # fewer classes
        question(2, labels="fghij"),
        question(3, queries=3),  # filled up to four
        question(4, shots=2),
        question(5, labels="ba", queries=1),
        question(6, queries=4),
        question(7, labels=[30, 7, 9]),
        question(8, labels="edcba"),  # the same labels in another order
    ]
    questions = [q._replace(support_x=q.support_x.to(like), query_x=q.query_x.to(like)) for q in questions]
    answers = predictor.predict_all(questions)
    for one, answer in zip(questions, answers, strict=True):
        assert answer.logits.shape == (len(one.query_x), len(set(one.labels)))
        assert off(answer.logits, alone(predictor, one)) < most
        assert answer.classes.tolist() == sorted(set(one.labels))
        np.testing.assert_allclose(answer.probabilities.sum(-1), 1, rtol=1e-5)
    in_another_order = predictor.predict_all(questions[::-1])[::-1]
    for a, b in zip(answers, in_another_order, strict=True):
        assert off(a.logits, torch.from_numpy(b.logits)) < most


def test_equal_tasks_are_computed_in_one_call(monkeypatch):
    predictor, sizes = predictor_of("MAML"), []
    plain = predictor._together._logits_of
    monkeypatch.setattr(predictor._together, "_logits_of", lambda q, *more: sizes.append(len(q)) or plain(q, *more))
    predictor.predict_all([question(n) for n in range(6)] + [question(9, labels="ab")])
    assert sizes == [6]


def test_large_inputs_are_computed_in_several_calls(monkeypatch):
    predictor, sizes = predictor_of("ProtoNet"), []
    plain = predictor._together._logits_of
    monkeypatch.setattr(predictor._together, "_logits_of", lambda q, *more: sizes.append(len(q)) or plain(q, *more))
    monkeypatch.setattr("distmeta.serving.together._AT_ONCE", 3 * (5 + 2) * SIDE * SIDE)
    questions = [question(n) for n in range(4)]
    answers = predictor.predict_all(questions)
    assert sizes == [2, 2]  # not 3 and 1: a rest costs as much as a whole part
    assert all(off(a.logits, alone(predictor, q)) < 1e-6 for a, q in zip(answers, questions, strict=True))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([4, 18, 18]), nn.BatchNorm2d(4)])
def test_gradient_steps_through_torchs_own_norms(norm):
    """Together they are torch's own, vectorised: exact as far as first derivatives go."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, WAYS))
    learner = MAML(net, inner_lr=0.5, test_inner_steps=5, vectorise="vmap").bind(SPEC, 0)
    learner.model.double()
    params = {name: p.double() for name, p in learner.init_meta_params(rng(0, "init")).items()}
    predictor = Predictor(learner, params, SPEC, Preprocessing((1, SIDE, SIDE), "uint8"), {})
    questions = [Question(q.support_x.double(), q.labels, q.query_x.double()) for q in map(question, range(4))]
    for one, answer in zip(questions, predictor.predict_all(questions), strict=True):
        assert off(answer.logits, alone(predictor, one)) < 1e-9


class Centred(nn.Module):
    """Mixes the inputs of a batch in a way that no statistics of norms keep apart."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, WAYS))

    def forward(self, x):
        features = self.inner(x)
        return features - features.mean(0)


@pytest.mark.parametrize("vectorise", ["vmap", "loop", "auto"])
def test_a_model_that_mixes_a_batch_answers_one_task_after_the_other(vectorise, monkeypatch):
    learner = MAML(Centred(), vectorise=vectorise)
    params = learner.init_meta_params(rng(0, "init"))
    predictor = Predictor(learner, params, SPEC, Preprocessing((1, SIDE, SIDE), "uint8"), {})
    monkeypatch.setattr(predictor._together, "_logits_of", None)  # not called
    questions = [question(n) for n in range(3)]
    for one, answer in zip(questions, predictor.predict_all(questions), strict=True):
        assert off(answer.logits, alone(predictor, one)) < 1e-6


def test_regression_and_no_queries_are_answered():
    spec = TaskSpec((2,), 1, "regression", 4, 4)
    learner = MAML(nn.Linear(2, 1), vectorise="vmap")
    predictor = Predictor(learner, learner.init_meta_params(rng(0, "init")), spec, Preprocessing((2,)), {})
    asked = [Question(torch.rand(4, 2), torch.rand(4, 1), torch.rand(3, 2)) for _ in range(2)]
    for one, answer in zip(asked, predictor.predict_all(asked), strict=True):
        assert answer.classes is None
        assert off(answer.predictions, learner.adapt(*one[:2]).predict(one.query_x)) < 1e-6
    # Before, only predict_all() took the targets of a regression: adapt_all() asked for labels.
    for one, fast in zip(asked, predictor.adapt_all([part[:2] for part in asked]), strict=True):
        assert fast.classes_ is None
        assert off(fast.predict(one.query_x), learner.adapt(*one[:2]).predict(one.query_x)) < 1e-6
    predictor = predictor_of("MAML")
    assert [a.logits.shape for a in predictor.predict_all([question(0, queries=0), question(1, queries=0)])] == [
        (0, 5)
    ] * 2


def test_what_is_no_task_is_refused():
    predictor = predictor_of("MAML")
    with pytest.raises(LearnerContractError, match="has 5 outputs; expected at most 5 classes"):
        predictor.predict_all([question(0), question(1, labels="abcdefg"), question(2, labels="abcdefg")])
    with pytest.raises(LearnerContractError, match="There are 5 inputs and 4 labels"):
        predictor.predict_all([question(0)._replace(labels=list("abcd"))])
