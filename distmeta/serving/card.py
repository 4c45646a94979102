"""The card of an exported learner, in Markdown: what it learned, on what, how well, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from distmeta.run.record import LearnedFrom

_INTERNAL = {"kind", "data", "vectorise", "version"}
_NAMES = {
    "accuracy": "accuracy",
    "accuracy_non_transductive": "accuracy, each query alone",
    "baseline_accuracy": "accuracy of nearest neighbour on raw inputs",
    "bits": "bits per sequence",
    "bit_errors": "wrong bits per sequence",
    "loss": "loss",
}


def card_text(
    card: Mapping[str, Any], learned_from: LearnedFrom, requirements: Iterable[str] = (), learned: str = ""
) -> str:
    """The card, as ``README.md`` of the export.

    Args:
        card: facts about the run: name, learner, tasks, dataset, test result.
        learned_from: shapes and preprocessing of the training tasks.
        requirements: ``name==version`` of what loading needs.
        learned: the task that the folder holds beside the learner, in words; empty where there is none.

    Example:
        >>> from distmeta.data.preprocessing import Preprocessing
        >>> from distmeta.types import TaskSpec
        >>> spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
        >>> facts = LearnedFrom(spec, Preprocessing((1, 28, 28), "uint8"))
        >>> print(card_text({"name": "maml_demo"}, facts).splitlines()[0])
        # maml_demo
    """
    learner, tasks, dataset = card.get("learner") or {}, card.get("tasks") or {}, card.get("dataset") or {}
    created = str(card.get("created", ""))[:10]
    unfinished = _text(card.get("unfinished") or "")
    lines = [
        f"# {_text(card.get('name', ''))}",
        "",
        f"{_text(learner.get('kind', 'A learner'))}, trained by distmeta"
        + (f" on {_text(created)}" if created else "")
        + f"; parameters of step {_text(card.get('step', ''))}, sha256 `{_code(card.get('params_sha256', ''))[:16]}`.",
        "",
        *([f"**Note: {unfinished}.**", ""] if unfinished else []),
        *([f"One task is learned already: `{_code(learned)}`.", ""] if learned else []),
        "| | |",
        "|---|---|",
        *_row("Takes", _takes(learned_from)),
        *_row("Learner", _settings(learner)),
        *_row("Tasks of the training", ", ".join(filter(None, (_text(tasks.get("kind", "")), _settings(tasks))))),
        *_row("Data of the training", _text(dataset.get("name", ""))),
        *_row("Origin of the data", _text(dataset.get("origin", ""))),
        *_row("Licence of the data", _text(dataset.get("licence", "")) or "not stated"),
        *_row("Fingerprint of the data", f"`{_code(dataset.get('fingerprint', ''))[:16]}`"),
        *_row("Run in MLflow", _text(card.get("mlflow_run_id") or "")),
        "",
        "## Results",
        "",
        *_results(card.get("test") or {}),
        "",
        "## Use",
        "",
        "Loading runs `code/job.py`, so load what you trust. Weights are safetensors; every byte is checked.",
        "",
        "```python",
        "import distmeta",
        "",
        *(
            ['fast = distmeta.AdaptedModel.load(".")  # this folder, with the task', "fast.predict(new_ones)"]
            if learned
            else ['predictor = distmeta.load(".")  # this folder', *_use(learned_from)]
        ),
        "```",
        "",
    ]
    if needed := list(requirements):
        lines += ["Needs (`requirements.txt`): " + ", ".join(f"`{_code(line)}`" for line in needed) + ".", ""]
    return "\n".join(lines)


def _takes(learned_from: LearnedFrom) -> str:
    """What inputs the learner takes, in words."""
    spec, made = learned_from.spec, learned_from.preprocessing
    if spec.kind == "sequence":
        return f"sequences of inputs {list(spec.input_shape)}; {spec.outputs} outputs at each step"
    if not made.pictures:
        many = len(made.input_shape) == 1
        return f"rows of {made.input_shape[0]} numbers" if many else f"numbers of shape {list(made.input_shape)}"
    channels, height, width = made.input_shape
    colour = "grey" if channels == 1 else "RGB"
    if made.dtype == "float32":
        return f"{colour} pictures {width} x {height} as floats of the dataset's own scale"
    ink = ", drawings in ink; those on a light background are inverted" if made.ink else ""
    return f"{colour} pictures{ink}; files of any size are scaled to {width} x {height}"


def _results(test: Mapping[str, Any]) -> list[str]:
    if not test:
        return ["The run was not tested."]
    rows = ["Means over meta-test tasks, of classes that were not trained on, with 95 % intervals.", ""]
    rows += ["| | mean | 95 % interval |", "|---|---|---|"]
    names = dict(_NAMES)
    if "accuracy_non_transductive" in test:
        names["accuracy"] = "accuracy, all queries in one batch (transductive)"
    for name, value in test.items():
        if name.endswith("_ci95"):
            continue
        half = test.get(f"{name}_ci95")
        interval = f"{value - half:.4f} to {value + half:.4f}" if isinstance(half, int | float) else ""
        rows.append(f"| {_text(names.get(name, name))} | {value:.4f} | {interval} |")
    return rows


def _use(learned_from: LearnedFrom) -> list[str]:
    if learned_from.spec.kind == "sequence":
        return ["outputs = predictor.run(sequence)  # [L, inputs] to [L, outputs]"]
    if learned_from.spec.kind == "regression":
        return ["fast = predictor.adapt(x, y)  # a few points [S, ...] and their targets [S, D]", "fast.predict(new_x)"]
    examples = '["a1.png", "b1.png"]' if learned_from.preprocessing.pictures else "[[0.1, 2.0], [1.3, 0.4]]"
    return [f'fast = predictor.adapt({examples}, ["a", "b"])  # a few examples of each class', "fast.predict(new_ones)"]


def _settings(values: Mapping[str, Any]) -> str:
    """Settings that say something: no ``None``, nothing of the machinery."""
    told = {key: value for key, value in values.items() if key not in _INTERNAL and value is not None}
    return ", ".join(f"{_text(key)} {_text(_short(value))}" for key, value in told.items())


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_short(part)}' for key, part in value.items() if part is not None)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(name: str, value: str) -> list[str]:
    return [f"| {name} | {value} |"] if value.strip("` ") else []


def _text(value: object) -> str:
    """Text for one line of Markdown; what would be markup there is escaped, an underscore within a word is none."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*\[\]<>|#])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def _code(value: object) -> str:
    """Text between backquotes."""
    return re.sub(r"[`\s|]+", " ", str(value)).strip()


__all__ = ["card_text"]
