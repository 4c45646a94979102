"""The report as a page: one HTML file that carries its pictures and asks nobody for anything.

The page has no script and its content security policy allows none; every text that comes from a user (names of runs and
classes, settings, messages) is escaped by the template engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from distmeta.figures import svg
from distmeta.figures.metric_labels import metric_labels
from distmeta.figures.report_examples import shown_example
from distmeta.figures.report_record import Pairing, RunReport, ShownPicture
from distmeta.figures.run_curves import series, smooth
from distmeta.figures.svg import Series
from distmeta.figures.thumbnails import file_address
from distmeta.intervals import Difference, EvaluationReport, interval, paired

if TYPE_CHECKING:
    from jinja2 import Environment

_BASELINES = {
    "accuracy": "baseline_accuracy",
    "accuracy_non_transductive": "baseline_accuracy",
    "loss": "baseline_loss",
    "log_likelihood": "exact_log_likelihood",
    "mse": "baseline_mse",
    "bits": "baseline_bits",
}
_HEADLINES = ("accuracy", "bits", "log_likelihood", "loss")
_PANELS = ("accuracy", "bits", "loss")


def page_of_run(run: RunReport) -> str:
    """The HTML of one run; the same text for the same record.

    Args:
        run: what it states.
    """
    return (
        _environment()
        .get_template("run.html.jinja")
        .render(
            title=f"{run.name}: report",
            run=run,
            headline=_headline(run),
            metrics=_metric_rows(run),
            spread=_spread(run),
            curves=_curves([run]),
            pictures=[_picture(one) for one in run.pictures],
            examples=[shown_example(one) for one in run.examples],
            facts=_facts(run),
            started=_started(run),
            card=_card(run.dataset),
        )
    )


def page_of_runs(runs: Sequence[RunReport], pairings: Sequence[Pairing]) -> str:
    """The HTML of several runs side by side.

    Args:
        runs: two or more.
        pairings: of the first with each other one.
    """
    names = sorted({name for run in runs if run.test for name in run.test.names})
    keys = sorted({key for run in runs for key in run.settings})
    columns = letters(len(runs))
    return (
        _environment()
        .get_template("runs.html.jinja")
        .render(
            title=f"{' and '.join(run.name for run in runs)}: comparison",
            runs=runs,
            letters=columns,
            facts=_facts_beside(runs),
            rows=[
                (
                    label,
                    [run.test.text(name) if run.test and name in run.test.names else "" for run in runs],
                    [(_bar(run, name) if "accuracy" in name else None) or "" for run in runs],
                )
                for name, label in metric_labels(names).items()
            ],
            pairings=[_pairing(one, columns) for one in pairings],
            curves=_curves(runs),
            settings=[
                (key, [_setting(run.settings.get(key, _ABSENT)) for run in runs])
                for key in keys
                if len({json.dumps(run.settings.get(key, _ABSENT)) for run in runs}) > 1
            ],
            pictures=[
                (letter, run, [_picture(one) for one in run.pictures])
                for letter, run in zip(columns, runs, strict=True)
                if run.pictures
            ],
            examples=[
                (letter, run, [shown_example(one) for one in run.examples])
                for letter, run in zip(columns, runs, strict=True)
                if run.examples
            ],
        )
    )


def letters(count: int) -> list[str]:
    """Short names: A, B, C ...; numbers where the alphabet ends."""
    return [chr(ord("A") + i) if count <= 26 else str(i + 1) for i in range(count)]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"setting": _setting, "grouped": _grouped}
    return made


_ABSENT = "\0absent"


def _setting(value: Any) -> str:
    """A setting as ``--set`` takes it, as far as a person can read it."""
    if value == _ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grouped(value: int) -> str:
    return f"{value:,}"


# -- the result -------------------------------------------------------------------------------------------------------


def _headline(run: RunReport) -> dict[str, str] | None:
    """The number at the top: mean, interval, what it is."""
    if run.test is None:
        return None
    name = next((one for one in _HEADLINES if one in run.test.metrics), next(iter(run.test.metrics)))
    mean, _, half = run.test.text(name).partition(" ± ")
    labels, against = metric_labels(run.test.metrics), _against_baseline(run.test, name)
    return {
        "mean": mean,
        "half": f"{half} points" if "accuracy" in name else half,
        "label": labels[name],
        "against": _difference_text(against) if against else "",
        "baseline": labels.get(_BASELINES.get(name, ""), "").removesuffix(", same tasks"),
    }


def _metric_rows(run: RunReport) -> list[dict[str, Any]]:
    test, rows = run.test, []
    if test is None:
        return []
    for name, label in metric_labels(test.names).items():
        against = _against_baseline(test, name)
        rows.append(
            {
                "label": label,
                "text": test.text(name),
                "bar": _bar(run, name) if "accuracy" in name else None,
                "against": _difference_text(against) if against else "",
                "baseline": name.startswith(("baseline", "exact")),
            }
        )
    return rows


def _bar(run: RunReport, name: str) -> Markup | None:
    """The number on its scale; nothing where it is not finite: a model may have diverged."""
    if run.test is None or name not in run.test.metrics or not np.isfinite(run.test.mean(name)):
        return None
    guess = f", guessing {100 * run.chance:.3g} %" if run.chance is not None else ""
    text = f"{metric_labels(run.test.metrics)[name]}: {run.test.text(name)} on a scale of 0 to 100 %{guess}"
    return svg.interval_bar(run.test.mean(name), run.test.ci95(name), chance=run.chance, text=text)


def _against_baseline(test: EvaluationReport, name: str) -> Difference | None:
    """The number minus that of its baseline, paired by task."""
    baseline = _BASELINES.get(name)
    if baseline is None or baseline not in test.metrics:
        return None
    ours, theirs = (EvaluationReport(test.split, test.seed, {name: test.metrics[key]}) for key in (name, baseline))
    return paired(ours, theirs)[name]


def _difference_text(difference: Difference) -> str:
    """``+38.5 points ± 1.2``: a difference of accuracies is in percentage points."""
    if "accuracy" not in difference.metric:
        return difference.text()
    return f"{100 * difference.mean:+.2f} points ± {100 * difference.ci95:.2f}"


def _spread(run: RunReport) -> Markup | None:
    """How much tasks differ: the mean alone does not show it."""
    if run.test is None or run.test.tasks < 10:
        return None
    name = next((one for one in _HEADLINES if one in run.test.metrics), None)
    if name is None:
        return None
    values = np.asarray(run.test.metrics[name], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    percent, what = "accuracy" in name, name.replace("_", " ")
    low, middle, high = (interval(name, float(value), None) for value in np.quantile(values, (0.1, 0.5, 0.9)))
    text = f"{what} of {values.size} tasks: a tenth is below {low}, half below {middle}, nine tenths below {high}."
    return svg.histogram(values, x_label=f"{what} of a task", text=text, percent=percent)


# -- curves -----------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """A chart for each of accuracy, bits and loss that any run has: of one run its training too."""
    charts = []
    for name in _PANELS:
        lines: list[Series] = []
        words: list[str] = []
        for i, run in enumerate(runs):
            found, said = _lines(run, name, alone=len(runs) == 1, colour=i, letter=letters(len(runs))[i])
            lines, words = lines + found, words + said
        if lines:
            text = f"{name} over outer steps. {' '.join(words)}"
            drawn = svg.chart(
                lines, x_label="outer step", y_label=name, text=text, percent=name == "accuracy", whole=True
            )
            charts.append({"name": name, "drawn": drawn})
    return charts


def _lines(run: RunReport, name: str, *, alone: bool, colour: int, letter: str) -> tuple[list[Series], list[str]]:
    rows = [dict(row) for row in run.rows]
    lines: list[Series] = []
    words: list[str] = []
    who = "" if alone else f"{letter} {run.folder}: "
    steps, values = series(rows, f"train/{name}")
    checked, means = series(rows, f"validation/{name}")
    if steps.size and (alone or not checked.size):
        at, smoothed = smooth(steps, values)
        if alone and at.size < steps.size:
            lines.append(Series("", *_thinned(steps, values), 0, "faint"))
        label = "training, smoothed" if at.size < steps.size else "training"
        lines.append(Series(who + label, at, smoothed, 0 if alone else colour))
        words.append(f"{who}training from {_at(name, smoothed[0])} to {_at(name, smoothed[-1])}.")
    if checked.size:
        banded = [row for row in rows if f"validation/{name}" in row and f"validation/{name}_ci95" in row]
        at, half = series(banded, f"validation/{name}_ci95")
        half = half if at.size == checked.size else np.full(checked.size, np.nan)
        label = f"{who}validation, 95 % interval"
        lines.append(Series(label, checked, means, 1 if alone else colour, "both", half))
        words.append(f"{who}validation from {_at(name, means[0])} to {_at(name, means[-1])}.")
    return lines, words


def _thinned(steps: svg.Values, values: svg.Values) -> tuple[svg.Values, svg.Values]:
    """At most 500 raw values: more are not seen, and a run may have a hundred thousand steps."""
    kept = np.unique(np.linspace(0, steps.size - 1, min(500, steps.size)).round().astype(int))
    return steps[kept], values[kept]


def _at(name: str, value: float) -> str:
    return interval(name, float(value), None)


# -- pictures, data, facts --------------------------------------------------------------------------------------------


def _picture(one: ShownPicture) -> dict[str, Any]:
    # Drawn at 150 dots per inch; on a page an inch is 96 pixels.
    shown = {"width": round(one.width * 96 / 150), "height": round(one.height * 96 / 150)}
    return {"title": one.title, "text": one.text, "address": file_address(one.content), **shown}


def _card(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset card with the lines of its leak check: (whether it is well, the line)."""
    checks: list[tuple[bool | None, str]] = []
    if dataset.get("classes_disjoint"):
        checks.append((True, "No class name is in two splits."))
    if "identical" in dataset:
        checks += [_shared(one) for one in dataset["identical"]]
    elif "images" in dataset:
        count = dataset["images"]
        checks.append((None, f"Identical pictures across splits: not checked, the dataset has {count:,} pictures."))
    provenance = [(key, _setting(value)) for key, value in dataset.get("provenance", {}).items()]
    return {"checks": checks, "provenance": provenance}


