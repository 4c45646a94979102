"""The contract between an author and the package: what is written, what is final, what is refused."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distmeta import MAML, FunctionTasks, MetaLearner, ProtoNet, Siamese
from distmeta.errors import LearnerContractError
from distmeta.learners import find_learners
from distmeta.learners.engine import Engine
from distmeta.learners.inner_loop import GradientLearner
from distmeta.learners.metric import MetricLearner
from distmeta.learners.sequence import SequenceLearner
from distmeta.learners.user_face import UserFace
from distmeta.types import Episode


def public(kind):
    return {name for name in vars(kind) if not name.startswith("_") and name not in ("Config", "config")}


def test_an_author_reads_nine_public_names():
    assert public(MetaLearner) == {
        "query_logits",
        "meta_loss",
        "init_meta_params",
        "for_evaluation",
        "at_step",
        "exact_gradient",
        "pictures",
        "model",
        "forward",
    }
    assert public(UserFace) == {"train", "adapt", "meta_params", "load", "adopt"}
    assert MetaLearner.__abstractmethods__ == {"query_logits"}


ABSTRACT = {"query_logits", "fast_params", "descent", "sequence_loss"}
HOOKS = {"meta_loss", "init_meta_params", "for_evaluation", "at_step", "exact_gradient", "pictures"}
FAMILY_HOOKS = {
    "bound_to",
    "chunk_answers",
    "chunk_gradient",
    "chunk_learned",
    "chunk_losses",
    "chunk_predictions",
    "explained",
    "learned",
    "predictive",
    "spec_for_model",
    "using",
}


def test_hooks_are_named_in_their_docstrings():
    for kind, names in ((MetaLearner, HOOKS), (Engine, FAMILY_HOOKS)):
        for name in names:
            method = vars(kind)[name]
            doc = (method.fget if isinstance(method, property) else method).__doc__
            assert doc.startswith("Hook:"), name


@pytest.mark.parametrize("kind", [*find_learners().values(), GradientLearner, MetricLearner, SequenceLearner])
def test_a_learner_overrides_hooks_and_nothing_else(kind):
    overridden = {name for name in public(kind) if any(name in vars(parent) for parent in kind.__mro__[1:])}
    assert overridden - {"model_kind", "joins_support"} <= ABSTRACT | HOOKS | FAMILY_HOOKS | {"support_weights"}


@pytest.mark.parametrize(
    ("parent", "name", "hooks"),
    [
        (MetaLearner, "evaluate", "query_logits, meta_loss"),
        (MetaLearner, "meta_gradient", "query_logits, meta_loss"),
        (MetaLearner, "adapt", "query_logits"),
        (MetaLearner, "bind", "query_logits"),
        (MetaLearner, "query_logits_alone", "query_logits"),
        (MAML, "query_logits", "hooks fast_params, descent, meta_loss, init_meta_params, at_step, exact_gradient, or"),
        (MAML, "pictures", "fast_params"),
        (ProtoNet, "embed", "query_logits"),
        (SequenceLearner, "meta_loss", "sequence_loss"),
    ],
)
def test_an_override_of_a_final_method_is_refused_with_the_hooks(parent, name, hooks):
    with pytest.raises(LearnerContractError, match=f"Mine overrides {name}, which is final in .*{hooks}"):
        type("Mine", (parent,), {name: lambda self: None})


def test_an_override_of_a_final_property_is_refused():
    with pytest.raises(LearnerContractError, match="Mine overrides model, which is final in MetaLearner"):
        type("Mine", (MAML,), {"model": property(lambda self: None)})


@pytest.mark.parametrize("name", ["query_logits", "evaluate", "adapt"])
def test_a_mixin_before_the_learner_overrides_nothing_final_either(name):
    mixin = type("Mixin", (), {name: lambda self: None})
    with pytest.raises(LearnerContractError, match=f"Mine overrides {name} by its base Mixin, which is final in "):
        type("Mine", (mixin, MAML), {})
    assert type("Mine", (MAML, mixin), {}).__mro__[1] is MAML  # hidden by the learner's own
    type("Mine", (type("Mixin", (), {"meta_loss": lambda self: None}), MAML), {})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"network": "classifier"}, r"Mine sets 'network', which has no effect any more; expected 'model_kind'"),
        ({"at": lambda self, step: self}, r"Mine sets 'at', which has no effect any more; expected 'at_step'"),
        (
            {"model_kind": property(lambda self: "classifier")},
            r"Mine has model_kind as a property; expected a class attribute, one of classifier, encoder",
        ),
        ({"model_kind": "clasifier"}, r"model_kind='clasifier'; expected one of classifier, encoder, sequence, set"),
    ],
)
def test_a_name_without_effect_is_refused(attributes, message):
    with pytest.raises(LearnerContractError, match=message):
        type("Mine", (MetaLearner,), attributes)


def test_a_network_that_is_no_kind_is_the_authors_own():
    assert type("Mine", (MAML,), {"network": nn.Linear}).network is nn.Linear


def clusters(random, split):
    centres = random.normal(size=(3, 6))
    y = torch.arange(3).repeat_interleave(4).numpy()
    x = centres[y] + 0.3 * random.normal(size=(12, 6))
    return x[::2], y[::2], x[1::2], y[1::2]


class Regularised(MetaLearner):
    """A loss with a penalty, beside the default predictions."""

    def query_logits(self, params, episode):
        support, query = self.forward(params, episode.support_x), self.forward(params, episode.query_x)
        members = F.one_hot(episode.support_y, episode.ways).to(support)
        return query @ (members.T @ support).T

    def meta_loss(self, params, episode):
        loss, metrics = super().meta_loss(params, episode)
        penalty = sum(p.square().sum() for p in params.values())
        return loss + penalty, {**metrics, "penalty": penalty}


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_evaluation_reports_the_loss_that_is_trained(vectorise):
    learner = Regularised(nn.Linear(6, 4), vectorise=vectorise)
    episodes = (
        FunctionTasks(clusters).take(1)[0].episode.map(lambda part: part[None]).to(torch.device("cpu"), torch.float32)
    )
    params = learner.meta_params
    found = learner.evaluate(params, episodes)
    assert list(found) == ["loss", "accuracy", "penalty", "accuracy_non_transductive", "nll", "roc_auc"]
    torch.testing.assert_close(found["loss"], learner.meta_gradient(params, episodes).metrics["loss"])
    assert float(found["penalty"][0]) == pytest.approx(float(sum(p.square().sum() for p in params.values())))


class LossOnly(Regularised):
    """Returns its loss and no metrics."""

    def meta_loss(self, params, episode):
        loss, _ = super().meta_loss(params, episode)
        return loss, {}


class Scored(MAML):
    """Calls the fraction of close values an accuracy."""

    def meta_loss(self, params, episode):
        error = self.query_logits(params, episode) - episode.query_y
        return error.square().mean(), {"accuracy": (error.abs() < 0.1).to(error.dtype).mean()}


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_accuracy_is_of_classes_and_needs_no_metric_of_the_loss(vectorise):
    episodes = (
        FunctionTasks(clusters).take(1)[0].episode.map(lambda part: part[None]).to(torch.device("cpu"), torch.float32)
    )
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    full, bare = (kind(model, vectorise=vectorise) for kind in (Regularised, LossOnly))
    expected, found = (learner.evaluate(learner.meta_params, episodes) for learner in (full, bare))
    assert list(found) == ["loss", "accuracy", "accuracy_non_transductive", "nll", "roc_auc"]
    for name, value in found.items():
        assert torch.equal(value, expected[name])

    regression = Episode(torch.rand(2, 5, 6), torch.rand(2, 5, 1), torch.rand(2, 5, 6), torch.rand(2, 5, 1))
    scored = Scored(nn.Linear(6, 1), vectorise=vectorise)
    assert list(scored.evaluate(scored.meta_params, regression)) == ["loss", "accuracy"]  # a KeyError before


def test_queries_without_a_support_set_are_predicted_alone_too():
    learner = MAML(nn.Linear(6, 3))
    x, model = torch.rand(4, 6), learner.model
    with torch.no_grad():
        torch.testing.assert_close(learner.predict_alone(model, x[:0], x, loop=False), model(x))


def test_the_learner_reads_sizes_off_a_model_that_was_built_or_given():
    spec = FunctionTasks(clusters).spec
    for model in (nn.Linear(6, 5), lambda spec: nn.Linear(6, 5)):
        bound = Siamese(model, form="koch").bind(spec)
        assert bound.meta_params["pair/alpha"].shape == (5,)


def test_help_shows_the_settings():
    assert list(inspect.signature(MAML).parameters)[:2] == ["model", "batch_norm"]
    assert {"inner_lr", "inner_steps", "test_inner_steps"} <= set(inspect.signature(MAML).parameters)
