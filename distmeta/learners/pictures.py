"""Data for pictures of how a learner learns; the drawing is elsewhere.

A learner returns them from :meth:`~distmeta.learners.base.MetaLearner.pictures`; the end of a run draws each into
``RUN_DIR/NAME.png`` and records it. Nothing here draws: a worker needs no matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy.typing as npt


@dataclass(frozen=True)
class Curves:
    """Numbers of many tasks over some quantity: drawn as their means with 95 % intervals, one panel per kind.

    Args:
        title: heading of the picture.
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
    """Attention weights of one list of images over another: a grid of weights with the images at its edges.

    Args:
        title: heading of the picture.
        rows: images ``[R, C, H, W]`` that attend.
        columns: images ``[M, C, H, W]`` that are attended to.
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
        title: heading of the picture.
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
    """Rows of images with a line under each, such as the nearest pairs of a learner.

    Args:
        title: heading of the picture.
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


@dataclass(frozen=True)
class Fit:
    """One regression task of one number on one number: the curve, the few points seen of it, and the model.

    Args:
        title: what task it is.
        support_x: ``[K, 1]`` inputs that the model adapted on.
        support_y: ``[K, 1]`` their targets.
        x: ``[G, 1]`` inputs to draw the curves at, ascending.
        truth: ``[G, 1]`` the curve itself.
        before: ``[G, 1]`` predictions of the meta-parameters; ``None`` for a learner that adapts nothing.
        after: ``[G, 1]`` predictions after adaptation.
        low: ``[G, 1]`` lower ends of the 95 % intervals of targets, where the learner has a distribution.
        high: ``[G, 1]`` their upper ends.
    """

    title: str
    support_x: npt.ArrayLike
    support_y: npt.ArrayLike
    x: npt.ArrayLike
    truth: npt.ArrayLike
    before: npt.ArrayLike | None
    after: npt.ArrayLike
    low: npt.ArrayLike | None = None
    high: npt.ArrayLike | None = None


@dataclass(frozen=True)
class Reliability:
    """Probabilities beside what came to pass, bin by bin: a reliability diagram (Niculescu-Mizil and Caruana 2005).

    Args:
        title: heading of the picture.
        expected: ``[B]`` probabilities that were predicted.
        observed: ``[B]`` shares that came to pass.
        half_width: ``[B]`` of the 95 % intervals of ``observed``.
        count: ``[B]`` predictions in each bin; an empty bin has no point.
        x_label: what ``expected`` is.
        y_label: what ``observed`` is.
        note: the number that sums it up, in words.
    """

    title: str
    expected: npt.ArrayLike
    observed: npt.ArrayLike
    half_width: npt.ArrayLike
    count: npt.ArrayLike
    x_label: str
    y_label: str
    note: str


Picture = Curves | Attention | Heatmaps | Gallery | Fit | Reliability
