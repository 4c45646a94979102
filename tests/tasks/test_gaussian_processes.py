"""Functions drawn from Gaussian processes, and the exact posterior beside every result."""

import hashlib
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta import MAML, Evaluation, Experiment, GaussianProcesses, LocalBackend, Outer, Runtime, meta_train, mlp
from distmeta.errors import ConfigError, TaskContractError
from distmeta.run.place import Place
from distmeta.tasks.gaussian_processes import Process
from distmeta.types import TaskRef

pytestmark = pytest.mark.usefixtures("one_thread")
KERNELS = ("rbf", "matern52", "periodic")


def refs(count, split="meta_test", step=0):
    return [TaskRef(split, step, i) for i in range(count)]


def written_out(kernel, a, b, length, scale, period):
    """The formulas of Rasmussen and Williams (2006), equations 4.9, 4.17 and 4.31, for two numbers."""
    r = abs(a - b)
    if kernel == "rbf":
        return scale**2 * math.exp(-(r**2) / (2 * length**2))
    if kernel == "matern52":
        return (
            scale**2
            * (1 + math.sqrt(5) * r / length + 5 * r**2 / (3 * length**2))
            * math.exp(-math.sqrt(5) * r / length)
        )
    return scale**2 * math.exp(-2 * math.sin(math.pi * r / period) ** 2 / length**2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_functions(kernel):
    a, b = np.array([-1.0, 0.3, 2.0]), np.array([0.3, 0.5])
    found = Process(kernel, 0.7, 1.3, 0.4, 0.1).covariance(a, b)
    assert found.shape == (3, 2)
    expected = [[written_out(kernel, one, other, 0.7, 1.3, 0.4) for other in b] for one in a]
    assert found == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_posterior_is_that_of_a_direct_solve(kernel):
    """Conditioning the joint normal distribution of support set and one query, with an explicit inverse."""
    tasks = GaussianProcesses(kernel=kernel, context=12, queries=9)
    episodes = tasks.episodes(refs(5), 3)
    mean, scale = tasks.posterior(refs(5), 3, episodes)
    exact = tasks.exact(refs(5), 3, episodes)
    for t, ref in enumerate(refs(5)):
        p = tasks.process(ref, 3)
        x, y, q, target = (part[t, :, 0].double().numpy() for part in episodes)
        logs = []
        for i, point in enumerate(q):
            every = np.append(x, point)
            joint = np.array(
                [[written_out(kernel, a, b, p.length, p.scale, p.period) for b in every] for a in every]
            ) + 0.02**2 * np.eye(len(every))
            inverse = np.linalg.inv(joint[:-1, :-1])
            m = joint[-1, :-1] @ inverse @ y
            v = joint[-1, -1] - joint[-1, :-1] @ inverse @ joint[:-1, -1]
            assert float(mean[t, i, 0]) == pytest.approx(m, abs=1e-7)
            assert float(scale[t, i, 0]) ** 2 == pytest.approx(v, rel=1e-5)
            logs.append(-0.5 * (target[i] - m) ** 2 / v - 0.5 * math.log(2 * math.pi * v))
        assert float(exact["exact_log_likelihood"][t]) == pytest.approx(np.mean(logs), rel=1e-4)
        assert float(exact["exact_loss"][t]) == -float(exact["exact_log_likelihood"][t])
        error = mean[t, :, 0].numpy() - target
        assert float(exact["exact_mse"][t]) == pytest.approx(np.mean(error**2), rel=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_functions_have_the_covariance_of_their_kernel(kernel):
    """Whitened by the Cholesky factor of its own process, a function is independent standard normal numbers."""
    tasks = GaussianProcesses(kernel=kernel, context=20, queries=10)
    white = []
    for ref in refs(300, "meta_train"):
        episode, process = tasks.episode(ref, 0), tasks.process(ref, 0)
        x, y = (torch.cat(pair)[:, 0].double().numpy() for pair in (tuple(episode)[::2], tuple(episode)[1::2]))
        root = np.linalg.cholesky(process.covariance(x, x) + process.noise**2 * np.eye(30))
        white.append(np.linalg.solve(root, y))
    z = np.concatenate(white)
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / len(z))
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / len(z))


