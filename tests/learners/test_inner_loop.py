"""Gradient descent on one task, which parameters it moves, and what every gradient learner has from its family."""

import itertools

import pytest
import torch
from pydantic import Field, PositiveInt
from torch import nn

from distmeta import MAML, Sinusoids
from distmeta.errors import ConfigError
from distmeta.learners import find_learners
from distmeta.learners.inner_loop import GradientLearner, gradient_descent, select
from distmeta.seeding import rng
from distmeta.types import TaskRef

NAMES = ("features.0.weight", "features.0.bias", "features.3.weight", "head.weight", "head.bias")


@pytest.mark.parametrize(
    ("pattern", "names", "moved"),
    [
        ("all", NAMES, NAMES),
        ("head", NAMES, ("head.weight", "head.bias")),
        ("head", ("weight", "bias"), ("weight", "bias")),
        ("head", ("body.weight", "scale"), ("scale",)),
        ("head.*", NAMES, ("head.weight", "head.bias")),
        ("features.3.*, head.*", NAMES, ("features.3.weight", "head.weight", "head.bias")),
        ("*.bias", NAMES, ("features.0.bias", "head.bias")),
        ("head.bias,features.0.weight", NAMES, ("features.0.weight", "head.bias")),  # in the model's order
        ("features.[03].weight", NAMES, ("features.0.weight", "features.3.weight")),
    ],
)
def test_select(pattern, names, moved):
    assert select(pattern, names) == moved


@pytest.mark.parametrize("pattern", ["haed.weight", "HEAD.*", ""])
def test_a_pattern_that_matches_nothing_lists_the_names(pattern):
    with pytest.raises(ConfigError, match="matches no parameter") as caught:
        select(pattern, NAMES)
    assert all(name in str(caught.value) for name in NAMES)
    assert ("Did you mean 'head.weight'?" in str(caught.value)) is (pattern == "haed.weight")


def loss(params):
    """``(w - 3)^2 / 2 + (v + 1)^2 / 2``: a step of rate r leaves 1 - r of the distance."""
    return ((params["w"] - 3) ** 2 + (params["v"] + 1) ** 2).sum() / 2


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_steps_are_those_of_the_formula(steps, first_order):
    theta = {"w": torch.tensor([1.0]), "v": torch.tensor([2.0])}
    phi = gradient_descent(loss, theta, lr=0.25, steps=steps, first_order=first_order)
    assert phi["w"].item() == pytest.approx(3 - 2 * 0.75**steps)
    assert phi["v"].item() == pytest.approx(-1 + 3 * 0.75**steps)
    assert theta["w"].item() == 1.0


def test_only_the_chosen_move_and_order_is_kept():
    theta = {"w": torch.tensor([1.0]), "v": torch.tensor([2.0])}
    phi = gradient_descent(loss, theta, lr=0.25, steps=2, adapted=["v"])
    assert list(phi) == ["w", "v"]
    assert phi["w"] is theta["w"]
    assert phi["v"].item() == pytest.approx(-1 + 3 * 0.75**2)


def test_every_parameter_may_have_a_rate_of_its_own():
    theta = {"w": torch.tensor([1.0]), "v": torch.tensor([2.0])}
    rates = {"w": torch.tensor([0.5]), "v": torch.tensor([0.0])}
    phi = gradient_descent(loss, theta, lr=rates, steps=1)
    assert (phi["w"].item(), phi["v"].item()) == (2.0, 2.0)


@pytest.mark.parametrize(("first_order", "slope"), [(False, 0.75**3), (True, 1.0)])
def test_phi_depends_on_theta_through_the_steps_unless_first_order(first_order, slope):
    theta = {"w": torch.tensor([1.0], requires_grad=True), "v": torch.tensor([2.0], requires_grad=True)}
    phi = gradient_descent(loss, theta, lr=0.25, steps=3, first_order=first_order)
    (found,) = torch.autograd.grad(phi["w"].sum(), theta["w"])
    assert found.item() == pytest.approx(slope)


FAMILY = {name: kind for name, kind in find_learners().items() if issubclass(kind, GradientLearner)}


def test_the_family():
    assert set(FAMILY) == {"MAML", "MAMLPlusPlus", "MetaSGD", "Reptile"}


def sine(name, **settings):
    torch.manual_seed(0)
    learner = FAMILY[name](nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), inner_lr=0.05, **settings)
    return learner, Sinusoids(shots=5).episodes([TaskRef("meta_test", 0, i) for i in range(12)], 0)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_the_adaptation_picture_has_the_loss_after_every_inner_step(name, vectorise):
    learner, episodes = sine(name, inner_steps=4, test_inner_steps=3, vectorise=vectorise)
    params, evaluator = learner.init_meta_params(rng(0, "init")), learner.for_evaluation()
    curve = evaluator.pictures(params, episodes)["adaptation"]
    assert list(curve.x) == [0, 1, 2, 3]
    losses = [torch.as_tensor(row) for row in curve.values["loss"]]
    unadapted = learner.with_config(inner_steps=0, test_inner_steps=None).evaluate(params, episodes)["loss"]
    torch.testing.assert_close(losses[0], unadapted)
    torch.testing.assert_close(losses[3], evaluator.evaluate(params, episodes)["loss"])
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("name", FAMILY)
def test_in_evaluation_a_setting_for_tests_replaces_the_other(name):
    learner, _ = sine(name, inner_steps=4, test_inner_steps=2)
    assert learner.for_evaluation().config == learner.config.replace(inner_steps=2)
    plain, _ = sine(name, inner_steps=4)
    assert plain.for_evaluation().config.inner_steps == 4
    if name == "Reptile":
        batches, _ = sine(name, inner_batch=4, test_inner_batch=2)
        assert batches.for_evaluation().config.inner_batch == 2
        assert sine(name, inner_batch=4)[0].for_evaluation().config.inner_batch == 4


class Picky(MAML):
    """A setting of its own that begins with ``test_``, and no fewer than two steps."""

    class Config(MAML.Config):
        inner_steps: int = Field(4, ge=2)
        test_inner_steps: PositiveInt = 3
        test_augmentation: bool = True

    config: Config


def test_a_setting_that_replaces_nothing_stays_itself():
    learner = Picky(nn.Linear(1, 1)).for_evaluation()
    assert (learner.config.inner_steps, learner.config.test_augmentation) == (3, True)


def test_the_picture_leaves_out_steps_that_the_settings_refuse():
    _, episodes = sine("MAML")
    learner = Picky(nn.Linear(1, 1))
    assert list(learner.pictures(learner.meta_params, episodes)["adaptation"].x) == [2, 3, 4]


@pytest.mark.parametrize("name", FAMILY)
def test_the_query_set_is_not_adapted_to(name):
    learner, episodes = sine(name, inner_steps=2)
    params = learner.init_meta_params(rng(0, "init"))
    one = episodes.map(lambda part: part[0])
    other = type(one)(one.support_x, one.support_y, one.query_x + 1, one.query_y - 1)
    looped = learner.with_config(vectorise="loop")
    for name, p in looped.fast_params(params, one).items():
        assert torch.equal(p, looped.fast_params(params, other)[name])
