"""The members of an ensemble: the same table with its columns, classes and rows in other orders, each read once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.learners.functional import evaluating, ordinary_tensors
from distmeta.learners.in_context import InContext
from distmeta.learners.mixture import Mixture
from distmeta.learners.predictive import Predictive
from distmeta.learners.support_scale import SupportScale
from distmeta.serving.predictor import Predictor
from distmeta.types import Episode

Array = npt.NDArray[Any]

_CELLS = 2**17  # of tables in memory together
_FURTHEST = 1e100  # no number is further out, so that none becomes infinite


@dataclass(frozen=True)
class View:
    """One order of a table.

    Args:
        columns: places of the columns ``[F]``.
        classes: the position that each class has ``[N]``; nothing in a regression.
        rows: places of the support rows.
    """

    columns: Array
    classes: Array
    rows: Array


def views(count: int, x: Array, y: Array, *, classes: int, max_rows: int, random: np.random.RandomState) -> list[View]:
    """Different orders of columns and classes, drawn at random; the first one is the table's own.

    Args:
        count: how many; fewer where there are fewer different ones.
        x: ``[S, F]``.
        y: ``[S]``.
        classes: N; 0 in a regression.
        max_rows: where there are more rows, each view has as many of them, drawn at random, one of each class at least.
        random: what draws.

    Example:
        >>> x, y = np.zeros((5, 2)), np.array([0, 1, 0, 1, 1])
        >>> found = views(9, x, y, classes=2, max_rows=5, random=np.random.RandomState(0))
        >>> [(one.columns.tolist(), one.classes.tolist()) for one in found]
        [([0, 1], [0, 1]), ([0, 1], [1, 0]), ([1, 0], [0, 1]), ([1, 0], [1, 0])]
    """
    columns = x.shape[1]
    if math.lgamma(columns + 1) + math.lgamma(classes + 1) <= math.log(count + 0.5):
        orders = list(product(permutations(range(columns)), permutations(range(classes))))
    else:
        drawn = {(tuple(range(columns)), tuple(range(classes))): None}
        while len(drawn) < count:
            drawn.setdefault((tuple(random.permutation(columns)), tuple(random.permutation(classes))))
        orders = list(drawn)
    return [View(np.array(c, int), np.array(n, int), _rows(y, classes, max_rows, random)) for c, n in orders]


def _rows(y: Array, classes: int, most: int, random: np.random.RandomState) -> Array:
    """Places of the rows, in their order, that a view has."""
    if len(y) <= most:
        return np.arange(len(y))
    order = random.permutation(len(y))
    first = np.unique(y[order], return_index=True)[1] if classes else np.zeros(0, int)
    order = np.concatenate([order[first], np.delete(order, first)])
    return np.sort(order[: max(most, classes)])


class Members:
    """The views of a table, read by an in-context learner.

    Args:
        predictor: with the learner.
        x: support rows ``[S, F]`` float64.
        y: positions of their classes ``[S]``, or floats ``[S, 1]``.
        orders: the views, all with as many rows.
        standardise: shift and scale each column, and the targets of a regression, by the support rows of the view.

    Raises:
        DataError: the network does not take so many columns.
    """

    def __init__(self, predictor: Predictor, x: Array, y: Array, orders: Sequence[View], *, standardise: bool) -> None:
        at_once = max(1, _CELLS // max(len(orders[0].rows) * x.shape[1], 1))
        parts = (orders[start : start + at_once] for start in range(0, len(orders), at_once))
        self._groups = [_Group(predictor, x, y, part, standardise) for part in parts]
        self._at_once = max(16, _CELLS // max(x.shape[1] * len(orders), 1))

    def probabilities(self, x: Array) -> Array:
        """Those of the classes ``[M, N]`` for rows ``[M, F]``: the mean over the views, in float64."""
        found = []
        for rows in self._parts(x):
            each = torch.cat([group.probabilities(rows) for group in self._groups])
            found.append(each.mean(0).numpy())
        return np.concatenate(found)

    def distributions(self, x: Array) -> Iterator[Mixture]:
        """Those of the targets ``[m, 1]``, for one part of the rows ``[M, F]`` after the other."""
        for rows in self._parts(x):
            yield Mixture([one for group in self._groups for one in group.distributions(rows)])

    def _parts(self, x: Array) -> Iterator[Array]:
        return (x[start : start + self._at_once] for start in range(0, len(x), self._at_once))


class _Group:
    """Views that are read in one call, and asked in one call."""

    def __init__(self, predictor: Predictor, x: Array, y: Array, part: Sequence[View], standardise: bool) -> None:
        assert isinstance(predictor.learner, InContext)
        self._learner, self._params, self._views = predictor.learner, predictor.params, part
        self._dtype = next(iter(predictor.params.values()), torch.zeros(())).dtype
        self._filled = predictor.columns(x.shape[1]) - x.shape[1]
        # A power of two, so that no digit changes, and no square of what is tiny or huge becomes 0 or infinite.
        self._exponent = -np.frexp(np.abs(x).max(0))[1] if standardise else np.zeros(x.shape[1], int)
        support_x = self._ordered([x[view.rows] for view in part])
        labels = [y[view.rows] if y.dtype.kind == "f" else view.classes[y[view.rows]] for view in part]
        support_y = torch.from_numpy(np.stack(labels))
        raw = Episode(support_x, support_y, support_x[:, :0], support_y[:, :0])
        self._scale = SupportScale.of(raw, "both" if standardise else "none")
        if support_y.is_floating_point():
            support_y = self._scale.targets(support_y).to(self._dtype)
        count = len(part[0].classes) or None
        support_x = self._prepared(support_x)
        self._task = Episode(support_x, support_y, support_x[:, :0], support_y[:, :0], ways=count, outputs=count)
        with self._evaluation():
            self._learned = self._learner.chunk_learned(self._params, self._task)

    def probabilities(self, rows: Array) -> torch.Tensor:
        """``[T, M, N]``, columns in the order of the classes."""
        with self._evaluation():
            logits = self._learner.chunk_answers(self._params, self._asked(rows), self._learned).double()
        places = torch.from_numpy(np.stack([view.classes for view in self._views]))
        return logits.softmax(-1).gather(2, places[:, None].expand(-1, logits.shape[1], -1))

    def distributions(self, rows: Array) -> list[Predictive]:
        """One of ``[M, 1]`` for each view."""
        with self._evaluation():
            found = self._learner.chunk_predictive(self._params, self._learned, self._asked(rows))
        found = self._scale.back(found)
        return [found.row(place) for place in range(len(self._views))]

    def _asked(self, rows: Array) -> Episode:
        return replace(self._task, query_x=self._prepared(self._ordered([rows] * len(self._views))))

    def _ordered(self, tables: Sequence[Array]) -> torch.Tensor:
        """A table for each view, its columns in the view's order, ``[T, M, F]`` float64."""
        with np.errstate(over="ignore", under="ignore"):
            moved = [np.ldexp(x, self._exponent)[:, view.columns] for x, view in zip(tables, self._views, strict=True)]
        return torch.from_numpy(np.stack(moved)).clamp(-_FURTHEST, _FURTHEST)

    def _prepared(self, x: torch.Tensor) -> torch.Tensor:
        """As the network takes them: scaled, in its precision, filled up with columns of 0 where it has more."""
        return torch.nn.functional.pad(self._scale.inputs(x).to(self._dtype), (0, self._filled))

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        with ordinary_tensors(), evaluating(self._learner.model):
            yield


__all__ = ["Members", "View", "views"]
