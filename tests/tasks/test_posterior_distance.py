"""``jobs/posterior/distance.py``: the posterior itself is at distance 0, another prediction where it is by hand."""

import runpy
import sys

import numpy as np
import pytest
import torch

import distmeta
from distmeta.experiment.job import jobs_folder

JOB = """
import math
import torch
from torch import nn
import distmeta


class Fixed(nn.Module):  # whatever the support set holds: mean `shift`, standard deviation 0.001 + softplus(`raw`)
    def __init__(self):
        super().__init__()
        self.shift, self.raw = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.tensor([math.log(math.expm1(0.999))]))

    def forward(self, support_x, support_y, query_x):
        return torch.cat([self.shift + 0 * query_x, self.raw + 0 * query_x], -1)


experiment = distmeta.Experiment(
    learner=distmeta.InContext(Fixed(), min_scale=0.001),
    # Noise alone: the posterior is the normal distribution of the noise, but for 1e-8.
    tasks=distmeta.GaussianProcesses(kernel="rbf", length=0.5, scale=1e-4, noise=1.0),
    outer=distmeta.Outer(optimizer="sgd", lr=0.1, iterations=2, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=4, checkpoint_every=1, keep_checkpoints=5),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    distmeta.meta_train(distmeta.load_job(tmp_path / "job.py"), run_dir=tmp_path / "run")
    return tmp_path / "run"


def test_distances_are_those_by_hand(run, monkeypatch, capsys):
    script = runpy.run_path(str(jobs_folder() / "posterior" / "distance.py"))
    rows = script["distances"](run, tasks=8)
    assert [step for step, _, _ in rows] == [0, 1, 2]
    store = distmeta.runtime.checkpoint.CheckpointStore(run / "checkpoints")
    for step, mean, scale in rows:
        found = store.load(step)
        params = found.layout.unflatten(found.learned, torch.device("cpu"))
        assert mean == pytest.approx(abs(params["shift"].item()), abs=1e-3)
        assert scale == pytest.approx(abs(np.log(0.001 + np.log1p(np.exp(params["raw"].item())))), abs=1e-3)
    assert rows[0][1:] == pytest.approx((0, 0), abs=1e-3)
    assert rows[2][1] > 1e-3
    monkeypatch.setattr(sys, "argv", ["distance.py", str(run)])
    script["main"]()
    assert "| 2 | " in capsys.readouterr().out
    assert (run / "posterior_distance.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_of_another_kind_is_refused(tmp_path):
    (tmp_path / "job.py").write_text(
        "import distmeta\nexperiment = distmeta.Experiment(learner=distmeta.MAML(distmeta.mlp((4,))), "
        "tasks=distmeta.Sinusoids(), outer=distmeta.Outer(iterations=1, meta_batch_size=2))\n"
    )
    distmeta.meta_train(distmeta.load_job(tmp_path / "job.py"), run_dir=tmp_path / "run")
    script = runpy.run_path(str(jobs_folder() / "posterior" / "distance.py"))
    with pytest.raises(SystemExit, match="no run of InContext on GaussianProcesses"):
        script["distances"](tmp_path / "run")
