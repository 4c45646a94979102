"""Reptile: its theory in closed form, and its inner optimizers."""

import pytest
import torch
from torch import nn

from distmeta import MAML, Outer, Reptile
from distmeta.learners import reptile
from distmeta.learners.functional import trainable
from distmeta.learners.inner_loop import first_order_descent
from distmeta.learners.over_tasks import map_tasks
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.probe import probe
from distmeta.runtime.chunks import Share
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.types import Chunk, Episode, TaskSpec

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


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 0, 0, 1, 2, 1], [0, 4], [1, 1, 1, 0]])
def test_mini_batches_are_balanced_in_whatever_order_the_labels_come(labels):
    y = torch.tensor(labels)
    rows = reptile._in_turn(Episode(torch.zeros(len(y), DIM), y, torch.zeros(1, DIM), y[:1]).counted()).tolist()
    assert sorted(rows) == list(range(len(labels)))
    turn = [labels[: row + 1].count(labels[row]) for row in rows]  # the k-th of its class
    assert turn == sorted(turn)
    fast = Reptile(model(), inner_steps=2, inner_batch=2).adapt(torch.zeros(len(y), DIM).double(), y % WAYS)
    assert fast.logits(torch.zeros(3, DIM).double()).isfinite().all()


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
    for name, phi in maml.fast_params(theta, one).items():
        torch.testing.assert_close(reptile.fast_params(theta, one)[name], phi, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [1, T])
def test_the_outer_step_goes_epsilon_of_the_way_and_epsilon_falls_to_zero(size):
    """Algorithm 1 (serial) and its batch version: theta + epsilon * mean_i (phi_i - theta), epsilon linear to 0."""
    learner = Reptile(model(), inner_lr=0.05, inner_steps=4, inner_batch=5, vectorise="vmap")
    theta = trainable(model())
    layout = ParamLayout.of(theta)
    server = ParameterServer(Outer(optimizer="sgd", lr=0.8, schedule="linear", iterations=4), layout.flatten(theta))
    chunk = Episode(*(part[:size] for part in tasks()))
    alone = [chunk.counted().map(lambda part, i=i: part[i]) for i in range(size)]
    looped = learner.with_config(vectorise="loop")
    for step, epsilon in enumerate([0.8, 0.6, 0.4, 0.2]):
        gradient = layout.flatten(learner.meta_gradient(theta, chunk).gradient)
        server.accumulate(step, Share((Chunk(0, "meta_train", step, 0, size),), 1), gradient[None])
        phis = [looped.fast_params(theta, one) for one in alone]
        expected = {n: p + epsilon * sum(phi[n] - p for phi in phis) / size for n, p in theta.items()}
        _, vector = server.apply(step)
        theta = layout.unflatten(vector)
        for name, part in expected.items():
            torch.testing.assert_close(theta[name], part, rtol=1e-9, atol=1e-12)


class Stubborn(nn.Module):
    """Asks for a number in forward, which torch.func.vmap refuses."""

    def __init__(self):
        super().__init__()
        self.net = model()

    def forward(self, x):
        return self.net(x) * (1.0 if x.sum().item() < 1e9 else 2.0)


def test_a_model_that_vmap_cannot_take_is_trained_in_a_loop_to_the_same_numbers():
    spec = TaskSpec((DIM,), WAYS, "classification", WAYS * SHOTS, WAYS)
    found = probe(Reptile(Stubborn(), inner_steps=3, inner_batch=4, test_inner_steps=5), spec, tasks())
    assert found.learner.config.vectorise == "loop"
    assert "torch.func.vmap cannot take this model" in found.message
    easy = probe(Reptile(model(), inner_steps=3, inner_batch=4, test_inner_steps=5), spec, tasks()).learner
    assert easy.config.vectorise == "vmap"
    params = {f"net.{name}": p for name, p in trainable(model()).items()}
    slow, fast = found.learner.meta_gradient(params, tasks()), easy.meta_gradient(trainable(model()), tasks())
    for name, part in fast.gradient.items():
        torch.testing.assert_close(slow.gradient[f"net.{name}"], part, rtol=1e-9, atol=1e-12)
    judged = found.learner.for_evaluation().evaluate(params, tasks())
    for name, values in easy.for_evaluation().evaluate(trainable(model()), tasks()).items():
        torch.testing.assert_close(judged[name], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_without_transduction_a_query_is_normalised_by_the_support_set_alone(vectorise):
    """Batch statistics over all queries at once (transduction), or those of the support set."""
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    net = nn.Sequential(nn.Linear(DIM, 6), norm, nn.Tanh(), nn.Linear(6, WAYS)).double()
    learner = Reptile(net, inner_lr=0.05, inner_steps=3, vectorise=vectorise)
    theta, one = trainable(net), tasks().counted().map(lambda part: part[0])
    phi = learner.with_config(vectorise="loop").fast_params(theta, one)
    together = torch.func.functional_call(net, phi, (one.query_x,))
    hidden = one.support_x @ phi["0.weight"].T + phi["0.bias"]
    query = one.query_x @ phi["0.weight"].T + phi["0.bias"]
    query = (query - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
    query = query * phi["1.weight"] + phi["1.bias"]
    alone = query.tanh() @ phi["3.weight"].T + phi["3.bias"]
    assert not torch.allclose(together, alone, rtol=1e-3)
    first = Episode(*(part[:1] for part in tasks()))
    for method, expected in ((learner.query_logits, together), (learner.query_logits_alone, alone)):
        with torch.no_grad():
            found = map_tasks(method, theta, first, loop=learner.loops)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
