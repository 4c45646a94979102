"""The outer step is torch's own, once per step, and whole or not at all."""

import math

import numpy as np
import pytest
import torch

from distmeta import Outer
from distmeta.errors import ConfigError, NonFiniteGradientError, RuntimeFailure
from distmeta.runtime.chunks import Share
from distmeta.runtime.outer_optimizer import learning_rate
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.types import Chunk

SHAPES = ((3, 4), (4,), (), (2, 1, 2))
SIZE = sum(math.prod(shape) for shape in SHAPES)
START = np.linspace(-1, 1, SIZE, dtype=np.float32)


def gradients(steps, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(steps, SIZE)).astype(dtype)


def parts(vector):
    """The flat vector as separate parameters."""
    pieces = np.split(vector, np.cumsum([math.prod(shape) for shape in SHAPES])[:-1])
    return [torch.from_numpy(piece.reshape(shape).copy()) for piece, shape in zip(pieces, SHAPES, strict=True)]


def add(server, t, chunk, chunks, tasks, gradient):
    """Give the server one chunk of a step."""
    server.accumulate(t, Share((Chunk(chunk, "meta_train", t, 0, tasks),), chunks), gradient[None])


def step(server, t, gradient, tasks=1):
    add(server, t, 0, 1, tasks, gradient)
    return server.apply(t)


