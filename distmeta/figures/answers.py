"""The picture of ``distmeta predict``: the examples of each class, then each query with its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.figures.style import BLUE, FAINT, GREY, INK, RED, new_figure, save

Array = npt.NDArray[Any]

MOST = 40
"""Queries in one picture, at most."""

_MOST_CLASSES, _MOST_SHOTS, _ACROSS, _BARS = 20, 5, 3, 5
_EXAMPLES, _QUERY = 0.95, 1.25  # inches: a row of examples, a row of queries


def draw_answers(
    path: Path,
    *,
    title: str,
    classes: Sequence[str],
    support: Array,
    support_labels: Sequence[str],
    queries: Array,
    names: Sequence[str],
    probabilities: Array,
    truth: Sequence[str] | None = None,
    ink: bool = False,
) -> Path:
    """Draw the examples of each class, and below them each query with its most likely labels.

    Args:
        path: the PNG to write.
        title: of the picture.
        classes: labels ``[N]``.
        support: pictures ``[S, C, H, W]``, 0..1.
        support_labels: ``[S]``.
        queries: pictures ``[B, C, H, W]``; the first :data:`MOST` are drawn.
        names: of the queries ``[B]``.
        probabilities: ``[B, N]``.
        truth: the right labels ``[B]``, where they are known: a wrong answer has a red frame.
        ink: whether the pictures are bright ink on 0, which is drawn dark on white.
    """
    shown, drawn = list(classes[:_MOST_CLASSES]), min(len(queries), MOST)
    examples = {label: [i for i, of in enumerate(support_labels) if of == label][:_MOST_SHOTS] for label in shown}
    across = min(_ACROSS, drawn)
    lines, deep = -(-drawn // across), max(map(len, examples.values()))
    per_line = max(1, min(len(shown), 12 // deep))
    bands = -(-len(shown) // per_line)
    figure = new_figure(9.0, 0.75 + bands * _EXAMPLES + lines * _QUERY, title)
    parts: Any = figure.subfigures(2, 1, height_ratios=[bands * _EXAMPLES + 0.1, lines * _QUERY])
    above, below = parts
    _draw_examples(above, examples, support, ink, bands, per_line, deep)
    grid = below.add_gridspec(lines, across * 2, width_ratios=[1.0, 1.6] * across)
    for row in range(drawn):
        line, column = divmod(row, across)
        answer = classes[int(np.argmax(probabilities[row]))]
        wrong = truth is not None and truth[row] != answer
        axes = below.add_subplot(grid[line, 2 * column])
        _show(axes, queries[row], ink, RED if wrong else FAINT)
        axes.set_xlabel(_short(Path(names[row]).name, 20), fontsize=7, color=INK)
        _draw_bars(
            below.add_subplot(grid[line, 2 * column + 1]), classes, probabilities[row], truth[row] if truth else None
        )
    return save(figure, path)


def _draw_examples(
    figure: Any, examples: dict[str, list[int]], support: Array, ink: bool, bands: int, per_line: int, deep: int
) -> None:
    """Draw the support pictures, those of a class side by side under its label."""
    grid = figure.add_gridspec(bands, per_line * deep)
    for place, (label, rows) in enumerate(examples.items()):
        band, column = divmod(place, per_line)
        for at, row in enumerate(rows):
            axes = figure.add_subplot(grid[band, column * deep + at])
            _show(axes, support[row], ink, FAINT)
            if at == 0:
                axes.set_title(_short(label, 9 * len(rows)), fontsize=9, color=INK, loc="left")


def _draw_bars(axes: Any, classes: Sequence[str], probabilities: Array, right: str | None) -> None:
    """Draw the most likely labels with their probabilities as bars."""
    order = np.argsort(-probabilities, kind="stable")[:_BARS]
    for y, place in enumerate(order):
        label, value = classes[place], float(probabilities[place])
        colour = BLUE if y == 0 else GREY
        if right is not None and y == 0 and label != right:
            colour = RED
        axes.barh(-y, value, height=0.62, color=colour)
        mark = " (right)" if right is not None and label == right and y > 0 else ""
        axes.text(
            value + 0.03, -y, f"{_short(label, 14)}  {100 * value:.0f} %{mark}", va="center", fontsize=7, color=INK
        )
    axes.set_xlim(0, 1.9)
    axes.set_ylim(-_BARS + 0.4, 0.6)
    axes.axis("off")


def _show(axes: Any, image: Array, ink: bool, frame: str) -> None:
    """Draw one picture ``[C, H, W]``, 0..1, as the network sees it."""
    pixels = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1).clip(0, 1)
    if pixels.shape[-1] == 3:
        axes.imshow(1 - pixels if ink else pixels)
    else:
        axes.imshow(pixels[..., 0], cmap="Greys" if ink else "gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(frame)
        spine.set_linewidth(2.0 if frame == RED else 0.8)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


__all__ = ["MOST", "draw_answers"]
