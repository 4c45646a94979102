"""Meta-SGD: equal rates make it MAML, its gradient for theta and alpha, and alpha before and after training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from distmeta import MAML, MetaSGD, Sinusoids, mlp
from distmeta.errors import ConfigError
from distmeta.learners.functional import trainable
from distmeta.seeding import rng
from distmeta.types import Episode

pytestmark = pytest.mark.usefixtures("one_thread")

T, WAYS, DIM = 3, 3, 4


def tasks():
    random = torch.Generator().manual_seed(0)
    x, query = (torch.randn(T, n * WAYS, DIM, dtype=torch.float64, generator=random) for n in (2, 3))
    y, query_y = (torch.arange(WAYS).repeat_interleave(n).expand(T, -1) for n in (2, 3))
    return Episode(x, y, query, query_y)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(DIM, 5), nn.Tanh(), nn.Linear(5, WAYS)).double()


NET, EPISODES = model(), tasks()


def plain_loss(params, steps):
    """The paper's loss, summed over the tasks, in a loop of torch alone; a number, for finite differences."""
    total = 0.0
    theta = {name: p for name, p in params.items() if not name.startswith("rate/")}
    for support_x, support_y, query_x, query_y in zip(*EPISODES, strict=True):
        phi = theta
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(NET, phi, (support_x,)), support_y)
            gradient = torch.autograd.grad(loss, list(phi.values()))
            moves = zip(phi.items(), gradient, strict=True)
            phi = {name: p - params[f"rate/{name}"] * g for (name, p), g in moves}
        total = total + F.cross_entropy(functional_call(NET, phi, (query_x,)), query_y)
    return total


@pytest.mark.parametrize("steps", [1, 3])
def test_equal_rates_are_maml(steps):
    learner = MetaSGD(model(), inner_lr=0.3, inner_steps=steps, vectorise="vmap")
    maml = MAML(model(), inner_lr=0.3, inner_steps=steps, vectorise="vmap")
    params = learner.init_meta_params(rng(0, "init"))
    one = tasks().counted().map(lambda part: part[0])
    torch.testing.assert_close(
        learner.with_config(vectorise="loop").query_logits(params, one),
        maml.with_config(vectorise="loop").query_logits(trainable(model()), one),
        rtol=1e-12,
        atol=1e-12,
    )
    found, expected = learner.meta_gradient(params, tasks()), maml.meta_gradient(trainable(model()), tasks())
    for name, part in expected.gradient.items():
        torch.testing.assert_close(found.gradient[name], part, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_for_theta_and_alpha_is_that_of_finite_differences(steps, vectorise):
    learner = MetaSGD(model(), inner_lr=(0.1, 0.6), inner_steps=steps, vectorise=vectorise)
    params, h = learner.init_meta_params(rng(0, "init")), 1e-5
    found = learner.meta_gradient(params, tasks()).gradient
    assert list(found) == list(params)
    for name, value in params.items():
        truth = torch.empty_like(value)
        for i in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = {key: p.clone().requires_grad_() for key, p in params.items()}
                moved[name].data.view(-1)[i] += sign * h
                ends.append(plain_loss(moved, steps).item())
            truth.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
        assert float((found[name] - truth).norm()) <= 1e-6 * float(truth.norm()), name
        assert float(truth.norm()) > 1e-3, name


def test_alpha_begins_between_the_papers_bounds_or_at_one_number():
    drawn = MetaSGD(model()).init_meta_params(np.random.default_rng(0))
    rates = torch.cat([p.flatten() for name, p in drawn.items() if name.startswith("rate/")])
    assert rates.dtype == torch.float64
    assert len(rates.unique()) == len(rates) == sum(p.numel() for p in model().parameters())
    assert 0.005 <= float(rates.min()) < 0.02
    assert 0.085 < float(rates.max()) <= 0.1
    same, other = (MetaSGD(model()).init_meta_params(np.random.default_rng(seed)) for seed in (0, 1))
    assert all(torch.equal(same[name], p) for name, p in drawn.items())
    assert not torch.equal(other["rate/0.weight"], drawn["rate/0.weight"])
    constant = MetaSGD(model(), inner_lr=0.02).init_meta_params(np.random.default_rng(0))
    assert all(bool((p == 0.02).all()) for name, p in constant.items() if name.startswith("rate/"))


def test_bounds_in_the_wrong_order_name_the_fix():
    with pytest.raises(ConfigError, match=r"inner_lr.*lower bound first, such as \[0.005, 0.1\]"):
        MetaSGD(model(), inner_lr=(0.1, 0.005))


def test_learned_rates_are_used_by_adapt(tmp_path):
    learner, sines = MetaSGD(mlp((8,)), inner_lr=0.02), Sinusoids(shots=5)
    learner.train(sines, iterations=3, run_dir=tmp_path / "run", **{"evaluation.test_tasks": 2})
    learned = learner.meta_params
    rates = {name: p for name, p in learned.items() if name.startswith("rate/")}
    assert all(not bool((p == 0.02).all()) for p in rates.values())
    x, _ = next(iter(sines)).sample()
    before = learner.adapt(x, x).predict(x)
    learner.load({**learned, **{name: torch.zeros_like(p) for name, p in rates.items()}})
    after = learner.adapt(x, x).predict(x)
    torch.testing.assert_close(after, learner.model(x).detach())  # no rate, no step
    assert not torch.allclose(before, after)


def test_evaluation_has_its_own_number_of_steps():
    learner = MetaSGD(model(), inner_steps=2, test_inner_steps=6)
    assert learner.for_evaluation().config.inner_steps == 6
    assert MetaSGD(model(), inner_steps=2).for_evaluation().config.inner_steps == 2
