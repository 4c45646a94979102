"""What a learner may show of how it learns: data for pictures, not pictures.

A learner returns them from :meth:`~distmeta.learners.base.MetaLearner.pictures`; the end of a run draws each into
``RUN_DIR/NAME.png`` and records it. Nothing here draws: a worker needs no matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy.typing as npt
import torch

from distmeta.types import Episode, Params

if TYPE_CHECKING:
    from distmeta.learners.base import MetaLearner, Metrics


@dataclass(frozen=True)
class Curves:
    """Numbers of many tasks over some quantity: drawn as their means with 95 % intervals, one panel per kind.

    Args:
        title: what is seen.
        x_label: the quantity.
        x: its values ``[X]``.
        values: by name, ``X`` rows of per-task numbers ``[T]``. Names with ``accuracy`` share a panel, in per cent, as
            do names with ``loss``; any other name has a panel of its own.

    Example:
        >>> Curves("bits", "length", [10, 20], {"bits": [[0.0, 0.1], [0.2, 0.3]]}).x
        [10, 20]
    """

    title: str
    x_label: str
    x: Sequence[float]
    values: Mapping[str, Sequence[npt.ArrayLike]]


@dataclass(frozen=True)
class Attention:
    """How much each image of one list looks at each of another: a grid of weights with the images at its edges.

    Args:
        title: what is seen.
        rows: images ``[R, C, H, W]`` that look.
        columns: images ``[M, C, H, W]`` that are looked at.
        weights: ``[R, M]``, each row summing to 1 (less where columns are left out).
        right: ``[R, M]`` booleans: the cells that should have the weight, outlined.
        row_label: what the rows are.
        column_label: what the columns are.
    """

    title: str
    rows: npt.ArrayLike
    columns: npt.ArrayLike
    weights: npt.ArrayLike
    right: npt.ArrayLike
    row_label: str = "query"
    column_label: str = "support set"


@dataclass(frozen=True)
class Heatmaps:
    """Matrices over the same time axis, one above the other: as the figures of a memory's weights (Graves et al. 2014).

    Args:
        title: what is seen.
        x_label: the common axis, such as time.
        panels: name to ``[rows, time]``, drawn from top to bottom; dark is high, NaN is left blank. Of panels with more
            than 30 rows (the slots of a memory) the part that is used is drawn, the same part of each.

    Example:
        >>> import numpy as np
        >>> Heatmaps("copy", "time", {"write weights": np.eye(4)}).x_label
        'time'
    """

    title: str
    x_label: str
    panels: Mapping[str, npt.ArrayLike]


@dataclass(frozen=True)
class Gallery:
    """Rows of images with a line under each, such as pairs that a learner finds alike.

    Args:
        title: what is seen.
        images: ``[R, C, channels, H, W]``: R rows of C images.
        captions: R rows of C lines.
        right: ``[R]``: whether the row is as it should be; wrong ones are framed in red.
        columns: C headings.
    """

    title: str
    images: npt.ArrayLike
    captions: Sequence[Sequence[str]]
    right: Sequence[bool]
    columns: Sequence[str] = field(default=())


Picture = Curves | Attention | Heatmaps | Gallery


def adaptation_curve(
    after: Callable[[int], MetaLearner], steps: int, params: Params, episodes: Episode, *, at_once: int = 10
) -> Curves:
    """The loss and accuracy on the queries after 0 to ``steps`` inner steps.

    Args:
        after: the learner that takes so many inner steps.
        steps: the most.
        params: theta, by name.
        episodes: T stacked tasks.
        at_once: tasks in memory together.
    """
    from distmeta.learners.base import prediction_loss, prediction_metrics

    marks = [k for k in (*range(11), 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000) if k < steps] + [steps]
    if len(marks) > 12:  # a long curve bends early
        marks = [k for k in marks if k in (0, 1, 2, 3, 5, 7, 10) or k > 10]
    values: dict[str, list[npt.ArrayLike]] = {}
    for k in marks:
        learner = after(k)
        learner.model.eval()

        def judged(theta: Params, episode: Episode, learner: MetaLearner = learner) -> Metrics:
            prediction = learner.query_logits(theta, episode)
            loss = {"loss": prediction_loss(prediction, episode.query_y)}
            return loss | prediction_metrics(prediction, episode.query_y)

        parts = []
        for start in range(0, len(episodes.query_x), at_once):
            chunk = episodes.map(lambda part, start=start: part[start : start + at_once])  # type: ignore[misc]
            with torch.no_grad():
                parts.append(learner.map_tasks(judged, params, chunk))
        for name in parts[0]:
            values.setdefault(name, []).append(torch.cat([part[name] for part in parts]).cpu().numpy())
    return Curves(
        f"queries of {len(episodes.query_x)} tasks over the inner loop", "inner steps on the support set", marks, values
    )