OPTIMIZERS = {
    "sgd": ({}, torch.optim.SGD, {}),
    "sgd momentum": ({"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "sgd decay": ({"momentum": 0.5, "weight_decay": 0.1}, torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.1}),
    "adam": ({}, torch.optim.Adam, {}),
    "adam decay": ({"weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
    "rmsprop": (
        {"momentum": 0.9},
        torch.optim.RMSprop,
        {"momentum": 0.9, "alpha": 0.95, "eps": 1e-4, "centered": True},
    ),
    "adamw": ({}, torch.optim.AdamW, {"weight_decay": 0.0}),
    "adamw decay": ({"weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_torch_on_separate_tensors(name, schedule):
    settings, kind, torch_settings = OPTIMIZERS[name]
    end = {"final_lr": 0.01} if schedule == "cosine" else {}
    outer = Outer(optimizer=name.split()[0], lr=0.05, schedule=schedule, iterations=6, **end, **settings)
    server = ParameterServer(outer, START)
    parameters = [torch.nn.Parameter(part) for part in parts(START)]
    optimizer = kind(parameters, lr=0.05, **torch_settings)
    for t, gradient in enumerate(gradients(6)):
        header, vector = step(server, t, 4 * gradient, tasks=4)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(outer, t)
        for parameter, part in zip(parameters, parts(gradient), strict=True):
            parameter.grad = part
        optimizer.step()
        plain = np.concatenate([p.detach().numpy().reshape(-1) for p in parameters])
        np.testing.assert_allclose(vector, plain, rtol=2e-6, atol=1e-7)
        assert (header.version, header.lr) == (t + 1, learning_rate(outer, t))
        assert header.grad_norm == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-6)
    assert not np.allclose(vector, START, atol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0: 0.1, 5: 0.1, 10: 0.1, 99: 0.1}),
        ("linear", {0: 0.1, 1: 0.09, 5: 0.05, 9: 0.01, 10: 0.0, 99: 0.0}),
        ("cosine", {0: 0.1, 2.5: 0.02 + 0.08 * (2 + 2**0.5) / 4, 5: 0.06, 10: 0.02, 99: 0.02}),
    ],
)
def test_schedules_in_closed_form(schedule, at):
    outer = Outer(lr=0.1, final_lr=0.02 if schedule == "cosine" else 0.0, schedule=schedule, iterations=10)
    assert {t: learning_rate(outer, t) for t in at} == pytest.approx(at)


@pytest.mark.parametrize(
    ("clip", "gradient", "applied"),
    [
        ({}, [3.0, -4.0], [3.0, -4.0]),
        ({"clip_norm": 10.0}, [3.0, -4.0], [3.0, -4.0]),
        ({"clip_norm": 2.5}, [3.0, -4.0], [1.5, -2.0]),
        ({"clip_norm": 1.0}, [0.0, 0.0], [0.0, 0.0]),
        ({"clip_value": 3.5}, [3.0, -4.0], [3.0, -3.5]),
        ({"clip_value": 1.0, "clip_norm": 1.0}, [30.0, -40.0], [0.5**0.5, -(0.5**0.5)]),  # by value first
    ],
)
def test_clipping(clip, gradient, applied):
    server = ParameterServer(Outer(optimizer="sgd", lr=1.0, **clip), np.zeros(2, np.float32))
    header, vector = step(server, 0, np.array(gradient, np.float32) * 3, tasks=3)
    assert (-vector).tolist() == pytest.approx(applied)
    assert header.grad_norm == pytest.approx(math.hypot(*gradient))  # before clipping


def test_unequal_chunks_are_weighted_by_their_tasks():
    server = ParameterServer(Outer(optimizer="sgd", lr=1.0), np.zeros(1, np.float32))
    for chunk, (tasks, total) in enumerate([(4, 8.0), (4, 4.0), (2, 8.0)]):
        add(server, 0, chunk, 3, tasks, np.array([total], np.float32))
    assert server.apply(0)[1].tolist() == [-2.0]


def test_the_bits_do_not_depend_on_arrival():
    pieces, found = gradients(5), set()
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 3, 1, 0, 4, 4, 2, 0]):
        server = ParameterServer(Outer(), START)
        for chunk in order:
            add(server, 0, chunk, 5, 2, pieces[chunk])
        found.add(server.apply(0)[1].tobytes())
    assert len(found) == 1


def test_every_call_may_come_again():
    once, again = ParameterServer(Outer(), START), ParameterServer(Outer(), START)
    for t, gradient in enumerate(gradients(3)):
        step(once, t, gradient)
        for _ in range(2):
            add(again, t, 0, 1, 1, gradient)
        first, second = again.apply(t), again.apply(t)
        assert first[0] == second[0]
        assert np.array_equal(first[1], second[1])
        add(again, t, 0, 1, 1, 100 * gradient)  # a late duplicate of a step that is done
        again.apply(t)
    assert np.array_equal(once.vector(), again.vector())
    assert again.state()[0] == 3


def test_a_late_gradient_of_a_step_before_does_not_count_in_this_one():
    server = ParameterServer(Outer(optimizer="sgd", lr=1.0), np.zeros(1, np.float32))
    step(server, 0, np.ones(1, np.float32))
    add(server, 1, 0, 2, 1, np.ones(1, np.float32))
    add(server, 0, 1, 2, 1, np.full(1, 50.0, np.float32))
    add(server, 1, 1, 2, 1, np.full(1, 3.0, np.float32))
    assert server.apply(1)[1].tolist() == [-3.0]


def test_a_call_of_another_step_is_refused():
    server = ParameterServer(Outer(), START)
    with pytest.raises(RuntimeFailure, match="gradient of step 2 came at version 0"):
        add(server, 2, 0, 1, 1, START)
    with pytest.raises(RuntimeFailure, match="no gradient for step 0 at"):
        server.apply(0)


@pytest.mark.parametrize("clip", [{"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_an_exploded_gradient_of_finite_numbers_is_clipped(clip):
    """Its squares, and with them the norm, are beyond float32; that is what clipping is for."""
    server = ParameterServer(Outer(optimizer="sgd", lr=1.0, **clip), START)
    exploded = np.zeros_like(START)
    exploded[3] = 1e30
    add(server, 0, 0, 1, 1, exploded)
    header, vector = server.apply(0)
    assert header.grad_norm == pytest.approx(1e30)
    np.testing.assert_allclose(START - vector, exploded / np.float32(1e30), atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_nothing_moves(bad):
    server = ParameterServer(Outer(clip_norm=1.0, clip_value=1.0), START)
    step(server, 0, gradients(1)[0])
    version, vector, optimizer = server.state()
    poisoned = gradients(1)[0]
    poisoned[3] = bad
    add(server, 1, 0, 1, 1, poisoned)
    with pytest.raises(NonFiniteGradientError, match=r"mean meta-gradient of step 1 .* Nothing was applied"):
        server.apply(1)
    after = server.state()
    assert (after[0], set(after[2])) == (version, set(optimizer))
    assert np.array_equal(after[1], vector)
    assert all(np.array_equal(after[2][name], optimizer[name]) for name in optimizer)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_round_trip_is_bitwise(name, dtype):
    """Resumed after every step, the server goes on with the very same bits."""
    settings, _, _ = OPTIMIZERS[name]
    outer = Outer(optimizer=name.split()[0], lr=0.05, schedule="cosine", iterations=8, **settings)
    whole, resumed = (ParameterServer(outer, START.astype(dtype)) for _ in range(2))
    for t, gradient in enumerate(gradients(8, dtype)):
        _, expected = step(whole, t, gradient)
        version, vector, optimizer = resumed.state()
        assert version == t
        resumed = ParameterServer(outer, vector, version=version, optimizer=optimizer)
        header, found = step(resumed, t, gradient)
        assert found.dtype == dtype
        assert header.version == t + 1
        assert np.array_equal(found, expected)


def test_what_is_published_is_a_copy():
    server = ParameterServer(Outer(), START)
    _, vector = step(server, 0, gradients(1)[0])
    kept = vector.copy()
    _, state_vector, optimizer = server.state()
    for array in (vector, state_vector, optimizer["exp_avg"]):
        array.fill(7)
    assert np.array_equal(server.vector(), kept)
    assert not np.array_equal(server.state()[2]["exp_avg"], optimizer["exp_avg"])
    assert np.array_equal(START, np.linspace(-1, 1, SIZE, dtype=np.float32))


def test_read_only_vectors_are_taken():
    frozen, gradient = START.copy(), gradients(1)[0]
    for array in (frozen, gradient):
        array.setflags(write=False)  # as they lie in shared memory
    assert not np.array_equal(step(ParameterServer(Outer(), frozen), 0, gradient)[1], START)


@pytest.mark.parametrize(
    "settings",
    [{"lr": 0}, {"lr": math.inf}, {"clip_norm": 0}, {"optimizer": "lion"}, {"momentum": -1}, {"iterations": -1}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Outer(**settings)
