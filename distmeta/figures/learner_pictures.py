"""Draws what learners show (:mod:`distmeta.learners.pictures`), with matplotlib's ``Figure`` alone as all of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distmeta.figures.style import BLUE, GREY, INK, RED, dress, new_figure, save
from distmeta.intervals import ci95
from distmeta.learners.pictures import Attention, Curves, Fit, Gallery, Heatmaps, Picture, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN = "#5b8c5a"
_COLOURS = (BLUE, RED, GREY, _GREEN, "#8c6bb1", "#c99a2e")


def draw(picture: Picture, path: Path) -> Path:
    """Draw one of the kinds of :mod:`distmeta.learners.pictures` into a PNG.

    Args:
        picture: what to draw.
        path: the PNG to write; its folder is made.

    Returns:
        ``path``.

    Raises:
        TypeError: there is no such kind.
    """
    if isinstance(picture, Curves):
        return _draw_curves(picture, path)
    if isinstance(picture, Attention):
        return _draw_attention(picture, path)
    if isinstance(picture, Heatmaps):
        return _draw_heatmaps(picture, path)
    if isinstance(picture, Gallery):
        return _draw_gallery(picture, path)
    if isinstance(picture, Fit):
        return _draw_fit(picture, path)
    if isinstance(picture, Reliability):
        return _draw_reliability(picture, path)
    raise TypeError(f"{type(picture).__name__} is no picture; return one of the kinds of distmeta.learners.pictures.")


def _draw_fit(picture: Fit, path: Path) -> Path:
    support_x, support_y, x, truth, after = (
        np.asarray(values, dtype=np.float64).reshape(-1)
        for values in (picture.support_x, picture.support_y, picture.x, picture.truth, picture.after)
    )
    adapts = picture.before is not None
    figure = new_figure(6.4, 3.8, picture.title)
    axes = figure.add_subplot()
    axes.plot(x, truth, color=GREY, linewidth=2.5, label="true curve")
    if picture.before is not None:
        before = np.asarray(picture.before, dtype=np.float64).reshape(-1)
        axes.plot(x, before, color=BLUE, linewidth=1.5, linestyle=(0, (2, 2)), label="before adaptation")
    if picture.low is not None and picture.high is not None:
        low, high = (np.asarray(end, dtype=np.float64).reshape(-1) for end in (picture.low, picture.high))
        axes.fill_between(x, low, high, color=RED, alpha=0.15, linewidth=0, label="95 % of targets")
    axes.plot(x, after, color=RED, linewidth=2.0, label="after adaptation" if adapts else "mean")
    points = f"support ({support_x.size} points)"
    axes.plot(support_x, support_y, "o", color=INK, markersize=6, markeredgecolor="white", label=points, zorder=4)
    dress(axes, "x", "y")
    axes.margins(x=0.01)
    # Below the picture: a curve that swings leaves no free corner.
    figure.legend(frameon=False, ncols=4, loc="outside lower center", labelcolor=INK, fontsize=9, columnspacing=1.4)
    return save(figure, path)


def _draw_curves(picture: Curves, path: Path) -> Path:
    from matplotlib.transforms import ScaledTranslation

    kinds: dict[str, list[str]] = {}
    for name in picture.values:
        kind = next((word for word in ("accuracy", "loss") if word in name), name)
        kinds.setdefault(kind, []).append(name)
    crowded = {kind for kind, names in kinds.items() if len(names) > 4}  # their legend is beside them
    figure = new_figure(4.6 * len(kinds) + 2.4 * len(crowded) + 0.4, 3.6, picture.title)
    x = np.asarray(picture.x, dtype=np.float64)
    for column, (kind, names) in enumerate(kinds.items()):
        axes = figure.add_subplot(1, len(kinds), column + 1)
        for i, (name, colour) in enumerate(zip(names, _COLOURS * len(names), strict=False)):
            rows = [np.asarray(row, dtype=np.float64) for row in picture.values[name]]
            means, half_widths = np.array([(row.mean(), ci95(row)) for row in rows]).T
            line = (0, (2, 2)) if "baseline" in name else "-"
            label = name.replace("_", " ")
            style: dict[str, Any] = {"linestyle": line, "linewidth": 1.6, "marker": "o", "markersize": 4}
            style |= {"elinewidth": 1.0, "capsize": 2.5}
            # Side by side: curves that agree would hide each other.
            points = (i - (len(names) - 1) / 2) * min(2.5, 6 / len(names))
            aside = ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)
            drawn = axes.errorbar(x, means, half_widths, color=colour, label=label, **style)
            for artist in drawn.get_children():
                artist.set_transform(axes.transData + aside)
        dress(axes, picture.x_label, kind.replace("_", " "))
        axes.set_xticks(*_ticks(x))
        axes.margins(x=0.04)
        if all(np.min(row) >= 0 for name in names for row in picture.values[name]):
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))  # no errors, no bits, no loss below zero
        if kind == "accuracy":
            axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        if len(names) > 1:
            beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if kind in crowded else {"loc": "best"}
            axes.legend(frameon=False, labelcolor=INK, fontsize=9, **beside)
    return save(figure, path)


def _ticks(x: npt.NDArray[np.float64]) -> tuple[list[float], list[str]]:
    """A mark at every value; a number at those that have room for it."""
    room = (x.max() - x.min()) / 12
    labels, last = [], -np.inf
    for i, value in enumerate(x):
        shown = value - last >= room and (i == len(x) - 1 or x[-1] - value >= room)
        labels.append(f"{value:g}" if shown or i == len(x) - 1 else "")
        last = value if shown else last
    return list(x), labels


def _draw_attention(picture: Attention, path: Path) -> Path:
    from matplotlib.patches import Rectangle

    rows, columns = np.asarray(picture.rows), np.asarray(picture.columns)
    weights, right = np.asarray(picture.weights, dtype=np.float64), np.asarray(picture.right, dtype=bool)
    count, others = weights.shape
    cell = 0.62 if others <= 12 else 0.46
    figure = new_figure(cell * (others + 1) + 0.7, cell * (count + 1) + 0.9, picture.title)
    grid = figure.add_gridspec(count + 1, others + 1, wspace=0.04, hspace=0.04)
    for j, image in enumerate(columns):
        _show_image(figure.add_subplot(grid[0, j + 1]), image)
    for i, image in enumerate(rows):
        _show_image(figure.add_subplot(grid[i + 1, 0]), image)
    axes = figure.add_subplot(grid[1:, 1:])
    axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for i, j in np.ndindex(count, others):
        if weights[i, j] >= 0.005:
            colour = "white" if weights[i, j] > 0.55 else INK
            size = 9 if others <= 12 else 7
            axes.text(j, i, f"{100 * weights[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=size)
        if right[i, j]:
            axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor=_GREEN, linewidth=1.8))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    figure.supxlabel(
        f"columns: {picture.column_label}; rows: {picture.row_label}; weights in per cent; framed: of its class",
        fontsize=8, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    return save(figure, path)


def _draw_heatmaps(picture: Heatmaps, path: Path) -> Path:
    from matplotlib.ticker import MaxNLocator

    panels = {name: np.asarray(values, dtype=np.float64) for name, values in picture.panels.items()}
    first, last = _used_rows(panels)
    shown = {name: values[first:last] if _is_tall(values) else values for name, values in panels.items()}
    steps = max(values.shape[1] for values in shown.values())
    # The same size for every cell, within reason.
    heights = [min(max(0.11 * len(values), 0.4), 4.0) for values in shown.values()]
    figure = new_figure(
        min(max(0.11 * steps, 4.5), 13.0) + 1.4, sum(heights) + 0.34 * len(heights) + 0.7, picture.title
    )
    grid = figure.add_gridspec(len(shown), 1, height_ratios=heights)
    for i, (name, values) in enumerate(shown.items()):
        axes = figure.add_subplot(grid[i])
        low = first if _is_tall(panels[name]) else 0
        finite = np.ma.masked_invalid(values)
        # From 0 to 1, or as far as it goes: a doubt of a half is grey, not black.
        top = max(1.0, float(finite.max())) if finite.count() and finite.min() >= 0 else None
        axes.imshow(
            finite, cmap="Greys", aspect="auto", interpolation="nearest", vmin=None if top is None else 0.0, vmax=top,
            extent=(-0.5, values.shape[1] - 0.5, low + len(values) - 0.5, low - 0.5),
        )  # fmt: skip
        dress(axes, picture.x_label if i == len(shown) - 1 else "", "")
        axes.set_title(name, loc="left", fontsize=9, color=INK, pad=3)
        axes.grid(False)
        axes.set_facecolor("#e2e9f3")  # seen through the cells that are not a number
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5 if len(values) > 12 else 2, integer=True))
        if len(values) == 1:
            axes.set_yticks([])
        axes.tick_params(labelbottom=i == len(shown) - 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save(figure, path)


def _is_tall(values: npt.NDArray[np.float64]) -> bool:
    """Return whether these are the many slots of a memory, most of them unused."""
    return len(values) > 30


def _used_rows(panels: Mapping[str, npt.NDArray[np.float64]]) -> tuple[int, int]:
    """First and one past the last row of tall panels to draw: all those with half a unit of weight, and one beyond."""
    used = [np.flatnonzero(np.nansum(values, axis=1) >= 0.5) for values in panels.values() if _is_tall(values)]
    rows = np.concatenate(used) if used else np.array([], dtype=np.intp)
    most = max((len(values) for values in panels.values()), default=0)
    return (max(int(rows.min()) - 1, 0), min(int(rows.max()) + 2, most)) if len(rows) else (0, most)


def _draw_gallery(picture: Gallery, path: Path) -> Path:
    images = np.asarray(picture.images)
    count, across = images.shape[:2]
    # Few tall columns leave half a page empty: rows go side by side.
    side = max(1, min(count, 8 // across)) if count > 3 else 1
    lines = -(-count // side)
    figure = new_figure(1.15 * across * side + 0.4, 1.35 * lines + 0.7, picture.title)
    grid = figure.add_gridspec(lines, across * side)
    for row in range(count):
        line, block = divmod(row, side)
        for column in range(across):
            axes = figure.add_subplot(grid[line, block * across + column])
            _show_image(axes, images[row, column], frame=None if picture.right[row] else RED)
            axes.set_xlabel(picture.captions[row][column], fontsize=8, color=INK)
            if line == 0 and picture.columns:
                axes.set_title(picture.columns[column], fontsize=9, color=INK)
    return save(figure, path)


def _draw_reliability(picture: Reliability, path: Path) -> Path:
    expected, observed, half, count = (
        np.asarray(part, dtype=np.float64)
        for part in (picture.expected, picture.observed, picture.half_width, picture.count)
    )
    filled = count > 0
    share = count / max(count.sum(), 1)
    edges = np.linspace(0, 1, len(count) + 1)
    figure = new_figure(5.0, 5.4, picture.title)
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    axes = figure.add_subplot(grid[0])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.5, linestyle=(0, (2, 2)), label="calibrated")
    axes.errorbar(
        expected[filled], observed[filled], half[filled], color=BLUE, linewidth=1.6, marker="o", markersize=5,
        elinewidth=1.0, capsize=2.5, label="observed, 95 % interval",
    )  # fmt: skip
    dress(axes, "", picture.y_label)
    axes.set_title(picture.note, loc="left", fontsize=9, color=INK, pad=6)
    below = figure.add_subplot(grid[1], sharex=axes)
    below.bar(edges[:-1], share, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    dress(below, picture.x_label, "predictions")
    for one in (axes, below):
        one.set_xlim(0, 1)
        one.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        one.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelbottom=False)
    figure.legend(frameon=False, ncols=2, loc="outside lower center", labelcolor=INK, fontsize=9, columnspacing=1.4)
    return save(figure, path)


def _show_image(axes: Axes, image: npt.NDArray[np.generic], *, frame: str | None = None) -> None:
    pixels = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1)
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    if pixels.shape[-1] == 3:
        axes.imshow(pixels, aspect="equal")
    else:
        # Handwriting is stored as light on dark; on paper it reads better as dark on light.
        axes.imshow(pixels[..., 0], cmap="Greys", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(frame or "#d9dce1")
        spine.set_linewidth(2.0 if frame else 0.8)
