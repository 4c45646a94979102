"""Methods of scikit-learn on each support set: what they see, and what they are not given."""

import importlib.util

import pytest
import torch

from distmeta.errors import ConfigError
from distmeta.tasks import controls
from distmeta.types import Episode

pytest.importorskip("sklearn", reason="scikit-learn is an extra")


def tables(tasks=3, support=20, queries=30, classes=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(tasks, classes, 4, generator=random)
    labels = torch.arange(support + queries).expand(tasks, -1) % classes
    x = centres.gather(1, labels[..., None].expand(-1, -1, 4)) + torch.randn(*labels.shape, 4, generator=random)
    x = x * torch.tensor([1.0, 1000.0, 1e-3, 1.0])  # columns of other scales
    return Episode(x[:, :support], labels[:, :support], x[:, support:], labels[:, support:])


def test_they_are_the_methods_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found, given = controls.scores(tables()), tables()
    for i, (x, y, query, truth) in enumerate(zip(*(part.numpy() for part in given), strict=True)):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        assert found["control_linear_accuracy"][i].item() == pytest.approx(fitted.score(query, truth))
        area = roc_auc_score(truth, fitted.predict_proba(query), multi_class="ovr")
        assert found["control_linear_roc_auc"][i].item() == pytest.approx(area, abs=1e-4)
    assert found["control_forest_accuracy"].mean() > 0.8


def test_padding_changes_nothing():
    given = tables()
    rows, columns = torch.nn.functional.pad, (0, 5)
    padded = Episode(
        rows(given.support_x, (*columns, 0, 6)),
        rows(given.support_y, (0, 6), value=-1),
        rows(given.query_x, (*columns, 0, 2)),
        rows(given.query_y, (0, 2), value=-1),
    )
    padded.query_x[..., 4:] = 7.0  # of columns that the support set lacks
    plain, found = controls.scores(given), controls.scores(padded)
    for name, values in plain.items():
        assert values.equal(found[name]), name


def test_a_query_of_a_class_that_the_support_set_lacks_is_not_scored():
    x = torch.tensor([[[0.0], [1.0], [2.0]]])
    task = Episode(x[:, :2], torch.tensor([[0, 1]]), x, torch.tensor([[0, 1, 2]]))
    assert controls.scores(task)["control_linear_accuracy"].tolist() == [1.0]


def test_one_class_and_empty_columns_are_answered():
    x = torch.zeros(1, 3, 2)
    y = torch.tensor([[1, 1, 1]])
    found = controls.scores(Episode(x, y, x, y))
    assert found["control_linear_accuracy"].tolist() == [1.0]
    assert found["control_forest_roc_auc"].isnan().all()


def test_pictures_are_flattened_and_numbers_are_regressed():
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, 9, 1, 3, 3, generator=random)
    y = x.flatten(2) @ torch.randn(9, 2, generator=random)
    found = controls.scores(Episode(x, y, x, y))
    guess = (y - y.mean(1, keepdim=True)).square().mean((1, 2))
    assert sorted(found) == ["control_forest_mse", "control_linear_mse"]
    assert (found["control_linear_mse"] < guess).all()
    one = controls.scores(Episode(x, y[..., :1], x, y[..., :1]))
    assert one["control_forest_mse"].isfinite().all()


def test_without_scikit_learn_the_fix_is_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name))
    with pytest.raises(ConfigError, match=r"pip install 'distmeta\[sklearn\]'"):
        controls.require_sklearn()
