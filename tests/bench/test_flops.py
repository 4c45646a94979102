"""Operations of a meta-gradient, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distmeta
from distmeta.bench.flops import flops_per_task
from distmeta.types import Episode

S, Q = 5, 10  # support and query images


def count(model, shape, *, steps=1, learner=distmeta.MAML, **settings):
    x, y = torch.rand(2, S, *shape), torch.arange(S).expand(2, S) % 3
    episodes = Episode(x, y, torch.rand(2, Q, *shape), torch.arange(Q).expand(2, Q) % 3)
    made = learner(model, inner_steps=steps, **settings)
    params = {name: p.detach() for name, p in model.named_parameters()}
    return flops_per_task(made, params, episodes)


def test_two_linear_layers():
    """Layer 1 gets no input gradient. Forward, kernel and input form of a product cost the same, F for one example.

    Support: forward F1 + F2; the gradient F1 + 2 F2 (kernels, and the input of layer 2). Backward again: each product
    of three of these has two derivatives; layer 1's kernel form has one (its input is data), and so has its forward.
    """
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    f1, f2 = 2 * 4 * 7, 2 * 7 * 3
    forward, gradient = f1 + f2, f1 + 2 * f2
    second = (f1 + 4 * f2) + (f1 + 2 * f2)
    query = forward + gradient
    assert count(model, (4,)) == S * (forward + gradient + second) + Q * query


def test_first_order_has_no_second_derivative():
    model = nn.Linear(4, 3)
    f = 2 * 4 * 3
    assert count(model, (4,)) == S * 4 * f + Q * 2 * f
    assert count(model, (4,), first_order=True) == S * 2 * f + Q * 2 * f
    assert count(model, (4,), steps=0) == Q * 2 * f


def test_a_second_step_has_the_derivative_to_the_weights_of_the_first():
    """The first step's weights are the meta-parameters; each step costs forward, gradient and two derivatives."""
    model = nn.Linear(4, 3)
    f = 2 * 4 * 3
    assert count(model, (4,), steps=2) == S * 8 * f + Q * 2 * f


@pytest.mark.parametrize("size", [8, 9])
def test_a_strided_convolution_counts_the_same_in_every_form(size):
    """torch takes the second derivative to the kernel of a stride of 2 as a map of 4x4 at even sizes, and cuts it."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=1, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.AdaptiveAvgPool1d(3),
    )
    out = (size + 1) // 2
    f1, f2 = 2 * 9 * 2 * 3 * size**2, 2 * 9 * 3 * 4 * out**2
    forward, gradient = f1 + f2, f1 + 2 * f2
    second = (f1 + 4 * f2) + (f1 + 2 * f2)
    exact = S * (forward + gradient + second) + Q * (forward + gradient)
    found = count(model, (2, size, size))
    # torch also computes a derivative to the data that nothing uses: one product of layer 1 over the support set.
    assert found - exact in (0, S * f1)


def test_the_engine_does_not_matter():
    for engine in ("vmap", "loop"):
        assert count(nn.Linear(4, 3), (4,), vectorise=engine) == 24 * (4 * S + 2 * Q)
