"""In-context learners of tables in use: any number of columns, and intervals of a regression, wherever asked."""

import json
import sys

import numpy as np
import pytest
import torch

import distmeta
from distmeta import GaussianProcesses, InContext, Tables, cnp, table_transformer
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import DataError, LearnerContractError
from distmeta.seeding import rng
from distmeta.serving.mlflow_request import answered, example
from distmeta.serving.predictor import Predictor
from helpers import run_command
from served import served

pytestmark = pytest.mark.usefixtures("one_thread")


def predictor(model, spec, **settings):
    learner = InContext(model, **settings).bind(spec, 0)
    params = learner.init_meta_params(rng(0, "init"))
    return Predictor(learner, params, spec, Preprocessing(spec.input_shape), {"name": "tables"})


def classes():
    return predictor(table_transformer(width=8, heads=2, layers=1), Tables().spec, standardise="inputs")


def numbers():
    spec = Tables(target="number").spec
    return predictor(table_transformer(width=8, heads=2, layers=1), spec, standardise="both")


def table(rows, columns, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, columns)), random.normal(size=rows)


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_rows_have_any_number_of_columns_where_the_network_takes_it(columns):
    x, y = table(12, columns)
    for form in (np.asarray, np.ndarray.tolist, torch.from_numpy, list):
        found = classes().adapt(form(x), (y > 0).tolist()).predict_proba(form(x))
        assert found.shape == (12, 2)
        np.testing.assert_allclose(found, classes().adapt(x, (y > 0).tolist()).predict_proba(x))
    assert classes().any_columns


