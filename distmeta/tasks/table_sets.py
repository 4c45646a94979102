"""Real and generated tables of scikit-learn as meta-test tasks, all of one shape by padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from distmeta.config import did_you_mean
from distmeta.errors import ConfigError
from distmeta.types import Episode, TaskSpec

Table = tuple[npt.NDArray[np.float64], npt.NDArray[Any]]

_FIRST_SEED = 42


def _loaded(name: str) -> Callable[[], Table]:
    def load() -> Table:
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")(return_X_y=True)  # type: ignore[no-any-return]

    return load


def _made(name: str, **settings: Any) -> Callable[[], Table]:
    def make() -> Table:
        from sklearn import datasets

        return getattr(datasets, f"make_{name}")(random_state=0, **settings)  # type: ignore[no-any-return]

    return make


def _digits() -> Table:
    """The 8x8 pixels averaged over squares of four."""
    x, y = _loaded("digits")()
    return x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16), y


def _three_digits() -> Table:
    """The digits 0, 1 and 2 alone, for networks of three classes."""
    x, y = _digits()
    return x[y < 3], y[y < 3]


def _high_diabetes() -> Table:
    """Whether the disease has progressed further than in half of the people."""
    x, y = _loaded("diabetes")()
    return x, (y > np.median(y)).astype(np.int64)


SETS: dict[str, tuple[Literal["class", "number"], Callable[[], Table]]] = {
    "iris": ("class", _loaded("iris")),
    "wine": ("class", _loaded("wine")),
    "breast_cancer": ("class", _loaded("breast_cancer")),
    "digits": ("class", _digits),
    "digits_0_to_2": ("class", _three_digits),
    "diabetes_high": ("class", _high_diabetes),
    "moons": ("class", _made("moons", n_samples=200, noise=0.3)),
    "circles": ("class", _made("circles", n_samples=200, noise=0.2, factor=0.5)),
    "blobs": ("class", _made("blobs", n_samples=200, n_features=4, centers=3, cluster_std=4.0)),
    "quantiles": ("class", _made("gaussian_quantiles", n_samples=200, n_features=3, n_classes=3)),
    "diabetes": ("number", _loaded("diabetes")),
    "friedman1": ("number", _made("friedman1", n_samples=200, noise=1.0)),
}
"""Tables by name: whether the target is a class or a number, and how to get inputs ``[rows, features]`` and target."""


class TableSets:
    """Some of :data:`SETS`, each split in halves by one or more seeds, padded to one shape.

    Args:
        names: which.
        splits: seeds of each, from 42 on.
        target: ``"class"`` or ``"number"``.

    Raises:
        ConfigError: a name is unknown or has another target, or scikit-learn is not installed.
    """

    def __init__(self, names: Sequence[str], splits: int, target: Literal["class", "number"]) -> None:
        for name in names:
            if name not in SETS:
                raise ConfigError(
                    f"There is no table {name!r}.{did_you_mean(name, SETS)} Known: {', '.join(SETS)}. Change "
                    "tasks.test."
                )
            if SETS[name][0] != target:
                raise ConfigError(
                    f"The target of {name!r} is a {SETS[name][0]}; expected a {target}. Leave it out of tasks.test, or "
                    f"set tasks.target={SETS[name][0]}."
                )
        self._names, self._splits, self._target = tuple(names), splits, target
        try:
            tables = [SETS[name][1]() for name in names]
        except ImportError as error:
            raise ConfigError(
                f"The test tables {', '.join(names)} are scikit-learn's, which is not installed ({error}). Use pip "
                "install 'distmeta[sklearn]', or leave tasks.test out."
            ) from None
        self._tables = [(np.ascontiguousarray(x, np.float32), np.asarray(y)) for x, y in tables]

    @property
    def count(self) -> int:
        """Number of tasks."""
        return len(self._names) * self._splits

    @property
    def digest(self) -> str:
        """64 hex digits of the numbers."""
        found = hashlib.sha256()
        for name, (x, y) in zip(self._names, self._tables, strict=True):
            found.update(name.encode() + x.tobytes() + np.asarray(y, np.float64).tobytes())
        return found.hexdigest()

    @property
    def spec(self) -> TaskSpec:
        """The shape that all are padded to."""
        rows, features = (max(x.shape[axis] for x, _ in self._tables) for axis in (0, 1))
        if self._target == "number":
            return TaskSpec((features,), 1, "regression", rows // 2, rows - rows // 2)
        most = max(int(y.max()) + 1 for _, y in self._tables)
        return TaskSpec((features,), most, "classification", rows // 2, rows - rows // 2, padded=True)

    def episode(self, index: int) -> Episode:
        """Task ``index``: all tables with the first seed, then with the next."""
        from sklearn.model_selection import train_test_split

        x, y = self._tables[index % len(self._names)]
        by_class = {"stratify": y} if self._target == "class" else {}
        seed = _FIRST_SEED + index // len(self._names)
        halves = train_test_split(x, y, test_size=0.5, random_state=seed, **by_class)
        spec = self.spec
        inputs, targets = halves[0:2], halves[2:4]
        if self._target == "number":
            if len({len(one) for one, _ in self._tables}) > 1:
                raise ConfigError(
                    f"The tables {', '.join(self._names)} differ in rows, and numbers cannot be padded; expected "
                    "tables of as many rows. Give one in tasks.test."
                )
            support, query = (torch.from_numpy(np.asarray(half, np.float32))[:, None] for half in targets)
            return Episode(_padded(inputs[0], spec, 0), support, _padded(inputs[1], spec, 1), query)
        labels = (
            torch.from_numpy(np.pad(half.astype(np.int64), (0, size - len(half)), constant_values=-1))
            for half, size in zip(targets, (spec.support, spec.queries), strict=True)
        )
        support_y, query_y = labels
        return Episode(_padded(inputs[0], spec, 0), support_y, _padded(inputs[1], spec, 1), query_y, ways=spec.outputs)


def _padded(x: npt.NDArray[np.float32], spec: TaskSpec, half: int) -> torch.Tensor:
    """Inputs with rows and columns of zeros."""
    rows = spec.queries if half else spec.support
    return torch.from_numpy(np.pad(x, ((0, rows - len(x)), (0, spec.input_shape[0] - x.shape[1]))))
