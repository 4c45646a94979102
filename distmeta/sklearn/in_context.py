"""In-context learners of tables as a classifier and a regressor of scikit-learn: ensembles over orders of the table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from distmeta.errors import ConfigError, DataError, LearnerContractError, listed
from distmeta.learners.mixture import Mixture
from distmeta.serving.predictor import Predictor
from distmeta.sklearn.source import absolute, loaded, loaded_again
from distmeta.sklearn.views import Members, views

Array = npt.NDArray[Any]

_TEXT = "could not convert string to float"


class _InContext(BaseEstimator):  # type: ignore[misc]  # no types there
    """What both estimators have in common."""

    _kind: Literal["classification", "regression"]

    def __init__(
        self,
        source: Path | str,
        *,
        n_estimators: int = 4,
        max_rows: int | None = 1000,
        standardise: bool = True,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.source = source
        self.n_estimators = n_estimators
        self.max_rows = max_rows
        self.standardise = standardise
        self.random_state = random_state

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_members", None)  # read again where they are needed: they have the model, whose code is a job file
        return state

    def _learner(self, source: str) -> Predictor:
        """The learner, which takes such a table.

        Raises:
            ConfigError: it takes none, or learns the other kind of task.
        """
        predictor = loaded(source)
        learner, spec, name = predictor.learner, predictor.spec, type(predictor.learner).__name__
        if learner.model_kind != "set" or len(spec.input_shape) != 1:
            seen = f"{name} of inputs {list(spec.input_shape)}"
            fix = "Use distmeta.sklearn.FewShotClassifier(source), or distmeta.load(source)."
            raise ConfigError(f"{self.source} is {seen}; expected an InContext learner of tables. {fix}")
        if spec.kind != self._kind or (spec.kind == "regression" and spec.outputs != 1):
            what = f"{name} for {spec.kind}" + (f" of {spec.outputs} targets" if spec.kind == "regression" else "")
            other = {"classification": "InContextClassifier", "regression": "InContextRegressor"}.get(spec.kind, "")
            fix = (
                "distmeta.load(source).adapt(X, Y)" if spec.kind == self._kind else f"distmeta.sklearn.{other}(source)"
            )
            wanted = "classes" if self._kind == "classification" else "one number"
            raise ConfigError(f"{self.source} is {what}; expected a learner of {wanted}. Use {fix}.")
        for name, least in (("n_estimators", 1), ("max_rows", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) and value >= least) and not (
                name == "max_rows" and value is None
            ):
                raise ValueError(f"{name}={value!r} is no whole number from {least} on. Give one.")
        return predictor

    def _fitted(self, predictor: Predictor, source: str, X: Array, y: Array, classes: int) -> None:
        """Read the table in each of its orders."""
        if self.max_rows is not None and len(X) > self.max_rows:
            warnings.warn(
                f"X has {len(X):,} rows; each member reads {self.max_rows:,} of them, drawn at random. Give "
                "max_rows=None to read all, at a cost that grows with the square of their number.",
                stacklevel=3,
            )
        random = check_random_state(self.random_state)
        most = len(X) if self.max_rows is None else self.max_rows
        orders = views(self.n_estimators, X, y, classes=classes, max_rows=most, random=random)
        # Rows that no member has are not kept.
        kept, places = np.unique(np.concatenate([view.rows for view in orders]), return_inverse=True)
        rows = np.split(places.reshape(-1), len(orders))
        self._views = [replace(view, rows=own) for view, own in zip(orders, rows, strict=True)]
        self._x, self._y = X[kept], y[kept]
        self.source_, self._params_sha256 = source, predictor.card.get("params_sha256")
        self._members = self._read(predictor)

    def _read(self, predictor: Predictor) -> Members:
        try:
            return Members(predictor, self._x, self._y, self._views, standardise=self.standardise)
        except DataError as error:
            raise ValueError(str(error)) from None

    def _asked(self, X: Any) -> tuple[Members, Array]:
        """The members, and the rows ``[n, F]`` that they are asked about."""
        check_is_fitted(self, "source_")
        X = _numbers(self, X, reset=False)
        if "_members" not in self.__dict__:
            self._members = self._read(loaded_again(self.source_, self._params_sha256))
        return self._members, X


class InContextClassifier(ClassifierMixin, _InContext):  # type: ignore[misc]
    """A trained in-context learner of tables as a classifier of scikit-learn.

    ``fit`` reads the rows, once in each of several orders of the columns and of the classes; ``predict`` asks all
    members about the rows, none of which has an influence on another, and takes the mean of their probabilities. Where
    a table has no more different orders than ``n_estimators``, all are taken, and the answers do not depend on the
    order of columns and classes at all.

    More classes than the learner was trained for: ``sklearn.multiclass.OneVsRestClassifier(InContextClassifier(...))``.
    Missing cells and text: ``SimpleImputer`` and ``OrdinalEncoder`` in a pipeline. A pickle holds the place of the
    learner and the rows, no code and no weights.

    Args:
        source: a run directory, an export, ``runs:/RUN_ID`` or ``models:/NAME@ALIAS``, as :func:`distmeta.load` takes.
        n_estimators: members.
        max_rows: rows that a member reads at most; of a larger table each member reads as many, drawn at random, and
            ``fit`` warns. ``None`` for all.
        standardise: shift and scale each column by mean and standard deviation of the rows that a member reads, in
            double precision. A constant column becomes 0.
        random_state: of the orders and of the rows that are drawn.

    Attributes:
        classes_: the labels ``[N]``, sorted.
        n_features_in_: columns F.
        source_: the place that the learner was loaded from, absolute.

    Example:
        >>> from sklearn.base import clone
        >>> clone(InContextClassifier("runs/tables", n_estimators=8)).get_params()["n_estimators"]
        8
    """

    _kind = "classification"

    def fit(self, X: Any, y: Any) -> InContextClassifier:
        """Read a table.

        Args:
            X: rows ``[n, F]``.
            y: their labels ``[n]``, any values that can be sorted.

        Raises:
            LearnerContractError: there are more classes than the learner has outputs.
            ConfigError: there is no in-context learner of tables with classes at ``source``.
            ValueError: scikit-learn's, for ``X`` and ``y`` that do not fit; the network does not take so many columns.
        """
        source = absolute(self.source)
        predictor = self._learner(source)
        X, y = _numbers(self, X, y)
        check_classification_targets(y)
        classes, coded = np.unique(y, return_inverse=True)
        most = predictor.most_classes
        if most is not None and len(classes) > most:
            raise LearnerContractError(
                f"y has {len(classes)} classes, {listed(map(str, classes.tolist()), 10)}; {self.source} tells at most "
                f"{most} apart. Use sklearn.multiclass.OneVsRestClassifier(InContextClassifier(...)), or meta-train on "
                "tasks of more classes."
            )
        self._fitted(predictor, source, X, coded.reshape(-1), len(classes))
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> Array:
        """The most likely label of each row ``[n]``."""
        places = self.predict_proba(X).argmax(1)
        found: Array = self.classes_[places]
        return found

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``[n, N]``, columns in the order of ``classes_``: the mean over the members."""
        members, X = self._asked(X)
        return members.probabilities(X)


