"""Meta-gradients are exact: through the engine as the runtime calls it, in float64, several tasks in a chunk.

Two truths that share nothing with the library's own autograd code: a plain loop over tasks with ``torch.autograd`` and
torch's native modules, and central finite differences of that loop's loss.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

from distmeta import MAML, FunctionTasks, Outer, mlp, use_batch_statistics
from distmeta.errors import NonFiniteGradientError
from distmeta.learners import functional
from distmeta.learners.exact_norms import ExactNorms
from distmeta.learners.functional import trainable
from distmeta.learners.over_tasks import unstack
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime import chunks
from distmeta.runtime.chunks import Share
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.types import Chunk, Episode, TaskRef

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS, TASKS, SEED = 3, 3, 5
LIMIT = 3.8
VECTOR, IMAGE = (5,), (2, 5, 5)


def blobs(shape, *, shots=2, queries=3):
    """Classification: each class a random centre with noise around it, per task."""

    def draw(random, split):
        centres = random.normal(size=(WAYS, *shape))

        def around(n):
            y = np.repeat(np.arange(WAYS), n)
            return centres[y] + 0.5 * random.normal(size=(len(y), *shape)), y

        return (*around(shots), *around(queries))

    return FunctionTasks(draw)


class Calls(nn.Module):
    """A function of the functional interface in the middle of a small network, with parameters of its own."""

    def __init__(self, function, shape=VECTOR, width=4):
        super().__init__()
        self.function = function
        convolve = len(shape) == 3
        self.body = nn.Conv2d(shape[0], width, 3) if convolve else nn.Linear(shape[0], width)
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, WAYS)

    def forward(self, x):
        x = torch.tanh(self.function(self.body(x), self.scale, self.shift))
        return self.head(x.flatten(2).mean(2) if x.dim() == 4 else x)


class Attends(nn.Module):
    """Attention over the pixels of an image, inside a standard encoder layer with its two layer norms."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(2, WAYS)

    def forward(self, x):
        return self.head(self.encoder(x[:, :, :2].flatten(2).transpose(1, 2)).mean(1))


