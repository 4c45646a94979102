"""The meta-gradient that is walked back: the unrolled one, in memory that does not grow with the inner steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.maml import MAML
from distmeta.learners.maml_plus import MAMLPlusPlus
from distmeta.learners.meta_sgd import MetaSGD
from distmeta.learners.probe import probe
from distmeta.seeding import rng
from distmeta.types import Episode, TaskSpec

TASKS, WAYS = 3, 4


def images(regression=False):
    torch.manual_seed(0)
    x = torch.randn(TASKS, 2 * WAYS, 1, 8, 8, dtype=torch.float64)
    y = torch.arange(WAYS).repeat(TASKS, 2)
    if regression:
        y = torch.randn(TASKS, 2 * WAYS, WAYS, dtype=torch.float64)
    return Episode(x, y, x.flip(1) + 0.1, y.flip(1))


def network(kind):
    torch.manual_seed(1)
    norm = {"batch": lambda: nn.BatchNorm2d(3, track_running_stats=False), "group": lambda: nn.GroupNorm(1, 3)}
    layers = [nn.Conv2d(1, 3, 3, padding=1), norm.get(kind, nn.Identity)(), nn.Tanh(), nn.MaxPool2d(2)]
    if kind == "dropout":
        layers.append(nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, WAYS)).double()


def both(kind, model, episodes, step=None, **options):
    """Gradient and metrics, unrolled and mixed."""
    found = []
    for gradient in ("unroll", "mixed"):
        learner = kind(model, gradient=gradient, **options)
        params = learner.init_meta_params(rng(0, "init"))
        torch.manual_seed(7)
        found.append((learner if step is None else learner.at_step(step)).meta_gradient(params, episodes))
    return found


def require_equal(unrolled, mixed):
    assert list(mixed.gradient) == list(unrolled.gradient)
    for name, part in unrolled.gradient.items():
        assert mixed.gradient[name].shape == part.shape
        torch.testing.assert_close(mixed.gradient[name], part, rtol=1e-10, atol=1e-12)
    assert set(mixed.metrics) == set(unrolled.metrics)
    for name, value in unrolled.metrics.items():
        torch.testing.assert_close(mixed.metrics[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("vectorise", ["vmap", "vmap-2", "loop"])
@pytest.mark.parametrize("norm", ["batch", "group", "dropout"])
@pytest.mark.parametrize(
    ("kind", "options", "step"),
    [
        (MAML, {"inner_steps": 3}, None),
        (MAML, {"inner_steps": 2, "adapt": "head"}, None),
        (MAML, {"inner_steps": 2, "adapt": "0.*"}, None),
        (MAML, {"inner_steps": 2, "first_order": True}, None),
        (MAML, {"inner_steps": 0}, None),
        (MetaSGD, {"inner_steps": 3}, None),
        (MAMLPlusPlus, {"inner_steps": 3, "multi_step_until": 10}, 4),
        (MAMLPlusPlus, {"inner_steps": 3, "multi_step_until": 10, "first_order_until": 5}, 4),
        (MAMLPlusPlus, {"inner_steps": 3, "adapt": "head"}, None),
        (MAMLPlusPlus, {"inner_steps": 2, "learned_rates": False}, None),
    ],
)
def test_it_is_the_unrolled_one(kind, options, step, norm, vectorise):
    """With the same dropout: what a model draws at random in a step, it draws again on the way back."""
    require_equal(*both(kind, network(norm), images(), step, vectorise=vectorise, **options))


@pytest.mark.parametrize("vectorise", ["vmap", "vmap-2", "loop"])
@pytest.mark.parametrize("kind", [MAML, MetaSGD, MAMLPlusPlus])
def test_dropout_in_a_regression_is_drawn_again_too(kind, vectorise):
    """Squared errors have no forward mode: the second way of computing a step drew other numbers than the first."""
    require_equal(*both(kind, network("dropout"), images(regression=True), inner_steps=2, vectorise=vectorise))


class Standardised(nn.Conv2d):
    """Its kernels are no leaves of the graph: their gradient passes through a function that is not linear."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Twice(nn.Module):
    """One kernel in two places, as it is and as a function of itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = torch.tanh(self.conv(torch.tanh(self.conv(x))))
        return nn.functional.conv2d(x, self.conv.weight**2, padding=1)


@pytest.mark.parametrize("vectorise", ["vmap", "vmap-2", "loop"])
@pytest.mark.parametrize("layer", [lambda: Standardised(3, 3, 3), Twice, lambda: nn.Conv2d(3, 3, 3, groups=3)])
def test_gradients_of_kernels_are_left_out_only_where_nothing_reads_them(layer, vectorise):
    """On the way back engine 2 computes no gradient of a kernel that is a leaf, and of another it must."""
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    layers = [nn.Conv2d(1, 3, 3, padding=1), norm, nn.Tanh(), layer(), nn.Tanh(), nn.AdaptiveAvgPool2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, WAYS)).double()
    require_equal(*both(MAML, model, images(), inner_steps=3, vectorise=vectorise))


@settings(max_examples=15, deadline=None)
@given(
    steps=st.integers(1, 6),
    lr=st.floats(0.01, 0.5),
    kind=st.sampled_from([MAML, MetaSGD, MAMLPlusPlus]),
    regression=st.booleans(),
)
def test_it_is_the_unrolled_one_for_any_number_of_steps(steps, lr, kind, regression):
    require_equal(*both(kind, network("none"), images(regression), inner_steps=steps, inner_lr=lr, vectorise="vmap"))


@pytest.mark.parametrize("kind", [MAML, MetaSGD, MAMLPlusPlus])
def test_finite_differences_agree(kind):
    episodes = images().map(lambda part: part[:2])
    learner = kind(network("batch"), inner_steps=2, gradient="mixed", vectorise="vmap")
    params = learner.init_meta_params(rng(0, "init"))
    found = learner.meta_gradient(params, episodes).gradient
    torch.manual_seed(3)
    along = {name: torch.randn_like(p) for name, p in params.items()}

    def loss(size):
        moved = {name: p + size * along[name] for name, p in params.items()}
        return float(learner.meta_gradient(moved, episodes).metrics["loss"].sum())

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6  # no kink within
    assert float(sum((found[name] * along[name]).sum() for name in params)) == pytest.approx(expected, rel=1e-6)


def test_forward_passes_are_two_per_step_but_the_last_and_one_for_the_queries():
    """One to step, one to walk back, and nothing twice: the graph of the last step is held."""
    calls = []

    class Counting(nn.Sequential):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = Counting(*network("batch"))
    for steps in (1, 4):
        calls.clear()
        learner = MAML(model, inner_steps=steps, gradient="mixed", vectorise="vmap")
        learner.meta_gradient(learner.init_meta_params(rng(0, "init")), images())
        assert len(calls) == 2 * steps


def test_the_probe_takes_it_and_it_is_part_of_a_run_s_identity():
    model = network("batch").float()
    spec = TaskSpec(input_shape=(1, 8, 8), outputs=WAYS, kind="classification", support=2 * WAYS, queries=2 * WAYS)
    found = probe(MAML(model, gradient="mixed", inner_steps=2), spec, images())
    assert not found.learner.loops
    assert found.message is None
    assert found.learner.config.gradient == "mixed"


class OwnLoop(MAML):
    """Adapts in a way of its own."""

    def fast_params(self, params, episode):
        return params


class OwnLoss(MetaSGD):
    """Scores in a way of its own."""

    def meta_loss(self, params, episode):
        loss, metrics = super().meta_loss(params, episode)
        return 2 * loss, metrics


@pytest.mark.parametrize(("kind", "name"), [(OwnLoop, "fast_params"), (OwnLoss, "meta_loss")])
def test_a_loop_or_loss_of_one_s_own_is_refused_before_any_worker_starts(kind, name):
    spec = TaskSpec(input_shape=(1, 8, 8), outputs=WAYS, kind="classification", support=2 * WAYS, queries=2 * WAYS)
    message = rf"{kind.__name__} replaces {name}, .* Use gradient=unroll"
    with pytest.raises((LearnerContractError, ModelContractError), match=message):
        probe(kind(network("batch"), gradient="mixed"), spec, images())
    probe(kind(network("batch")), spec, images())
