"""What users call: adapt, predict, evaluate, and a model that adapts itself."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import distmeta
from distmeta import MAML, FewShot, MetaModule, Sinusoids, mlp
from distmeta.errors import ConfigError, LearnerContractError
from distmeta.learners.functional import trainable

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
NEW_X, NEW_Y = X + 0.1, Y


class MyModel(MetaModule, nn.Linear):
    pass


def descended(model, steps, lr=0.5):
    """The model after ``steps`` plain gradient steps, torch alone."""
    params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, params, (X,)), Y)
        gradient = torch.autograd.grad(loss, list(params.values()))
        params = {
            name: (p - lr * g).detach().requires_grad_() for (name, p), g in zip(params.items(), gradient, strict=True)
        }
    return functional_call(model, params, (NEW_X,)).detach()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("settings", "steps"), [({}, 2), ({"test_inner_steps": 7}, 7), ({"test_inner_steps": 0}, 0)])
def test_adapt_takes_the_steps_of_evaluation(settings, steps, first_order):
    model = nn.Linear(4, 3)
    fast = MAML(model, inner_lr=0.5, inner_steps=2, first_order=first_order, **settings).adapt(X, Y)
    torch.testing.assert_close(fast.logits(NEW_X), descended(model, steps))


def test_for_evaluation_changes_steps_and_nothing_else():
    learner = MAML(nn.Linear(4, 3), inner_lr=0.3, inner_steps=2, test_inner_steps=9, adapt="head", vectorise="loop")
    evaluated = learner.for_evaluation()
    assert evaluated.config == learner.config.replace(inner_steps=9)
    assert evaluated.model is learner.model
    assert (learner.config.inner_steps, learner.config.first_order) == (2, False)
    assert MAML(nn.Linear(4, 3), inner_steps=3).for_evaluation().config.inner_steps == 3


def test_a_fast_model_predicts_evaluates_and_scores():
    fast = MAML(nn.Linear(4, 3), inner_lr=0.5, inner_steps=5).adapt(X, Y)
    logits = fast.logits(NEW_X)
    assert (logits.shape, logits.requires_grad) == ((6, 3), False)
    assert fast.evaluate(NEW_X, NEW_Y) == pytest.approx(F.cross_entropy(logits, NEW_Y).item())
    assert fast.accuracy(NEW_X, NEW_Y) == pytest.approx((logits.argmax(1) == NEW_Y).float().mean().item())


def test_regression_is_judged_by_its_squared_error():
    x, y = X[:, :1], X[:, 1:2]
    fast = MAML(nn.Linear(1, 1), inner_lr=0.1).adapt(x, y)
    assert fast.evaluate(x, y) == pytest.approx((fast.predict(x) - y).square().mean().item())


def test_two_tasks_do_not_share_a_fast_model():
    learner = MAML(nn.Linear(4, 3), inner_lr=0.5, inner_steps=3)
    one = learner.adapt(X, Y)
    before = one.logits(NEW_X)
    two = learner.adapt(X, (Y + 1) % 3)
    assert torch.equal(one.logits(NEW_X), before)
    assert not torch.allclose(two.logits(NEW_X), before)
    with torch.no_grad():
        learner.model.weight.zero_()  # later meta-training does not reach back
    assert torch.equal(one.logits(NEW_X), before)


def test_adapting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    before = {name: p.clone() for name, p in model.named_parameters()}
    fast = MAML(model, inner_lr=0.5).adapt(X, Y)
    assert torch.equal(fast.logits(NEW_X), fast.logits(NEW_X))  # no dropout
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_a_model_adapts_itself_once_a_learner_holds_it():
    model = MyModel(4, 3)
    learner = MAML(model, inner_lr=0.5, inner_steps=4)
    fast = model.adapt(X, Y)
    torch.testing.assert_close(model.predict_proba(NEW_X), descended(model, 4).softmax(1))
    assert model.evaluate(NEW_X, NEW_Y) == fast.evaluate(NEW_X, NEW_Y)
    assert torch.equal(model.predict(NEW_X), learner.adapt(X, Y).predict(NEW_X))
    assert list(trainable(model)) == ["weight", "bias"]  # the mix-in adds no parameters
    assert set(model.state_dict()) == {"weight", "bias"}


def test_the_mix_in_says_what_is_missing():
    model = MyModel(4, 3)
    for call in (lambda: model.predict(X), lambda: model.evaluate(X, Y)):
        with pytest.raises(LearnerContractError, match=r"not been adapted yet. Call adapt\(x, y\) first"):
            call()
    with pytest.raises(LearnerContractError, match=r"that no meta-learner holds. Make one first: MAML\(model\)"):
        model.adapt(X, Y)
    MAML(model)
    with pytest.raises(LearnerContractError, match="not been adapted yet"):
        model.evaluate(X, Y)


def test_another_learner_takes_the_model_over():
    model = MyModel(4, 3)
    MAML(model, inner_lr=0.5, inner_steps=1)
    model.adapt(X, Y)
    MAML(model, inner_lr=0.5, inner_steps=3)
    with pytest.raises(LearnerContractError, match="not been adapted yet"):
        model.predict(X)  # what the former learner adapted is not this one's
    model.adapt(X, Y)
    torch.testing.assert_close(model.predict_proba(NEW_X), descended(model, 3).softmax(1))


def test_a_factory_of_self_adapting_models_is_attached_when_it_is_built():
    learner = MAML(lambda spec: MyModel(1, spec.outputs), inner_lr=0.01).bind(Sinusoids().spec)
    learner.model.adapt(X[:, :1], X[:, 1:2])
    assert learner.model.predict(X[:, :1]).shape == (6, 1)


def test_training_puts_the_meta_learned_parameters_into_the_model(tmp_path):
    model = MyModel(1, 1)
    before = trainable(model)
    result = MAML(model, inner_lr=0.01).train(
        Sinusoids(),
        run_dir=tmp_path / "run",
        iterations=3,
        meta_batch_size=4,
        **{"evaluation.test_tasks": 4, "evaluation.validation_tasks": 4},
    )
    assert result.step == 3
    assert all(not torch.equal(p, before[name]) for name, p in trainable(model).items())
    x, y = Sinusoids().take(1)[0].sample()
    model.adapt(x, y)
    assert model.evaluate(x, y) > 0


PROGRAM = """
import sys
from distmeta.learners.maml import MAML
from distmeta.models.backbones import mlp
from distmeta.tasks.sinusoids import Sinusoids