class Tied(nn.Module):
    """One matrix used twice under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, WAYS)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def dense(*layers):
    return nn.Sequential(nn.Linear(5, 4), *layers, nn.Tanh(), nn.Linear(4, WAYS))


def conv(*layers):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *layers, nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, WAYS)
    )


def deep_conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Tanh(),
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, WAYS),
    )


def pretrained():
    return use_batch_statistics(dense(nn.BatchNorm1d(4)))


def half_frozen():
    net = dense(nn.LayerNorm(4))
    net[0].weight.requires_grad_(False)
    return net


# Nets that trigger torch's wrong batching rules come in every way that a user may write them.
NETS = {
    "mlp": (VECTOR, dense),
    "mlp batch norm": (VECTOR, lambda: dense(nn.BatchNorm1d(4, track_running_stats=False))),
    "mlp batch norm not affine": (VECTOR, lambda: dense(nn.BatchNorm1d(4, affine=False, track_running_stats=False))),
    "mlp batch norm switched over": (VECTOR, pretrained),
    "mlp layer norm": (VECTOR, lambda: dense(nn.LayerNorm(4))),
    "mlp layer norm not affine": (VECTOR, lambda: dense(nn.LayerNorm(4, elementwise_affine=False))),
    "mlp layer norm half frozen": (VECTOR, half_frozen),
    "mlp rms norm": (VECTOR, lambda: dense(nn.RMSNorm(4))),
    "mlp tied": (VECTOR, Tied),
    "conv": (IMAGE, conv),
    "conv batch norm": (IMAGE, lambda: conv(nn.BatchNorm2d(4, track_running_stats=False))),
    "conv batch norm twice": (IMAGE, deep_conv),
    "conv layer norm": (IMAGE, lambda: conv(nn.LayerNorm([4, 3, 3]))),
    "conv group norm": (IMAGE, lambda: conv(nn.GroupNorm(2, 4))),
    "conv instance norm": (IMAGE, lambda: conv(nn.InstanceNorm2d(4, affine=True))),
    "conv local response norm": (IMAGE, lambda: conv(nn.LocalResponseNorm(2))),
    "attention": (IMAGE, Attends),
    "F.layer_norm": (VECTOR, lambda: Calls(lambda x, w, b: F.layer_norm(x, (4,), weight=w, bias=b))),
    "torch.layer_norm": (VECTOR, lambda: Calls(lambda x, w, b: torch.layer_norm(x, (4,), w, b, 1e-3, False))),
    "F.batch_norm": (VECTOR, lambda: Calls(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True))),
    "torch.batch_norm": (
        IMAGE,
        lambda: Calls(lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-4, False), IMAGE),
    ),
    "F.instance_norm": (IMAGE, lambda: Calls(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), IMAGE)),
    "torch.instance_norm": (
        IMAGE,
        lambda: Calls(lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-4, False), IMAGE),
    ),
}


def perturb(net):
    """Other parameters, the same in every run, away from the special values of an initialisation (weight 1, bias 0)."""
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and name.endswith(("weight", "scale")) else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))


def make(name):
    """The tasks and the float64 network."""
    shape, build = NETS[name]
    net = build().double()
    perturb(net)
    return blobs(shape), net


def worker_of(learner, tasks):
    params = learner.init_meta_params(np.random.default_rng(0))
    layout = ParamLayout.of(params)
    return Worker("worker-0", WorkerSetup(learner, tasks, layout, SEED, threads=1)), layout.flatten(params)


def chunk_gradient(learner, tasks, start=0, stop=TASKS):
    """Per-task losses and the summed gradient of one chunk, as the runtime gets them."""
    worker, vector = worker_of(learner, tasks)
    header, gradient = worker.train_chunk(Chunk(0, "meta_train", 4, start, stop), 0, vector)
    assert gradient.dtype == vector.dtype == np.float64
    return header.metrics["loss"], gradient


def float64_tasks(tasks, count=TASKS):
    episodes = tasks.episodes([TaskRef("meta_train", 4, i) for i in range(count)], SEED)
    return episodes.to(torch.device("cpu"), torch.float64)


def plain_losses(net, theta, episodes, *, lr, steps, second_order=True, adapted=None):
    """MAML as the paper writes it: one task after the other, ``torch.autograd`` and torch's own layers."""
    losses = []
    for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
        phi = dict(theta)
        names = list(theta) if adapted is None else adapted
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(net, phi, (support_x,)), support_y)
            gradient = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=second_order)
            phi |= {n: phi[n] - lr * g for n, g in zip(names, gradient, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, phi, (query_x,)), query_y))
    return torch.stack(losses)


def plain_gradient(net, episodes, **settings):
    theta = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        losses = plain_losses(net, theta, episodes, **settings)
    parts = torch.autograd.grad(losses.sum(), list(theta.values()))
    return losses.detach().numpy(), torch.cat([p.reshape(-1) for p in parts]).numpy()


