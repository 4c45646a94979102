"""The learning curves of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distmeta.figures.style import BLUE, INK, RED, dress, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPLITS = ("train", "validation")


def plot_curves(rows: Iterable[dict[str, Any]], path: Path, *, title: str) -> Path:
    """Draw the learning curves of a run into a PNG: loss, and accuracy where there is one, over the outer steps.

    Training is a smoothed line over its faint raw values; validation is its points, with their 95 % band.

    Args:
        rows: the rows of :func:`distmeta.tracking.metrics_file.read_metrics`; used are ``train/loss``,
            ``train/accuracy``, ``validation/loss``, ``validation/accuracy`` and ``validation/accuracy_ci95``.
        path: the PNG to write; its folder is made.
        title: what run it is.

    Returns:
        ``path``.

    Raises:
        ValueError: no row has any of these metrics.
    """
    from matplotlib.ticker import MaxNLocator

    rows = list(rows)
    panels = [
        name for name in ("loss", "accuracy") if any(f"{split}/{name}" in row for row in rows for split in _SPLITS)
    ]
    if not panels:
        raise ValueError("There is nothing to draw: no row has train/ or validation/ loss or accuracy.")
    figure = new_figure(4.6 * len(panels) + 0.4, 3.6, title)
    for column, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        drawn = [_draw_training(axes, rows, name), _draw_validation(axes, rows, name)]
        dress(axes, "outer step", name)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        if name == "accuracy":
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0.0), min(high, 1.0))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        else:
            _limit_to_bulk(axes, [value for values in drawn for value in values])
        axes.legend(frameon=False, loc="best", labelcolor=INK)
    return save(figure, path)


def _draw_training(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    steps, values = series(rows, f"train/{name}")
    if len(steps) == 0:
        return []
    at, smoothed = smooth(steps, values)
    label = "training"
    if len(at) < len(steps):
        axes.plot(steps, values, color=BLUE, alpha=0.28, linewidth=0.8)
        label = "training, smoothed"
    # A line through a single value would not be seen.
    marker = "o" if len(at) == 1 else ""
    axes.plot(at, smoothed, color=BLUE, linewidth=1.8, marker=marker, markersize=4, label=label)
    return [float(value) for value in values]


def _draw_validation(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    steps, values = series(rows, f"validation/{name}")
    if len(steps) == 0:
        return []
    banded = [row for row in rows if f"validation/{name}" in row and f"validation/{name}_ci95" in row]
    label = "validation"
    if banded:
        at, centre = series(banded, f"validation/{name}")
        _, half_width = series(banded, f"validation/{name}_ci95")
        if len(at) == len(half_width):
            axes.fill_between(at, centre - half_width, centre + half_width, color=RED, alpha=0.18, linewidth=0)
            if len(at) == 1:
                axes.errorbar(at, centre, half_width, fmt="none", ecolor=RED, capsize=3)
            label = "validation, 95 % interval"
    axes.plot(steps, values, color=RED, linewidth=1.6, marker="o", markersize=3.5, label=label)
    return [float(value) for value in values]


def series(rows: Iterable[dict[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps and finite values of one metric; of a step that was run twice, the last."""
    latest = {row["step"]: float(row[key]) for row in rows if key in row and math.isfinite(row[key])}
    steps = sorted(latest)
    return np.array(steps, dtype=np.float64), np.array([latest[step] for step in steps], dtype=np.float64)


def smooth(
    steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean of the middle half of the values in a window of a twenty-fifth of the run, at 200 places at most.

    The middle half, so that one exploded step does not lift its whole window. Centred, since an exponential average
    lags: it would draw training behind validation.
    """
    count = len(values)
    if count < 20:
        return steps, values
    half = max(count // 50, 2)
    places = np.unique(np.linspace(0, count - 1, min(200, count // 2)).round().astype(int))
    smoothed = []
    for place in places:
        window = np.sort(values[max(place - half, 0) : place + half + 1])
        cut = len(window) // 4
        smoothed.append(window[cut : len(window) - cut].mean())
    return steps[places], np.array(smoothed)


def _limit_to_bulk(axes: Axes, values: list[float]) -> None:
    """A single exploded step must not flatten the curve: such values leave the picture at the top."""
    if len(values) < 20:
        return
    low, high = min(values), float(np.quantile(values, 0.99))
    if max(values) > high + 2.0 * (high - low):
        axes.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))
