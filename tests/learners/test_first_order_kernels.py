"""Kernels for what is differentiated once: derivatives, accuracy, memory layout; and which learners use them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from distmeta.learners.first_order_kernels import FirstOrderKernels, _BatchNorm, images, statistics
from distmeta.learners.functional import differentiated_once, kernels_of_model, using_engine
from distmeta.learners.matching_net import MatchingNet
from distmeta.learners.metric import MetricLearner
from distmeta.learners.protonet import ProtoNet
from distmeta.learners.ridge import Ridge
from distmeta.learners.siamese import Siamese
from distmeta.models.backbones import conv4
from distmeta.seeding import rng
from distmeta.types import Episode, TaskSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_derivative_of_batch_norm_is_that_of_differences():
    inputs = images(random(3, 2, 3, 2)), 1 + 0.3 * random(2, seed=1), random(2, seed=2)
    assert gradcheck(lambda x, g, b: _BatchNorm.apply(x, g, b, 1e-3), [v.requires_grad_() for v in inputs])


def test_a_second_derivative_is_refused_and_not_wrong():
    x = images(random(30, 2, 9, 9)).requires_grad_()
    with FirstOrderKernels():
        y = F.batch_norm(x, None, None, None, None, True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_statistics_in_float32_are_accurate_where_the_sum_of_one_by_one_is_not():
    exact = random(60, 2, 28, 28) + 3
    x = images(exact.float())
    mean, variance = statistics(x)
    naive = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)[0]
    error = (mean - x.double().mean((0, 2, 3))).abs().max()
    assert error < 2e-6
    assert error < (naive - x.double().mean((0, 2, 3))).abs().max() / 4
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=3e-6, atol=0)


@pytest.mark.parametrize("count", [3, 200], ids=["torch's norm", "own statistics"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_computes_the_same_in_channels_last_memory(channels, count):
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 1, 3, padding="same"),
        nn.Conv2d(1, 2, 2, bias=False),
        nn.BatchNorm2d(2, affine=False, track_running_stats=False),
    ).double()
    x, seen = random(count, channels, 10, 10), []
    for conv in (net[0], net[5]):
        conv.register_forward_hook(lambda _m, _i, y: seen.append(y.is_contiguous(memory_format=torch.channels_last)))
    found = []
    for fast in (False, True):
        with using_engine(2 if fast else 1), differentiated_once(), kernels_of_model():
            y = net(x)
        found.append((y, *torch.autograd.grad(y.cos().sum(), list(net.parameters()))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    assert seen == [False, False, True, True]


def learners():
    encoder = conv4(6, pool="max", head=False)
    yield ProtoNet(encoder)
    yield MatchingNet(encoder)
    yield Siamese(encoder, margin=3.0)
    yield Siamese(encoder, form="koch")
    yield Ridge(encoder)


@pytest.mark.parametrize("large", [False, True], ids=["in one call", "task by task"])
@pytest.mark.parametrize("learner", list(learners()), ids=lambda one: type(one).__name__)
def test_the_gradient_is_that_of_a_plain_loop(learner, large, monkeypatch):
    monkeypatch.setattr("distmeta.learners.metric.fills_caches", lambda *_: large)
    bound = learner.bind(TaskSpec((1, 16, 16), 3, "classification", 6, 6))
    bound = bound.with_model(copy.deepcopy(bound.model).double())
    theta = bound.init_meta_params(rng(0, "init"))
    y = torch.arange(3).repeat(2).expand(4, -1)
    episodes = Episode(random(4, 6, 1, 16, 16), y, random(4, 6, 1, 16, 16, seed=1), y)
    loop, fast = (bound.with_config(vectorise=v).meta_gradient(theta, episodes) for v in ("loop", "vmap-2"))
    for name, expected in loop.gradient.items():
        torch.testing.assert_close(fast.gradient[name], expected, rtol=1e-9, atol=1e-11)
    for name, expected in loop.metrics.items():
        torch.testing.assert_close(fast.metrics[name], expected)


def test_a_learner_that_differentiates_twice_is_left_to_engine_1():
    class Steps(MetricLearner):
        def query_logits(self, params, episode):
            support, query = self.embed(params, episode)
            (slope,) = torch.autograd.grad(support.square().sum(), params["0.weight"], create_graph=True)
            return query + slope.sum()

    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.LazyLinear(3)
    )
    net(torch.zeros(2, 1, 18, 18))
    theta = {name: p.detach() for name, p in net.named_parameters()}
    x, y = torch.rand(1, 6, 1, 18, 18), torch.arange(3).repeat(2)[None]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        Steps(net, vectorise="vmap-2").meta_gradient(theta, Episode(x, y, x, y))