def finite_differences(net, episodes, *, lr, steps, h=1e-5):
    """The whole gradient, one coordinate at a time, of the plain loop's loss."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    point = torch.cat([net.get_parameter(name).detach().reshape(-1) for name in names])
    sizes, shapes = zip(*((net.get_parameter(n).numel(), net.get_parameter(n).shape) for n in names), strict=True)

    def loss(vector):
        parts = [part.reshape(s) for part, s in zip(vector.split(sizes), shapes, strict=True)]
        theta = {name: part.detach().requires_grad_() for name, part in zip(names, parts, strict=True)}
        return plain_losses(net, theta, episodes, lr=lr, steps=steps, second_order=False).sum().item()

    steps_along = torch.eye(len(point), dtype=torch.float64) * h
    return np.array([(loss(point + d) - loss(point - d)) / (2 * h) for d in steps_along])


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("name", NETS)
def test_second_order_equals_a_plain_loop(name, vectorise):
    tasks, net = make(name)
    losses, gradient = chunk_gradient(MAML(net, inner_lr=0.3, inner_steps=3, vectorise=vectorise), tasks)
    true_losses, truth = plain_gradient(net, float64_tasks(tasks), lr=0.3, steps=3)
    assert relative(losses, true_losses) <= 1e-12
    assert relative(gradient, truth) <= 1e-12


@pytest.mark.parametrize("name", NETS)
def test_second_order_equals_finite_differences(name):
    tasks, net = make(name)
    _, gradient = chunk_gradient(MAML(net, inner_lr=0.3, inner_steps=2, vectorise="vmap"), tasks)
    assert relative(gradient, finite_differences(net, float64_tasks(tasks), lr=0.3, steps=2)) <= 1e-6


@pytest.mark.parametrize("name", ["mlp batch norm", "conv batch norm", "conv instance norm", "mlp layer norm"])
def test_this_suite_would_notice_torchs_own_norms(name, monkeypatch):
    """Without :class:`ExactNorms` these gradients are wrong by far more than the tolerances above (torch up to 2.13).

    When this fails, torch has mended its batching rules (pytorch/functorch#534) and ExactNorms can go.
    """
    tasks, net = make(name)
    learner = MAML(net, inner_lr=0.3, inner_steps=3, vectorise="vmap")
    monkeypatch.setattr(functional, "ExactNorms", contextlib.nullcontext)
    _, wrong = chunk_gradient(learner, tasks)
    _, truth = plain_gradient(net, float64_tasks(tasks), lr=0.3, steps=3)
    assert relative(wrong, truth) > 1e-5


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4, track_running_stats=False), (6, 4)),
        (nn.BatchNorm1d(4, track_running_stats=False), (6, 4, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 3, 3)),
        (nn.BatchNorm3d(4, track_running_stats=False), (3, 4, 2, 2, 2)),
        (nn.BatchNorm1d(4).eval(), (6, 4)),
        (nn.BatchNorm2d(4, eps=0.1, track_running_stats=False), (1, 4, 3, 3)),
        (nn.LayerNorm(4), (6, 4)),
        (nn.LayerNorm([3, 4], eps=0.1), (6, 3, 4)),
        (nn.LayerNorm(4, bias=False), (6, 2, 4)),
        (nn.InstanceNorm1d(4, affine=True), (6, 4, 5)),
        (nn.InstanceNorm2d(4), (6, 4, 3, 3)),
        (nn.InstanceNorm2d(4), (4, 3, 3)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(), (6, 4, 3, 3)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else type(value).__name__,
)
def test_exact_norms_compute_what_torch_computes(norm, shape):
    norm = norm.double()
    perturb(norm)
    for buffer in norm.buffers():
        buffer.copy_(torch.linspace(0.5, 1.5, buffer.numel()).reshape(buffer.shape))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    with ExactNorms():
        exact = norm(x)
    torch.testing.assert_close(exact, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(4, track_running_stats=False), (1, 4)), (nn.InstanceNorm2d(4), (2, 4, 1, 1))]
)
def test_exact_norms_refuse_what_torch_refuses(norm, shape):
    with ExactNorms(), pytest.raises(ValueError, match="Expected more than 1"):
        norm(torch.zeros(shape))


# FACTS: everything but the three norms above is exact when autograd runs through vmap. Each layer of this table is a
# reason why an architecture may be trained vectorised.
LAYERS = {
    "grouped convolution": nn.Conv2d(4, 4, 3, groups=2, padding=1),
    "transposed convolution": nn.ConvTranspose2d(4, 4, 2, stride=2),
    "dilated convolution": nn.Conv2d(4, 4, 2, dilation=2, padding_mode="reflect", padding=1),
    "max pool": nn.MaxPool2d(2),
    "adaptive max pool": nn.AdaptiveMaxPool2d(2),
    "average pool": nn.AvgPool2d(2, padding=1),
    "power average pool": nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 2)),
    "bilinear upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
    "nearest upsample": nn.Upsample(scale_factor=2),
    "pixel shuffle": nn.PixelShuffle(2),
    "relu": nn.ReLU(),
    "leaky relu": nn.LeakyReLU(),
    "prelu": nn.PReLU(4),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "elu": nn.ELU(),
    "glu": nn.GLU(1),
    "hardswish": nn.Hardswish(),
    "log softmax": nn.LogSoftmax(1),
    "group norm": nn.GroupNorm(4, 4),
    "weight norm": weight_norm(nn.Conv2d(4, 4, 3)),
}


class Around(nn.Module):
    """A layer between a convolution and a linear head; the layer's output may have any number of channels."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer = nn.Conv2d(2, 4, 2), layer
        with torch.no_grad():
            features = self.features(torch.zeros(2, *IMAGE)).shape[1]
        self.head = nn.Linear(features, WAYS)

    def features(self, x):
        return self.layer(torch.tanh(self.first(x))).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # weight norm: torch maps it slowly
@pytest.mark.parametrize("name", LAYERS)
def test_engines_agree_on(name):
    net = Around(copy.deepcopy(LAYERS[name])).double()
    perturb(net)
    tasks = blobs(IMAGE)
    _, mapped = chunk_gradient(MAML(net, inner_lr=0.3, inner_steps=2, vectorise="vmap"), tasks)
    _, looped = chunk_gradient(MAML(net, inner_lr=0.3, inner_steps=2, vectorise="loop"), tasks)
    assert relative(mapped, looped) <= 1e-12


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["mlp", "mlp batch norm", "conv layer norm", "conv batch norm twice"])
def test_first_order_is_the_gradient_of_the_query_loss_at_phi(name, vectorise):
    tasks, net = make(name)
    learner = MAML(net, inner_lr=0.3, inner_steps=3, first_order=True, vectorise=vectorise)
    _, gradient = chunk_gradient(learner, tasks)
    _, truth = plain_gradient(net, float64_tasks(tasks), lr=0.3, steps=3, second_order=False)
    _, second = plain_gradient(net, float64_tasks(tasks), lr=0.3, steps=3)
    assert relative(gradient, truth) <= 1e-12
    assert relative(gradient, second) > 1e-3  # it is another quantity, and the tolerance above can tell
    assert not learner.exact_gradient


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_linear_regression_by_hand(steps, vectorise):
    """L(w) = mean (w x - y)^2 has the gradient 2 (A w - b) with A = mean x^2, b = mean x y; all is arithmetic.

    phi = w after ``steps`` steps of phi <- phi - 2 alpha (A phi - b), so d phi / d w = (1 - 2 alpha A)^steps.
    """
    alpha, w = 0.1, 0.7

    def lines(random, split):
        slope, x = random.normal(), random.uniform(-1, 1, size=(8, 1))
        return x[:3], slope * x[:3], x[3:], slope * x[3:] + 1

    tasks, net = FunctionTasks(lines), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, w)
    first = second = 0.0
    for support_x, support_y, query_x, query_y in zip(*(t.numpy() for t in float64_tasks(tasks)), strict=True):
        a, b, phi = (support_x**2).mean(), (support_x * support_y).mean(), w
        for _ in range(steps):
            phi -= 2 * alpha * (a * phi - b)
        at_phi = 2 * ((query_x**2).mean() * phi - (query_x * query_y).mean())
        first, second = first + at_phi, second + at_phi * (1 - 2 * alpha * a) ** steps
    for first_order, truth in ((True, first), (False, second)):
        learner = MAML(net, inner_lr=alpha, inner_steps=steps, first_order=first_order, vectorise=vectorise)
        assert chunk_gradient(learner, tasks)[1] == pytest.approx([truth], rel=1e-12)


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_anil_moves_the_head_alone_and_its_gradient_is_exact(vectorise):
    tasks, net = blobs(VECTOR), nn.Sequential()
    net.add_module("features", dense(nn.LayerNorm(4))[:3])
    net.add_module("head", nn.Linear(4, WAYS))
    net.double()
    learner = MAML(net, inner_lr=0.5, inner_steps=3, adapt="head", vectorise=vectorise)
    episodes = float64_tasks(tasks)
    theta = trainable(net)
    phi = learner.with_config(vectorise="loop").fast_params(theta, unstack(episodes)[0])
    assert list(phi) == list(theta)
    moved = {name for name in theta if not torch.equal(phi[name], theta[name])}
    assert moved == {"head.weight", "head.bias"}
    _, gradient = chunk_gradient(learner, tasks)
    _, truth = plain_gradient(net, episodes, lr=0.5, steps=3, adapted=["head.weight", "head.bias"])
    _, all_move = plain_gradient(net, episodes, lr=0.5, steps=3)
    assert relative(gradient, truth) <= 1e-12
    assert relative(gradient, all_move) > 1e-3


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_meta_gradient_is_the_chunks_sum_whatever_way_it_is_called(vectorise):
    tasks, net = make("conv batch norm")
    learner = MAML(net, inner_lr=0.3, inner_steps=2, vectorise=vectorise)
    theta, episodes = trainable(net), float64_tasks(tasks)
    result = learner.meta_gradient(theta, episodes)
    _, through_worker = chunk_gradient(learner, tasks)
    assert result.tasks == TASKS
    assert all(values.shape == (TASKS,) for values in result.metrics.values())
    assert np.array_equal(ParamLayout.of(theta).flatten(result.gradient), through_worker)
    assert all(not p.requires_grad and p.grad is None for p in theta.values())


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_chunks_of_any_size_add_up(size, vectorise):
    tasks, net = make("conv batch norm")
    learner, total = MAML(net, inner_lr=0.3, inner_steps=2, vectorise=vectorise), 5
    _, whole = chunk_gradient(learner, tasks, 0, total)
    parts = [chunk_gradient(learner, tasks, start, min(start + size, total))[1] for start in range(0, total, size)]
    assert relative(sum(parts), whole) <= 1e-10


