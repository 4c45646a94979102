"""Is meta-training worth it here? ``distmeta evaluate --controls``: other ways to solve the very same tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError
from distmeta.figures.metric_labels import metric_labels
from distmeta.files import write_record
from distmeta.intervals import Difference, EvaluationReport, paired
from distmeta.learners.base import MetaLearner
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.reptile import Reptile
from distmeta.learners.ridge import Ridge
from distmeta.run.evaluating import on_backend
from distmeta.run.finished_run import FinishedRun, PreparedEvaluation
from distmeta.run.results import EvaluationRequest, EvaluationResult, TaskSelection
from distmeta.runtime.backend import Backend
from distmeta.runtime.evaluation import evaluate_on
from distmeta.runtime.worker import WorkerSetup
from distmeta.seeding import rng
from distmeta.tasks.controls import require_sklearn
from distmeta.types import TaskSpec

STEPS, RATE = 100, 3e-3
"""Of fine-tuning: steps of Adam on the whole support set (beta1 = 0, as in Reptile), and their size."""

_LOWER_IS_BETTER = ("loss", "mse", "nll")
_UPPER_BOUND = "exact"


@dataclass(frozen=True)
class Control:
    """One other way to solve the tasks, beside the meta-trained learner.

    Args:
        label: what it is.
        differences: meta-trained minus control, paired by task, by the name of the meta-trained learner's number.
        ci95: half width of the 95 % interval of each of the control's numbers.
    """

    label: str
    differences: Mapping[str, Difference]
    ci95: Mapping[str, float]


@dataclass(frozen=True)
class Controls:
    """Controls beside a meta-trained learner, on the same tasks.

    Args:
        result: of the meta-trained learner.
        controls: by name.
        left_out: controls that there are not, and why.
        reports: of the controls that are learners.
        kept: the file that holds all this.
    """

    result: EvaluationResult
    controls: Mapping[str, Control]
    left_out: Mapping[str, str]
    reports: Mapping[str, EvaluationReport]
    kept: Path

    @property
    def metrics(self) -> list[str]:
        """The numbers that are compared, the deciding one first."""
        return _compared(self.result.report)

    @property
    def worth_it(self) -> bool | None:
        """Whether the meta-trained learner is better than every control; ``None`` where that is not clear.

        The exact posterior, which nothing can be better than, is no control here.
        """
        ranked = self._ranked()
        if any(d.significant and _lead(d) < 0 for d, _ in ranked):
            return False
        return True if all(d.significant for d, _ in ranked) else None

    @property
    def verdict(self) -> str:
        """An answer to the question whether meta-training is worth it here, in a sentence or two."""
        ranked = self._ranked()
        best, label = ranked[0]
        first = f"{label} ({_what(best.metric)}, meta-trained minus it: {best.text()})"
        if self.worth_it is True:
            return f"Meta-training is worth it here: it beats every control. The closest is {first}."
        if self.worth_it is False:
            return f"Meta-training is not worth it here: it is beaten by {first}."
        unclear = "; ".join(label for d, label in ranked if not d.significant)
        return (
            f"Whether meta-training is worth it here is not clear, as it does not differ clearly from {unclear}. More "
            "tasks may show it (--tasks)."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each control's numbers and differences, the verdict, and the results with per-task values."""
        controls = {
            key: {
                "label": one.label,
                "metrics": {
                    name: {
                        "control": d.b,
                        "control_ci95": one.ci95[name],
                        "meta_trained": d.a,
                        "mean": d.mean,
                        "ci95": d.ci95,
                        "significant": d.significant,
                    }
                    for name, d in one.differences.items()
                },
            }
            for key, one in self.controls.items()
        }
        return {
            "metric": self.metrics[0],
            "worth_it": self.worth_it,
            "verdict": self.verdict,
            "controls": controls,
            "left_out": dict(self.left_out),
            "meta_trained": self.result.to_dict(),
            "reports": {key: report.to_dict() for key, report in self.reports.items()},
        }

    def _ranked(self) -> list[tuple[Difference, str]]:
        """Each control's difference and label, the strongest control first, in units of the differences' intervals."""
        found = [
            (next(iter(one.differences.values())), one.label)  # of the deciding number, if the control has it
            for key, one in self.controls.items()
            if key != _UPPER_BOUND
        ]
        return sorted(found, key=lambda pair: _lead(pair[0]) / max(pair[0].ci95, 1e-12))


def _lead(difference: Difference) -> float:
    """How much better the meta-trained learner is; negative where it is worse."""
    return -difference.mean if difference.metric in _LOWER_IS_BETTER else difference.mean


def _what(metric: str) -> str:
    """What a number is called, in short."""
    return metric_labels([metric])[metric].split(",")[0]


