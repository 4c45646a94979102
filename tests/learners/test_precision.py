"""Training in other precisions than float32: which operations, what is refused, and what stays as it was."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distmeta import (
    MAML,
    Evaluation,
    Experiment,
    FewShot,
    LocalBackend,
    MetaLearner,
    Outer,
    ProtoNet,
    Reptile,
    Runtime,
    Sinusoids,
    conv4,
    mlp,
)
from distmeta.errors import CheckpointMismatch, ConfigError, ModelContractError
from distmeta.learners.exact_norms import ExactNorms
from distmeta.learners.precision import computing_in, of_model
from distmeta.learners.probe import probe
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.events import NullLog
from distmeta.seeding import rng
from distmeta.testing import check_gradient
from distmeta.types import Episode, TaskRef, TaskSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPEC = TaskSpec((1, 8, 8), 3, "classification", 3, 3)


def is_rounded(x):
    return torch.equal(x, x.bfloat16().to(x.dtype))


class Products(TorchDispatchMode):
    """Counts what convolutions and their derivatives are given, by type and by whether bfloat16 can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Counter[tuple[torch.dtype, bool]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            read = [True, True]
            if "backward" in str(func):  # dx is of g and w, dw of g and x; of what is not read the shape counts
                read = [True, args[-1][1], args[-1][0]]
            self.given.update((a.dtype, is_rounded(a)) for a, is_read in zip(args, read, strict=False) if is_read)
        return func(*args, **(kwargs or {}))


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, count, 3, 1, 8, 8, generator=generator), torch.arange(3).expand(count, 3)
    return Episode(x[0], y, x[1], y)


def bound(kind, **settings):
    learner = kind(conv4(width=4, pool="stride"), **settings)
    return learner.bind(SPEC, seed=0)


@pytest.mark.parametrize("kind", [MAML, Reptile, ProtoNet])
@pytest.mark.parametrize("vectorise", ["vmap", "vmap-2", "loop"])
def test_all_convolutions_are_of_rounded_numbers_in_kernels_that_are_right(kind, vectorise):
    """Behind vmap, torch's autocast leaves some of them as they are; and oneDNN's in bfloat16 are wrong at times."""
    learner = bound(kind, vectorise=vectorise, precision="bfloat16")
    with Products() as products:
        learner.meta_gradient(learner.init_meta_params(rng(0, "init")), images())
    assert set(products.given) == {(torch.float32, True)}


def test_engines_round_alike():
    gradients = []
    for engine in ("vmap", "loop"):
        learner = bound(ProtoNet, vectorise=engine, precision="bfloat16")
        found = learner.meta_gradient(learner.init_meta_params(rng(0, "init")), images()).gradient
        gradients.append(torch.cat([part.flatten() for part in found.values()]))
    assert float(F.cosine_similarity(*gradients, dim=0)) > 0.98


def test_the_mean_of_a_norm_is_taken_in_float32():
    x = (100 + torch.rand(64, 3, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    with ExactNorms():
        found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.float()), rtol=1e-2, atol=1e-2)


