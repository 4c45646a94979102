"""How results are shown to a person."""

from __future__ import annotations

from functools import singledispatch

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.experiment.cards import CARDS, Card
from distmeta.experiment.job import Job
from distmeta.figures.metric_labels import metric_labels
from distmeta.intervals import EvaluationReport, interval
from distmeta.run.controls import Controls
from distmeta.run.finishing import RunResult
from distmeta.run.results import Comparison, EvaluationResult, Sweep


@singledispatch
def evaluation(found: EvaluationResult | Comparison | Controls | Sweep) -> None:
    """Print an evaluation, a comparison of two runs or with controls, or a curve."""
    raise TypeError(f"{type(found).__name__} is no evaluation")


@evaluation.register
def _(found: EvaluationResult) -> None:
    _report(found.report, found.title)


@evaluation.register
def _(found: Comparison) -> None:
    a, b = found.a, found.b
    console.out.print(a.title)
    rows = [("", f"A  {a.run_dir}", f"B  {b.run_dir}", "A - B, paired", "")]
    differences = found.differences
    for name, label in metric_labels(differences).items():
        difference = differences[name]
        verdict = "A and B differ" if difference.significant else "no clear difference"
        numbers = (a.report.text(name), b.report.text(name), difference.text())
        rows.append((label, *numbers, "" if name.startswith(("baseline", "exact")) else verdict))
    console.rows(rows)
    console.out.print(f"kept in  {found.kept}")


@evaluation.register
def _(found: Sweep) -> None:
    console.out.print(found.title)
    reports = [one.report for one in found.results]
    names = [name for name in reports[0].names if all(name in report.names for report in reports)]
    rows = [(found.key, *names)]
    for value, report in zip(found.values, reports, strict=True):
        rows.append((str(value), *(report.text(name) for name in names)))
    console.rows(rows)
    console.out.print(f"curve  {found.picture}")


@evaluation.register
def _(found: Controls) -> None:
    report, metrics = found.result.report, found.metrics
    names = metric_labels(metrics)
    console.out.print(found.result.title)
    rows = [("", *(cell for name in metrics for cell in (names[name].split(",")[0], "meta-trained minus it")))]
    rows.append(("meta-trained", *(cell for name in metrics for cell in (report.text(name), ""))))
    for one in found.controls.values():
        cells: list[str] = []
        for name in metrics:
            d = one.differences.get(name)
            cells += ["–", ""] if d is None else [interval(name, d.b, one.ci95[name]), d.text()]
        rows.append((one.label, *cells))
    console.rows(rows)
    for key, why in found.left_out.items():
        console.out.print(f"  left out: {key.replace('_', '-')}, since {why}")
    console.out.print(found.verdict)
    console.out.print(f"kept in  {found.kept}")


def result(found: RunResult, job: Job, as_json: bool) -> None:
    """Print the end of a run: its meta-test and where everything is."""
    if as_json:
        print_json(
            {
                "run_dir": str(found.run_dir),
                "step": found.step,
                "params_sha256": found.params_sha256,
                "best_step": found.best_step,
                "test": found.test.summary() if found.test else None,
                "report": str(found.report) if found.report else None,
                "profile": str(found.profile) if found.profile else None,
                "spent": list(found.spent),
            }
        )
        return
    tasks, learner = job.experiment.tasks, job.experiment.learner
    what = tasks.describe()["name"]
    if hasattr(tasks.config, "ways") and hasattr(tasks.config, "shots"):
        what = f"{_evaluated(tasks.config.ways)}-way {_evaluated(tasks.config.shots)}-shot"
    console.out.print()
    if found.test is not None:
        # The policy of batch norm is what makes the two accuracies differ.
        policy = f"batch norm '{learner.config.batch_norm}', " * ("accuracy_non_transductive" in found.test.metrics)
        title = (
            f"meta-test: {what}, {found.test.tasks} tasks, mean ± 95 % interval "
            f"({policy}parameters of step {found.best_step})"
        )
        _report(found.test, title)
        _warn_of_guessing(found.test, _evaluated(getattr(tasks.config, "ways", None)))
    console.out.print(f"run      {found.run_dir}")
    if found.report is not None:
        console.out.print(f"report   {found.report}")
    if found.curves is not None:
        console.out.print(f"curves   {found.curves}")
    for path in found.pictures:
        console.out.print(f"picture  {path}")
    if found.profile is not None:
        console.out.print(f"profile  {found.profile}  (open it at ui.perfetto.dev)")
        console.out.print(f"a step, of the mean worker, over {found.profiled}:")
        for line in found.spent:
            console.out.print(f"  {line}")
    if found.how_to_open:
        console.out.print(f"browser  {found.how_to_open}")


def cards(as_json: bool) -> None:
    """Print a line for every protocol card."""
    if as_json:
        print_json([one.to_dict() for one in CARDS])
        return
    for one in CARDS:
        numbers = ", ".join(f"{p.metric.replace('_', ' ')} {p.text}" for p in one.published)
        console.out.print(f"{one.name:<27}  {numbers}  {one.paper}")
    console.out.print(
        "Show one with: distmeta reproduce CARD --show; run it with: distmeta reproduce CARD [--minutes M]"
    )


def card(found: Card, as_json: bool) -> None:
    """Print one protocol card."""
    if as_json:
        print_json(found.to_dict())
        return
    console.out.print(found.name)
    for heading, text in found.protocol().items():
        console.out.print(f"  {heading:<11} {text}")
    for p in found.published:
        console.out.print(f"  {'published':<11} {p.metric} {p.text}{f' ({p.note})' if p.note else ''}")
    for note in found.notes:
        console.out.print(f"  {'note':<11} {note}")
    if found.differs:
        console.out.print(f"  {'differs':<11} {found.differs}: not comparable with the paper")


def _report(report: EvaluationReport, title: str) -> None:
    console.out.print(title)
    labels = metric_labels(report.names)
    width = max(map(len, labels.values()))
    for name, text in labels.items():
        console.out.print(f"  {text:<{width}}  {report.text(name)}")
    _gains(report)


def _gains(report: EvaluationReport) -> None:
    """Print the gain over the heads that need no meta-training, paired by task; only tasks of vectors have these."""
    own = next((name for name in ("accuracy_non_transductive", "accuracy") if name in report.metrics), None)
    heads = {"baseline_mean_accuracy": "the nearest class mean", "baseline_probe_accuracy": "a logistic probe"}
    found = [(text, report.gain(own, name)) for name, text in heads.items() if own and name in report.metrics]
    if found:
        gains = "; ".join(
            f"{gain.text()} over {text}{'' if gain.significant else ' (no clear difference)'}" for text, gain in found
        )
        console.out.print(f"  meta-trained, paired by task: {gains}")


def _evaluated(setting: int | tuple[int, int] | None) -> int | None:
    """The number that test tasks have, of a setting that may be bounds for training: the lower one."""
    return setting[0] if isinstance(setting, tuple) else setting


def _warn_of_guessing(report: EvaluationReport, ways: int | None) -> None:
    """Warn when the result is no better than guessing although the tasks can be done."""
    if ways is None or not {"accuracy", "baseline_accuracy"} <= report.metrics.keys():
        return
    guess = 1 / ways
    if report.mean("accuracy") - report.ci95("accuracy") <= 1.01 * guess < report.mean("baseline_accuracy"):
        console.err.print(
            f"warning: the accuracy is no better than guessing ({guess:.0%}), while nearest neighbour does better: the "
            "model has not learned. Try another outer.lr (and learner.inner_lr, where there is one), more "
            "outer.iterations, and `distmeta check`.",
            style="yellow",
        )
