"""Reptile: its theory in closed form, and its inner optimizers."""

import pytest
import torch
from torch import nn

from distmeta import MAML, Reptile
from distmeta.learners.functional import trainable
from distmeta.learners.inner_loop import first_order_descent
from distmeta.types import Episode

T, WAYS, SHOTS, DIM = 3, 4, 3, 5


def tasks(seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(T, WAYS * SHOTS, DIM, dtype=torch.float64, generator=random)
    y = torch.arange(WAYS).repeat_interleave(SHOTS).expand(T, -1)
    return Episode(x, y, x[:, ::SHOTS] + 0.1, y[:, ::SHOTS])


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(DIM, 6), nn.Tanh(), nn.Linear(6, WAYS)).double()


def support_loss(net, x, y):
    return nn.functional.cross_entropy(net(x), y)


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_one_sgd_step_is_the_scaled_gradient(vectorise):
    """Nichol et al. 2018, section 5: with k = 1, theta - phi is the inner rate times the gradient of the joint loss."""
    learner = Reptile(model(), inner_lr=0.3, inner_steps=1, inner_optimizer="sgd", vectorise=vectorise)
    found = learner.meta_gradient(trainable(learner.model), tasks())
    net, episodes = model(), tasks()
    sum(support_loss(net, x, y) for x, y in zip(episodes.support_x, episodes.support_y, strict=True)).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found.gradient[name], 0.3 * parameter.grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_many_steps_on_mini_batches_equal_torch_optim(optimizer):
    learner = Reptile(model(), inner_lr=0.05, inner_steps=7, inner_batch=5, inner_optimizer=optimizer, vectorise="vmap")
    found = learner.meta_gradient(trainable(learner.model), tasks())
    total = {name: torch.zeros_like(p) for name, p in trainable(model()).items()}
    order = [row for shot in range(SHOTS) for row in range(shot, WAYS * SHOTS, SHOTS)]
    for x, y in zip(tasks().support_x, tasks().support_y, strict=True):
        net = model()
        kinds = {
            "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
            "adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.0, 0.999)),
        }
        inner = kinds[optimizer](net.parameters())
        for step in range(7):
            rows = [order[(5 * step + i) % len(order)] for i in range(5)]
            inner.zero_grad()
            support_loss(net, x[rows], y[rows]).backward()
            inner.step()
        for name, start in trainable(model()).items():
            total[name] += start - dict(net.named_parameters())[name].detach()
    for name, moved in total.items():
        torch.testing.assert_close(found.gradient[name], moved, rtol=1e-8, atol=1e-11)


def test_mini_batches_are_balanced_over_the_classes():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(DIM, WAYS).double()

        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return self.net(x)

    episodes = tasks()
    episodes.support_x[..., 0] = episodes.support_y  # the first number tells the class
    learner = Reptile(Watch(), inner_steps=3, inner_batch=WAYS, inner_optimizer="sgd", vectorise="loop")
    learner.meta_gradient(trainable(learner.model), episodes)
    assert [sorted(batch) for batch in seen[:3]] == [[0.0, 1.0, 2.0, 3.0]] * 3


def test_it_keeps_no_graph_and_its_evaluation_has_its_own_steps():
    learner = Reptile(model(), inner_steps=2, inner_batch=4, test_inner_steps=9, test_inner_batch=2)
    judge = learner.for_evaluation()
    assert (judge.config.inner_steps, judge.config.inner_batch) == (9, 2)
    gradient = learner.with_config(vectorise="vmap").meta_gradient(trainable(learner.model), tasks()).gradient
    assert not any(part.requires_grad for part in gradient.values())
    assert learner.exact_gradient is False


def test_zero_steps_change_nothing():
    theta = {"w": torch.ones(2)}
    assert first_order_descent(lambda p, i: p["w"].sum(), theta, lr=0.1, steps=0)["w"] is theta["w"]
    learner = Reptile(model(), inner_steps=0, vectorise="vmap")
    assert all(not part.any() for part in learner.meta_gradient(trainable(learner.model), tasks()).gradient.values())


def test_fomaml_and_reptile_agree_where_they_must():
    """One inner SGD step of FOMAML and of Reptile leads to the same phi."""
    episodes = tasks()
    one = Episode(*(part[0] for part in episodes)).counted()
    reptile = Reptile(model(), inner_lr=0.2, inner_steps=1, inner_optimizer="sgd", vectorise="loop")
    maml = MAML(model(), inner_lr=0.2, inner_steps=1, first_order=True, vectorise="loop")
    theta = trainable(model())
    for name, phi in maml.fast_params(theta, one.support_x, one.support_y).items():
        torch.testing.assert_close(reptile.fast_params(theta, one)[name], phi, rtol=1e-12, atol=1e-14)
