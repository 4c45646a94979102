"""`distmeta evaluate --controls`: other ways to solve the same tasks, in pairs, and the verdict."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.files import read_record
from distmeta.intervals import Difference, EvaluationReport
from distmeta.run.controls import Control, Controls, evaluate_controls
from distmeta.run.place import Place
from distmeta.run.results import EvaluationRequest, EvaluationResult
from helpers import SINES, run_command

pytest.importorskip("sklearn", reason="scikit-learn is an extra")

JOB = """
from torch import nn
import distmeta

experiment = distmeta.Experiment(
    learner={learner},
    tasks=distmeta.FewShot(data="digits", ways=3, shots=2, queries=2),
    outer=distmeta.Outer(iterations=2, meta_batch_size=4),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
SET = """
from set_models import reader
import distmeta
experiment = distmeta.Experiment(
    learner=distmeta.InContext(reader()),
    tasks=distmeta.GaussianProcesses(),
    outer=distmeta.Outer(iterations=1, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
COPY = """
import distmeta
experiment = distmeta.Experiment(
    learner=distmeta.NTM(distmeta.ntm(size=8, slots=6, width=4)),
    tasks=distmeta.CopyTask(bits=3, length=3, max_length=3),
    outer=distmeta.Outer(iterations=1, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
RUNS = {
    "maml": JOB.format(learner="distmeta.MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inner_lr=0.1)"),
    "metric": JOB.format(learner="distmeta.MatchingNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)))"),
    "sines": SINES,
    "gp": SET,
    "copying": COPY,
}
LOCAL = EvaluationRequest(tasks=8)


@pytest.fixture(scope="session")
def trained(digits_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    shutil.copytree(digits_dir, folder / "digits")
    shutil.copy(Path(__file__).parents[1] / "set_models.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for name, text in RUNS.items():
            Path(f"{name}.py").write_text(text)
            distmeta.meta_train(distmeta.load_job(f"{name}.py"), run_dir=name)
    return folder


@pytest.fixture
def world(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_the_meta_trained_numbers_are_those_of_an_evaluation_and_differences_are_paired(world):
    found, alone = evaluate_controls("maml", LOCAL), distmeta.evaluate("maml", LOCAL)
    for name, values in alone.report.metrics.items():
        np.testing.assert_array_equal(found.result.report.metrics[name], values)
    assert sorted(found.controls) == ["fine_tuned", "forest", "linear", "nearest", "untrained"]
    report = found.result.report
    gain = report.metrics["accuracy_non_transductive"] - report.metrics["control_forest_accuracy"]
    d = found.controls["forest"].differences["accuracy_non_transductive"]
    assert (d.mean, d.ci95) == pytest.approx((gain.mean(), 1.96 * gain.std(ddof=1) / 8**0.5), abs=1e-6)
    kept = read_record(world / "maml" / "evaluations" / "controls-1.json")
    assert kept == json.loads(json.dumps(found.to_dict()))
    assert kept["controls"]["untrained"]["metrics"]["roc_auc"].keys() >= {"control", "control_ci95", "mean", "ci95"}
    assert len(kept["reports"]["fine_tuned"]["per_task"]["loss"]) == 8


def test_the_untrained_network_is_that_of_the_first_step(world):
    """A run of no steps is its own untrained control."""
    experiment = distmeta.load_job("maml.py").experiment
    Path("zero.py").write_text(RUNS["maml"].replace("iterations=2", "iterations=0"))
    distmeta.meta_train(distmeta.load_job("zero.py"), run_dir="zero")
    zero = evaluate_controls("zero", LOCAL)
    d = zero.controls["untrained"].differences["accuracy_non_transductive"]
    assert (d.mean, d.ci95) == (0, 0)
    trained = evaluate_controls("maml", LOCAL)
    for name, values in trained.reports["untrained"].metrics.items():
        np.testing.assert_array_equal(values, zero.result.report.metrics[name])
    assert experiment.seed == 0


def test_fine_tuning_is_better_than_the_untrained_network(world):
    """More steps of the same network on the same support sets: a linear model of pixels is learned."""
    reports = evaluate_controls("maml", EvaluationRequest(tasks=30)).reports
    assert reports["fine_tuned"].mean("nll") < reports["untrained"].mean("nll")


def test_an_encoder_has_a_linear_head(world):
    found = evaluate_controls("metric", LOCAL)
    assert found.controls["fine_tuned"].label == "a linear head on the untrained encoder"


def test_a_regression_is_compared_by_its_error(world):
    found = evaluate_controls("sines", LOCAL)
    assert found.metrics == ["loss"]
    assert sorted(found.controls) == ["fine_tuned", "forest", "linear", "nearest", "untrained"]
    report = found.result.report
    d = found.controls["linear"].differences["loss"]
    assert (d.a, d.b) == pytest.approx((report.mean("loss"), report.mean("control_linear_mse")))


def test_the_exact_posterior_is_shown_and_is_no_reason_against_meta_training(world):
    found = evaluate_controls("gp", LOCAL)
    assert found.metrics == ["log_likelihood", "mse"]
    assert "set model" in found.left_out["fine_tuned"]
    exact = found.controls["exact"].differences["log_likelihood"]
    assert exact.b == pytest.approx(found.result.report.mean("exact_log_likelihood"))
    assert exact.mean < 0
    assert "exact" not in found.verdict


@pytest.mark.parametrize(
    ("differences", "worth_it", "words"),
    [
        ([(0.9, 0.5, 0.1), (0.9, 0.7, 0.1)], True, "worth it here: it beats every control. The closest is control 1"),
        ([(0.9, 0.5, 0.1), (0.9, 0.85, 0.1)], None, "not clear, as it does not differ clearly from control 1."),
        ([(0.9, 0.5, 0.1), (0.7, 0.9, 0.1)], False, "not worth it here: it is beaten by control 1 (accuracy"),
        ([(0.9, 0.9, 0.0), (0.9, 0.5, 0.1)], None, "does not differ clearly from control 0."),
    ],
)
def test_the_verdict(differences, worth_it, words):
    controls = {
        str(i): Control(f"control {i}", {"accuracy": Difference("accuracy", *one)}, {"accuracy": 0.1})
        for i, one in enumerate(differences)
    }
    exact = {"exact": Control("exact", {"accuracy": Difference("accuracy", 0.9, 1.0, 0.01)}, {"accuracy": 0.1})}
    report = EvaluationReport("meta_test", 0, {"accuracy": np.ones(2)})
    result = EvaluationResult(Path(), 1, "", "a", "a", False, {}, report)
    found = Controls(result, controls | exact, {}, {}, Path())
    assert found.worth_it is worth_it
    assert words in found.verdict
    turned = {
        key: replace(one, differences={"loss": Difference("loss", 1 - d.a, 1 - d.b, d.ci95)})
        for key, one in controls.items()
        for d in one.differences.values()
    }  # lower is better
    assert replace(found, controls=turned).worth_it is worth_it


def test_one_table_for_people_and_json_for_machines(world):
    said = run_command("evaluate", "maml", "--controls", "--tasks", 8, "--backend", "local")
    assert said.code == 0, said.err
    number = r"\d+\.\d\d % ± \d+\.\d\d"
    for label in ("logistic regression on the support set", "random forest", "untrained", "fine-tuned: 100 steps"):
        assert re.search(rf"(?m)^  {label}.* {number} +[+-]{number} +[01]\.\d+", said.out), said.out
    assert re.search(r"(?m)^(Meta-training is|Whether meta-training)", said.out)
    machine = run_command("evaluate", "maml", "--controls", "--tasks", 8, "--backend", "local", "--json")
    assert machine.code == 0, machine.err
    assert machine.json.keys() >= {"worth_it", "verdict", "controls", "meta_trained"}
    assert sorted(path.name for path in Path("maml/evaluations").iterdir()) == ["controls-1.json", "controls-2.json"]


def test_what_cannot_be_controlled_is_refused_before_anything_starts(world, monkeypatch):
    opened = []
    monkeypatch.setattr(Place, "_start", lambda *a: opened.append(a))
    said = run_command("evaluate", "copying", "--controls", "--backend", "local")
    assert (said.code, "tasks are sequences" in said.err) == (1, True)
    both = run_command("evaluate", "maml", "--controls", "--shots", "1,2", "--backend", "local")
    assert (both.code, "--controls and --shots" in both.err) == (1, True)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name))
    absent = run_command("evaluate", "maml", "--controls", "--backend", "local")
    assert (absent.code, "pip install 'distmeta[sklearn]'" in absent.err) == (1, True)
    assert opened == []
    assert not list(Path().glob("*/evaluations/*"))