def test_the_server_averages_unequal_chunks_as_one_batch():
    tasks, net = make("mlp layer norm")
    learner, total = MAML(net, inner_lr=0.3, inner_steps=2, vectorise="vmap"), 5
    worker, vector = worker_of(learner, tasks)
    server = ParameterServer(Outer(optimizer="sgd", lr=1.0), vector)
    parts = chunks.split(total, 2, split="meta_train", step=0)
    assert [part.size for part in parts] == [2, 2, 1]
    for part in parts:
        _, gradient = worker.train_chunk(part, 0, vector)
        server.accumulate(0, Share((part,), len(parts)), gradient[None])
    _, after = server.apply(0)
    _, whole = worker.train_chunk(Chunk(0, "meta_train", 0, 0, total), 0, vector)
    assert relative(vector - after, whole / total) <= 1e-12


def test_float32_is_the_same_gradient_rounded():
    tasks, net = make("conv batch norm twice")
    _, truth = chunk_gradient(MAML(net, inner_lr=0.3, inner_steps=3, vectorise="vmap"), tasks)
    single = MAML(copy.deepcopy(net).float(), inner_lr=0.3, inner_steps=3, vectorise="vmap")
    worker, vector = worker_of(single, tasks)
    _, gradient = worker.train_chunk(Chunk(0, "meta_train", 4, 0, TASKS), 0, vector)
    assert gradient.dtype == np.float32
    assert relative(gradient, truth) <= 1e-4


