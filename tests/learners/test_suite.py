"""What every algorithm must do: the ones of the package, found by scanning, and a user's own."""

import pickle
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distmeta import (
    MAML,
    CopyTask,
    Evaluation,
    Experiment,
    FunctionTasks,
    LocalBackend,
    MAMLPlusPlus,
    MatchingNet,
    MetaLearner,
    Outer,
    Runtime,
    Siamese,
    Sinusoids,
    mann,
    mlp,
    ntm,
)
from distmeta.errors import ConfigError, LearnerContractError
from distmeta.learners import find_learners
from distmeta.learners.engine import unstack
from distmeta.learners.functional import task_gradient
from distmeta.learners.inner_loop import GradientLearner, gradient_descent
from distmeta.learners.losses import of_task
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.probe import probe
from distmeta.learners.sequence import SequenceLearner
from distmeta.runtime import chunks
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.chunks import Share
from distmeta.runtime.driver import Driver
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.tasks.base import TaskDistribution
from distmeta.testing import check_gradient
from distmeta.types import Chunk, Episode, TaskRef, TaskSpec
from distmeta.uncertainty import BINS
from set_models import reader

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS, DIM, TASKS = 3, 6, 4


class NearestMean(MetaLearner):
    """A whole algorithm, as a user writes it: the class whose mean is nearest."""

    def query_logits(self, params, episode):
        support, query = self.forward(params, episode.support_x), self.forward(params, episode.query_x)
        one_hot = F.one_hot(episode.support_y, WAYS).to(support)
        means = one_hot.T @ support / one_hot.sum(0)[:, None]
        return -(query[:, None] - means).square().sum(-1)


class LearnedRate(MetaLearner):
    """An algorithm with a meta-parameter of its own: MAML's inner learning rate is learned too."""

    def init_meta_params(self, rng):
        return {
            **super().init_meta_params(rng),
            "log_rate": torch.tensor(-2.0, dtype=next(self.model.parameters()).dtype),
        }

    def query_logits(self, params, episode):
        theta = {name: p for name, p in params.items() if name != "log_rate"}

        def loss(point):
            return F.cross_entropy(self.forward(point, episode.support_x), episode.support_y)

        rates = dict.fromkeys(theta, params["log_rate"].exp())
        return self.forward(gradient_descent(loss, theta, lr=rates, steps=2), episode.query_x)


class Koch(Siamese):
    """The form of Siamese networks that has meta-parameters of its own."""

    class Config(Siamese.Config):
        form: Literal["contrastive", "koch"] = "koch"


class FullContext(MatchingNet):
    """Matching networks as the scan does not find them: with LSTMs."""

    class Config(MatchingNet.Config):
        full_context: bool = True
        features: int = 8


class Annealed(MAMLPlusPlus):
    """MAML++ as the scan does not find it: with a loss and an order of derivatives that change in training."""

    class Config(MAMLPlusPlus.Config):
        multi_step_until: int = 30
        first_order_until: int = 10


class SignSteps(GradientLearner):
    """A user's gradient learner: steps along the sign of the gradient, which no derivative passes through."""

    def fast_params(self, params, episode):
        loss, fast = self.support_loss(episode), params
        for _ in range(self.config.inner_steps):
            gradient, _ = task_gradient(loss, fast)
            fast = {name: p - 0.1 * gradient[name].sign() for name, p in fast.items()}
        return fast


class Brier(SequenceLearner):
    """A user's sequence learner: the squared error of each bit's probability."""

    def sequence_loss(self, prediction, targets):
        error = (prediction.sigmoid() - targets.clamp_min(0)).square() * (targets >= 0)
        return error.flatten(1).sum(1), {"brier": error.flatten(1).mean(1)}


OWN = (NearestMean, LearnedRate, Koch, FullContext, Annealed, SignSteps, Brier)
LEARNERS = {kind.__name__: kind for kind in (*find_learners().values(), *OWN)}


def clusters(random, split):
    """Classes differ in two of six numbers only: a representation to be learned."""
    centres = np.zeros((WAYS, DIM))
    centres[:, :2] = 2 * random.normal(size=(WAYS, 2))

    def half(n):
        y = np.repeat(np.arange(WAYS), n)
        return centres[y] + random.normal(size=(len(y), DIM)) * ([0.3] * 2 + [2.0] * 4), y

    return (*half(2), *half(5))


CLUSTERS = FunctionTasks(clusters)
# What a learner of sequences is tried on, by its name; bits where nothing else is said.
BITS = CopyTask(bits=3, length=2, min_length=2, max_length=2)


