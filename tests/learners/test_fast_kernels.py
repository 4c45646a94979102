"""Engine 2 as a whole: meta-gradients through the chunks of the runtime are those of engine 1, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from distmeta import MAML, Episode, MetaSGD, TaskSpec, conv4
from distmeta.learners import functional
from distmeta.learners.fast_kernels import FastKernels
from distmeta.learners.param_layout import ParamLayout
from distmeta.seeding import rng

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS, TASKS, SIDE = 3, 3, 16
SPEC = TaskSpec(input_shape=(2, SIDE, SIDE), outputs=WAYS, kind="classification", support=WAYS, queries=2 * WAYS)


def episodes(tasks=TASKS):
    random = np.random.default_rng(0)

    def images(n):
        return torch.from_numpy(random.normal(size=(tasks, n, 2, SIDE, SIDE)))

    y = torch.arange(WAYS).expand(tasks, -1)
    return Episode(images(WAYS), y, images(2 * WAYS), y.repeat(1, 2))


def build(norm, pool):
    torch.manual_seed(0)
    model = conv4(8, pool=pool, norm="batch" if norm == "instance" else norm)(SPEC)
    if norm == "instance":  # of blocks whose maps have more than one pixel
        for block in list(model.features)[:3]:
            block[1] = nn.InstanceNorm2d(8, affine=True)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    return model.double()


def gradient(learner, engine, tasks=TASKS):
    learner = learner.bind(SPEC)
    if engine == 1 and not learner.loops:
        learner = learner.with_config(vectorise="vmap")
    params = learner.init_meta_params(rng(0, "init"))
    found = learner.meta_gradient(params, episodes(tasks))
    flat = torch.from_numpy(ParamLayout.of(params).flatten(found.gradient))
    return flat, found.metrics["loss"]


def assert_engines_agree(learner, tasks=TASKS):
    (fast, fast_losses), (true, losses) = (gradient(learner, engine, tasks) for engine in (2, 1))
    torch.testing.assert_close(fast_losses, losses, rtol=1e-10, atol=1e-12)
    assert float((fast - true).norm() / true.norm()) <= 1e-10


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "none"])
def test_meta_gradients_of_maml_are_those_of_engine_1(norm, pool, steps):
    assert_engines_agree(MAML(build(norm, pool), inner_lr=0.1, inner_steps=steps, vectorise="vmap-2"))


@pytest.mark.parametrize(
    "learner",
    [
        lambda net: MAML(net, inner_steps=2, first_order=True, vectorise="vmap-2"),
        lambda net: MAML(net, inner_steps=2, adapt="features.2.*,head.bias", vectorise="vmap-2"),
        lambda net: MAML(net, inner_steps=0, vectorise="vmap-2"),
        lambda net: MAML(net, inner_steps=2, adapt="head", vectorise="vmap-2"),
        lambda net: MetaSGD(net, inner_steps=2, vectorise="vmap-2"),
        lambda net: MAML(net, inner_steps=2, vectorise="loop"),
    ],
    ids=["first order", "some parameters", "no step", "head", "learned rates", "loop"],
)
def test_other_ways_to_adapt_agree_too(learner):
    assert_engines_agree(learner(build("batch", "max")))


def test_one_task_in_a_chunk():
    assert_engines_agree(MAML(build("batch", "stride"), inner_steps=2, vectorise="vmap-2"), tasks=1)


def test_evaluation_agrees():
    learner = MAML(build("batch", "max"), inner_steps=2).bind(SPEC)
    params = learner.init_meta_params(rng(0, "init"))
    engines = [learner.with_config(vectorise=name).for_evaluation() for name in ("vmap-2", "vmap")]
    found = [one.evaluate(params, episodes()) for one in engines]
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-9, atol=1e-10)


def test_engine_2_is_used_where_it_is_asked_for_and_nowhere_else(monkeypatch):
    entered = []
    monkeypatch.setattr(functional, "FastKernels", lambda: entered.append(2) or FastKernels())
    learner = MAML(build("batch", "stride"), vectorise="vmap-2")
    gradient(learner, 2)
    assert entered == [2]
    gradient(learner, 1)
    gradient(learner.with_config(vectorise="auto"), 2)  # what no probe has chosen
    assert entered == [2]
    learner.bind(SPEC).evaluate(learner.init_meta_params(rng(0, "init")), episodes())
    assert len(entered) > 1


class Hessian(nn.Module):
    """A model with a transform of ``torch.func`` inside: there are then two levels."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Linear(3, WAYS)

    def energy(self, x):
        return torch.tanh(self.norm(self.conv(x))).pow(2).sum()

    def forward(self, x):
        slope = torch.func.grad(self.energy)(x)
        return self.head(torch.tanh(self.norm(self.conv(slope))).mean((2, 3)))


def test_a_model_that_differentiates_itself():
    torch.manual_seed(0)
    assert_engines_agree(MAML(Hessian().double(), inner_steps=2, vectorise="vmap-2"))


class InPlace(nn.Module):
    """Changes the outputs of layers in place, as residual networks do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4 * (SIDE // 4) ** 2, WAYS)

    def forward(self, x):
        x = self.first(x)
        x = torch.relu_(self.norm(self.second(x)) + x)
        y = self.norm(x).mul_(0.5)
        return self.head(nn.functional.avg_pool2d(y, 2).flatten(1))


def test_a_model_that_works_in_place():
    torch.manual_seed(0)
    assert_engines_agree(MAML(InPlace().double(), inner_steps=2, vectorise="vmap-2"))
