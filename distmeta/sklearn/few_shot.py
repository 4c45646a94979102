"""Any trained learner that classifies by a support set, of rows or of pictures, as a classifier of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from distmeta.errors import ConfigError, LearnerContractError, listed
from distmeta.learners.fast_model import FastModel
from distmeta.serving.predictor import Predictor
from distmeta.sklearn.source import absolute, loaded, loaded_again

Array = npt.NDArray[Any]


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """A trained learner with the face of scikit-learn.

    It works in ``Pipeline``, ``GridSearchCV``, ``cross_val_score`` and with ``clone``, ``pickle`` and ``joblib``. A
    pickle holds the place of the learner and the examples, no code and no weights: the learner is loaded again, once in
    a process, from the same place.

    Inputs of a learner of pictures are paths, bytes of files or PIL images in a list or an array; or pixels
    ``[n, H, W]``, ``[n, C, H, W]``, ``[n, H, W, C]`` or flattened rows ``[n, C * H * W]``, uint8 or floats 0 to 1.
    Those of a learner of vectors are rows of numbers ``[n, D]``.

    Args:
        source: a run directory, an export, ``runs:/RUN_ID`` or ``models:/NAME@ALIAS``, as :func:`distmeta.load` takes.
        pad_features: fill rows up with zeros where they have fewer numbers than the learner takes. This is of use only
            for a learner whose training had such rows.
        standardise: shift and scale each column by mean and standard deviation of the support set, as ``fit`` sees it.
            Give it where the training's tasks were standardised so.

    Attributes:
        classes_: the labels ``[N]``, sorted.
        n_features_in_: numbers per row, where ``fit`` was given rows.
        source_: the place that the learner was loaded from, absolute.

    Example:
        >>> from sklearn.base import clone
        >>> clone(FewShotClassifier("runs/protonet", standardise=True)).get_params()
        {'pad_features': False, 'source': 'runs/protonet', 'standardise': True}
    """

    def __init__(self, source: Path | str, *, pad_features: bool = False, standardise: bool = False) -> None:
        self.source = source
        self.pad_features = pad_features
        self.standardise = standardise

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Learn a task.

        Args:
            X: the support set, S examples.
            y: their labels ``[S]``, any values that can be sorted.

        Raises:
            LearnerContractError: there are more classes than the learner has outputs.
            ConfigError: there is no learner, or none of classes, at ``source``.
            ValueError: scikit-learn's, for ``X`` and ``y`` that do not fit.
        """
        source = absolute(self.source)
        predictor = loaded(source)
        if predictor.spec.kind != "classification" or predictor.learner.model_kind == "sequence":
            raise ConfigError(
                f"{self.source} is a {type(predictor.learner).__name__} for {predictor.spec.kind}; expected a learner "
                "that classifies by a support set. Use distmeta.load(source)."
            )
        if _rows(predictor):
            X, y = validate_data(self, X, y, dtype=np.float64)
        else:
            X, y = self._examples(predictor, X, reset=True), column_or_1d(np.asarray(y), warn=True)
            if len(X) != len(y) or not len(y):
                raise ValueError(f"Found {len(X)} pictures and {len(y)} labels; expected as many, and one at least.")
        check_classification_targets(y)
        classes, coded = np.unique(y, return_inverse=True)
        most = predictor.most_classes
        if most is not None and len(classes) > most:
            name = type(predictor.learner).__name__
            raise LearnerContractError(
                f"y has {len(classes)} classes, {listed(map(str, classes.tolist()), 10)}; {self.source} ({name}) tells "
                f"at most {most} apart. Leave classes out, meta-train with tasks.ways={len(classes)}, or use a "
                "metric learner such as ProtoNet, which takes any number."
            )
        if _rows(predictor):
            spread = X.std(0) if self.standardise else np.ones(X.shape[1])
            self._shift = X.mean(0) if self.standardise else np.zeros(X.shape[1])
            self._scale = np.where(spread > 0, spread, 1.0)
        self.source_, self.classes_ = source, classes
        self._support_x = self._prepared(predictor, X).numpy()
        self._support_y = coded.reshape(-1)
        self._params_sha256 = predictor.card.get("params_sha256")
        self._fast = self._adapted(predictor)
        return self

    def predict(self, X: Any) -> Array:
        """The most likely label of each input ``[n]``."""
        places = self._logits(X).argmax(1).numpy()
        found: Array = self.classes_[places]
        return found

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``[n, N]``, columns in the order of ``classes_``."""
        found: Array = self._logits(X).softmax(1).numpy()
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_fast", None)  # made again where it is needed: it has the learner's model, whose code is a job file
        return state

    def _logits(self, X: Any) -> torch.Tensor:
        """Logits ``[n, N]`` float64."""
        check_is_fitted(self, "classes_")
        if "_fast" in self.__dict__:
            predictor = loaded(self.source_)
        else:
            predictor = loaded_again(self.source_, self._params_sha256)
            self._fast = self._adapted(predictor)
        if _rows(predictor):
            X = validate_data(self, X, dtype=np.float64, reset=False)
        else:
            X = self._examples(predictor, X, reset=False)
        return self._fast.logits(self._prepared(predictor, X)).double()

    def _adapted(self, predictor: Predictor) -> FastModel:
        support = torch.from_numpy(self._support_x.copy())
        return predictor.learner.adapt(support, torch.from_numpy(self._support_y.copy()), params=predictor.params)

    def _prepared(self, predictor: Predictor, X: Any) -> torch.Tensor:
        """Inputs as the learner takes them."""
        if not _rows(predictor):
            return predictor.inputs(X)
        (takes,) = predictor.input_shape
        has = X.shape[1]
        if has > takes or (has < takes and not self.pad_features):
            fix = "Choose as many columns" if has > takes else "Give pad_features=True if it was trained on such rows"
            raise ValueError(f"X has {has} features; {self.source} takes rows of {takes} numbers. {fix}.")
        rows = np.zeros((len(X), takes))
        rows[:, :has] = (X - self._shift) / self._scale
        return predictor.inputs(rows)

    def _examples(self, predictor: Predictor, X: Any, *, reset: bool) -> Sequence[Any] | Array:
        """Pictures in a form that the learner's preprocessing takes."""
        if isinstance(X, str | bytes | Path):
            raise ValueError(f"X is one {type(X).__name__}; expected a list of pictures, such as [{str(X)[:40]!r}].")
        if not isinstance(X, np.ndarray | torch.Tensor):
            X = list(X) if isinstance(X, list | tuple) else np.asarray(X)
        if isinstance(X, list) and X and np.ndim(X[0]) > 0 and not hasattr(X[0], "getbands"):
            X = np.stack([np.asarray(one) for one in X]) if len({np.shape(one) for one in X}) == 1 else X
        if isinstance(X, np.ndarray) and X.dtype.kind in "OUS":
            return list(X.reshape(-1).tolist())
        if isinstance(X, np.ndarray | torch.Tensor) and X.ndim == 2:
            shape = predictor.preprocessing.input_shape
            if X.shape[1] != np.prod(shape):
                raise ValueError(
                    f"X has {X.shape[1]} features; {self.source} takes pictures {list(shape)}, flattened rows of "
                    f"{np.prod(shape)} numbers."
                )
            if reset:
                self.n_features_in_ = X.shape[1]
            return np.asarray(X).reshape(-1, *shape)
        found: Sequence[Any] | Array = X
        return found


def _rows(predictor: Predictor) -> bool:
    """Return whether inputs are rows of numbers."""
    return len(predictor.preprocessing.input_shape) == 1


__all__ = ["FewShotClassifier"]
