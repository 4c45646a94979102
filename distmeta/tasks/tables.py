"""Random tables: a prior over classification and regression tasks that tabular in-context learners are trained on.

``prior="mlp"`` is that of Prior Labs' pre-training cookbook (2026) and, before it, of Müller et al. (2022, section
5.1): the target is a random network of the features. ``prior="scm"`` is a structural causal model (Hollmann et al.
2023, section 4): causes run through a random network with noise at every node, and features and target are nodes of it,
so that a feature may be an effect of the target.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveInt, model_validator

from distmeta import config
from distmeta.config import NumberOrBounds
from distmeta.errors import TaskContractError
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.table_sets import TableSets
from distmeta.types import Episode, Split, TaskRef, TaskSpec

Array = npt.NDArray[np.float64]

_NUMBERS = ("rows", "support", "features", "classes")


class Tables(TaskDistribution):
    """Random tables: columns of numbers, and a target that depends on them.

    Bounds, both included, are drawn anew for every outer step, so that all tables of a step have one shape. Tables of
    validation and test have ``rows`` and ``features`` of the upper bounds, the middle of ``support``, and the upper
    bound of ``classes``. Every class of a table is in its support set: a row is exchanged where it would not be.

    Args:
        prior: ``"mlp"`` or ``"scm"``.
        target: ``"class"``, or ``"number"`` for regression.
        rows: support rows and queries together.
        support: rows of the support set.
        features: columns.
        classes: N; of no effect on numbers.
        test: names of real tables that take the place of the meta-test tasks: ``iris``, ``wine``, ``breast_cancer``,
            ``digits`` and others of :data:`distmeta.tasks.table_sets.SETS` (needs scikit-learn). Half of the rows are
            the support set, drawn by class with the seed 42, as in the cookbook; smaller ones are filled up with rows
            of the label -1 and columns of zeros.
        test_splits: splits of each of these tables, by seeds from 42 on.

    Example:
        >>> Tables(features=(2, 10)).spec.input_shape
        (10,)
    """

    class Config(config.Config):
        """The settings of :class:`Tables`."""

        prior: Literal["mlp", "scm"] = "mlp"
        target: Literal["class", "number"] = "class"
        rows: NumberOrBounds = 50
        support: NumberOrBounds = (10, 47)
        features: NumberOrBounds = 3
        classes: NumberOrBounds = (2, 3)
        test: tuple[str, ...] = ()
        test_splits: PositiveInt = 1

        @model_validator(mode="after")
        def _possible(self) -> Self:
            most, least = _upper(self.support), _lower(self.rows)
            if most >= least:
                raise ValueError(
                    f"support={self.support} leaves no query of rows={self.rows}; expected fewer. Set "
                    f"support={least - 1}"
                )
            if self.target == "class" and (_lower(self.classes) < 2 or _upper(self.classes) > _lower(self.support)):
                raise ValueError(
                    f"classes={self.classes} with support={self.support}; expected 2 classes or more, and a support "
                    "row for each. Set support higher, or classes lower"
                )
            return self

    config: Config

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._sets: TableSets | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "_sets": None}

    @property
    def sets(self) -> TableSets:
        """The real tables.

        Raises:
            ConfigError: a name is unknown, or scikit-learn is not installed.
        """
        if self._sets is None:
            self._sets = TableSets(self.config.test, self.config.test_splits, self.config.target)
        return self._sets

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the test tables."""
        return self.spec_of("meta_test")

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tables of ``split``, the largest where they are drawn per step."""
        if split == "meta_test" and self.config.test:
            return self.sets.spec
        rows, support, features, classes = self._shape(split)
        if self.config.target == "number":
            return TaskSpec((features,), 1, "regression", support, rows - support)
        drawn = self.config.classes
        fewest = drawn[0] if split == "meta_train" and isinstance(drawn, tuple) else None
        return TaskSpec((features,), classes, "classification", support, rows - support, fewest)

    @property
    def fingerprint(self) -> str:
        """Digest of the recipe, and of the real tables."""
        recipe = f"tables, version 1: {self.config.prior} {self.config.target}"
        return hashlib.sha256((recipe + (self.sets.digest if self.config.test else "")).encode()).hexdigest()

    def at_step(self, split: Split, random: np.random.Generator) -> Tables:
        """The tables of one outer step: numbers are drawn where bounds are given."""
        if split != "meta_train":
            return self
        drawn = {
            name: int(random.integers(bounds[0], bounds[1] + 1))
            for name in _NUMBERS
            if isinstance(bounds := getattr(self.config, name), tuple)
        }
        return self.with_config(**drawn) if drawn else self

    def with_config(self, **changes: Any) -> Tables:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        if {"test", "test_splits", "target"} & changes.keys():
            clone._sets = None
        return clone

    def count(self, split: Split) -> int | None:
        """Number of real tables and splits; no limit for random ones."""
        return self.sets.count if split == "meta_test" and self.config.test else None

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """The table that ``ref`` names."""
        if ref.split == "meta_test" and self.config.test:
            return self.sets.episode(ref.index)
        return super().draw_ref(ref, seed)

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one random table."""
        rows, support, features, classes = self._shape(split)
        x, y = (_network if self.config.prior == "mlp" else _causes)(random, rows, features)
        inputs = torch.from_numpy(x.astype(np.float32))
        if self.config.target == "number":
            values = torch.from_numpy(_standardised(y).astype(np.float32))[:, None]
            return Episode(inputs[:support], values[:support], inputs[support:], values[support:])
        labels = _classes(random, y, classes)
        order = every_class_first(labels, support)
        inputs, targets = inputs[order], torch.from_numpy(labels[order])
        parts = inputs[:support], targets[:support], inputs[support:], targets[support:]
        return Episode(*parts, ways=classes, outputs=classes)

    def describe(self) -> dict[str, Any]:
        """The prior, and the real tables."""
        c = self.config
        return {"name": f"tables ({c.prior})", "source": "random tables", "test": list(c.test)}

    def check(self) -> None:
        """Check that real tables are there, and draw a task of each split."""
        super().check()
        train, test = self.spec_of("meta_train"), self.spec
        if test.kind == "classification" and test.outputs > train.outputs:
            raise TaskContractError(
                f"The test tables have up to {test.outputs} classes, those of training {train.outputs}; expected no "
                f"more. Set tasks.classes=({_lower(self.config.classes)}, {test.outputs}), or leave tables out of "
                "tasks.test."
            )

    def _shape(self, split: Split) -> tuple[int, int, int, int]:
        """Rows, support rows, features and classes."""
        c = self.config
        middle = (_lower(c.support) + _upper(c.support)) // 2
        support = _upper(c.support) if split == "meta_train" else middle
        return _upper(c.rows), support, _upper(c.features), _upper(c.classes)


