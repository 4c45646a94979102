"""The outer optimizer: closed forms, the average that a run is evaluated by, and state that is whole."""

import numpy as np
import pytest
import torch

from distmeta import Evaluation, Experiment, LocalBackend, Outer, Reptile, Runtime, Sinusoids, meta_train, mlp
from distmeta.errors import ConfigError
from distmeta.learners.inner_loop import first_order_descent
from distmeta.run.place import Place
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.outer_optimizer import OuterOptimizer, learning_rate

KINDS = {
    "adam averaged": {"average": 0.9},
    "adamw warm": {"optimizer": "adamw", "weight_decay": 0.1, "warmup": 3, "schedule": "cosine"},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "lr": 0.1},
    "schedulefree": {"optimizer": "schedulefree", "weight_decay": 0.01, "warmup": 2, "lr": 0.01},
    "sgd": {"optimizer": "sgd", "average": 0.5},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def outer(kind, **more):
    return Outer(iterations=20, **{**KINDS[kind], **more})


def gradients(count=12, size=5):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=random) for _ in range(count)]


@every_kind
def test_state_and_vector_are_all_that_is_needed_to_go_on(kind):
    whole, start = OuterOptimizer(outer(kind), np.ones(5, np.float32)), 6
    for step, gradient in enumerate(gradients()):
        whole.step(step, gradient.clone())
        if step == start - 1:
            again = OuterOptimizer(outer(kind), whole.vector(), whole.state())
    for step, gradient in list(enumerate(gradients()))[start:]:
        again.step(step, gradient.clone())
    np.testing.assert_array_equal(again.vector(), whole.vector())
    np.testing.assert_array_equal(again.learned(), whole.learned())
    assert again.state().keys() == whole.state().keys()


def test_the_average_is_the_mean_by_hand_and_training_does_not_feel_it():
    with_average, without = (OuterOptimizer(outer("sgd", average=a), np.ones(5, np.float32)) for a in (0.5, None))
    expected = np.ones(5)
    for step, gradient in enumerate(gradients()):
        for one in (with_average, without):
            one.step(step, gradient.clone())
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * without.vector()
    np.testing.assert_array_equal(with_average.vector(), without.vector())
    np.testing.assert_allclose(with_average.learned(), expected, rtol=1e-5)
    np.testing.assert_array_equal(without.learned(), without.vector())


def test_nesterov_is_torchs_and_by_hand():
    found = OuterOptimizer(outer("nesterov"), np.zeros(5, np.float32))
    momentum, theta = np.zeros(5), np.zeros(5)
    for step, gradient in enumerate(gradients()):
        found.step(step, gradient.clone())
        momentum = 0.9 * momentum + gradient.numpy()
        theta = theta - 0.1 * (gradient.numpy() + 0.9 * momentum)
    np.testing.assert_allclose(found.vector(), theta, rtol=1e-4, atol=1e-6)


def test_schedule_free_is_evaluated_at_the_librarys_own_average():
    import schedulefree

    found, p = OuterOptimizer(outer("schedulefree"), np.ones(5, np.float32)), torch.nn.Parameter(torch.ones(5))
    theirs = schedulefree.AdamWScheduleFree([p], lr=0.01, weight_decay=0.01)
    theirs.train()
    for step, gradient in enumerate(gradients()):
        found.step(step, gradient.clone())
        theirs.param_groups[0]["lr"] = learning_rate(outer("schedulefree"), step)
        p.grad = gradient.clone()
        theirs.step()
    theirs.eval()
    np.testing.assert_allclose(found.learned(), p.detach().numpy(), rtol=1e-6)
    assert float(np.abs(found.learned() - found.vector()).max()) > 1e-4


def test_a_warm_up_rises_and_the_schedule_has_the_rest():
    o = Outer(lr=1.0, warmup=4, iterations=14, schedule="linear")
    assert [learning_rate(o, t) for t in (0, 3, 4, 9, 14)] == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, "nesterov=True has no effect on adam"),
        ({"nesterov": True, "optimizer": "sgd"}, "nesterov=True has no effect on sgd with momentum=0"),
        ({"optimizer": "schedulefree", "schedule": "cosine"}, "averages by itself"),
        ({"optimizer": "schedulefree", "average": 0.9}, "averages by itself"),
        ({"warmup": 5, "iterations": 5}, "takes all of the iterations=5"),
        ({"average": 1.0}, "average"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Outer(**settings)


def test_an_absent_library_is_named_before_a_worker_starts(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ConfigError, match=r"pip install 'distmeta\[schedulefree\]'"):
        Driver(experiment("schedulefree"), CheckpointStore(tmp_path))


def experiment(kind, iterations=8):
    return Experiment(
        learner=Reptile(mlp((8,)), inner_steps=2, inner_lr=0.01),
        tasks=Sinusoids(shots=4, queries=4),
        outer=outer(kind).replace(iterations=iterations, meta_batch_size=4),
        runtime=Runtime(chunk_size=2, checkpoint_every=3),
        evaluation=Evaluation(every=4, validation_tasks=4, test_tasks=4),
    )


def run(kind, folder, *, until=8, workers=1):
    """Train to the end, or be stopped after ``until`` steps as by a kill: nothing is written then."""
    e = experiment(kind).with_overrides({"runtime.workers": workers})
    driver = Driver(e, CheckpointStore(folder))

    class Killed(Exception):
        pass

    class Log:
        def metrics(self, step, values):
            if step > until:
                raise Killed

        def truncate(self, step):
            pass

    backend = LocalBackend()
    try:
        driver.start(backend)
        return driver.train(Log())
    except Killed:
        return None
    finally:
        driver.close()
        backend.close()


@every_kind
def test_equal_bits_for_any_number_of_workers_and_after_a_kill(kind, tmp_path):
    whole = run(kind, tmp_path / "whole")
    assert run(kind, tmp_path / "cut", until=5) is None
    cut = run(kind, tmp_path / "cut", workers=3)
    last = [CheckpointStore(tmp_path / name).load() for name in ("whole", "cut")]
    assert last[0].params_sha256 == last[1].params_sha256
    np.testing.assert_array_equal(last[0].vector, last[1].vector)
    assert cut.best.params_sha256 == whole.best.params_sha256
    for name, values in whole.test.metrics.items():
        np.testing.assert_array_equal(values, cut.test.metrics[name])


def test_a_finished_run_is_its_average(tmp_path):
    """What is loaded, evaluated and named by params_sha256 is the average; training went on from the parameters."""
    e = experiment("sgd").with_overrides({"evaluation.every": 0})
    result = meta_train(e, run_dir=tmp_path / "run", place=Place())
    last = CheckpointStore(tmp_path / "run" / "checkpoints").load()
    assert result.params_sha256 == last.params_sha256 == last.layout.sha256(last.learned)
    assert last.params_sha256 != last.layout.sha256(last.vector)


def test_inner_adamw_is_torchs():
    start = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    found = first_order_descent(
        lambda p, i: (p["w"].square() * (i + 1)).sum(),
        start,
        lr=0.1,
        steps=5,
        optimizer="adamw",
        beta1=0.9,
        weight_decay=0.2,
    )
    p = torch.nn.Parameter(start["w"].clone())
    theirs = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.999), weight_decay=0.2)
    for i in range(5):
        theirs.zero_grad()
        (p.square() * (i + 1)).sum().backward()
        theirs.step()
    torch.testing.assert_close(found["w"], p.detach())


def test_a_decay_without_adamw_is_refused():
    with pytest.raises(ConfigError, match=r"inner_weight_decay=0\.1 has no effect on adam"):
        Reptile(mlp((8,)), inner_weight_decay=0.1)
