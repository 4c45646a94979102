"""Gradient descent on one task, and which parameters it moves."""

import pytest
import torch

from distmeta.errors import ConfigError
from distmeta.learners.inner_loop import gradient_descent, select

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
