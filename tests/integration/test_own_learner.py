"""A user's own algorithm in a file outside the package: the README's lines, in one process and on Ray."""

import numpy as np
import pytest

import distmeta
from distmeta import Place
from distmeta.errors import LearnerContractError

MY_LEARNER = """
import torch.nn.functional as F
from distmeta import MetaLearner

class NearestMean(MetaLearner):
    \"\"\"A query belongs to the class whose mean is nearest.\"\"\"

    class Config(MetaLearner.Config):
        scale: float = 1.0  # --set learner.scale=0.5

    def query_logits(self, params, episode):  # of one task; the runtime vectorises it
        support = self.forward(params, episode.support_x)
        query = self.forward(params, episode.query_x)
        members = F.one_hot(episode.support_y, episode.ways).to(support)
        means = members.T @ support / members.sum(0)[:, None]
        return -self.config.scale * (query[:, None] - means).square().sum(-1)
"""

JOB = """
from distmeta import Experiment, FewShot, conv4
from my_learner import NearestMean

experiment = Experiment(learner=NearestMean(conv4(width=16, head=False)), tasks=FewShot("glyphs", ways=5, shots=1))
"""

SHORT = {
    "tasks.ways": 3,
    "outer.iterations": 20,
    "outer.meta_batch_size": 4,
    "outer.lr": 0.01,
    "evaluation.every": 0,
    "evaluation.test_tasks": 30,
    "runtime.workers": 1,
}


@pytest.fixture
def cluster():
    ray = pytest.importorskip("ray")
    import distmeta.runtime.ray_backend  # noqa: F401  (sets Ray's environment before the cluster starts)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def write(folder, learner=MY_LEARNER):
    (folder / "my_learner.py").write_text(learner)
    (folder / "job.py").write_text(JOB)
    return folder / "job.py"


@pytest.fixture(autouse=True)
def _forget_the_files(monkeypatch):
    """Each test has files of its own under the same names."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("my_learner", "distmeta_job_job"):
        sys.modules.pop(name, None)


def test_it_takes_25_lines_at_most():
    assert len((MY_LEARNER.strip() + JOB).strip().splitlines()) <= 25


def test_it_trains_here_and_on_ray_to_the_same_bits(cluster, digits_dir, tmp_path):
    job = distmeta.load_job(write(tmp_path), {**SHORT, "tasks.data": str(digits_dir)})
    here = distmeta.meta_train(job, run_dir=tmp_path / "here", place=Place("local"))
    on_ray = distmeta.meta_train(job, run_dir=tmp_path / "ray", place=Place("ray"))
    assert here.params_sha256 == on_ray.params_sha256
    np.testing.assert_array_equal(here.test.metrics["accuracy"], on_ray.test.metrics["accuracy"])
    assert here.test.mean("accuracy") > 0.6  # of three ways
    assert job.experiment.settings()["learner"] == {
        "kind": "NearestMean",
        "batch_norm": "batch",
        "vectorise": "auto",
        "scale": 1.0,
    }


def test_its_settings_are_set_and_its_mistakes_named_like_any_others(digits_dir, tmp_path):
    data = {**SHORT, "tasks.data": str(digits_dir)}
    path = write(tmp_path)
    assert distmeta.load_job(path, {**data, "learner.scale": 0.5}).experiment.learner.config.scale == 0.5
    with pytest.raises(distmeta.DistmetaError, match=r"learner.scael.*Did you mean 'learner.scale'"):
        distmeta.load_job(path, {**data, "learner.scael": 0.5})


def test_what_it_returns_is_checked_before_a_worker_starts(digits_dir, tmp_path):
    wrong = MY_LEARNER.replace(".square().sum(-1)", ".square()")
    job = distmeta.load_job(write(tmp_path, wrong), {**SHORT, "tasks.data": str(digits_dir)})
    with pytest.raises(
        LearnerContractError, match=r"NearestMean.query_logits returned \[3, 3, 16\].*expected \[3, 3\]"
    ):
        distmeta.meta_train(job, run_dir=tmp_path / "run", place=Place("local"))