def recalled(random, split):
    """Two patterns come three times each in random order, the label of the one before beside each."""
    patterns, labels = random.normal(size=(2, 3)), random.permutation(np.repeat([0, 1], 3))
    before = np.zeros((6, 2))
    before[np.arange(1, 6), labels[:-1]] = 1.0
    return np.concatenate([patterns[labels], before], 1).astype("float32"), labels


class Recalled(TaskDistribution):
    """:func:`recalled` as a distribution."""

    spec = TaskSpec((5,), 2, "sequence", 0, 6)
    fingerprint = "0" * 64

    def draw(self, split, random):
        return Episode.sequence(*map(torch.from_numpy, recalled(random, split)))

    def baseline(self, episodes):
        return {"baseline_accuracy": torch.full((len(episodes.query_x),), 0.5)}


SEQUENCES: dict[str, TaskDistribution] = {"MANN": Recalled()}


def is_sequence(name):
    return LEARNERS[name].model_kind == "sequence"


def toy(name):
    """The tasks that a learner is tried on."""
    return SEQUENCES.get(name, BITS) if is_sequence(name) else CLUSTERS


def factory(name):
    """What the learner takes: a classifier, an encoder, or a network that reads sequences."""
    if is_sequence(name):
        return mann(size=8, slots=6, width=4, reads=1) if name == "MANN" else ntm(size=8, slots=6, width=4)
    if LEARNERS[name].model_kind == "set":
        return reader()
    return mlp((8,), norm="layer", head=LEARNERS[name].model_kind != "encoder")


def build(name, dtype=torch.float32, **settings):
    learner = LEARNERS[name](factory(name), **settings).bind(toy(name).spec, seed=1)
    learner.model.to(dtype)
    return learner


def chunk(name, count=TASKS, dtype=torch.float32, split="meta_train"):
    return toy(name).episodes([TaskRef(split, 0, i) for i in range(count)], 0).to(torch.device("cpu"), dtype)


def flat(gradient):
    return torch.cat([part.reshape(-1) for part in gradient.values()])


every_learner = pytest.mark.parametrize("name", LEARNERS)
every_support_learner = pytest.mark.parametrize("name", [name for name in LEARNERS if not is_sequence(name)])


@every_learner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_meta_gradient_is_like_the_parameters_and_finite(name, dtype):
    learner = probe(build(name, dtype), toy(name).spec, chunk(name)).learner
    params = learner.init_meta_params(rng(0, "init"))
    kept = {key: p.clone() for key, p in params.items()}
    result = learner.meta_gradient(params, chunk(name, dtype=dtype))
    assert list(result.gradient) == list(params)
    for key, part in result.gradient.items():
        assert (part.shape, part.dtype, part.requires_grad) == (params[key].shape, dtype, False)
        assert bool(torch.isfinite(part).all())
    assert float(flat(result.gradient).norm()) > 0
    assert result.tasks == TASKS
    for key, values in result.metrics.items():
        assert (values.shape, values.requires_grad) == ((TASKS,), False), key
        assert bool(torch.isfinite(values).all())
    assert "loss" in result.metrics
    assert all(torch.equal(p, kept[key]) and p.grad is None for key, p in params.items())
    assert all(p.grad is None for p in learner.model.parameters())


@every_learner
@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_the_same_bits_twice_and_after_the_way_to_a_worker(name, vectorise):
    learner = build(name, vectorise=vectorise)
    params = learner.init_meta_params(rng(0, "init"))
    other = pickle.loads(pickle.dumps(learner))
    first, second, sent = (flat(who.meta_gradient(params, chunk(name)).gradient) for who in (learner, learner, other))
    assert torch.equal(first, second)
    assert torch.equal(first, sent)


@every_learner
def test_engines_agree_in_training_and_evaluation(name):
    mapped, looped = (build(name, torch.float64, vectorise=engine) for engine in ("vmap", "loop"))
    params, episodes = mapped.init_meta_params(rng(0, "init")), chunk(name, dtype=torch.float64)
    fast, slow = mapped.meta_gradient(params, episodes), looped.meta_gradient(params, episodes)
    assert float((flat(fast.gradient) - flat(slow.gradient)).norm()) <= 1e-12 * float(flat(slow.gradient).norm())
    judged = [who.for_evaluation().evaluate(params, episodes) for who in (mapped, looped)]
    for a, b in ((fast.metrics, slow.metrics), judged):
        assert set(a) == set(b)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-10)


