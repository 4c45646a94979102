"""A trained learner in MLflow: registered, fetched by name, alias and run, and asked as a pyfunc model."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import distmeta
from distmeta.errors import ConfigError
from distmeta.serving import mlflow_store
from distmeta.serving.mlflow_model import register
from distmeta.serving.mlflow_store import fetched
from helpers import free_ports, run_command

JOB = """
import distmeta
import parts

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.conv4(width=parts.WIDTH), inner_lr=0.1),
    tasks=distmeta.FewShot(data={data!r}, ways=3, shots=1, queries=2),
    outer=distmeta.Outer(iterations=4, meta_batch_size=2),
    runtime=distmeta.Runtime(checkpoint_every=2),
    evaluation=distmeta.Evaluation(every=2, validation_tasks=4, test_tasks=4),
    name="digits",
)
"""


@pytest.fixture(scope="module")
def world(empty_store, digits_dir, tmp_path_factory):
    """A run in a store of its own, registered twice, and the environment that names the store."""
    root = tmp_path_factory.mktemp("world")
    (root / "store").mkdir()
    shutil.copy(empty_store, root / "store" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/store/mlflow.db")
        (root / "job").mkdir()
        (root / "job" / "job.py").write_text(JOB.format(data=str(digits_dir)))
        (root / "job" / "parts.py").write_text("WIDTH = 4\n")
        done = run_command("train", "job/job.py", "--backend", "local", "--run-dir", "run", folder=root)
        assert done.code == 0, done.err
        shutil.rmtree(root / "job")
        first = register(root / "run", "digits", alias="champion")
        second = run_command("export", "run", "--register", "digits", "--json", folder=root)
        assert second.code == 0, second.err
        random = np.random.default_rng(0)
        x = random.integers(0, 256, (7, 8, 8)).astype(np.uint8)
        fast = distmeta.load(root / "run").adapt(x[:4], ["ant", "bee", "ant", "bee"])
        run_id = json.loads((root / "run" / "tracking.json").read_text())["run_id"]
        yield SimpleNamespace(
            root=root, first=first, second=second.json, x=x, run_id=run_id, expected=fast.predict_proba(x[4:])
        )


def request(x):
    def png(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    coded = [png(one) for one in x]
    return {"support_x": coded[:4], "support_y": ["ant", "bee", "ant", "bee"], "query_x": coded[4:]}


def test_versions_alias_run_and_dataset_are_linked(world):
    import mlflow

    client = mlflow.MlflowClient()
    assert (world.first.version, world.first.uri) == ("1", "models:/digits@champion")
    assert (world.second["version"], world.second["model"]) == ("2", "models:/digits/2")
    version = client.get_model_version_by_alias("digits", "champion")
    assert (str(version.version), version.run_id) == ("1", world.run_id)
    run = client.get_run(world.run_id)
    assert run.info.status == "FINISHED"
    assert world.first.model_id in {output.model_id for output in run.outputs.model_outputs}
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["digits"]
    logged = client.get_logged_model(world.first.model_id)
    assert logged.source_run_id == world.run_id
    sha256 = distmeta.load(world.root / "run").card["params_sha256"]
    assert logged.tags["distmeta.params_sha256"] == version.tags["distmeta.params_sha256"] == sha256


def test_nothing_is_pickled_and_requirements_are_pinned(world):
    import mlflow

    folder = Path(
        mlflow.MlflowClient().get_logged_model(world.first.model_id).artifact_location.removeprefix("file://")
    )
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "model.py", "artifacts/export/params.safetensors", "code/distmeta/__init__.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".pyc", ".pickle"))]
    lines = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"mlflow", "torch", "numpy"} <= names
    assert not {"distmeta", "ray"} & names


def test_a_request_in_every_form(world):
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model("models:/digits@champion")
    one = request(world.x)
    pixels = {**one, "support_x": world.x[:4].tolist(), "query_x": world.x[4:].tolist()}
    fractions = {**one, "support_x": (world.x[:4] / 255).tolist(), "query_x": (world.x[4:] / 255).tolist()}
    for given in (one, pixels, fractions, [one], pd.DataFrame([one])):
        (found,) = model.predict(given)
        assert np.abs(np.array(found["probabilities"]) - world.expected).max() < 1e-6
        assert found["classes"] == ["ant", "bee"]
        assert found["labels"] == [["ant", "bee"][place] for place in world.expected.argmax(1)]
    both = model.predict([one, {**one, "query_x": one["query_x"][:1]}])
    assert [len(found["labels"]) for found in both] == [3, 1]
    (together,) = model.predict({**one, "options": {"transductive": True}})
    assert together["probabilities"] != found["probabilities"]
    mixed = model.predict({**one, "support_y": ["a", 3, "a", 3]})
    assert mixed[0]["classes"] == ["a", 3]  # not the text "3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_x": ["/etc/passwd"]}, r"query_x\[0\] is text that is no base64"),
        ({"query_x": [base64.b64encode(b"text").decode()]}, "cannot be read as an image"),
        ({"query_x": []}, "expected a list with one input at least"),
        ({"query_x": None}, "The request has support_x, support_y; expected support_x, support_y, query_x"),
        ({"query_x": [[[0.5, 300.0]]]}, "expected whole numbers from 0 to 255"),
        ({"query_x": [[[1, 2], [3]]]}, "no array of numbers"),
        ({"support_y": ["a"]}, "4 inputs and 1 labels"),
        ({"support_y": ["a", "b", "c", "d"]}, "has 3 outputs; expected at most 3 classes"),
        ({"X_train": [[1]]}, "The request has"),
    ],
)
def test_a_bad_request_is_named(world, changes, message):
    import mlflow

    model = mlflow.pyfunc.load_model("models:/digits@champion")
    with pytest.raises(mlflow.MlflowException, match=message):
        model.predict({**request(world.x), **changes})


@pytest.mark.parametrize("place", ["models:/digits@champion", "models:/digits/2", "runs:/{run_id}"])
def test_loading_by_name_gives_the_same(world, place):
    uri = place.format(run_id=world.run_id)
    predictor = distmeta.load(uri)
    fast = predictor.adapt(world.x[:4], ["ant", "bee", "ant", "bee"])
    assert np.array_equal(fast.predict_proba(world.x[4:]), world.expected)
    assert predictor.card["test"] == distmeta.load(world.root / "run").card["test"]
    assert fetched(uri) == fetched(uri)  # once in a process


def test_an_alias_that_moves_is_followed(world):
    import mlflow

    client = mlflow.MlflowClient()
    before = fetched("models:/digits@champion")
    client.set_registered_model_alias("digits", "champion", "2")
    assert fetched("models:/digits@champion") == fetched("models:/digits/2") != before
    client.set_registered_model_alias("digits", "champion", "1")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nix@champion", "name=nix not found"),
        ("models:/digits@nix", "alias nix not found"),
        ("models:/digits/9", "version=9. not found"),
        ("models:/digits", "names nothing in MLflow; expected runs:/RUN_ID"),
        ("models:/digits/Production", "names nothing in MLflow"),
        ("runs:/0123", "id=0123 not found"),
        ("runs:/{run_id}/nix", "is not to be had|holds no learner"),
        ("runs:/{run_id}/best", "holds no learner of distmeta; expected a model that was registered"),
    ],
)
def test_what_is_not_there_is_named(world, uri, message):
    with pytest.raises(ConfigError, match=message):
        distmeta.load(uri.format(run_id=world.run_id))


def test_a_server_that_does_not_answer_is_one_message(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"is not to be had from MLflow at http://127.*onnection refused.*Start the"):
        distmeta.load("models:/digits@champion")


def test_without_mlflow_the_message_has_the_fix(monkeypatch):
    monkeypatch.setattr(mlflow_store, "prepared_mlflow", lambda: (_ for _ in ()).throw(ImportError("No module")))
    with pytest.raises(ConfigError, match=r"MLflow is not installed .*pip install"):
        distmeta.load("models:/digits@champion")


def test_a_run_of_another_store_gets_a_run_that_names_it(world, empty_store, tmp_path, monkeypatch):
    import mlflow

    shutil.copy(empty_store, tmp_path / "other.db")
    uri = f"sqlite:///{tmp_path}/other.db"
    made = register(
        world.root / "run", "elsewhere", tracking_uri=uri, requirements=["distmeta @ https://example.org/d.whl"]
    )
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(made.run_id)
    assert made.run_id != world.run_id
    assert run.data.tags["distmeta.trained_as"] == world.run_id
    assert run.info.status == "FINISHED"
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["digits"]
    assert run.data.metrics["test/accuracy"] == distmeta.load(world.root / "run").card["test"]["accuracy"]
    folder = Path(client.get_logged_model(made.model_id).artifact_location.removeprefix("file://"))
    assert not (folder / "code").exists()  # the line names where to get the package
    assert (folder / "requirements.txt").read_text().rstrip().endswith("distmeta @ https://example.org/d.whl")
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{world.root}/store/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow.get_tracking_uri() == uri  # the environment decides again: nothing was left set in the process


def test_an_unfinished_run_has_no_best(world):
    import mlflow

    run = mlflow.MlflowClient().create_run("0")
    with pytest.raises(ConfigError, match=r"has no run\.json, .* among its artifacts; expected a run that finished"):
        distmeta.load(f"runs:/{run.info.run_id}")


@pytest.mark.chaos
def test_models_serve_answers(world):
    """In a process of its own, about 15 s."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@champion"]
    command += ["--env-manager", "local", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(distmeta.__file__).parents[1])}
    with (world.root / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=world.root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        one = request(world.x)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, (world.root / "serve.log").read_text()
                time.sleep(0.2)
        split = {"columns": list(one), "data": [list(one.values())]}
        for body in ({"inputs": one}, {"inputs": [one]}, {"dataframe_records": [one]}, {"dataframe_split": split}):
            (found,) = _ask(port, body)["predictions"]
            assert np.abs(np.array(found["probabilities"]) - world.expected).max() < 1e-6
        with pytest.raises(urllib.error.HTTPError) as refused:
            _ask(port, {"inputs": {**one, "query_x": ["/etc/passwd"]}})
        assert refused.value.code == 400
        assert "no base64" in refused.value.read().decode()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _ask(port, body):
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)
