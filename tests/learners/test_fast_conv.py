"""Convolutions as grouped channels-last kernels: the function, its derivatives and the rules for ``vmap``."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from distmeta.learners import fast_conv
from distmeta.learners.fast_conv import Geometry, _Conv, _ConvW, _ConvX, conv2d
from distmeta.learners.fast_kernels import FastKernels
from distmeta.learners.one_level import call

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def geometry(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return Geometry(stride, padding, dilation, groups)


def torchs(x, weight, bias, geo):
    return F.conv2d(x, weight, bias, geo.stride, geo.padding, geo.dilation, geo.groups)


GEOMETRIES = {
    "plain": geometry(),
    "stride and padding": geometry((2, 2), (1, 1)),
    "each way otherwise": geometry((2, 1), (0, 2), (1, 2)),
    "a rim that no window reaches": geometry((3, 3)),
    "groups": geometry(padding=(1, 1), groups=2),
}


@pytest.fixture(params=["grouped", "columns"])
def kernel(request, monkeypatch):
    """Each of the two ways to compute a convolution, in place of the choice by shape."""

    def chosen(images, outputs, w_shape, geo):
        return request.param == "columns" and geo.groups == 1

    monkeypatch.setattr(fast_conv, "_by_columns", chosen)
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_derivatives_are_those_of_finite_differences(name, bias, kernel):
    geo = GEOMETRIES[name]
    inputs = [random(2, 2, 5, 6), random(2, 2 // geo.groups, 2, 3, seed=1)] + [random(2, seed=2)] * bias
    inputs = tuple(p.requires_grad_() for p in inputs)

    def function(x, weight, bias=None):
        return conv2d(x, weight, bias, geo)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    torch.testing.assert_close(function(*inputs), torchs(*inputs, *([None] * (not bias)), geo), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["stride and padding", "groups"])
def test_each_function_of_several_tasks_alone(name, own, kernel):
    """With weights of each task and with shared ones, whose gradient is the sum over tasks."""
    geo, tasks = GEOMETRIES[name], 2
    x, w = random(tasks, 2, 2, 4, 4), random(tasks if own else 1, 2, 2 // geo.groups, 3, 3, seed=1)
    g = torch.zeros_like(call(_Conv, x, w, None, geo)).copy_(random(1, seed=3)) + random(1, 1, 2, 1, 1, seed=4)
    x, w, g = (p.requires_grad_() for p in (x, w, g))
    for function, inputs in (
        (lambda x, w: call(_Conv, x, w, None, geo), (x, w)),
        (lambda g, w: call(_ConvX, g, w, (4, 4), geo), (g, w)),
        (lambda x, g: call(_ConvW, x, g, (3, 3), not own, geo), (x, g)),
    ):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def pairs(*, least=1, most=3):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 3),
    groups=st.integers(1, 2),
    kernel=pairs(),
    stride=pairs(),
    padding=pairs(least=0, most=2),
    dilation=pairs(most=2),
    extra=pairs(least=0, most=4),
    columns=st.booleans(),
)
def test_derivatives_of_any_geometry(
    images, channels, outputs, groups, kernel, stride, padding, dilation, extra, columns
):
    size = [max(1, d * (k - 1) + 1 - 2 * p) + e for d, k, p, e in zip(dilation, kernel, padding, extra, strict=True)]
    geo = Geometry(stride, padding, dilation, groups)
    inputs = (
        random(images, channels * groups, *size).requires_grad_(),
        random(outputs * groups, channels, *kernel, seed=1).requires_grad_(),
        random(outputs * groups, seed=2).requires_grad_(),
    )

    def all_of(function):
        y = function(*inputs, geo)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((part**2).sum() for part in first), inputs, create_graph=True)
        return (y, *first, *second, *torch.autograd.grad(sum((part**2).sum() for part in second), inputs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_conv, "_by_columns", lambda *_: columns and groups == 1)
        found = all_of(conv2d)
    for a, b in zip(found, all_of(torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, float(b.detach().abs().max())))


def adapted_losses(function, x, weight, bias, maps, geo):
    """Two steps on weight and bias in each task, in ``maps`` levels of ``vmap``; x ``[*tasks, N, C, H, W]``."""

    def task(x):
        def loss(point):
            return function(torch.tanh(function(x, *point, geo)), *point, geo).pow(2).mean()

        point = (weight, bias)
        for _ in range(2):
            point = tuple(p - 0.1 * g for p, g in zip(point, grad(loss)(point), strict=True))
        return loss(point)

    mapped = task
    for _ in range(maps):
        mapped = vmap(mapped)
    return mapped(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's own, in two maps
@pytest.mark.parametrize("maps", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_autograd_through_vmap_is_exact(maps, groups, kernel):
    geo = geometry((2, 1), (1, 1), groups=groups)
    inputs = (random(*(3, 2)[:maps], 2, 2, 5, 4), random(2, 2 // groups, 3, 3, seed=1), random(2, seed=2))
    inputs = tuple(p.requires_grad_() for p in inputs)
    found, true = (
        torch.autograd.grad(adapted_losses(function, *inputs, maps, geo).sum(), inputs) for function in (conv2d, torchs)
    )
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ((0, 0, 0), (0, None, None)),  # a map within a task: all of its members have the task's weights
        ((0, 0, None), (0, None, 0)),
        ((0, None, None), (0, 0, 0)),
        ((None, 0, 0), (0, 0, 0)),
        ((None, 1, None), (2, None, None)),
        ((0, None, 0), (None, 0, None)),
        ((2, None, None), (None, None, 0)),
    ],
    ids=str,
)
def test_any_of_the_inputs_may_be_mapped_along_any_axis_of_two_maps(outer, inner):
    geo, inputs = geometry(padding=(1, 0)), []
    for i, (shape, out, within) in enumerate(zip(((2, 2, 4, 3), (3, 2, 2, 2), (3,)), outer, inner, strict=True)):
        full = list(shape)
        for axis, members in ((within, 2), (out, 3)):
            if axis is not None:
                full.insert(axis, members)
        inputs.append(random(*full, seed=i).requires_grad_())

    def second(function):
        mapped = vmap(vmap(lambda *p: function(*p, geo), inner), outer)
        first = torch.autograd.grad(mapped(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((part**2).sum() for part in first), inputs)

    def second_inside(function):
        """Here the derivatives are mapped too, not the function alone."""

        def derivative(*p):
            return grad(lambda *p: function(*p, geo).pow(3).sum(), (0, 1, 2))(*p)

        parts = vmap(vmap(derivative, inner), outer)(*inputs)
        return torch.autograd.grad(sum((part**2).sum() for part in parts), inputs)

    for way in (second, second_inside):
        for a, b in zip(way(conv2d), way(torchs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


LAYERS = {
    "same": (nn.Conv2d(4, 2, 3, padding="same", dilation=2), (3, 4, 5, 5)),
    "same of an even kernel": (nn.Conv2d(4, 2, 2, padding="same"), (3, 4, 5, 5)),
    "valid": (nn.Conv2d(4, 2, 3, padding="valid", stride=2), (3, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (3, 4, 5, 5)),
    "reflected rim": (nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), (3, 4, 5, 5)),
    "one image": (nn.Conv2d(4, 2, 3), (4, 5, 5)),
    "channels last": (nn.Conv2d(4, 2, 3).to(memory_format=torch.channels_last), (3, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 2, 3), (3, 4, 5)),
    "global pool": (nn.AdaptiveAvgPool2d(1), (3, 4, 5, 5)),
    "pool to two": (nn.AdaptiveAvgPool2d((2, 1)), (3, 4, 5, 5)),
    "max pool": (nn.MaxPool2d(2, ceil_mode=True), (3, 4, 5, 5)),
    "average pool": (nn.AvgPool2d(2, padding=1), (3, 4, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_modules_compute_what_torch_computes(name):
    layer, shape = LAYERS[name]
    layer, x = layer.double(), random(*shape)
    with FastKernels():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 4, 2, 8), (4, 8)])
def test_what_torch_refuses_is_refused_in_its_words(shape):
    layer = nn.Conv2d(4, 2, 3)
    with pytest.raises(RuntimeError) as torchs:
        layer(torch.zeros(shape))
    with FastKernels(), pytest.raises(RuntimeError) as fast:
        layer(torch.zeros(shape))
    assert str(fast.value) == str(torchs.value)


def test_results_of_tasks_lie_where_the_next_convolution_wants_them():
    """Otherwise every convolution would copy its inputs."""
    y = call(_Conv, random(4, 2, 3, 5, 5), random(4, 8, 3, 3, 3, seed=1), None, geometry(padding=(1, 1)))
    assert y.shape == (4, 2, 8, 5, 5)
    assert y.permute(1, 3, 4, 0, 2).is_contiguous()
    assert torch.relu(y).permute(1, 3, 4, 0, 2).is_contiguous()


@pytest.mark.parametrize("side", [40, 4])
def test_float32_agrees_with_torch(side):
    """The kernels for float32 are others than those for float64: grouped, and columns for few positions."""
    tasks, width = 3, 16
    geo = geometry((2, 2), (1, 1))
    x = random(tasks, 2, width, side, side).float().requires_grad_()
    w = random(tasks, width, width, 3, 3, seed=1).float().requires_grad_()

    def second(function):
        y = vmap(lambda x, w: function(x, w, None, geo))(x, w)
        first = torch.autograd.grad(y.pow(2).mean(), (x, w), create_graph=True)
        return (y, *first, *torch.autograd.grad(sum((part**2).sum() for part in first), (x, w)))

    for a, b in zip(second(conv2d), second(torchs), strict=True):
        assert float(((a - b).norm() / b.norm()).detach()) <= 1e-5
