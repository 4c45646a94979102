"""Norms with closed derivatives: the function, both derivatives and the rule for ``vmap``, all in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from distmeta.learners.exact_norms import _normalise
from distmeta.learners.fast_kernels import FastKernels
from distmeta.learners.fast_norms import standardise

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 1e-3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# x, the axes of statistics, and the shape of weight and bias in the norm and in themselves.
CASES = {
    "batch": ((5, 3), (0,), (1, -1), (3,)),
    "batch of images": ((3, 2, 2, 3), (0, 2, 3), (1, -1, 1, 1), (2,)),
    "instance": ((2, 3, 2, 2), (2, 3), (1, -1, 1, 1), (3,)),
    "layer": ((3, 4), (1,), (4,), (4,)),
    "layer of two axes": ((2, 3, 4), (1, 2), (3, 4), (3, 4)),
    "group": ((2, 2, 2, 3), (2, 3), (1, 2, 2, 1), (4,)),
    "group of one channel": ((2, 2, 1, 3), (2, 3), (1, 2, 1, 1), (2,)),
}


def case(name, affine):
    shape, dims, weight_shape, own = CASES[name]
    inputs = [random(*shape).requires_grad_()]
    if "weight" in affine:
        inputs.append((1 + 0.3 * random(*own, seed=1)).requires_grad_())
    if "bias" in affine:
        inputs.append(random(*own, seed=2).requires_grad_())

    def of(implementation):
        def norm(x, *rest):
            weight = rest[0] if "weight" in affine else None
            bias = rest[-1] if "bias" in affine else None
            return implementation(x, dims, weight, bias, weight_shape, EPS)

        return norm

    return of, tuple(inputs)


AFFINE = [(), ("weight",), ("bias",), ("weight", "bias")]
affine = pytest.mark.parametrize("affine", AFFINE, ids=lambda names: " and ".join(names) or "plain")
name = pytest.mark.parametrize("name", CASES)


@name
@affine
def test_both_derivatives_are_those_of_finite_differences(name, affine):
    of, inputs = case(name, affine)
    assert gradcheck(of(standardise), inputs)
    assert gradgradcheck(of(standardise), inputs)


@name
@affine
def test_it_computes_what_primitives_compute(name, affine):
    of, inputs = case(name, affine)
    torch.testing.assert_close(of(standardise)(*inputs), of(_normalise)(*inputs), rtol=1e-12, atol=1e-12)


def third(norm, inputs):
    """A third derivative, by differentiating the square of each of the derivatives before."""
    value = norm(*inputs).pow(3).sum()
    for _ in range(2):
        parts = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum((part**2).sum() for part in parts)
    return torch.autograd.grad(value, inputs)


@name
def test_a_third_derivative_is_exact_too(name):
    of, inputs = case(name, ("weight", "bias"))
    for found, true in zip(third(of(standardise), inputs), third(of(_normalise), inputs), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("used", [(1,), (2,), (0, 1), (1, 2)], ids=str)
def test_second_derivatives_of_some_of_the_first(used):
    """Where only the gradients of weight or bias are differentiated again, cotangents of the others are absent."""
    of, inputs = case("batch", ("weight", "bias"))

    def second(norm):
        value = norm(*inputs).pow(3).sum()
        first = torch.autograd.grad(value, [inputs[i] for i in used], create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in first), inputs)

    for found, true in zip(second(of(standardise)), second(of(_normalise)), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-10)


def adapted_losses(norm, x, weight, bias, maps):
    """One step on weight and bias in each task, in ``maps`` levels of ``vmap``; x ``[*tasks, N, C]``."""

    def task(x):
        def loss(point):
            return norm(x, *point).pow(3).sum()

        point = (weight, bias)
        for _ in range(2):
            point = tuple(p - 0.1 * g for p, g in zip(point, grad(loss)(point), strict=True))
        return loss(point)

    mapped = task
    for _ in range(maps):
        mapped = vmap(mapped)
    return mapped(x)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_autograd_through_vmap_is_exact(maps, kind):
    dims, shape = ((0,), (1, -1)) if kind == "batch" else ((1,), (4,))
    inputs = (random(*(3, 2)[:maps], 5, 4), 1 + 0.3 * random(4, seed=1), random(4, seed=2))
    inputs = tuple(p.requires_grad_() for p in inputs)
    found, true = (
        torch.autograd.grad(
            adapted_losses(lambda *a, n=n: n(a[0], dims, a[1], a[2], shape, EPS), *inputs, maps).sum(), inputs
        )
        for n in (standardise, _normalise)
    )
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mapped", [(0, None, None), (None, 0, None), (None, None, 0), (1, 1, None), (2, None, 0)])
def test_any_of_the_inputs_may_be_mapped_along_any_axis(mapped):
    shapes = (5, 4), (4,), (4,)
    inputs = []
    for i, (shape, axis) in enumerate(zip(shapes, mapped, strict=True)):
        full = list(shape)
        if axis is not None:
            full.insert(axis, 3)
        inputs.append(random(*full, seed=i).requires_grad_())

    def second(implementation):
        def norm(x, weight, bias):
            return implementation(x, (0,), weight, bias, (1, -1), EPS)

        first = torch.autograd.grad(vmap(norm, mapped)(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in first), inputs)

    for a, b in zip(second(standardise), second(_normalise), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    data=st.data(),
    eps=st.floats(1e-5, 1.0),
)
def test_first_and_second_derivatives_of_any_shape(shape, data, eps):
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    own = [1 if data.draw(st.booleans()) else n for n in shape]
    x, weight, bias = (random(*s, seed=i).requires_grad_() for i, s in enumerate((shape, own, own)))
    if math.prod(shape[d] for d in dims) == 1:
        eps = 1.0  # r would be eps ** -0.5, and differences rounding

    def second(implementation):
        y = implementation(x, dims, weight, bias, own, eps)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight, bias), create_graph=True)
        return (y, *first, *torch.autograd.grad(sum((part**2).sum() for part in first), (x, weight, bias)))

    for a, b in zip(second(standardise), second(_normalise), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4, track_running_stats=False), (6, 4, 3)),
        (nn.BatchNorm2d(4, affine=False, track_running_stats=False), (6, 4, 3, 3)),
        (nn.BatchNorm2d(4, eps=0.1, track_running_stats=False), (1, 4, 3, 3)),
        (nn.BatchNorm1d(4).eval(), (6, 4)),
        (nn.LayerNorm([3, 4], eps=0.1), (6, 3, 4)),
        (nn.LayerNorm(4, bias=False), (6, 2, 4)),
        (nn.InstanceNorm2d(4), (4, 3, 3)),
        (nn.InstanceNorm2d(4, affine=True), (6, 4, 3, 3)),
        (nn.GroupNorm(2, 4), (6, 4, 3, 3)),
        (nn.GroupNorm(4, 4), (6, 4, 2)),
        (nn.GroupNorm(1, 4, affine=False), (6, 4)),
        (nn.GroupNorm(2, 4).to(memory_format=torch.channels_last), (6, 4, 3, 3)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else type(value).__name__,
)
def test_modules_compute_what_torch_computes(norm, shape):
    norm = norm.double()
    for i, p in enumerate(norm.parameters()):
        p.data += 0.3 * random(*p.shape, seed=i)
    x = random(*shape)
    with FastKernels():
        fast = norm(x)
    torch.testing.assert_close(fast, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4, track_running_stats=False), (1, 4)),
        (nn.InstanceNorm2d(4), (2, 4, 1, 1)),
        (nn.GroupNorm(4, 4), (1, 4)),
    ],
)
def test_what_torch_refuses_is_refused(norm, shape):
    with FastKernels(), pytest.raises(ValueError, match="Expected more than 1"):
        norm(torch.zeros(shape))


def test_tensors_keep_their_memory_layout():
    x = random(2, 3, 4, 5, 6).permute(3, 0, 4, 1, 2)
    assert standardise(x, (1, 3, 4), None, None, (), EPS).stride() == x.stride()
