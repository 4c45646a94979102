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

SIGN_STEPS = """
from distmeta.learners.functional import task_gradient
from distmeta.learners.inner_loop import GradientLearner


class SignSteps(GradientLearner):
    \"\"\"Steps along the sign of the gradient.\"\"\"

    class Config(GradientLearner.Config):
        step: float = 0.1

    def fast_params(self, params, episode):
        loss, fast = self.support_loss(episode), params
        for _ in range(self.config.inner_steps):
            gradient, _ = task_gradient(loss, fast)
            fast = {name: p - self.config.step * gradient[name].sign() for name, p in fast.items()}
        return fast
"""

BRIER = """
from distmeta.learners.sequence import SequenceLearner


class Brier(SequenceLearner):
    \"\"\"The squared error of each bit's probability.\"\"\"

    def sequence_loss(self, prediction, targets):
        error = (prediction.sigmoid() - targets.clamp_min(0)).square() * (targets >= 0)
        return error.flatten(1).sum(1), {"brier": error.flatten(1).mean(1)}
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
        "precision": "float32",
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


def test_a_gradient_learner_and_a_sequence_learner_take_20_lines_at_most():
    assert max(len(text.strip().splitlines()) for text in (SIGN_STEPS, BRIER)) <= 20


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The two files in the folder that is scanned for algorithms, and the classes that the scan finds."""
    import sys

    import distmeta.learners

    (tmp_path / "sign_steps.py").write_text(SIGN_STEPS)
    (tmp_path / "brier.py").write_text(BRIER)
    monkeypatch.setattr(distmeta.learners, "__path__", [*distmeta.learners.__path__, str(tmp_path)])
    yield distmeta.learners.find_learners()
    for name in ("sign_steps", "brier"):
        sys.modules.pop(f"distmeta.learners.{name}", None)
        delattr(distmeta.learners, name)


def test_a_new_file_is_found_by_scanning_and_its_learner_trains_adapts_and_passes_the_probe(
    planted, digits_dir, tmp_path
):
    from distmeta.testing import check_gradient, check_model

    assert {"SignSteps", "Brier", "MAML", "NTM"} <= set(planted)
    tasks = distmeta.FewShot(digits_dir, ways=3, shots=1, queries=2)
    copy = distmeta.CopyTask(bits=3, length=2, min_length=2, max_length=2)
    for learner, distribution in (
        (planted["SignSteps"](distmeta.mlp((16,)), inner_steps=3), tasks),
        (planted["Brier"](distmeta.lstm(size=8)), copy),
    ):
        experiment = distmeta.Experiment(learner=learner, tasks=distribution)
        assert check_model(learner, experiment) is None  # vmap takes it
        check_gradient(experiment).require()
        result = learner.train(
            distribution,
            run_dir=tmp_path / type(learner).__name__,
            iterations=5,
            meta_batch_size=4,
            place=Place(),
            **{"evaluation.test_tasks": 8, "evaluation.every": 0},
        )
        assert result.step == 5
    one = tasks.take(1)[0].episode
    sign_steps = planted["SignSteps"](distmeta.mlp((16,)), inner_steps=3).bind(tasks.spec)
    fast = sign_steps.adapt(one.support_x, 10 * one.support_y)
    assert fast.classes_.tolist() == [0, 10, 20]
    assert (tmp_path / "SignSteps" / "adaptation.png").exists()  # the family's picture, for nothing


SUITE_WITH_A_NEW_FILE = """
import sys
import distmeta.learners
distmeta.learners.__path__.append(sys.argv[1])
import pytest
sys.exit(pytest.main(["--collect-only", "-p", "no:cacheprovider", sys.argv[2]]))
"""


def test_the_suite_takes_in_a_new_file(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    (tmp_path / "new_one.py").write_text(SIGN_STEPS.replace("SignSteps", "NewOne"))
    suite = Path(__file__).parents[1] / "learners" / "test_suite.py"
    command = [sys.executable, "-c", SUITE_WITH_A_NEW_FILE, str(tmp_path), str(suite)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for test in ("test_it_learns", "test_the_same_bits_twice_and_after_the_way_to_a_worker"):
        assert f"{test}[" in done.stdout
        assert any(test in line and "NewOne" in line for line in done.stdout.splitlines())
