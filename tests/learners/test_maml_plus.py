"""MAML++: MAML where nothing is switched on, learned rates, the multi-step loss, annealing by the outer step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from distmeta import MAML, Evaluation, Experiment, MAMLPlusPlus, Outer, Runtime, Sinusoids, meta_train, mlp
from distmeta.errors import ConfigError
from distmeta.learners.functional import trainable
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import Chunk, Episode

pytestmark = pytest.mark.usefixtures("one_thread")

T, WAYS, DIM, K = 3, 3, 4, 3


def tasks():
    random = torch.Generator().manual_seed(0)
    x, query = (torch.randn(T, n * WAYS, DIM, dtype=torch.float64, generator=random) for n in (2, 3))
    y, query_y = (torch.arange(WAYS).repeat_interleave(n).expand(T, -1) for n in (2, 3))
    return Episode(x, y, query, query_y)


def model():
    torch.manual_seed(1)
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(DIM, 5), nn.Tanh()))
    net.add_module("head", nn.Linear(5, WAYS))
    return net.double()


NET = model()  # its structure: it is always called with other parameters


def plain_loss(params, episodes, weights, first_order=False):
    """``sum_k w_k L(phi_k)`` with a rate per tensor and step, summed over the tasks, in a loop of torch alone."""
    total = 0.0
    for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
        phi = {name: p for name, p in params.items() if not name.startswith("rate/")}
        for k, weight in enumerate(weights):
            loss = F.cross_entropy(functional_call(NET, phi, (support_x,)), support_y)
            gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            moves = zip(phi.items(), gradient, strict=True)
            phi = {name: p - params[f"rate/{name}"][k] * g for (name, p), g in moves}
            total = total + weight * F.cross_entropy(functional_call(NET, phi, (query_x,)), query_y)
    return total


def plain_gradient(params, episodes, weights, first_order=False):
    point = {name: p.clone().requires_grad_() for name, p in params.items()}
    loss = plain_loss(point, episodes, weights, first_order)
    return dict(zip(point, torch.autograd.grad(loss, list(point.values())), strict=True))


def assert_equal(found, expected, rtol=1e-11):
    assert list(found) == list(expected)
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=rtol, atol=1e-13)


def uneven(learner):
    """Meta-parameters with a different rate everywhere."""
    params = learner.init_meta_params(rng(0, "init"))
    random = torch.Generator().manual_seed(3)
    return {
        name: p * (0.5 + torch.rand(p.shape, generator=random, dtype=p.dtype)) if name.startswith("rate/") else p
        for name, p in params.items()
    }


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_with_nothing_switched_on_it_is_maml(vectorise):
    plus = MAMLPlusPlus(model(), inner_lr=0.3, inner_steps=K, learned_rates=False, vectorise=vectorise)
    maml = MAML(model(), inner_lr=0.3, inner_steps=K, vectorise=vectorise)
    params = plus.init_meta_params(rng(0, "init"))
    for step in (0, 100):
        found, expected = plus.at_step(step).meta_gradient(params, tasks()), maml.meta_gradient(params, tasks())
        assert_equal(found.gradient, expected.gradient)
        torch.testing.assert_close(found.metrics["loss"], expected.metrics["loss"])
        assert torch.equal(found.metrics["accuracy"], expected.metrics["accuracy"])


def test_learned_rates_begin_as_mamls():
    plus, maml = MAMLPlusPlus(model(), inner_lr=0.3, inner_steps=K), MAML(model(), inner_lr=0.3, inner_steps=K)
    one = tasks().counted().map(lambda part: part[0])
    params = plus.init_meta_params(rng(0, "init"))
    assert {name: p.shape for name, p in params.items() if "/" in name} == {
        f"rate/{name}": (K,) for name in trainable(model())
    }
    torch.testing.assert_close(
        plus.query_logits(params, one), maml.query_logits(trainable(model()), one), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("step", [0, 5, 10])
def test_the_gradient_for_theta_and_the_rates_is_that_of_finite_differences(step, vectorise):
    plus = MAMLPlusPlus(model(), inner_lr=0.4, inner_steps=K, multi_step_until=10, vectorise=vectorise).at_step(step)
    params, h = uneven(plus), 1e-5
    found = plus.meta_gradient(params, tasks()).gradient
    assert_equal(found, plain_gradient(params, tasks(), plus.step_weights))
    for name, value in params.items():
        truth = torch.empty_like(value)
        for i in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = {key: p.clone().requires_grad_() for key, p in params.items()}
                moved[name].data.view(-1)[i] += sign * h
                ends.append(plain_loss(moved, tasks(), plus.step_weights).item())
            truth.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
        assert float((found[name] - truth).norm()) <= 1e-6 * float(truth.norm()), name


def test_importance_moves_to_the_last_step():
    plus = MAMLPlusPlus(model(), inner_steps=4, multi_step_until=100)
    assert plus.at_step(0).step_weights == pytest.approx([1 / 4] * 4)
    assert plus.at_step(50).step_weights == pytest.approx([1 / 8] * 3 + [5 / 8])
    assert plus.at_step(99).step_weights == pytest.approx([1 / 400] * 3 + [397 / 400])
    for annealed in (plus.at_step(100), plus.at_step(1000), plus, MAMLPlusPlus(model(), inner_steps=4).at_step(0)):
        assert annealed.step_weights == [0, 0, 0, 1]


def test_with_all_importance_on_the_last_step_the_loss_is_mamls():
    same = {"inner_lr": 0.3, "inner_steps": K, "vectorise": "vmap"}
    plus = MAMLPlusPlus(model(), multi_step_until=10, learned_rates=False, **same)
    params = plus.init_meta_params(rng(0, "init"))
    expected = MAML(model(), **same).meta_gradient(params, tasks())
    assert_equal(plus.at_step(10).meta_gradient(params, tasks()).gradient, expected.gradient)
    before = plus.at_step(9).meta_gradient(params, tasks())
    assert not torch.allclose(before.gradient["head.weight"], expected.gradient["head.weight"], rtol=1e-6)


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_derivatives_are_first_order_until_the_step(vectorise):
    plus = MAMLPlusPlus(model(), inner_lr=0.4, inner_steps=K, first_order_until=7, vectorise=vectorise)
    params, last = uneven(plus), [0.0] * (K - 1) + [1.0]
    first = plain_gradient(params, tasks(), last, first_order=True)
    second = plain_gradient(params, tasks(), last)
    assert not torch.allclose(first["body.0.weight"], second["body.0.weight"], rtol=1e-3)
    for step, expected in ((0, first), (6, first), (7, second), (8, second)):
        assert_equal(plus.at_step(step).meta_gradient(params, tasks()).gradient, expected)
        assert plus.at_step(step).exact_gradient is (step >= 7)
    assert plus.exact_gradient
    assert plus.for_evaluation().config == plus.config


def test_the_worker_asks_for_the_learner_of_the_chunks_step():
    sines = Sinusoids(shots=4, queries=4)
    plus = MAMLPlusPlus(mlp((8,)), inner_lr=0.01, inner_steps=2, multi_step_until=4, first_order_until=2)
    plus = plus.with_config(vectorise="vmap").bind(sines.spec, 0)
    params = plus.init_meta_params(rng(0, "init"))
    layout = ParamLayout.of(params)
    worker = Worker("worker-0", WorkerSetup(plus, sines, layout, seed=0, threads=1))
    for step in (0, 3, 9):
        chunk = Chunk(0, "meta_train", step, 0, 3)
        _, found = worker.train_chunk(chunk, step, layout.flatten(params))
        expected = plus.at_step(step).meta_gradient(params, sines.episodes(chunk.refs, 0))
        assert np.array_equal(found, layout.flatten(expected.gradient))


def test_annealing_goes_on_where_a_run_is_resumed_and_knows_no_workers(tmp_path):
    """Both annealings end after the interruption: a learner that counted its own calls would start again."""
    experiment = Experiment(
        learner=MAMLPlusPlus(mlp((8,)), inner_lr=0.01, inner_steps=2, multi_step_until=5, first_order_until=4),
        tasks=Sinusoids(shots=4, queries=4),
        outer=Outer(iterations=6, meta_batch_size=4),
        runtime=Runtime(chunk_size=1),
        evaluation=Evaluation(every=0, test_tasks=2),
    )
    straight = meta_train(experiment, run_dir=tmp_path / "straight").params_sha256
    meta_train(experiment.with_overrides({"outer.iterations": 3}), run_dir=tmp_path / "run")
    assert meta_train(experiment, run_dir=tmp_path / "run", resume=True).params_sha256 == straight
    many = meta_train(experiment.with_overrides({"runtime.workers": 3}), run_dir=tmp_path / "many")
    assert many.params_sha256 == straight
    plain = experiment.replace(learner=experiment.learner.with_config(multi_step_until=0, first_order_until=0))
    assert meta_train(plain, run_dir=tmp_path / "plain").params_sha256 != straight


def test_anil_learns_rates_of_the_head_alone():
    plus = MAMLPlusPlus(model(), inner_lr=0.3, inner_steps=K, adapt="head", vectorise="vmap")
    params = plus.init_meta_params(rng(0, "init"))
    assert [name for name in params if "/" in name] == ["rate/head.weight", "rate/head.bias"]
    maml = MAML(model(), inner_lr=0.3, inner_steps=K, adapt="head", vectorise="vmap")
    expected = maml.meta_gradient(trainable(model()), tasks()).gradient
    found = plus.meta_gradient(params, tasks()).gradient
    assert_equal({name: found[name] for name in expected}, expected)


def test_it_is_judged_after_as_many_steps_as_it_has_rates_for():
    plus = MAMLPlusPlus(model(), inner_lr=0.3, inner_steps=K, vectorise="vmap")
    params = plus.init_meta_params(rng(0, "init"))
    for steps in (0, 1, K):
        maml = MAML(model(), inner_lr=0.3, inner_steps=steps, vectorise="vmap")
        expected = maml.evaluate(trainable(model()), tasks())
        found = plus.with_config(test_inner_steps=steps).for_evaluation().evaluate(params, tasks())
        torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match=f"test_inner_steps={K + 1}, but rates are learned for inner_steps={K} steps"):
        plus.with_config(test_inner_steps=K + 1)
    assert plus.with_config(learned_rates=False, test_inner_steps=K + 1).config.test_inner_steps == K + 1
