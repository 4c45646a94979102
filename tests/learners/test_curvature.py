"""A loss's Hessian times a direction, in every way that tasks are computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distmeta.learners.curvature import curvature, gradient_and_output, held_curvature
from distmeta.learners.functional import using_engine
from distmeta.learners.over_tasks import map_tasks
from distmeta.types import Episode

WAYS = [("loop", 1), ("vmap", 1), ("vmap", 2)]


def parameters():
    torch.manual_seed(0)
    return {"w": torch.randn(2, 1, 3, 3).double(), "v": torch.randn(32, 3).double(), "unused": torch.ones(2).double()}


def episodes():
    torch.manual_seed(1)
    x, y = torch.randn(3, 6, 1, 6, 6).double(), torch.randint(3, (3, 6))
    return Episode(x, y, x, y)


def loss_of(episode):
    def loss(p):
        features = torch.tanh(F.conv2d(episode.support_x, p["w"])).flatten(1)
        return F.cross_entropy(features @ p["v"], episode.support_y)

    return loss


def expected(direction):
    """Of each task, by autograd on it alone."""
    found = []
    for i in range(3):
        p = {name: value.clone().requires_grad_() for name, value in parameters().items()}
        loss = loss_of(episodes().map(lambda part, i=i: part[i]))(p)
        (gradient,) = torch.autograd.grad(loss, [p["w"]], create_graph=True)
        products = torch.autograd.grad((gradient * direction).sum(), list(p.values()), allow_unused=True)
        products = [torch.zeros_like(v) if g is None else g for v, g in zip(p.values(), products, strict=True)]
        found.append((gradient.detach(), dict(zip(p, products, strict=True))))
    return found


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize(("vectorise", "engine"), WAYS)
def test_it_is_autograd_s(vectorise, engine, needs_gradient, held):
    direction = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(2)).double()

    def one(params, episode):
        fixed, moving = {n: params[n] for n in ("v", "unused")}, {"w": params["w"]}
        if held:
            gradient, product = held_curvature(loss_of(episode), fixed, moving)
            return gradient, product({"w": direction})
        return curvature(loss_of(episode), fixed, moving, {"w": direction}, needs_gradient=needs_gradient)

    with using_engine(engine):
        gradient, product = map_tasks(one, parameters(), episodes(), loop=vectorise == "loop")
    assert set(gradient) == {"w"}
    for i, (true, products) in enumerate(expected(direction)):
        if needs_gradient or held:
            torch.testing.assert_close(gradient["w"][i], true, rtol=1e-10, atol=1e-12)
        for name, value in products.items():
            torch.testing.assert_close(product[name][i], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("vectorise", "engine"), WAYS)
def test_a_linear_loss_has_no_curvature(vectorise, engine):
    def one(params, episode):
        moving = {"v": params["v"]}
        found, product = held_curvature(lambda p: episode.support_x.sum() * p["v"].sum(), {}, moving)
        return found, product(moving)

    with using_engine(engine):
        gradient, product = map_tasks(one, parameters(), episodes(), loop=vectorise == "loop")
    assert torch.equal(product["v"], torch.zeros(3, 32, 3).double())
    torch.testing.assert_close(gradient["v"][:, 0, 0], episodes().support_x.sum((1, 2, 3, 4)))


@pytest.mark.parametrize(("vectorise", "engine"), WAYS)
def test_a_gradient_comes_with_the_loss_and_the_prediction(vectorise, engine):
    def one(params, episode):
        return gradient_and_output(lambda p: (loss_of(episode)(p), episode.support_x.mean() * p["v"]), params)

    with using_engine(engine):
        gradient, value, output = map_tasks(one, parameters(), episodes(), loop=vectorise == "loop")
    for i, (true, _) in enumerate(expected(torch.ones(2, 1, 3, 3).double())):
        torch.testing.assert_close(gradient["w"][i], true, rtol=1e-10, atol=1e-12)
        task = episodes().map(lambda part, i=i: part[i])
        torch.testing.assert_close(value[i], loss_of(task)(parameters()))
        torch.testing.assert_close(output[i], task.support_x.mean() * parameters()["v"])
    assert not value.requires_grad
    assert not output.requires_grad