def test_a_network_of_one_number_of_columns_refuses_others():
    fixed = predictor(cnp(), GaussianProcesses().spec)
    assert not fixed.any_columns
    with pytest.raises(
        DataError, match=r"The rows have 2 numbers; Predictor\(InContext, 'tables', inputs \[1\]\) takes 1"
    ):
        fixed.adapt(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(LearnerContractError, match=r"inputs have shape \[2, 4\]; expected \[B, 3\]"):
        classes().adapt(np.zeros((3, 3)), [0, 1, 0]).predict(np.zeros((2, 4)))


def test_fewer_columns_than_padded_tasks_had_are_filled_up():
    from distmeta import TaskSpec

    wide = predictor(cnp(), TaskSpec((4,), 2, "classification", 9, 9, padded=True))
    x, y = table(6, 2)
    labels = (y > 0).tolist()
    padded = np.pad(x, ((0, 0), (0, 2)))
    expected = wide.adapt(padded, labels).predict_proba(padded)
    np.testing.assert_array_equal(wide.adapt(x, labels).predict_proba(x), expected)
    with pytest.raises(DataError, match="The rows have 5 numbers"):
        wide.inputs(np.zeros((3, 5)))


def test_intervals_are_those_of_the_distribution_however_many_are_asked():
    x, y = table(20, 3)
    fast = numbers().adapt(x, 7 + 100 * y[:, None])
    many = np.random.default_rng(1).normal(size=(1100, 3))
    found = fast.predict_distribution(many)
    low, high = fast.predict_interval(many, 0.5)
    assert found.mean.shape == low.shape == (1100, 1)
    np.testing.assert_allclose(found.mean, fast.predict(many), rtol=1e-4, atol=1e-3)
    z = torch.special.ndtri(torch.tensor(0.75)).item()
    np.testing.assert_allclose((high - low) / 2, z * found.scale.numpy(), rtol=1e-4)
    np.testing.assert_allclose(fast.predict_interval(many[1050:], 0.5)[0], low[1050:], rtol=1e-4, atol=1e-3)
    with pytest.raises(LearnerContractError, match=r"coverage=1\.5 is no probability"):
        fast.predict_interval(many, 1.5)
    with pytest.raises(LearnerContractError, match="in a classification, probabilities"):
        classes().adapt(x, (y > 0).tolist()).predict_interval(x)


@pytest.mark.parametrize("make", [classes, numbers])
def test_a_request_of_json_is_answered(make):
    """The example that goes with a registered model, and tables of another width."""
    learner = make()
    found = answered(learner, json.loads(json.dumps(example(learner))))
    assert json.loads(json.dumps(found)) == found
    x, y = table(12, 5)
    labels = (y > 0).tolist() if make is classes else y.tolist()
    found = answered(learner, {"X_train": x.tolist(), "y_train": labels, "X_test": x[:4].tolist()})
    if make is classes:
        np.testing.assert_allclose(found["probabilities"], learner.adapt(x, labels).predict_proba(x[:4]), atol=1e-6)
        return
    low, high = learner.adapt(x, y[:, None]).predict_interval(x[:4])
    assert found["intervals"]["coverage"] == 0.9
    np.testing.assert_allclose(found["intervals"]["low"], low, atol=1e-5)
    np.testing.assert_allclose(found["intervals"]["high"], high, atol=1e-5)


def test_a_service_answers_tables_of_any_width_and_regressions_with_intervals():
    pytest.importorskip("fastapi", reason="pip install 'distmeta[serve]'")
    x, y = table(12, 5)
    with served(numbers()) as web:
        assert web.ask("GET", "/model").json["inputs"] == {
            "shape": [3],
            "any_columns": True,
            "pictures": False,
            "ink": False,
            "dtype": "float32",
        }
        body = {"support_x": x.tolist(), "support_y": y.tolist(), "query_x": x[:4].tolist()}
        found = web.predict(**body).json
        fast = numbers().adapt(x, y[:, None])
        np.testing.assert_allclose(found["values"], fast.predict(x[:4]), atol=1e-5)
        np.testing.assert_allclose(found["intervals"]["high"], fast.predict_interval(x[:4])[1], atol=1e-5)
        kept = web.ask("POST", "/tasks", {name: body[name] for name in ("support_x", "support_y")}).json
        again = web.ask("POST", f"/tasks/{kept['id']}/predict", {"query_x": body["query_x"]}).json
        np.testing.assert_allclose(again["intervals"]["low"], found["intervals"]["low"], atol=1e-5)
        uneven = web.predict(**{**body, "support_x": [*x[:11].tolist(), [1.0, 2.0]]})
        assert (uneven.status, "support_x[11] has 2 numbers, support_x[0] has 5" in uneven.message) == (422, True)
        other = web.predict(**{**body, "query_x": [[1.0, 2.0]]})
        assert (other.status, "expected [B, 5]" in other.message) == (422, True)


def test_tables_of_several_widths_are_asked_together():
    from distmeta.serving.together import Question

    learner, questions = classes(), []
    for columns in (2, 5, 2, 5):
        x, y = table(10, columns, seed=columns)
        questions.append(Question(learner.inputs(x), (y > 0).tolist(), learner.inputs(x[:3])))
    for question, answer in zip(questions, learner.predict_all(questions), strict=True):
        expected = learner.learner.adapt(question.support_x, question.labels, params=learner.params)
        np.testing.assert_allclose(answer.logits, expected.logits(question.query_x), atol=1e-5)


JOB = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.InContext(distmeta.table_transformer(width=8, heads=2, layers=1), standardise="both"),
    tasks=distmeta.Tables(target="number", rows=20, support=(5, 15), features=2),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


def test_csv_files_of_numbers_and_a_kept_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "job.py").write_text(JOB)
    distmeta.meta_train(distmeta.load_job(tmp_path / "job.py"), run_dir=tmp_path / "run")
    x, y = table(10, 3)
    rows = [",".join(map(repr, map(float, (t, *row)))) for row, t in zip(x, y, strict=True)]
    (tmp_path / "known.csv").write_text("\n".join(["price,a,b,c", *rows]))
    (tmp_path / "new.csv").write_text("c,b,a\n1,2,3\n-1,0.5,0\n")
    words = ("predict", "run", "--support", "known.csv", "--query", "new.csv", "--target", "price")
    found = run_command(*words, "--json", folder=tmp_path).json
    asked = np.array([[3.0, 2.0, 1.0], [0.0, 0.5, -1.0]])
    fast = distmeta.load(tmp_path / "run").adapt(x, y[:, None])
    ends = np.concatenate(fast.predict_interval(asked), 1)
    assert found["coverage"] == 0.9
    np.testing.assert_allclose([one["interval"] for one in found["answers"]], ends, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([one["value"] for one in found["answers"]], fast.predict(asked)[:, 0], rtol=1e-4)
    shown = run_command(*words, folder=tmp_path)
    assert shown.out.splitlines()[0].split() == ["input", "value", "90", "%", "interval"]
    pictures = run_command(
        "predict", "run", "--support", tmp_path, "--query", "new.csv", "--target", "x", folder=tmp_path
    )
    assert "--target x is for a CSV file" in pictures.err.replace("\n", " ")
    fast.save(tmp_path / "kept")
    kept = distmeta.AdaptedModel.load(tmp_path / "kept")
    for one, other in zip(kept.predict_interval(asked), fast.predict_interval(asked), strict=True):
        assert np.array_equal(one, other)