def test_tf32_is_switched_on_for_a_gpu_and_off_again():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with computing_in("tf32", GPU):
        inside = matmul.allow_tf32, cudnn.allow_tf32
    assert inside == (True, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    with computing_in("tf32", CPU):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_evaluation_inside_no_precision_is_float32():
    with of_model(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def sinusoids(tmp_path: Path, **settings):
    experiment = Experiment(
        learner=MAML(mlp((8,)), **settings.pop("learner", {})),
        tasks=Sinusoids(),
        outer=Outer(iterations=4, meta_batch_size=4),
        runtime=Runtime(chunk_size=2, workers=1),
        evaluation=Evaluation(every=0, validation_tasks=2, test_tasks=2),
        **settings,
    )
    return Driver(experiment, CheckpointStore(tmp_path, keep=2))


def trained(driver: Driver) -> np.ndarray:
    driver.start(LocalBackend())
    try:
        return driver.train(NullLog()).best.vector
    finally:
        driver.close()


def test_a_run_in_bfloat16_has_bits_of_its_own_and_the_same_again(tmp_path):
    half = {"learner": {"precision": "bfloat16"}}
    first, again = (trained(sinusoids(tmp_path / name, **half)) for name in ("a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, trained(sinusoids(tmp_path / "c")))


def test_a_run_goes_on_in_its_precision_only(tmp_path):
    trained(sinusoids(tmp_path))
    with pytest.raises(CheckpointMismatch, match="precision=float32 and now has bfloat16"):
        sinusoids(tmp_path, learner={"precision": "bfloat16"})


def test_a_run_from_before_there_was_a_choice_counts_as_float32():
    experiment = Experiment(learner=MAML(mlp((8,))), tasks=Sinusoids())
    recorded = {**experiment.identity(), "frozen": None}
    recorded["learner"] = {key: value for key, value in recorded["learner"].items() if key != "precision"}
    assert experiment.changed(recorded, None) == []
    other = experiment.with_overrides({"learner.precision": "bfloat16"})
    assert other.changed(recorded, None)


def test_tf32_without_a_gpu_is_refused_before_any_worker_starts(tmp_path):
    driver = sinusoids(tmp_path, learner={"precision": "tf32"})
    with pytest.raises(ConfigError, match=r"tf32 is of NVIDIA GPUs.*Set learner\.precision"):
        driver.start(LocalBackend())


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_model_of_float64_is_refused(precision):
    learner = bound(ProtoNet, precision=precision)
    learner.model.double()
    with pytest.raises(ModelContractError, match=rf"precision={precision}, but .* float64; expected float32"):
        probe(learner, SPEC, images())


class Mixing(nn.Module):
    """Gives one operation tensors of two types, where autocast does not see to it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        return torch.lerp(x.new_zeros(y.shape), x.new_ones(y.shape), y)


def test_a_model_that_cannot_take_both_types_is_refused_with_its_line():
    learner = ProtoNet(Mixing(), vectorise="loop").bind(SPEC, seed=0)
    probe(learner, SPEC, images())
    with pytest.raises(ModelContractError, match=r"precision=bfloat16 fails where float32 does not.*test_precision"):
        probe(learner.with_config(precision="bfloat16"), SPEC, images())


class Attending(nn.Module):
    """Attention that torch computes inside one of its own Python functions."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        rows = x.flatten(1, 2)
        return self.head(self.attention(rows, rows, rows, need_weights=False)[0].flatten(1))


def test_what_fails_vectorised_is_looped_over_or_told():
    learner = MAML(Attending()).bind(SPEC, seed=0)
    assert probe(learner, SPEC, images()).learner.config.vectorise == "vmap"
    found = probe(learner.with_config(precision="bfloat16"), SPEC, images())
    assert found.learner.config.vectorise == "loop"
    assert "With learner.precision=bfloat16, torch.func.vmap cannot take this model" in found.message
    with pytest.raises(ModelContractError, match=r"Set learner\.vectorise=loop, make that line"):
        probe(learner.with_config(precision="bfloat16", vectorise="vmap"), SPEC, images())


def test_a_run_in_tf32_is_evaluated_where_there_is_no_gpu(tmp_path):
    trained(sinusoids(tmp_path / "float32"))
    done = sinusoids(tmp_path / "float32")
    done.learner = done.learner.with_config(precision="tf32")
    done.start(LocalBackend())
    found = done.train(NullLog())  # the meta-test alone is left
    done.close()
    assert found.step == 4
    assert found.test is not None
    assert np.isfinite(found.test.mean("loss"))


def test_the_choice_of_the_engine_does_not_depend_on_it():
    found = probe(bound(MAML, precision="bfloat16"), SPEC, images()).learner
    assert found.config.precision == "bfloat16"
    assert found.config.vectorise == probe(bound(MAML), SPEC, images()).learner.config.vectorise


def test_check_compares_gradients_in_float64_whatever_the_precision():
    experiment = Experiment(learner=MAML(mlp((8,)), precision="bfloat16"), tasks=Sinusoids())
    check_gradient(experiment).require()


class Casting(MetaLearner):
    """A learner that would lose digits if the model's outputs stayed bfloat16."""

    def query_logits(self, params, episode):
        support = self.forward(params, episode.support_x)
        assert support.dtype == torch.float32
        return -torch.cdist(self.forward(params, episode.query_x), support)


def test_what_the_algorithm_gets_is_float32():
    learner = Casting(mlp((8,), head=False), precision="bfloat16", vectorise="loop").bind(SPEC, seed=0)
    result = learner.meta_gradient(learner.init_meta_params(rng(0, "init")), images())
    assert bool(torch.isfinite(result.metrics["loss"]).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_on_a_gpu_the_gradient_is_near_that_of_float32(precision):
    tasks = FewShot(data="glyphs", ways=5, shots=1, queries=1)
    episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(4)], 0).to(GPU, torch.float32)
    found = []
    for name in ("float32", precision):
        learner = ProtoNet(conv4(width=64), vectorise="vmap", precision=name).bind(tasks.spec, seed=0).on(GPU)
        params = {key: p.to(GPU) for key, p in learner.init_meta_params(rng(0, "init")).items()}
        gradient = learner.meta_gradient(params, episodes).gradient
        found.append(torch.cat([part.flatten() for part in gradient.values()]))
    assert not torch.equal(*found)
    assert float(F.cosine_similarity(*found, dim=0)) > 0.98
