"""Example tasks, made ready for the page: every answer with its probability, whether it is right, and a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distmeta.figures import svg
from distmeta.figures.svg import Series


def shown_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """One task for the template.

    Args:
        example: a record of :func:`distmeta.run.example_tasks.example_tasks`.

    Raises:
        ValueError: there is no such kind of task.
    """
    head = {
        "kind": example["kind"],
        "index": example["index"],
        "title": f"Task {example['index']} of {example['split']}",
        "hardest": example["hardest"],
    }
    if example["kind"] == "classification":
        return head | _classification(example)
    if example["kind"] == "regression":
        return head | _regression(example)
    if example["kind"] == "bits":
        return head | _bits(example)
    if example["kind"] == "labels":
        return head | _labels(example)
    raise ValueError(f"there is no kind of task {example['kind']!r}")


def _classification(example: Mapping[str, Any]) -> dict[str, Any]:
    classes, limits = example["classes"], _limits(example)
    short = {one["label"]: _short(one["label"]) for one in classes}
    shown = []
    for one in classes:
        mine = short[one["label"]]
        called = f"class {mine}" + (f" ({one['name']})" if one["name"] else "")
        support = [_drawn(x, f"support example {i} of {called}", limits) for i, x in enumerate(one["support"], start=1)]
        queries = []
        for i, x in enumerate(one["queries"], start=1):
            right = x["answer"] == one["label"]
            answer = short.get(x["answer"], _short(x["answer"]))
            sure = f"{100 * x['probability']:.0f} %"
            text = f"query {i} of {called}, answered {answer} with {sure}: {'right' if right else 'wrong'}"
            queries.append(
                _drawn(x, text, limits)
                | {"right": right, "answer": answer, "sure": sure, "of_right": f"{100 * x['of_right']:.0f} %"}
            )
        shown.append(
            {
                "short": mine,
                "name": one["name"] or "",
                "support": support,
                "queries": queries,
                "more": _more(one),
            }
        )
    baseline = example.get("baseline", {}).get("baseline_accuracy")
    return {
        "result": _of(example),
        "baseline": "" if baseline is None else f"nearest neighbour on raw inputs: {100 * baseline:.1f} % right",
        "classes": shown,
        "more": f"{example['more_classes']} more classes are not shown." if example["more_classes"] else "",
    }


def _of(example: Mapping[str, Any]) -> str:
    right, of = example["right"], example["of"]
    first = "the first " if example.get("queries", of) > of else ""
    return f"{right} of {first}{of} right ({100 * right / of:.1f} %)" if of else "nothing is scored"


def _more(one: Mapping[str, Any]) -> str:
    parts = [
        f"{count} more {what}"
        for what, count in (("support examples", one["more_support"]), ("queries", one["more_queries"]))
        if count
    ]
    return f"{' and '.join(parts)} not shown" if parts else ""


def _limits(example: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest number of all vectors of a task: they are drawn on one scale."""
    inputs = [x for one in example["classes"] for x in (*one["support"], *one["queries"])]
    values = [value for x in inputs for value in x.get("values", ())]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _drawn(x: Mapping[str, Any], text: str, limits: tuple[float, float]) -> dict[str, Any]:
    """A picture, a profile, or the numbers themselves where there are too few for a line."""
    values = x.get("values")
    if values is None:
        return {"text": text, "picture": x.get("picture"), "profile": None, "numbers": ""}
    if len(values) < 3:
        return {"text": text, "picture": None, "profile": None, "numbers": ", ".join(f"{v:.3g}" for v in values)}
    text = f"{text}; {len(values)} numbers from {min(values):.3g} to {max(values):.3g}"
    return {"text": text, "picture": None, "profile": svg.profile(values, limits, text), "numbers": ""}


def _regression(example: Mapping[str, Any]) -> dict[str, Any]:
    target, answer = np.asarray(example["target"]), np.asarray(example["answer"])
    error, baseline = example["error"], example.get("baseline", {}).get("baseline_loss")
    text = f"{len(target)} queries, mean squared error {error:.4g} after {example['support']} support points."
    if "x" in example:
        drawn = svg.chart(
            [
                Series("answer", example["curve_x"], example["curve_y"], 1),
                Series("target", example["x"], target, 2, "rings"),
                Series("support", example["support_x"], example["support_y"], 0, "points"),
            ],
            x_label="x", y_label="y", text=text,
        )  # fmt: skip
    else:
        ends = np.array([min(target.min(), answer.min()), max(target.max(), answer.max())])
        drawn = svg.chart(
            [Series("answer = target", ends, ends, 2), Series("query", target, answer, 0, "points")],
            x_label="target", y_label="answer", text=text,
        )  # fmt: skip
    outputs = example["outputs"]
    return {
        "result": f"mean squared error {error:.4g}",
        "baseline": "" if baseline is None else f"predicting the mean of the support targets: {baseline:.4g}",
        "drawn": drawn,
        "more": f"Drawn is the first of {outputs} outputs." if outputs > 1 else "",
    }


def _bits(example: Mapping[str, Any]) -> dict[str, Any]:
    wrong, of = example["wrong"], example["of"]
    panels = []
    for one in example["panels"]:
        size = f"{one['rows']} rows, {one['steps']} time steps"
        what = f"{wrong} of {of} bits are wrong" if one["name"] == "wrong bits" else "dark is 1"
        panels.append(
            {**one, "height": round(min(0.4 * one["rows"] + 0.2, 9), 2), "text": f"{one['name']}: {size}; {what}"}
        )
    share = f" ({100 * wrong / of:.1f} %)" if of else ""
    return {"result": f"{wrong} of {of} bits wrong{share}", "baseline": "", "panels": panels, "more": ""}


def _labels(example: Mapping[str, Any]) -> dict[str, Any]:
    names, steps = example["names"], []
    for i, one in enumerate(example["steps"], start=1):
        right = one["answer"] == one["label"]
        label, answer = (_symbols(one[key]) for key in ("label", "answer"))
        called = f"class {label}" + (f" ({names[one['label'][0]]})" if names else "")
        sure = f"{100 * one['probability']:.0f} %"
        text = (
            f"step {i}: {called}, occurrence {one['occurrence']}, answered {answer} with {sure}: "
            f"{'right' if right else 'wrong'}"
        )
        steps.append(
            _drawn(one, text, (0.0, 1.0))
            | {"right": right, "label": label, "answer": answer, "sure": sure, "occurrence": one["occurrence"]}
        )
    baseline = example.get("baseline", {}).get("baseline_accuracy")
    hidden = example["of"] - len(steps)
    return {
        "result": _of(example),
        "baseline": "" if baseline is None else f"nearest earlier image: {100 * baseline:.1f} % right",
        "steps": steps,
        "legend": [(_short(i), name) for i, name in enumerate(names)] if names else [],
        "more": f"{hidden} later steps are not shown." if hidden > 0 else "",
    }


def _short(label: int) -> str:
    """A letter per class as people point at it; a number where the alphabet ends."""
    return chr(ord("A") + label) if 0 <= label < 26 else str(label)


def _symbols(label: list[int]) -> str:
    return _short(label[0]) if len(label) == 1 else "".join(map(str, label))
