"""Means over tasks with their 95 % intervals, of one run and of two runs on the same tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.calibration import Calibration
from distmeta.errors import ConfigError
from distmeta.types import FloatArray, Split

_NOT_OF_EVERY_TASK = frozenset({"roc_auc"})
"""Numbers that a task may lack, NaN there: no ROC curve can be drawn where all queries are of one class."""


def ci95(values: npt.ArrayLike) -> float:
    """Half width of the 95 % interval of the mean of ``values``, 1.96 s / sqrt(n); infinite for fewer than two.

    s is the standard deviation over the n values with n - 1 in its denominator. The few-shot literature reports this
    over the accuracies of n test tasks; the normal distribution is assumed, so n should be large.

    Args:
        values: ``[n]``, one number per task.

    Example:
        >>> round(ci95([0.8, 1.0, 0.6, 0.8]), 3)
        0.16
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return math.inf
    with np.errstate(invalid="ignore"):  # a model that has diverged has infinite losses; their interval is NaN
        return 1.96 * float(array.std(ddof=1)) / math.sqrt(array.size)


@dataclass(frozen=True)
class EvaluationReport:
    """Per-task numbers of an evaluation and their means.

    Args:
        split: which classes.
        seed: of the evaluation tasks.
        metrics: name to per-task values ``[tasks]``, in order of task index. ``roc_auc`` is NaN for a task whose
            queries are all of one class.
        calibration: of all tasks together; ``None`` where predictions have no probabilities, and in reports of older
            versions. Its error is the number ``ece`` or, of intervals, ``coverage_error``.

    Example:
        >>> report = EvaluationReport("meta_test", 0, {"accuracy": np.array([0.8, 1.0])})
        >>> report.text("accuracy")
        '90.00 % ± 19.60'
    """

    split: Split
    seed: int
    metrics: Mapping[str, FloatArray]
    calibration: Calibration | None = None

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(next(iter(self.metrics.values())))

    @property
    def pooled(self) -> Mapping[str, tuple[float, float]]:
        """By name, the numbers of all tasks together with their half widths: the calibration error."""
        c = self.calibration
        if c is None:
            return {}
        return {"ece" if c.kind == "confidence" else "coverage_error": (c.error, c.error_ci95)}

    @property
    def names(self) -> list[str]:
        """Every number: those of single tasks, then those of all tasks together."""
        return [*self.metrics, *self.pooled]

    def values(self, name: str) -> FloatArray:
        """The values of the tasks that have the number."""
        found = self.metrics[name]
        return found[~np.isnan(found)] if name in _NOT_OF_EVERY_TASK else found

    def mean(self, name: str) -> float:
        """Mean over tasks, those that have the number; a number of all tasks together as it is."""
        return self.pooled[name][0] if name in self.pooled else float(np.mean(self.values(name), dtype=np.float64))

    def ci95(self, name: str) -> float:
        """Half width of the 95 % interval of the mean, 1.96 s / sqrt(n); infinite for one task."""
        return self.pooled[name][1] if name in self.pooled else ci95(self.values(name))

    def text(self, name: str) -> str:
        """``mean ± half width``; accuracies in per cent."""
        return interval(name, self.mean(name), self.ci95(name))

    def gain(self, name: str, over: str) -> Difference:
        """The mean paired difference of two numbers of the same tasks, such as an accuracy and that of a baseline.

        Example:
            >>> values = {"accuracy": np.array([0.6, 1.0]), "baseline_accuracy": np.array([0.5, 0.9])}
            >>> EvaluationReport("meta_test", 0, values).gain("accuracy", "baseline_accuracy").text()
            '+10.00 % ± 0.00'
        """
        return _difference(name, self.metrics[name], self.metrics[over])

    def summary(self) -> dict[str, float]:
        """``name`` and ``name_ci95`` for every number."""
        return {
            key: value
            for name in self.names
            for key, value in ((name, self.mean(name)), (f"{name}_ci95", self.ci95(name)))
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the summary, the per-task values (``null`` where a task lacks the number), the calibration."""
        per_task = {
            name: [None if np.isnan(v) and name in _NOT_OF_EVERY_TASK else round(float(v), 6) for v in values]
            for name, values in self.metrics.items()
        }
        found = {"split": self.split, "seed": self.seed, "tasks": self.tasks, **self.summary(), "per_task": per_task}
        return found if self.calibration is None else found | {"calibration": self.calibration.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationReport:
        """The report of what :meth:`to_dict` returned, of this version or an older one.

        Raises:
            KeyError, TypeError, ValueError: the values are none.
        """
        metrics = {name: np.asarray(found, dtype=np.float64) for name, found in values["per_task"].items()}
        kept = values.get("calibration")
        return cls(values["split"], values["seed"], metrics, None if kept is None else Calibration.from_dict(kept))


@dataclass(frozen=True)
class Difference:
    """How much one number differs between two reports on the very same tasks.

    Tasks differ far more in difficulty than two learners do in skill; within a task that difficulty cancels, so the
    interval of the mean difference is narrower than the two means' own intervals suggest.

    Args:
        metric: name of the number.
        a: its mean in the first report.
        b: its mean in the second.
        ci95: half width of the 95 % interval of the mean of ``a_i - b_i``, 1.96 s / sqrt(n) of these differences.
    """

    metric: str
    a: float
    b: float
    ci95: float

    @property
    def mean(self) -> float:
        """``a - b``."""
        return self.a - self.b

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return abs(self.mean) > self.ci95

    def text(self) -> str:
        """``+mean ± half width``; accuracies in percentage points."""
        return interval(self.metric, self.mean, self.ci95, sign="+")


def paired(a: EvaluationReport, b: EvaluationReport) -> dict[str, Difference]:
    """The mean paired difference ``a - b`` of every number that both reports have, by name.

    Args:
        a: one report.
        b: another, on the same tasks; the caller ensures that task i of both has the same data.

    Raises:
        ConfigError: the reports are of other tasks by split, seed or number, or have no number in common.

    Example:
        >>> a = EvaluationReport("meta_test", 0, {"accuracy": np.array([0.6, 1.0, 0.8])})
        >>> b = EvaluationReport("meta_test", 0, {"accuracy": np.array([0.5, 0.9, 0.7])})
        >>> paired(a, b)["accuracy"].text()
        '+10.00 % ± 0.00'
    """
    for what, mine, theirs in (
        ("split", a.split, b.split),
        ("seed", a.seed, b.seed),
        ("number of tasks", a.tasks, b.tasks),
    ):
        if mine != theirs:
            raise ConfigError(
                f"The reports are of other tasks: {what} {mine} and {theirs}; expected the same. Evaluate both with "
                "equal split, seed and number of tasks."
            )
    common = [name for name in a.metrics if name in b.metrics]
    if not common:
        raise ConfigError(
            f"The reports have no number in common: {', '.join(a.metrics)} and {', '.join(b.metrics)}. Compare "
            "learners that report the same number."
        )
    return {name: _difference(name, a.metrics[name], b.metrics[name]) for name in common}


def _difference(name: str, a: FloatArray, b: FloatArray) -> Difference:
    # In double precision before the subtraction: the mean difference is then the difference of the means.
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if name in _NOT_OF_EVERY_TASK:
        both = ~np.isnan(first) & ~np.isnan(second)
        first, second = first[both], second[both]
    return Difference(name, float(first.mean()), float(second.mean()), ci95(first - second))


def interval(name: str, mean: float, ci95: float | None, *, sign: str = "") -> str:
    """``mean ± half width`` of the number ``name``: accuracies in per cent, two digits; anything else with four.

    Args:
        name: of the number.
        mean: its mean.
        ci95: half width of its interval; ``None`` where it is not known.
        sign: ``"+"`` to write it also for positive numbers.

    Example:
        >>> interval("accuracy", 0.987, 0.004), interval("loss", 0.25, None)
        ('98.70 % ± 0.40', '0.2500')
    """
    scale, unit, digits = (100.0, " %", 2) if "accuracy" in name else (1.0, "", 4)
    text = f"{scale * mean:{sign}.{digits}f}{unit}"
    return text if ci95 is None else f"{text} ± {scale * ci95:.{digits}f}"