def _lower(bounds: NumberOrBounds) -> int:
    return bounds[0] if isinstance(bounds, tuple) else bounds


def _upper(bounds: NumberOrBounds) -> int:
    return bounds[1] if isinstance(bounds, tuple) else bounds


_ACTIVATIONS = (np.tanh, lambda x: np.maximum(x, 0.0), lambda x: x)


def _weights(random: np.random.Generator, inputs: int, outputs: int) -> Array:
    """A random layer: normal numbers of variance 1 / inputs, each left out with probability 0.3."""
    kept = random.random((inputs, outputs)) >= 0.3
    weights: Array = random.standard_normal((inputs, outputs)) * kept / np.sqrt(inputs)
    return weights


def _network(random: np.random.Generator, rows: int, features: int) -> tuple[Array, Array]:
    """Standard normal features ``[rows, features]`` and a random network of them ``[rows]``, with noise.

    The constants are the cookbook's, which draws depth and width once per batch; here each table has its own.
    """
    x = random.standard_normal((rows, features))
    activation = _ACTIVATIONS[random.integers(3)]
    width, hidden = int(random.integers(8, 33)), x
    for _ in range(int(random.integers(1, 4))):
        hidden = activation(hidden @ _weights(random, hidden.shape[1], width) + 0.1 * random.standard_normal(width))
    y = hidden @ random.standard_normal(width) / np.sqrt(width)  # of the last layer no weight is left out
    return x, y + random.uniform(0.0, 0.3) * random.standard_normal(rows)


def _causes(random: np.random.Generator, rows: int, features: int) -> tuple[Array, Array]:
    """Features and target as nodes of a random network of causes, with noise at every node."""
    causes = int(random.integers(1, features + 2))
    activation = _ACTIVATIONS[random.integers(3)]
    noise = random.uniform(0.0, 0.3)
    width = max(int(random.integers(8, 33)), features + 1)
    nodes, hidden = [], random.standard_normal((rows, causes))
    for _ in range(int(random.integers(2, 5))):
        hidden = activation(hidden @ _weights(random, hidden.shape[1], width) * np.sqrt(2.0))
        hidden = hidden + noise * random.standard_normal(hidden.shape)
        nodes.append(hidden)
    found = np.concatenate(nodes, 1)
    picked = random.choice(found.shape[1], features + 1, replace=False)
    return found[:, picked[:-1]], found[:, picked[-1]] + 1e-9 * random.standard_normal(rows)


def _standardised(y: Array) -> Array:
    """``y [rows]`` with mean 0 and standard deviation 1."""
    centred: Array = y - y.mean()
    return centred / max(float(centred.std()), 1e-8)


def _classes(random: np.random.Generator, y: Array, classes: int) -> npt.NDArray[np.int64]:
    """Labels ``[rows]`` by cuts at quantiles of ``y``, uniform in [0.15, 0.85], numbered in random order.

    No class is empty: cuts that fall together are moved apart by a row.
    """
    rows, place = len(y), np.arange(classes - 1)
    cuts = (np.sort(random.uniform(0.15, 0.85, classes - 1)) * rows).astype(np.int64)
    cuts = np.maximum.accumulate(np.maximum(cuts, 1) - place) + place
    cuts = np.minimum(cuts, rows - len(place) + place)
    ranks = np.empty(rows, np.int64)
    ranks[y.argsort(kind="stable")] = np.arange(rows)
    return random.permutation(classes)[np.searchsorted(cuts, ranks, side="right")].astype(np.int64)


def every_class_first(labels: npt.NDArray[np.int64], support: int) -> npt.NDArray[np.int64]:
    """An order of the rows in which every class is among the first ``support``, otherwise as they are."""
    order = np.arange(len(labels))
    counts, early = np.bincount(labels), np.bincount(labels[:support], minlength=int(labels.max(initial=-1)) + 1)
    for label in np.flatnonzero((counts > 0) & (early == 0)):
        inside = labels[order[:support]]
        spare = np.flatnonzero(np.bincount(inside, minlength=label + 1)[inside] > 1)
        out, into = int(np.flatnonzero(labels[order[support:]] == label)[0]) + support, int(spare[-1])
        order[[into, out]] = order[[out, into]]
    return order
