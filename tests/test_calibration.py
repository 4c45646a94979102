"""Calibration of all tasks together, its interval, and how it is kept."""

import json
import math

import numpy as np
import pytest

from distmeta.calibration import Calibration
from distmeta.intervals import EvaluationReport, paired

RANDOM = np.random.default_rng(0)


def sums(tasks=50, queries=20, bias=0.1):
    """Tasks whose queries are all sure by .7, and right with probability .7 minus ``bias``."""
    found = np.zeros((tasks, 3, 15))
    found[:, 0, 10], found[:, 1, 10] = queries, 0.7 * queries
    found[:, 2, 10] = RANDOM.binomial(queries, 0.7 - bias, tasks)
    return found


def test_the_interval_is_that_of_a_mean_where_the_error_is_one():
    """One bin, clearly off: the error is the mean over tasks of confidence minus accuracy."""
    given = sums(bias=0.2)
    gaps = (given[:, 1] - given[:, 2]).sum(1) / 20
    found = Calibration.of(given)
    assert found.error == pytest.approx(gaps.mean())
    assert found.error_ci95 == pytest.approx(1.96 * gaps.std(ddof=1) / math.sqrt(len(gaps)), rel=0.1)
    assert found.half_width[10] == pytest.approx(found.error_ci95, rel=1e-9)
    assert found == Calibration.of(given)  # no random number is new


def test_one_task_has_no_interval():
    assert Calibration.of(sums(tasks=1)).error_ci95 == math.inf


def test_a_report_comes_back_from_its_json_with_what_tasks_lack():
    metrics = {"loss": np.ones(50), "roc_auc": np.array([np.nan, *np.linspace(0.5, 1, 49)])}
    report = EvaluationReport("meta_test", 3, metrics, Calibration.of(sums()))
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = EvaluationReport.from_dict(json.loads(text))
    assert again.calibration == report.calibration
    assert (again.names, again.tasks) == (["loss", "roc_auc", "ece"], 50)
    assert again.mean("roc_auc") == pytest.approx(0.75)  # over the 49 tasks that have it
    assert again.mean("ece") == report.calibration.error == json.loads(text)["ece"]
    assert report.summary()["ece_ci95"] == report.calibration.error_ci95
    half = EvaluationReport("meta_test", 3, {"roc_auc": metrics["roc_auc"] / 2})
    assert paired(report, half)["roc_auc"].mean == pytest.approx(0.375)
    with pytest.raises(ValueError, match="not JSON compliant"):  # a number that every task has is not left out
        json.dumps(EvaluationReport("meta_test", 3, {"loss": metrics["roc_auc"]}).to_dict(), allow_nan=False)


def test_a_report_of_an_older_version_is_read():
    old = {"split": "meta_test", "seed": 0, "tasks": 2, "loss": 1.5, "loss_ci95": 0.9, "per_task": {"loss": [1.0, 2.0]}}
    found = EvaluationReport.from_dict(old)
    assert (found.names, found.calibration, found.mean("loss")) == (["loss"], None, 1.5)


def test_intervals_have_a_number_of_another_name():
    counts = np.full((10, 1, 20), 1.0)
    found = EvaluationReport("meta_test", 0, {"loss": np.ones(10)}, Calibration.of(counts))
    assert found.names == ["loss", "coverage_error"]
    assert found.mean("coverage_error") == pytest.approx(0, abs=1e-12)
