"""Which models engine 2 is chosen for, and what a run does with the choice."""

import pytest
import torch
from torch import nn

import distmeta
from distmeta import MAML, Episode, LocalBackend, ProtoNet, TaskSpec, conv4, mlp
from distmeta.errors import ModelContractError
from distmeta.learners import one_level, probe
from distmeta.learners.engine_choice import fills_caches
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.seeding import rng

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = TaskSpec(input_shape=(2, 32, 32), outputs=3, kind="classification", support=3, queries=3)


def episodes():
    x = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(3).expand(2, -1)
    return Episode(x, y, x.flip(0), y)


def chosen(model, learner=MAML, **settings):
    return probe.probe(learner(model, **settings).bind(SPEC), SPEC, episodes()).learner.config.vectorise


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class InFloat32(nn.Module):
    """A model that cannot be compared in float64."""

    def __init__(self):
        super().__init__()
        self.net = conv4(8)(SPEC)

    def forward(self, x):
        return self.net(x.float())


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (conv4(8), "vmap-2"),
        (conv4(8, pool="max"), "vmap-2"),
        (conv4(8, norm="group"), "vmap"),
        (conv4(8, norm="layer"), "vmap"),
        (conv4(8, norm="none"), "vmap"),
        (mlp((8,), norm="batch"), "vmap"),
        (lambda spec: Depthwise(), "vmap"),
        (lambda spec: InFloat32(), "vmap"),
    ],
    ids=["stride", "max", "group norm", "layer norm", "no norm", "no images", "depthwise", "float32 alone"],
)
def test_it_is_chosen_where_it_was_measured_to_be_faster(model, engine):
    assert chosen(model) == engine


def test_learners_of_first_derivatives_too_and_a_setting_decides():
    assert chosen(conv4(8, head=False), ProtoNet) == "vmap-2"
    assert chosen(conv4(8), vectorise="vmap") == "vmap"
    assert chosen(conv4(8), vectorise="loop") == "loop"
    assert chosen(conv4(8, norm="group"), vectorise="vmap-2") == "vmap-2"


def test_kernels_that_are_wrong_are_not_chosen_and_refused_where_asked_for(monkeypatch):
    real = one_level.parted
    monkeypatch.setattr("distmeta.learners.fast_conv.parted", lambda x, tasks: real(x, tasks) * (1 + 1e-7))
    assert chosen(conv4(8)) == "vmap"
    with pytest.raises(ModelContractError, match=r"vectorise=vmap-2 but distmeta's kernels cannot take.*differs from"):
        chosen(conv4(8), vectorise="vmap-2")


def test_without_torchs_private_parts_it_is_not_chosen_and_right_all_the_same(monkeypatch):
    learner = MAML(conv4(8)(SPEC).double(), inner_steps=2).bind(SPEC)
    params, tasks = learner.init_meta_params(rng(0, "init")), episodes().to(torch.device("cpu"), torch.float64)
    true = learner.with_config(vectorise="loop").meta_gradient(params, tasks).gradient
    monkeypatch.setattr(one_level, "AVAILABLE", False)
    assert chosen(conv4(8)) == "vmap"
    found = learner.with_config(vectorise="vmap-2").meta_gradient(params, tasks).gradient
    flat, expected = (torch.from_numpy(ParamLayout.of(params).flatten(v)) for v in (found, true))
    assert float((flat - expected).norm() / expected.norm()) <= 1e-10


class NoLog:
    def metrics(self, step, values):
        pass

    def truncate(self, step):
        pass


def trained(data, folder, iterations):
    job = distmeta.Experiment(
        learner=MAML(conv4(4), inner_lr=0.1),
        tasks=distmeta.FewShot(data=str(data), ways=3, shots=1, queries=1),
        outer=distmeta.Outer(iterations=iterations, meta_batch_size=3),
        runtime=distmeta.Runtime(chunk_size=2),
        evaluation=distmeta.Evaluation(every=0, validation_tasks=2, test_tasks=2),
    )
    store = CheckpointStore(folder, keep=2)
    driver = Driver(job, store, lambda event: None)
    driver.start(LocalBackend())
    try:
        driver.train(NoLog())
    finally:
        driver.close()
    last = store.load()
    return last.record["engine"], last.params_sha256


def test_a_run_goes_on_with_the_engine_that_it_began_with(digits_dir, tmp_path, monkeypatch):
    assert trained(digits_dir, tmp_path / "new", 2)[0] == "vmap-2"
    resumed = trained(digits_dir, tmp_path / "new", 4)
    assert resumed == trained(digits_dir, tmp_path / "straight", 4)
    with monkeypatch.context() as older:  # which knew one engine
        older.setattr(probe, "suits_engine_2", lambda *_: False)
        assert trained(digits_dir, tmp_path / "old", 2)[0] == "vmap"
        before = trained(digits_dir, tmp_path / "old straight", 4)
    assert before[1] != resumed[1]
    assert trained(digits_dir, tmp_path / "old", 4) == before


@pytest.mark.parametrize(("queries", "expected"), [(2, False), (27, False), (28, True)])
def test_tasks_take_turns_where_the_images_of_one_fill_the_caches(queries, expected):
    learner = ProtoNet(nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Flatten()))
    theta = {name: p.detach() for name, p in learner.model.named_parameters()}
    # 16 * 32 * 32 = 2**14 numbers an image: 2**19 are 32 images
    x, y = torch.rand(5, 1, 32, 32), torch.arange(5)
    found = fills_caches(learner, theta, Episode(x, y, torch.rand(queries, 1, 32, 32), y))
    assert found is expected
