"""Batch norm of images by torch's fused kernels: both derivatives, layouts in memory and the rule for ``vmap``."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from distmeta.learners.exact_norms import EXACT_NORMS
from distmeta.learners.fast_batch_norm import _Adjoint, _BatchNorm, batch_norm
from distmeta.learners.one_level import call

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 1e-3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_primitives(x, weight, bias, eps):
    return EXACT_NORMS[nn.functional.batch_norm](x, None, None, weight, bias, True, 0.0, eps)


def laid_out(x, layout):
    """``[G, N, C, H, W]`` in memory as it comes out of convolutions: of tasks together, or task by task."""
    order = {"together": (1, 3, 4, 0, 2), "task by task": (0, 1, 3, 4, 2)}[layout]
    back = [order.index(i) for i in range(5)]
    return x.permute(order).contiguous().permute(back)


@pytest.mark.parametrize("layout", ["together", "task by task"])
@pytest.mark.parametrize("zero", [False, True], ids=["weights", "a weight of zero"])
def test_derivatives_are_those_of_differences(layout, zero):
    gamma = 1 + 0.3 * random(2, 3, seed=1)
    if zero:
        gamma[0, 1] = 0.0  # where dx has lost P(g)
    inputs = [laid_out(random(2, 3, 3, 2, 1), layout), gamma, random(2, 3, seed=2)]
    inputs = [v.requires_grad_() for v in inputs]

    def norm(x, gamma, beta):
        return call(_BatchNorm, x, gamma, beta, EPS)[0]

    assert gradcheck(norm, inputs)
    assert gradgradcheck(norm, inputs)


def test_the_adjoint_has_a_second_derivative_of_its_own():
    x, gamma = random(1, 3, 2, 2, 1).requires_grad_(), (1 + 0.3 * random(1, 2, seed=1)).requires_grad_()
    g = random(1, 3, 2, 2, 1, seed=3).requires_grad_()

    def adjoint(g, x, gamma):
        mean = x.detach().mean((1, 3, 4))
        var = x.detach().var((1, 3, 4), unbiased=False)
        return call(_Adjoint, g, x, gamma, mean, torch.rsqrt(var + EPS), EPS)

    assert gradgradcheck(adjoint, (g, x, gamma))


@pytest.mark.parametrize("affine", ["none", "weight", "bias", "both"])
def test_it_is_the_norm(affine):
    x = random(4, 3, 2, 5)
    weight = 1 + random(3, seed=1) if affine in ("weight", "both") else None
    bias = random(3, seed=2) if affine in ("bias", "both") else None
    torch.testing.assert_close(batch_norm(x, weight, bias, EPS), by_primitives(x, weight, bias, EPS))


@settings(max_examples=20, deadline=None)
@given(
    tasks=st.integers(1, 3),
    shape=st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    shared=st.booleans(),
    layout=st.sampled_from(["together", "task by task"]),
    inner=st.booleans(),
)
@example(tasks=2, shape=(2, 1, 2, 1), shared=True, layout="together", inner=False)  # one channel, weights shared
def test_second_derivatives_through_vmap_are_exact(tasks, shape, shared, layout, inner):
    x = laid_out(random(tasks, *shape), layout)
    weight = 1 + 0.3 * random(*(() if shared else (tasks,)), shape[1], seed=1)
    target, found = random(tasks, *shape, seed=2), []
    for norm in (batch_norm, by_primitives):
        leaves = [v.detach().requires_grad_() for v in (x, weight)]

        def loss(w, x, t, norm=norm):
            return (norm(x, w, w, EPS) * t).tanh().sum()

        def after_a_step(x, w, t, norm=norm, loss=loss):
            slope = grad(loss)(w, x, t) if inner else 0 * w
            return loss(w - 0.1 * slope, x, t, norm)

        value = vmap(after_a_step, in_dims=(0, None if shared else 0, 0))(leaves[0], leaves[1], target).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum((v * v).sum() for v in first), leaves)
        found.append([value, *first, *second])
    for fast, true in zip(*found, strict=True):
        torch.testing.assert_close(fast, true, rtol=1e-9, atol=1e-10)
