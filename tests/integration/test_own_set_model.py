"""A user's own set model of 15 lines on their own prior of 10, as README has them: trained, evaluated, used, served."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distmeta
from distmeta import EvaluationRequest
from distmeta.errors import ModelContractError
from helpers import run_command
from served import served

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = """
class Reader(nn.Module):  # tasks [T, S, F], [T, S], [T, Q, F] in; a row of numbers for each query out
    def __init__(self, spec, width=32):
        super().__init__()
        self.row = nn.Sequential(nn.Linear(spec.input_shape[0], width), nn.GELU(), nn.Linear(width, width))
        self.label = nn.Embedding(spec.outputs, width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, spec.outputs))

    def forward(self, support_x, support_y, query_x):
        support, query = self.row(support_x), self.row(query_x)
        found, _ = self.attend(query, support, self.label(support_y), need_weights=False)
        return self.head(found)
"""
PRIOR = """
def get_batch(batch_size, rows=40):  # any random numbers of torch, numpy and random
    x = torch.randn(batch_size, rows, 2)
    centres = torch.randn(batch_size, 3, 2)  # the nearest of three points is the class
    return x, torch.cdist(x, centres).argmin(-1)
"""
JOB = f"""
import torch
from torch import nn
from distmeta import Evaluation, Experiment, InContext, Outer, Prior
{MODEL}
{PRIOR}
experiment = Experiment(
    learner=InContext(Reader, standardise="inputs"),
    tasks=Prior(get_batch, classes=3, support=(10, 30)),
    outer=Outer(iterations=150, meta_batch_size=16, lr=3e-3),
    evaluation=Evaluation(every=0, test_tasks=50),
)
"""


def table(rows=40, seed=0):
    """Rows of two columns, each in a unit of its own, and the names of three places."""
    random = np.random.default_rng(seed)
    centres = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    y = np.arange(rows) % 3
    x = (centres[y] + 0.3 * random.normal(size=(rows, 2))) * [1, 100] + [0, 1000]
    return x, np.array(["east", "north", "south"])[y]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "job.py").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        distmeta.meta_train(distmeta.load_job(folder / "job.py"), run_dir=folder / "run")
        torch.set_num_threads(before)
    return folder / "run"


def test_it_takes_15_lines_and_10():
    assert len(MODEL.strip().splitlines()) <= 15
    assert len(PRIOR.strip().splitlines()) <= 10


def test_it_learns_and_is_evaluated(run):
    found = distmeta.evaluate(run, EvaluationRequest(tasks=100)).report
    assert found.mean("accuracy") > 0.6  # of three classes; the largest has about half of the rows
    assert (run / "reliability.png").exists()


def test_it_is_loaded_kept_and_exported(run, tmp_path):
    x, y = table()
    fast = distmeta.load(run).adapt(x[:20], y[:20])
    assert fast.classes_.tolist() == ["east", "north", "south"]
    assert (fast.predict(x[20:]) == y[20:]).mean() > 0.9
    fast.save(tmp_path / "kept")
    again = distmeta.AdaptedModel.load(tmp_path / "kept")
    assert np.array_equal(again.predict_proba(x), fast.predict_proba(x))
    distmeta.export(run, tmp_path / "export")
    exported = distmeta.load(tmp_path / "export").adapt(x[:20], y[:20])
    assert np.array_equal(exported.predict_proba(x), fast.predict_proba(x))


def test_it_is_served(run):
    x, y = table()
    predictor = distmeta.load(run)
    expected = predictor.adapt(x[:20], y[:20])
    with served(predictor) as web:
        body = {"support_x": x[:20].tolist(), "support_y": y[:20].tolist(), "query_x": x[20:].tolist()}
        found = web.predict(**body)
        assert found.status == 200
        assert found.json["predictions"] == expected.predict(x[20:]).tolist()
        np.testing.assert_allclose(found.json["probabilities"], expected.predict_proba(x[20:]), atol=1e-5)
        wide = web.predict(**{**body, "query_x": [[1.0, 2.0, 3.0]]})
        assert wide.status == 422
        assert "The rows have 3 numbers" in wide.message


def test_csv_files_are_answered_by_the_name_of_a_column(run, tmp_path):
    x, y = table()
    lines = [f"{label},{a},{b}" for label, (a, b) in zip(y, x, strict=True)]
    (tmp_path / "known.csv").write_text("\n".join(["where,x,y", *lines[:20]]))
    (tmp_path / "new.csv").write_text("\n".join(["where,x,y", *lines[20:]]))
    words = ("predict", run, "--support", tmp_path / "known.csv", "--query", tmp_path / "new.csv")
    found = run_command(*words, "--target", "where", "--json").json
    assert found["classes"] == ["east", "north", "south"]
    assert found["accuracy"] > 0.9
    fast = distmeta.load(run).adapt(x[:20], y[:20])
    assert [one["label"] for one in found["answers"]] == fast.predict(x[20:]).tolist()
    refused = run_command(*words, "--target", "wheer")
    assert refused.code == 1
    assert "has no column 'wheer'. Did you mean 'where'?" in refused.err.replace("\n", " ")


def test_it_is_an_estimator(run):
    sklearn = pytest.importorskip("distmeta.sklearn", reason="needs the extra distmeta[sklearn]")
    x, y = table()
    estimator = sklearn.InContextClassifier(run).fit(x[:20], y[:20])
    assert estimator.score(x[20:], y[20:]) > 0.9
    with pytest.raises(ValueError, match=r"The rows have 3 numbers; .* takes 2"):
        sklearn.InContextClassifier(run).fit(np.zeros((4, 3)), ["a", "b", "a", "b"])


def test_a_mistake_is_named_before_a_worker_starts(tmp_path):
    """Queries that see each other, the mistake of most importance: a score that no user will ever see."""
    mixing = JOB.replace("self.row(query_x)", "self.row(query_x - query_x.mean(1, keepdim=True))")
    (tmp_path / "job.py").write_text(mixing)
    with pytest.raises(ModelContractError, match="queries do not see each other"):
        distmeta.meta_train(distmeta.load_job(tmp_path / "job.py"), run_dir=tmp_path / "run")