def test_hyper_parameters_and_points_are_those_of_the_protocol():
    tasks = GaussianProcesses()
    tasks.check()
    processes = [tasks.process(ref, 0) for ref in refs(600, "meta_train")]
    for name, low, high in (("length", 0.1, 0.6), ("scale", 0.1, 1.0), ("period", 0.1, 0.5)):
        values = np.array([getattr(one, name) for one in processes])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high >= values.max() > high - 0.02 * (high - low)
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * 600))
    points = [tasks.episodes(refs(2, "meta_train", step), 0) for step in range(400)]
    context = {e.support_x.shape[1] for e in points}
    assert context == set(range(3, 47))
    assert {e.support_x.shape[1] + e.query_x.shape[1] for e in points} <= set(range(6, 50))
    assert min(e.query_x.shape[1] for e in points) == 3
    assert torch.cat([e.support_x.flatten() for e in points]).abs().max() <= 2
    spec = tasks.spec
    assert (spec.kind, spec.outputs, spec.support, spec.queries) == ("regression", 1, 46, 46)


def test_the_exact_likelihood_is_the_one_measured_for_the_protocol():
    """1.505 and 1.094 nats, by another implementation of the protocol and 4,800 tasks."""
    for kernel, expected in (("rbf", 1.505), ("matern52", 1.094)):
        tasks, found = GaussianProcesses(test_kernel=kernel), []
        for run in tasks.together(refs(2400), 0):
            found.append(tasks.exact(run, 0, tasks.episodes(run, 0))["exact_log_likelihood"].double())
        groups = torch.stack([one.mean() for one in found])
        assert abs(float(groups.mean()) - expected) < 3 * float(groups.std()) / math.sqrt(len(groups)) + 0.01


def test_evaluation_tasks_have_other_numbers_of_points_in_every_group_of_16():
    tasks = GaussianProcesses()
    runs = tasks.together(refs(40), 5)
    assert [len(run) for run in runs] == [16, 16, 8]
    shapes = [tuple(tasks.episodes(run, 5).support_x.shape) for run in runs]
    assert len(set(shapes)) == 3
    # A chunk that begins inside a group has the same tasks.
    again = tasks.together(refs(40)[10:20], 5)
    assert [len(run) for run in again] == [6, 4]
    assert torch.equal(tasks.episodes(again[0], 5).support_x, tasks.episodes(runs[0], 5).support_x[10:])
    train = refs(40, "meta_train", 4)
    assert tasks.together(train, 5) == [train]


def test_kernels_are_drawn_in_training_and_set_in_the_test():
    tasks = GaussianProcesses(kernel=("rbf", "periodic"), test_kernel="matern52")
    drawn = [tasks.process(ref, 0).kernel for ref in refs(100, "meta_train")]
    assert 30 < drawn.count("rbf") < 70
    assert set(drawn) == {"rbf", "periodic"}
    assert {tasks.process(ref, 0).kernel for ref in refs(20)} == {"matern52"}
    assert {tasks.process(ref, 0).kernel for ref in refs(20, "meta_validation")} == {"rbf", "periodic"}
    assert "rbf, periodic; test: matern52" in tasks.describe()["name"]