@every_learner
@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_bfloat16_is_of_the_model_in_training_alone(name, vectorise):
    single, half = (build(name, vectorise=vectorise, precision=p) for p in ("float32", "bfloat16"))
    params, episodes = single.init_meta_params(rng(0, "init")), chunk(name)
    expected, found = (flat(who.meta_gradient(params, episodes).gradient) for who in (single, half))
    assert found.dtype == torch.float32
    assert torch.equal(found, flat(half.meta_gradient(params, episodes).gradient))
    assert not torch.equal(found, expected)
    assert float(F.cosine_similarity(found, expected, dim=0)) > 0.9
    judged = [who.for_evaluation().evaluate(params, episodes) for who in (single, half)]
    assert all(torch.equal(value, judged[1][key]) for key, value in judged[0].items())


@every_learner
def test_chunks_add_up(name):
    learner, episodes = build(name, torch.float64), chunk(name, dtype=torch.float64)
    params = learner.init_meta_params(rng(0, "init"))
    whole = flat(learner.meta_gradient(params, episodes).gradient)
    parts = [Episode(*(part[i : i + 1] for part in episodes)) for i in range(TASKS)]
    total = sum(flat(learner.meta_gradient(params, part).gradient) for part in parts)
    assert float((total - whole).norm()) <= 1e-10 * float(whole.norm())


@every_learner
def test_the_gradient_is_checked_as_users_check_it(name):
    experiment = Experiment(learner=LEARNERS[name](factory(name)), tasks=toy(name))
    check = check_gradient(experiment)
    check.require()
    assert check.engine == "vmap"
    learner = build(name)
    assert set(check.difference_errors) == (
        set(learner.init_meta_params(rng(0, "init"))) if learner.exact_gradient else set()
    )


@every_learner
def test_evaluation_keeps_no_graph_and_changes_nothing(name):
    learner = build(name)
    params = learner.init_meta_params(rng(0, "init"))
    kept = {key: p.clone() for key, p in params.items()}
    found = learner.for_evaluation().evaluate({key: p.requires_grad_() for key, p in params.items()}, chunk(name))
    assert "loss" in found
    for key, values in found.items():
        assert values.shape == (TASKS,), key
        assert not values.requires_grad
        assert bool(torch.isfinite(values).all())
    assert all(0 <= float(v) <= 1 for key in found if "accuracy" in key for v in found[key])
    assert all(torch.equal(p, kept[key]) and p.grad is None for key, p in params.items())


@every_support_learner
def test_evaluation_reports_accuracy_with_and_without_the_other_queries(name):
    learner = build(name)
    found = learner.for_evaluation().evaluate(learner.init_meta_params(rng(0, "init")), chunk(name))
    assert {"accuracy", "accuracy_non_transductive"} <= set(found)


@every_support_learner
def test_uncertainty_is_that_of_each_query_alone(name):
    """From the logits that the non-transductive accuracy is from: the very ones, no other forward pass."""
    learner = build(name).for_evaluation()
    params, episodes = learner.init_meta_params(rng(0, "init")), chunk(name)
    metrics, sums = learner.measure(params, episodes)
    assert sums.shape == (TASKS, 3, BINS)
    right = sums[:, 2].sum(1) / sums[:, 0].sum(1)
    torch.testing.assert_close(right.float(), metrics["accuracy_non_transductive"])
    for i in range(TASKS):
        episode = unstack(episodes)[i]
        with torch.no_grad():
            logits = learner.with_config(vectorise="loop").query_logits_alone(params, episode)
        expected = F.cross_entropy(of_task(logits, episode), episode.query_y)
        torch.testing.assert_close(metrics["nll"][i], expected, rtol=1e-4, atol=1e-5)