learner = MAML(mlp((8,)), inner_lr=0.01)
short = {"evaluation.test_tasks": 2, "evaluation.every": 0}
result = learner.train(Sinusoids(), run_dir=sys.argv[1], iterations=2, meta_batch_size=2, **short)
print(type(result).__name__, result.step)
"""


def test_train_works_where_only_the_algorithm_was_imported(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["RunResult", "2"], done.stderr


def test_a_learner_adopts_a_model_with_its_parameters():
    old, new = MyModel(4, 3), MyModel(4, 3)
    learner = MAML(old, inner_lr=0.5)
    params = {name: p + 1 for name, p in learner.meta_params.items()}
    learner.adopt(new, params)
    assert learner.model is new
    assert all(torch.equal(p, params[name]) for name, p in learner.meta_params.items())
    new.adapt(X, Y)  # the new model uses the learner
    assert torch.equal(new.predict_proba(NEW_X), learner.adapt(X, Y).predict_proba(NEW_X))


def test_the_readme_loop_runs_on_images(digits_dir):
    tasks = FewShot(digits_dir, ways=3, shots=2, queries=2)
    learner = MAML(mlp((8,)), inner_lr=0.1).bind(tasks.spec)
    for task in tasks.take(2):
        x, y = task.sample()
        fast = learner.adapt(x, y)
        assert fast.predict_proba(task.episode.query_x).shape == (6, 3)
    assert distmeta.FastModel is type(fast)


class LearnedRate(MAML):
    """MAML with one more meta-parameter, its inner learning rate."""

    def init_meta_params(self, rng):
        return {**super().init_meta_params(rng), "log_rate": torch.tensor(-2.0)}

    def fast_params(self, params, episode):
        theta = {name: p for name, p in params.items() if name != "log_rate"}
        gain = params["log_rate"].exp() / self.config.inner_lr
        fast = super().fast_params(theta, episode)
        return {k: theta[k] + gain * (fast[k] - theta[k]) for k in theta}


def test_meta_parameters_of_the_algorithm_are_learned_and_used(tmp_path):
    learner, tasks = LearnedRate(mlp((8,)), inner_lr=0.1), Sinusoids(shots=5)
    learner.train(tasks, iterations=3, run_dir=tmp_path / "run", **{"evaluation.test_tasks": 2})
    learned = learner.meta_params
    assert float(learned["log_rate"]) != -2.0
    x, y = next(iter(tasks)).sample()
    fast = learner.adapt(x, y)
    before = fast.predict(x)
    learner.load({**learned, "log_rate": torch.tensor(-9.0)})
    assert not torch.equal(learner.adapt(x, y).predict(x), before)


@pytest.mark.parametrize("kind", ["MetaSGD", "MAMLPlusPlus", "MatchingNet", "Siamese"])
def test_what_the_algorithm_has_learned_of_its_own_is_where_a_second_training_begins(kind, digits_dir, tmp_path):
    encoder = {"MatchingNet": {"full_context": True, "features": 8}, "Siamese": {"form": "koch"}}
    model = mlp((8,), head=False) if kind in encoder else mlp((8,))
    learner = getattr(distmeta, kind)(model, **encoder.get(kind, {}))
    tasks, short = FewShot(digits_dir, ways=3, queries=2), {"evaluation.test_tasks": 2, "evaluation.every": 0}
    learner.train(tasks, iterations=2, run_dir=tmp_path / "first", **short)
    learned = learner.meta_params
    own = learned.keys() - trainable(learner.model).keys()
    assert own
    learner.train(tasks, iterations=1, lr=1e-12, run_dir=tmp_path / "second", **short)
    for name in learned:
        torch.testing.assert_close(learner.meta_params[name], learned[name], rtol=0, atol=1e-9)
    # What is learned follows the model to another type, as to another device.
    learner.model.double()
    one = tasks.take(1)[0].episode
    fast = learner.adapt(one.support_x.double(), one.support_y)
    assert fast.logits(one.query_x.double()).dtype == torch.float64


def test_an_unknown_keyword_of_train_is_called_what_it_is(tmp_path):
    """It was called ``--set outer.iteration``, though no command line was there."""
    learner = MAML(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(
        ConfigError, match=r"^train\(\) has no setting 'iteration'\. Did you mean 'iterations'\?"
    ) as caught:
        learner.train(Sinusoids(), iteration=20, run_dir=tmp_path / "run")
    assert "--set" not in str(caught.value)
    assert not (tmp_path / "run").exists()