def test_a_fixed_process():
    tasks = GaussianProcesses(length=0.3, scale=(0.8, 0.8), context=10, queries=10)
    assert tasks.config.length == (0.3, 0.3)
    assert {(p.length, p.scale) for p in (tasks.process(ref, 1) for ref in refs(10))} == {(0.3, 0.8)}
    assert tasks.at_step("meta_train", np.random.default_rng(0)) is tasks
    grid = torch.linspace(-2, 2, 50)[None, :, None].expand(2, -1, -1)
    mean, scale = tasks.posterior(refs(2), 0, tasks.episodes(refs(2), 0), grid)
    assert mean.shape == scale.shape == (2, 50, 1)
    far = tasks.posterior(refs(1), 0, tasks.episodes(refs(1), 0), torch.full((1, 1, 1), 50.0))
    assert float(far[0]) == pytest.approx(0, abs=1e-12)  # far from all points: the prior
    assert float(far[1]) == pytest.approx(math.hypot(0.8, 0.02), rel=1e-12)


def test_a_task_is_a_function_of_its_ref_in_any_process():
    def digest(episode):
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in episode)).hexdigest()

    tasks = pickle.loads(pickle.dumps(GaussianProcesses(kernel=KERNELS)))
    found = [digest(tasks.episode(ref, 7)) for ref in refs(32, "meta_train", 3)]
    assert len(set(found)) == 32
    code = (
        "import hashlib, numpy; numpy.random.seed(3)\n"
        "from distmeta import GaussianProcesses; from distmeta.types import TaskRef\n"
        "tasks = GaussianProcesses(kernel=('rbf', 'matern52', 'periodic'))\n"
        "for i in (31, 0):\n"
        "    e = tasks.episode(TaskRef('meta_train', 3, i), 7)\n"
        "    print(hashlib.sha256(b''.join(part.numpy().tobytes() for part in e)).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.split() == [found[31], found[0]]


@given(
    kernel=st.sampled_from(KERNELS),
    length=st.floats(0.05, 3),
    scale=st.floats(0.05, 10),
    context=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_the_exact_posterior_is_finite_and_no_wider_than_the_prior(kernel, length, scale, context, seed):
    tasks = GaussianProcesses(kernel=kernel, length=length, scale=scale, context=context, queries=5)
    episodes = tasks.episodes(refs(2), seed)
    _, spread = tasks.posterior(refs(2), seed, episodes)
    assert spread.min() >= 0.02
    assert spread.max() <= math.hypot(scale, 0.02) * (1 + 1e-9)
    assert all(bool(values.isfinite().all()) for values in tasks.exact(refs(2), seed, episodes).values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": "rbff"}, "'rbf', 'matern52' or 'periodic'"),
        ({"kernel": ()}, "at least 1"),
        ({"length": (0.6, 0.1)}, "a lower and an upper bound such as"),
        ({"length": 0}, "greater than 0"),
        ({"noise": 0}, "greater than 0"),
        ({"context": (3, 47)}, r"fewer than 3 queries of less than points=50; expected fewer. Set points=51"),
        ({"inputs": (2, -2)}, "expected a lower and an upper bound such as"),
        ({"contxt": 3}, "Did you mean 'context'"),
    ],
)
def test_settings_that_fit_no_process_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        GaussianProcesses(**given)


def test_too_little_noise_is_named_with_its_fix():
    with pytest.raises(TaskContractError, match=r"not positive definite.*noise=1e-12.*tasks.noise=0.001"):
        GaussianProcesses(noise=1e-12, length=5.0, scale=1.0).check()


def test_the_exact_answer_is_beside_the_result_of_a_run(tmp_path):
    tasks = GaussianProcesses(context=5, queries=4)
    experiment = Experiment(
        learner=MAML(mlp((4,))),
        tasks=tasks,
        outer=Outer(iterations=1, meta_batch_size=2),
        evaluation=Evaluation(every=0, test_tasks=6),
        runtime=Runtime(chunk_size=4),
        name="gp",
    )
    result = meta_train(experiment, run_dir=tmp_path / "run", place=Place(LocalBackend(), tracking=False))
    expected = tasks.exact(refs(6), experiment.evaluation.seed, tasks.episodes(refs(6), experiment.evaluation.seed))
    assert result.test is not None
    values = result.test.metrics["exact_log_likelihood"]
    assert values == pytest.approx(expected["exact_log_likelihood"].numpy())