def _shared(one: Mapping[str, Any]) -> tuple[bool, str]:
    between = f"{one['first']} and {one['second']}"
    if not one["images"]:
        return True, f"No picture is in both {between}."
    where = " and ".join(repr(name) for name in one["example"])
    count = f"{one['images']:,} picture{'s are' if one['images'] > 1 else ' is'}"
    return False, f"{count} in both {between}, byte for byte; the first is in the classes {where}."


def _facts(run: RunReport) -> list[tuple[str, str]]:
    """The line of facts under the title."""
    found = [("learner", run.learner), ("tasks", run.tasks)]
    if run.step is None or run.step != run.iterations:
        done = "" if run.step is None else f"{run.step:,} of "
        found.append(("outer steps", f"{done}{run.iterations:,}"))
    else:
        found.append(("outer steps", f"{run.step:,}"))
    if run.best_step is not None:
        found.append(("tested", f"parameters of step {run.best_step:,}"))
    speeds = [row["runtime/tasks_per_second"] for row in run.rows if "runtime/tasks_per_second" in row]
    if speeds:
        found.append(("training speed", f"{float(np.median(speeds)):,.0f} tasks/s (median)"))
    if run.status != "finished":
        found.append(("status", run.status))
    return [(name, value) for name, value in found if value]


def _started(run: RunReport) -> str:
    return run.created.replace("T", " ").replace("+00:00", " UTC")


def _facts_beside(runs: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """The facts of several runs by name; empty where a run lacks one."""
    found = [dict([*_facts(run), ("started", _started(run))]) for run in runs]
    names = dict.fromkeys(name for facts in found for name in facts)
    return [(name, [facts.get(name, "") for facts in found]) for name in names]


def _pairing(one: Pairing, names: Sequence[str]) -> dict[str, Any]:
    labels = metric_labels(one.differences)
    return {
        "a": names[one.a],
        "b": names[one.b],
        "tasks": one.tasks,
        "why_not": one.why_not,
        "rows": [
            {
                "label": label,
                "a": interval(name, one.differences[name].a, None),
                "b": interval(name, one.differences[name].b, None),
                "text": _difference_text(one.differences[name]),
                "significant": one.differences[name].significant,
            }
            for name, label in labels.items()
        ],
    }


__all__ = ["letters", "page_of_run", "page_of_runs"]