def evaluate_controls(run_dir: Path | str, request: EvaluationRequest | None = None) -> Controls:
    """Evaluate a run beside what solves its tasks without meta-training; the result is kept in its folder.

    Controls: logistic or ridge regression and a random forest on the support set; nearest neighbour and other baselines
    of the tasks; the learner with the parameters that the run began with; the network trained on the support set alone
    from these parameters, or a linear head on an encoder that has them; the exact posterior where the tasks know it.

    Args:
        run_dir: its folder.
        request: on which tasks; 600 of meta_test, in this process, when left out.

    Raises:
        ConfigError: scikit-learn is absent, or the tasks are sequences, which have no support set.
        CheckpointNotFound, CheckpointMismatch: see :func:`distmeta.run.evaluating.evaluate`.
    """
    request = request or EvaluationRequest()
    require_sklearn()
    run = FinishedRun.open(run_dir, request)
    if run.job.experiment.tasks.spec.kind == "sequence":
        raise ConfigError(
            "--controls: the tasks are sequences; expected tasks with a support set, which a control learns from. "
            "Leave it out: the baseline of the tasks is in every evaluation."
        )
    prepared = replace(run.on(request), controls=True)
    run.directory.require_writable()
    selection = run.selection(request)
    start, tuned, left_out = prepared.learner, *_fine_tuned(prepared.learner, prepared.experiment.tasks.spec)
    with on_backend(run, [prepared], request) as backend:
        result = prepared.evaluate(selection, request.place, backend)
        reports = {"untrained": _from_the_start(prepared, start, selection, request, backend)}
        if tuned is not None:
            reports["fine_tuned"] = _from_the_start(prepared, tuned[0], selection, request, backend)
    labels = {"untrained": "untrained: the run's first parameters"}
    if tuned is not None:
        labels["fine_tuned"] = tuned[1]
    controls = _of_tasks(result.report) | {
        key: _of_report(result.report, report, labels[key]) for key, report in reports.items()
    }
    kept = run.directory.reserve_evaluation("controls")
    found = Controls(result, controls, left_out, reports, kept)
    write_record(kept, found.to_dict())
    return found


def _fine_tuned(learner: MetaLearner, spec: TaskSpec) -> tuple[tuple[MetaLearner, str] | None, dict[str, str]]:
    """The learner that trains the untrained network on the support set, with its label; or why there is none."""
    vectorise, kind = learner.config.vectorise, learner.model_kind
    if kind == "classifier":
        steps = Reptile(learner.model, inner_optimizer="adam", inner_lr=RATE, inner_steps=STEPS, vectorise=vectorise)
        return (steps, f"fine-tuned: {STEPS} steps of Adam from the run's first parameters"), {}
    if kind == "encoder" and spec.kind == "classification":
        return (Ridge(learner.model, vectorise=vectorise), "a linear head on the untrained encoder"), {}
    reasons = {
        "set": "a set model has no parameters that a support set alone could train",
        "encoder": "a linear head is for classes",
    }
    why = reasons.get(kind, f"{type(learner).__name__} does not tell what its model returns (model_kind)")
    return None, {"fine_tuned": why}


def _from_the_start(
    prepared: PreparedEvaluation,
    learner: MetaLearner,
    selection: TaskSelection,
    request: EvaluationRequest,
    backend: Backend,
) -> EvaluationReport:
    """``learner`` with the parameters that the run began with, on the selected tasks."""
    e = prepared.experiment
    params = learner.starting_params(rng(prepared.run.job.experiment.seed, "init"))
    layout = ParamLayout.of(params)
    return evaluate_on(
        backend,
        WorkerSetup(learner, e.tasks, layout, e.seed, e.runtime.threads),
        e.runtime,
        layout.flatten(params),
        version=0,
        split=selection.split,
        tasks=selection.tasks,
        seed=selection.seed,
        say=request.place.say,
    )


def _compared(report: EvaluationReport) -> list[str]:
    """The meta-trained learner's numbers that controls are compared by, the deciding one first."""
    own = next((name for name in ("accuracy_non_transductive", "accuracy") if name in report.metrics), None)
    if own is not None:
        return [own, *(["roc_auc"] if "roc_auc" in report.metrics else [])]
    return [name for name in ("log_likelihood", "mse") if name in report.metrics] or ["loss"]


def _of_tasks(report: EvaluationReport) -> dict[str, Control]:
    """Controls whose numbers are computed with the tasks, beside the learner's own."""
    names = _compared(report)
    linear = "logistic regression" if "accuracy" in names[0] else "ridge regression"
    prefixes = {
        "linear": ("control_linear_", f"{linear} on the support set"),
        "forest": ("control_forest_", "random forest on the support set"),
        "nearest": ("baseline_", "nearest neighbour" if "accuracy" in names[0] else "mean of the support targets"),
        "class_mean": ("baseline_mean_", "nearest class mean"),
        _UPPER_BOUND: ("exact_", "exact posterior, the best there is"),
    }
    found = {}
    for key, (prefix, label) in prefixes.items():
        shared = {name: over for name in names if (over := _counterpart(report, prefix, name))}
        if shared:
            differences = {name: report.gain(name, over) for name, over in shared.items()}
            found[key] = Control(label, differences, {name: report.ci95(over) for name, over in shared.items()})
    return found


def _counterpart(report: EvaluationReport, prefix: str, name: str) -> str | None:
    """The control's name of the learner's number; the loss of a regression without likelihood is its error."""
    names = (name.removesuffix("_non_transductive"), *(["mse"] if name == "loss" else []))
    return next((prefix + one for one in names if prefix + one in report.metrics), None)


def _of_report(ours: EvaluationReport, theirs: EvaluationReport, label: str) -> Control:
    differences = paired(ours, theirs)
    names = [name for name in _compared(ours) if name in differences]
    return Control(label, {name: differences[name] for name in names}, {name: theirs.ci95(name) for name in names})
