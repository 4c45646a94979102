"""Records of an evaluation: the request, the result, a comparison, a curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmeta.intervals import Difference, EvaluationReport, paired
from distmeta.run.place import Place
from distmeta.types import Split


@dataclass(frozen=True)
class EvaluationRequest:
    """On which tasks a run is evaluated, and where that is computed.

    Args:
        tasks: how many tasks; 600 when left out, or all of them where there are fewer.
        split: which classes.
        seed: root of the tasks' random numbers; the experiment's ``evaluation.seed`` when left out: the same tasks for
            every run.
        data: where the dataset is now, or another dataset of the same input shape: the evaluation is then cross-domain.
        overrides: settings of the tasks (``tasks.ways`` for learners that take any number), of the learner
            (``learner.test_inner_steps``) and of the runtime.
        place: where to compute.
        accept_changed: use the run's copy of the job file though it was changed after the run wrote it.

    Example:
        >>> EvaluationRequest(tasks=100, overrides={"tasks.ways": 20}).split
        'meta_test'
    """

    tasks: int | None = None
    split: Split = "meta_test"
    seed: int | None = None
    data: Path | str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    place: Place = field(default_factory=Place)
    accept_changed: bool = False


@dataclass(frozen=True)
class TaskSelection:
    """Exactly these tasks: the first ``tasks`` of ``split`` and ``seed``."""

    tasks: int
    split: Split
    seed: int


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of an evaluation, and the run, data and settings that they belong to.

    Args:
        run_dir: the run.
        step: whose parameters: the best by meta-validation.
        params_sha256: their digest.
        trained_on: name of the dataset of the training.
        evaluated_on: name of the dataset of the tasks.
        cross_domain: whether these are two datasets.
        changed: settings that differ from those of the run, by dotted key.
        report: the numbers.
    """

    run_dir: Path
    step: int
    params_sha256: str
    trained_on: str
    evaluated_on: str
    cross_domain: bool
    changed: Mapping[str, Any]
    report: EvaluationReport

    @property
    def title(self) -> str:
        """Tasks, data and changed settings, in a line."""
        return self.title_without(None)

    def title_without(self, key: str | None) -> str:
        """The title, without the changed setting ``key``."""
        report = self.report
        where = ""
        if self.cross_domain:
            where = f", cross-domain: trained on {self.trained_on}, evaluated on {self.evaluated_on}"
        other = "".join(f", {name}={value}" for name, value in self.changed.items() if name != key)
        return f"{report.split}: {report.tasks} tasks of seed {report.seed}{where}{other}, mean ± 95 % interval"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: all of it, with the per-task values."""
        return {
            "run_dir": str(self.run_dir),
            "step": self.step,
            "params_sha256": self.params_sha256,
            "trained_on": self.trained_on,
            "evaluated_on": self.evaluated_on,
            "cross_domain": self.cross_domain,
            "changed": dict(self.changed),
            **self.report.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs on the very same tasks.

    Args:
        a: the one run.
        b: the other.
        kept: the file that holds the comparison.
    """

    a: EvaluationResult
    b: EvaluationResult
    kept: Path

    @property
    def differences(self) -> dict[str, Difference]:
        """``a - b`` of every number that both have, paired by task."""
        return paired(self.a.report, self.b.report)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: both results, and under ``difference`` the means of a - b with their half widths."""
        found = {
            name: {"a": d.a, "b": d.b, "mean": d.mean, "ci95": d.ci95, "significant": d.significant}
            for name, d in self.differences.items()
        }
        return {"difference": found, "a": self.a.to_dict(), "b": self.b.to_dict()}


@dataclass(frozen=True)
class Sweep:
    """One run evaluated at several values of one setting, everything else equal.

    Args:
        key: the setting.
        values: what it was set to.
        results: one per value.
        picture: the curve, as a PNG.
    """

    key: str
    values: tuple[int, ...]
    results: tuple[EvaluationResult, ...]
    picture: Path

    @property
    def title(self) -> str:
        """Title of one evaluation, without the swept setting."""
        return self.results[0].title_without(self.key)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every result, with the per-task values."""
        return {
            "key": self.key,
            "values": list(self.values),
            "picture": str(self.picture),
            "results": [result.to_dict() for result in self.results],
        }
