"""Texts of the pictures of :mod:`distmeta.learners.pictures`, with their numbers, for readers who cannot see them."""

from __future__ import annotations

import numpy as np

from distmeta.intervals import ci95, interval
from distmeta.learners.pictures import Attention, Curves, Fit, Gallery, Heatmaps, Picture, Reliability


def picture_text(picture: Picture) -> str:
    """Describe a picture in one or two sentences, with the numbers that it shows.

    Args:
        picture: one of the kinds.

    Example:
        >>> picture_text(Curves("adaptation", "inner steps", [0, 1], {"accuracy": [[0.2, 0.2], [0.9, 0.9]]}))
        'adaptation. accuracy over inner steps: 20.00 % ± 0.00 at 0, 90.00 % ± 0.00 at 1.'
    """
    return f"{picture.title}. {_numbers(picture)}"


def _numbers(picture: Picture) -> str:
    if isinstance(picture, Curves):
        return " ".join(_curve(name, picture) for name in picture.values)
    if isinstance(picture, Attention):
        weights, right = np.asarray(picture.weights, dtype=np.float64), np.asarray(picture.right, dtype=bool)
        own = (weights * right).sum(1)
        return (
            f"Rows ({len(weights)}): {picture.row_label}; columns ({weights.shape[1]}): {picture.column_label}. "
            f"{100 * own.mean():.1f} % of the weight is on their own class, from {100 * own.min():.1f} to "
            f"{100 * own.max():.1f} %."
        )
    if isinstance(picture, Heatmaps):
        panels = {name: np.asarray(values) for name, values in picture.panels.items()}
        sizes = ", ".join(f"{name} ({rows.shape[0]} rows, {rows.shape[1]} columns)" for name, rows in panels.items())
        return f"Heat maps over {picture.x_label}, dark is high: {sizes}."
    if isinstance(picture, Gallery):
        count, across = np.asarray(picture.images).shape[:2]
        return f"{count} rows of {across} pictures, {sum(map(bool, picture.right))} of the {count} right."
    return _reliability(picture) if isinstance(picture, Reliability) else _fit(picture)


def _reliability(picture: Reliability) -> str:
    expected, observed, half, count = (
        np.asarray(part, dtype=np.float64)
        for part in (picture.expected, picture.observed, picture.half_width, picture.count)
    )
    filled = np.flatnonzero(count)
    if len(filled) > 6:  # a text that is listened to: the ends and some between
        filled = filled[np.linspace(0, len(filled) - 1, 6).round().astype(int)]
    points = [f"{100 * expected[i]:.1f} %: {100 * observed[i]:.1f} % ± {100 * half[i]:.1f}" for i in filled]
    return (
        f"{picture.note}. {picture.y_label} over {picture.x_label}, of {int(count.sum())} predictions: "
        f"{', '.join(points)}."
    )


def _curve(name: str, picture: Curves) -> str:
    rows = [np.asarray(row, dtype=np.float64) for row in picture.values[name]]
    points = [
        f"{interval(name, float(row.mean()), ci95(row) if row.size > 1 else None)} at {x:g}"
        for x, row in zip(picture.x, rows, strict=True)
    ]
    if len(points) > 6:  # a text that is listened to: the ends and some between
        points = [points[i] for i in np.linspace(0, len(points) - 1, 6).round().astype(int)]
    return f"{name.replace('_', ' ')} over {picture.x_label}: {', '.join(points)}."


def _fit(picture: Fit) -> str:
    truth, points = np.asarray(picture.truth, dtype=np.float64), len(np.asarray(picture.support_x))
    parts = (np.asarray(part, dtype=np.float64) for part in (picture.before, picture.after) if part is not None)
    errors = [float(np.square(part - truth).mean()) for part in parts]
    band = ""
    if picture.low is not None and picture.high is not None:
        inside = (truth >= np.asarray(picture.low)) & (truth <= np.asarray(picture.high))
        band = f" {100 * inside.mean():.1f} % of the curve is within the 95 % band."
    if picture.before is None:
        return f"Mean squared error of the curve {errors[0]:.4g} from {points} support points.{band}"
    return (
        f"Mean squared error of the curve {errors[0]:.4g} before adaptation and {errors[1]:.4g} after {points} "
        f"support points."
    )
