"""Methods of scikit-learn on the support set of each task: what people would do without meta-training.

Only this module of the room imports scikit-learn (``pip install 'distmeta[sklearn]'``), and only where it is asked for.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.errors import ConfigError
from distmeta.tasks.baselines import unpadded
from distmeta.types import Episode, Metrics
from distmeta.uncertainty import roc_auc

NAMES = ("linear", "forest")
"""The methods: logistic or ridge regression, and a random forest."""

_Array = npt.NDArray[np.float64]


def require_sklearn() -> None:
    """Raise where scikit-learn is absent.

    Raises:
        ConfigError: it is.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "--controls: scikit-learn is not installed; expected 1.6 or later, for logistic regression and random "
            "forests. Use pip install 'distmeta[sklearn]'."
        )


def scores(episodes: Episode) -> Metrics:
    """Numbers ``[T]`` of a linear method and of a random forest, fitted to each task's support set alone.

    Classification: logistic regression and a forest of 100 trees, by ``control_NAME_accuracy`` and
    ``control_NAME_roc_auc``; a query whose class the support set lacks is not scored. Regression: ridge regression and
    a forest, by ``control_NAME_mse``. All have scikit-learn's own settings. Columns of a table are shifted and
    scaled by the support set; pixels are taken as they are. Padding is left out: rows of the label -1, and columns that
    are 0 in the whole support set.

    Args:
        episodes: T stacked tasks; inputs of any shape are flattened.

    Example:
        >>> x = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
        >>> found = scores(Episode(x, torch.tensor([[0, 1]]), x, torch.tensor([[0, 1]])))
        >>> found["control_linear_accuracy"].tolist(), found["control_forest_roc_auc"].tolist()
        ([1.0], [1.0])
    """
    scale, numbers = episodes.support_x.dim() == 3, episodes.query_y.is_floating_point()
    rows = []
    for i in range(len(episodes.query_x)):
        task = episodes.map(lambda part, i=i: part[i : i + 1]) if numbers else unpadded(episodes, i)  # type: ignore[misc]
        support_x, query_x = (part[0].detach().cpu().double().flatten(1) for part in (task.support_x, task.query_x))
        used = (support_x != 0).any(0)
        used[0] |= ~used.any()  # a method needs a column
        x, asked = support_x[:, used].numpy(), query_x[:, used].numpy()
        targets = task.support_y[0].detach().cpu(), task.query_y[0].detach().cpu()
        rows.append(_regression(x, asked, *targets, scale) if numbers else _classification(x, asked, *targets, scale))
    dtype = episodes.query_x.dtype
    return {f"control_{name}": torch.tensor([row[name] for row in rows], dtype=dtype) for name in rows[0]}


def _classification(x: _Array, asked: _Array, y: torch.Tensor, truth: torch.Tensor, scale: bool) -> dict[str, float]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    methods = {"linear": LogisticRegression(max_iter=1000), "forest": RandomForestClassifier(random_state=0)}
    classes = int(torch.cat([y, truth]).max()) + 1
    scored = torch.isin(truth, y)
    found = {}
    for name, method in methods.items():
        if bool((y == y[0]).all()):  # nothing to tell apart
            p = torch.nn.functional.one_hot(y[:1], classes).double().expand(len(truth), -1)
        else:
            fitted = _fitted(method, x, y.numpy(), scale)
            p = torch.zeros(len(truth), classes, dtype=torch.float64)
            p[:, torch.as_tensor(fitted.classes_)] = torch.from_numpy(fitted.predict_proba(asked)).double()
        right = (p.argmax(-1) == truth) & scored
        found[f"{name}_accuracy"] = float(right.sum() / scored.sum().clamp_min(1))
        found[f"{name}_roc_auc"] = float(roc_auc(p[None], truth[None], scored[None]))
    return found


def _regression(x: _Array, asked: _Array, y: torch.Tensor, truth: torch.Tensor, scale: bool) -> dict[str, float]:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import Ridge

    found = {}
    targets = y.double().numpy()
    for name, method in {"linear": Ridge(), "forest": RandomForestRegressor(random_state=0)}.items():
        # A forest is given one target as a vector.
        fitted = _fitted(method, x, targets[:, 0] if targets.shape[1] == 1 else targets, scale)
        prediction = torch.from_numpy(fitted.predict(asked)).reshape(truth.shape)
        found[f"{name}_mse"] = float((prediction - truth.double()).square().mean())
    return found


def _fitted(method: Any, x: _Array, y: npt.NDArray[Any], scale: bool) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few examples can be separable: the fit has no end
        return (make_pipeline(StandardScaler(), method) if scale else method).fit(x, y)
