"""Intervals and paired differences against their formulas, on any numbers."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.errors import ConfigError
from distmeta.intervals import EvaluationReport, ci95, interval, paired

numbers = st.floats(-1e3, 1e3, width=32)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=50)


def report(values, *, name="bits", seed=0, split="meta_test") -> EvaluationReport:
    return EvaluationReport(split, seed, {name: np.array(values, np.float32)})


@given(pairs)
def test_the_difference_is_that_of_each_task(rows):
    found = paired(report([a for a, _ in rows]), report([b for _, b in rows]))["bits"]
    differences = [a - b for a, b in rows]
    assert found.mean == pytest.approx(statistics.fmean(differences), abs=1e-9)
    expected = 1.96 * statistics.stdev(differences) / math.sqrt(len(rows))
    assert found.ci95 == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found.significant == (abs(found.mean) > found.ci95)


@given(pairs)
def test_exchanging_the_two_changes_the_sign_only(rows):
    a, b = report([a for a, _ in rows]), report([b for _, b in rows])
    there, back = paired(a, b)["bits"], paired(b, a)["bits"]
    assert (there.mean, there.ci95) == (-back.mean, pytest.approx(back.ci95))


@given(st.lists(numbers, min_size=2, max_size=50), st.floats(-100, 100, width=32))
def test_what_both_have_in_common_cancels(difficulty, shift):
    """A constant difference is known exactly, however much the tasks differ."""
    values = np.array(difficulty, np.float64)
    found = paired(
        EvaluationReport("meta_test", 0, {"bits": values + shift}), EvaluationReport("meta_test", 0, {"bits": values})
    )["bits"]
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.ci95 < 1e-9


def test_pairing_is_narrower_than_two_intervals_where_tasks_differ_in_difficulty():
    random = np.random.default_rng(0)
    difficulty = random.normal(size=500)
    a, b = (report(difficulty + offset + 0.1 * random.normal(size=500)) for offset in (0.05, 0.0))
    found = paired(a, b)["bits"]
    assert found.significant
    assert found.ci95 < 0.2 * math.hypot(a.ci95("bits"), b.ci95("bits"))


def test_the_interval_covers_the_truth_19_times_in_20():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        a, b = random.normal(0.3, 1, 60), random.normal(0.0, 1, 60)
        found = paired(report(a), report(b))["bits"]
        hits += abs(found.mean - 0.3) <= found.ci95
    assert 0.925 < hits / 2000 < 0.965


def test_only_common_numbers_are_compared():
    a = EvaluationReport("meta_test", 0, {"loss": np.zeros(2), "accuracy": np.ones(2)})
    b = EvaluationReport("meta_test", 0, {"loss": np.ones(2), "bits": np.ones(2)})
    assert list(paired(a, b)) == ["loss"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report([1, 2], seed=1), "seed 0 and 1"),
        (report([1, 2], split="meta_validation"), "split meta_test and meta_validation"),
        (report([1, 2, 3]), "number of tasks 2 and 3"),
        (report([1, 2], name="loss"), "no number in common: bits and loss"),
    ],
)
def test_reports_of_other_tasks_are_refused(other, message):
    with pytest.raises(ConfigError, match=message):
        paired(report([1, 2]), other)


def test_numbers_as_text():
    assert interval("accuracy_non_transductive", 0.5, 0.0125) == "50.00 % ± 1.25"
    assert interval("loss", 0.5, 0.0125, sign="+") == "+0.5000 ± 0.0125"
    assert interval("bits", -0.5, None, sign="+") == "-0.5000"


def test_mean_and_interval_are_the_formula() -> None:
    values = [0.2, 0.4, 0.4, 0.6, 1.0, 0.8]
    assert ci95(values) == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(6))


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        accuracies = rng.binomial(75, 0.7, size=100) / 75
        covered += abs(accuracies.mean() - 0.7) <= ci95(accuracies)
    # 0.95 +- four standard errors of a binomial over 2000 draws.
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_values_bound_nothing(values: list[float]) -> None:
    assert ci95(values) == math.inf


def test_equal_values_have_no_width() -> None:
    assert ci95([0.5, 0.5, 0.5]) == 0.0


def test_a_gain_over_a_baseline_is_paired_by_task():
    random = np.random.default_rng(0)
    difficulty, gain = random.uniform(0.2, 0.8, 300), 0.05 + 0.02 * random.normal(size=300)
    report = EvaluationReport(
        "meta_test", 0, {"accuracy": difficulty + gain, "baseline_accuracy": difficulty, "other": difficulty}
    )
    found = report.gain("accuracy", "baseline_accuracy")
    assert found.mean == pytest.approx(gain.mean())
    assert found.ci95 == pytest.approx(1.96 * gain.std(ddof=1) / 300**0.5)
    assert found.ci95 < report.ci95("accuracy") / 5
    assert found.significant