def test_factory_networks_are_exact_too():
    """``mlp`` as a job file gives it, unbound until the tasks are known."""
    tasks = blobs(VECTOR)
    learner = MAML(mlp((6, 4), norm="batch"), inner_lr=0.2, inner_steps=2, vectorise="vmap").bind(tasks.spec, 1)
    learner.model.double()
    _, gradient = chunk_gradient(learner, tasks)
    _, truth = plain_gradient(learner.model, float64_tasks(tasks), lr=0.2, steps=2)
    assert relative(gradient, truth) <= 1e-12


def test_a_task_whose_loss_is_not_finite_is_named():
    class Fragile(nn.Linear):
        def forward(self, x):
            return super().forward(x) / (x.abs().amax() < LIMIT).to(x.dtype)  # infinite for an input that is too large

    tasks = blobs(VECTOR)
    worker, vector = worker_of(MAML(Fragile(5, WAYS).double(), inner_lr=0.1, vectorise="loop"), tasks)
    large = [i for i in range(40) if any(float(x.abs().max()) >= LIMIT for x in _inputs(tasks, i))]
    assert large[0] > 0
    assert len(large) > 1
    with pytest.raises(NonFiniteGradientError) as caught:
        worker.train_chunk(Chunk(0, "meta_train", 4, 0, 40), 0, vector)
    assert caught.value.task_ref == TaskRef("meta_train", 4, large[0])
    assert f"{len(large)} of 40 tasks" in str(caught.value)


def _inputs(tasks, index):
    episode: Episode = tasks.episode(TaskRef("meta_train", 4, index), SEED)
    return episode.support_x, episode.query_x