@every_learner
def test_it_learns(name):
    """Forty outer steps, worker and server as the driver connects them, lower the loss on tasks never seen."""
    # A paper's inner rate is made for its network; this one is small.
    rate = {"inner_lr": 0.1} if "inner_lr" in LEARNERS[name].Config.model_fields else {}
    tasks = toy(name)
    learner = probe(build(name, **rate), tasks.spec, chunk(name)).learner
    layout = ParamLayout.of(learner.init_meta_params(rng(0, "init")))
    vector = layout.flatten(learner.init_meta_params(rng(0, "init")))
    worker = Worker("worker-0", WorkerSetup(learner, tasks, layout, seed=0, threads=1))
    judged = Chunk(0, "meta_test", 0, 0, 40)
    before = worker.evaluate_chunk(judged, 0, vector, 0).metrics
    server = ParameterServer(Outer(lr=0.01), vector)
    for step in range(40):
        parts = chunks.split(8, 4, split="meta_train", step=step)
        for part in parts:
            header, gradient = worker.train_chunk(part, step, vector)
            assert (header.version, header.chunk) == (step, part)
            server.accumulate(step, Share((part,), len(parts)), gradient[None])
        _, vector = server.apply(step)
    after = worker.evaluate_chunk(judged, 40, vector, 0).metrics
    if learner.exact_gradient:  # else it is not this loss that goes down
        assert after["loss"].mean() < 0.9 * before["loss"].mean()
    if not is_sequence(name):
        assert after["accuracy"].mean() > before["accuracy"].mean()
    assert any(key.startswith("baseline_") for key in before)
    assert all(after[key].tolist() == before[key].tolist() for key in before if key.startswith("baseline_"))


class Silent(list):
    """A log in memory."""

    def metrics(self, step, values):
        self.append(step)

    def truncate(self, step):
        self[:] = [row for row in self if row <= step]


def trained(name, folder, workers=1, iterations=4):
    """The final parameters of a run, or of one that goes on in the same folder; chunks of 2, 2 and 1 tasks."""
    experiment = Experiment(
        learner=LEARNERS[name](factory(name)),
        tasks=toy(name),
        outer=Outer(iterations=iterations, meta_batch_size=5, lr=0.01),
        runtime=Runtime(chunk_size=2, checkpoint_every=2, workers=workers),
        evaluation=Evaluation(every=2, validation_tasks=4, test_tasks=4),
    )
    store = CheckpointStore(folder)
    driver = Driver(experiment, store)
    driver.start(LocalBackend())
    try:
        driver.train(Silent())
    finally:
        driver.close()
    return store.load().params_sha256


@every_learner
def test_equal_bits_for_any_number_of_workers_and_after_a_resume(name, tmp_path):
    straight = trained(name, tmp_path / "one")
    assert trained(name, tmp_path / "three", workers=3) == straight
    assert trained(name, tmp_path / "two", iterations=2) != straight
    assert trained(name, tmp_path / "two", workers=2) == straight


@every_learner
def test_unknown_settings_name_the_nearest(name):
    with pytest.raises(ConfigError, match=f"{name} has no setting 'vectorize'. Did you mean 'vectorise'?"):
        LEARNERS[name](factory(name), vectorize="loop")


@every_learner
def test_a_factory_is_built_from_the_seed_alone(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (LEARNERS[name](factory(name)).bind(toy(name).spec, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in learner.model.parameters()]) for learner in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@every_learner
def test_a_factory_has_no_model_before_its_tasks(name):
    with pytest.raises(LearnerContractError, match=f"{name} was given a model factory and has not seen its tasks yet"):
        _ = LEARNERS[name](factory(name)).model


@every_learner
def test_a_model_instance_keeps_its_weights(name):
    model = factory(name)(toy(name).spec)
    learner = LEARNERS[name](model)
    assert learner.bind(toy(name).spec, 5) is learner
    assert learner.model is model


def test_every_file_of_the_folder_is_found():
    assert find_learners()["MAML"] is MAML
    assert all(not kind.__name__.startswith("_") for kind in find_learners().values())


def test_maml_learns_sinusoids():
    """The paper's regression problem, shortened: better than the start and than predicting the mean."""
    tasks = Sinusoids()
    learner = MAML(mlp((24, 24)), inner_lr=0.02, vectorise="vmap").bind(tasks.spec, 0)
    params = learner.init_meta_params(rng(0, "init"))
    layout = ParamLayout.of(params)
    vector = layout.flatten(params)
    worker = Worker("worker-0", WorkerSetup(learner, tasks, layout, seed=0, threads=1))
    server = ParameterServer(Outer(lr=0.01), vector)
    judged = Chunk(0, "meta_test", 0, 0, 100)
    before = worker.evaluate_chunk(judged, 0, vector, 0).metrics
    for step in range(150):
        share = Share((Chunk(0, "meta_train", step, 0, 10),), 1)
        _, sums = worker.train(share, step, vector)
        server.accumulate(step, share, sums)
        _, vector = server.apply(step)
    after = worker.evaluate_chunk(judged, 150, vector, 0).metrics
    assert after["loss"].mean() < 0.75 * before["loss"].mean()
    assert after["loss"].mean() < after["baseline_loss"].mean()