class InContextRegressor(RegressorMixin, _InContext):  # type: ignore[misc]
    """A trained in-context learner of tables as a regressor of scikit-learn.

    ``fit`` reads the rows, once in each of several orders of the columns. The predictive distribution of a row is the
    equal mixture of those of the members; no row has an influence on another. Where a table has no more different
    orders than ``n_estimators``, all are taken, and the answers do not depend on the order of the columns at all.

    Args:
        source: a run directory, an export, ``runs:/RUN_ID`` or ``models:/NAME@ALIAS``, as :func:`distmeta.load` takes.
        n_estimators: members.
        max_rows: rows that a member reads at most; of a larger table each member reads as many, drawn at random, and
            ``fit`` warns. ``None`` for all.
        standardise: shift and scale each column, and the targets, by mean and standard deviation of the rows that a
            member reads, in double precision. A constant column becomes 0.
        random_state: of the orders and of the rows that are drawn.

    Attributes:
        n_features_in_: columns F.
        source_: the place that the learner was loaded from, absolute.

    Example:
        >>> from sklearn.base import clone
        >>> clone(InContextRegressor("runs/curves", max_rows=None)).get_params()["standardise"]
        True
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any) -> InContextRegressor:
        """Read a table.

        Args:
            X: rows ``[n, F]``.
            y: their targets ``[n]``.

        Raises:
            ConfigError: there is no in-context learner of tables with one target at ``source``.
            ValueError: scikit-learn's, for ``X`` and ``y`` that do not fit; the network does not take so many columns.
        """
        source = absolute(self.source)
        predictor = self._learner(source)
        X, y = _numbers(self, X, y, y_numeric=True)
        self._fitted(predictor, source, X, y.astype(np.float64)[:, None], 0)
        return self

    def predict(self, X: Any, *, return_std: bool = False) -> Array | tuple[Array, Array]:
        """The mean of the predictive distribution of each row ``[n]``.

        Args:
            X: rows ``[n, F]``.
            return_std: whether its standard deviation ``[n]`` is returned too.
        """
        means, scales = zip(*((part.mean, part.scale) for part in self._distributions(X)), strict=True)
        mean, scale = (np.concatenate([one.numpy()[:, 0] for one in found]) for found in (means, scales))
        return (mean, scale) if return_std else mean

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> Array:
        """Quantiles of the predictive distribution of each row ``[n, len(quantiles)]``.

        Args:
            X: rows ``[n, F]``.
            quantiles: probabilities, above 0 and below 1.
        """
        if not len(quantiles) or not all(0 < p < 1 for p in quantiles):
            raise ValueError(f"quantiles={list(quantiles)}; expected probabilities above 0 and below 1, such as 0.05.")
        parts = [np.concatenate([part.quantile(p).numpy() for p in quantiles], 1) for part in self._distributions(X)]
        return np.concatenate(parts)

    def _distributions(self, X: Any) -> Iterator[Mixture]:
        members, X = self._asked(X)
        return members.distributions(X)


def _numbers(estimator: Any, X: Any, y: Any = "no_validation", **options: Any) -> Any:
    """Checked by scikit-learn, in float64; what it raises about text has the fix."""
    try:
        return validate_data(estimator, X, y, dtype=np.float64, **options)
    except ValueError as error:
        if _TEXT not in str(error):
            raise
        raise ValueError(
            f"X has text: {error}; expected numbers. Encode it first: make_pipeline(OrdinalEncoder(), "
            f"{type(estimator).__name__}(...)), with make_column_transformer where only some columns are text."
        ) from None


__all__ = ["InContextClassifier", "InContextRegressor"]
