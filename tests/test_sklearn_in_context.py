"""In-context learners of tables in scikit-learn: its acceptance suite, what may influence what, hard tables."""

import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.errors import CheckpointMismatch, ConfigError, LearnerContractError

sklearn = pytest.importorskip("sklearn", reason="needs the extra distmeta[sklearn]")

from sklearn.base import clone  # noqa: E402
from sklearn.compose import make_column_transformer  # noqa: E402
from sklearn.datasets import load_digits, load_wine  # noqa: E402
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.model_selection import cross_val_score  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OrdinalEncoder  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from distmeta.sklearn import InContextClassifier, InContextRegressor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# Set models that take any number of columns: distances, and a ridge regression, each with a few learned numbers. The
# feature of place f has a weight of its own, so that the order of columns has a meaning.
MODELS = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
import distmeta


def ordered(x):
    return x * (1 + 0.1 * torch.arange(x.shape[-1], dtype=x.dtype).cos())


class Near(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.sharpness, self.classes = nn.Parameter(torch.ones(())), classes
        self.bias = nn.Parameter(0.3 * torch.arange(float(classes)))

    def encode_support(self, x, y):
        return {"x": ordered(x), "y": F.one_hot(y.clamp_min(0), self.classes) * (y >= 0)[..., None].to(x)}

    def decode_queries(self, encoded, query_x):
        far = torch.cdist(ordered(query_x), encoded["x"], compute_mode="donot_use_mm_for_euclid_dist")
        far = far / query_x.shape[-1] ** 0.5
        near = (-4 * self.sharpness * far + torch.log(encoded["y"].sum(-1))[:, None]).softmax(-1)
        return (near @ encoded["y"] + 1e-6).log() + 0.1 * self.bias

    def forward(self, support_x, support_y, query_x):
        return self.decode_queries(self.encode_support(support_x, support_y), query_x)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.ridge, self.noise = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, support_x, support_y, query_x):
        support_x, query_x = ordered(support_x), ordered(query_x)
        a = support_x.mT @ support_x + self.ridge.exp() * torch.eye(support_x.shape[-1], dtype=support_x.dtype)
        mean = query_x @ torch.linalg.solve(a, support_x.mT @ support_y)
        return torch.cat([mean, self.noise + 0.1 * query_x.norm(dim=-1, keepdim=True)], -1)
"""
TASKS = {
    "classes": """
@distmeta.task_distribution
def tasks(random, split):
    centres = 3 * random.normal(size=(5, 4))
    y = np.arange(40) % 5
    x = centres[y] + random.normal(size=(40, 4))
    return x[:20], y[:20], x[20:], y[20:]

learner = distmeta.InContext(lambda spec: Near(spec.outputs), standardise="inputs")
""",
    "numbers": """
@distmeta.task_distribution
def tasks(random, split):
    x = random.normal(size=(40, 3))
    y = x @ random.normal(size=(3, 1)) + 0.1 * random.normal(size=(40, 1))
    return x[:20], y[:20], x[20:], y[20:]

learner = distmeta.InContext(Line())
""",
}
END = """
experiment = distmeta.Experiment(
    learner=learner,
    tasks=tasks,
    outer=distmeta.Outer(iterations=10, meta_batch_size=4, lr=1e-2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=10),
)
"""


TRANSFORMER = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.InContext(distmeta.table_transformer(width=16, heads=2, layers=2), standardise="inputs"),
    tasks=distmeta.Tables(features=(2, 4)),
    outer=distmeta.Outer(iterations=2, meta_batch_size=4, lr=1e-2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


def trained(folder: Path, kind: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        (folder / "job.py").write_text(TRANSFORMER if kind == "transformer" else MODELS + TASKS[kind] + END)
        distmeta.meta_train(distmeta.load_job(folder / "job.py"), run_dir=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("classes"), "classes")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("numbers"), "numbers")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Path:
    """Of the model that this is for, after two steps."""
    return trained(tmp_path_factory.mktemp("transformer"), "transformer")


def table(rows=60, columns=4, classes=3, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    x = 3 * random.normal(size=(classes, columns))[y] + random.normal(size=(rows, columns))
    return x, y


def line(rows=60, columns=3, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, columns))
    return x, 50 + 7 * x @ random.normal(size=columns) + 0.5 * random.normal(size=rows)


@pytest.mark.parametrize("kind", [InContextClassifier, InContextRegressor])
def test_scikit_learns_own_checks(kind, classes, numbers):
    """None is expected to fail; one is skipped by scikit-learn itself, where array API is not switched on."""
    source = classes if kind is InContextClassifier else numbers
    found = check_estimator(kind(str(source)), expected_failed_checks={}, on_skip=None)
    status = {}
    for check in found:
        status.setdefault(check["status"], []).append(check["check_name"])
    assert set(status) <= {"passed", "skipped"}
    assert set(status.get("skipped", [])) <= {"check_array_api_input"}
    assert len(status["passed"]) > 40


# -- what has an influence on what -------------------------------------------------------------------------------------


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_order_of_support_rows_has_no_influence(classes, numbers):
    order = np.random.default_rng(1).permutation(60)
    x, y = table()
    close(*(InContextClassifier(classes).fit(x[p], y[p]).predict_proba(x) for p in (slice(None), order)))
    x, y = line()
    close(*(InContextRegressor(numbers).fit(x[p], y[p]).predict(x) for p in (slice(None), order)))


def test_features_and_classes_in_another_order_give_the_same_where_all_orders_are_members(classes, numbers):
    """3 columns and 2 classes: 12 orders. One member alone does depend on the order, or this would show nothing."""
    x, y = table(columns=3, classes=2)
    random = np.random.default_rng(1)
    x = x + 3 * random.normal(size=x.shape)
    for permuted, labels, columns in ((x[:, [2, 0, 1]], y, slice(None)), (x, 1 - y, slice(None, None, -1))):
        one, other = (
            [InContextClassifier(classes, n_estimators=n).fit(*at).predict_proba(at[0]) for n in (1, 12)]
            for at in ((x, y), (permuted, labels))
        )
        assert np.abs(one[0] - other[0][:, columns]).max() > 1e-3
        close(one[1], other[1][:, columns])
    x, y = line()
    one, other = (
        [InContextRegressor(numbers, n_estimators=n).fit(at, y).predict_quantiles(at) for n in (1, 6)]
        for at in (x, x[:, [2, 0, 1]])
    )
    assert np.abs(one[0] - other[0]).max() > 1e-3
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5)


def test_more_members_than_orders_are_the_orders(classes):
    x, y = table(columns=1, classes=2)
    two, many = (InContextClassifier(classes, n_estimators=n).fit(x, y).predict_proba(x) for n in (2, 50))
    close(two, many)


def test_a_query_has_no_influence_on_another(classes, numbers):
    """Together, alone, and beside rows that are far out: the statistics are those of the support rows."""
    for estimator, (x, y), ask in (
        (InContextClassifier(classes), table(), "predict_proba"),
        (InContextRegressor(numbers), line(), "predict_quantiles"),
    ):
        predict = getattr(estimator.fit(x[:40], y[:40]), ask)
        together = predict(x[40:])
        np.testing.assert_allclose(
            np.concatenate([predict(row[None]) for row in x[40:]]), together, rtol=1e-5, atol=1e-5
        )
        beside = predict(np.concatenate([1e6 * x[:40], x[40:]]))[40:]
        np.testing.assert_allclose(beside, together, rtol=1e-5, atol=1e-5)


def test_a_table_transformer_is_free_of_orders_padding_and_the_company_of_queries(transformer):
    """One member is enough: nothing in the network depends on the order of columns or rows."""
    x, y = table(columns=6)
    random = np.random.default_rng(1)
    rows, columns = random.permutation(40), random.permutation(6)

    def predicted(support, labels, queries):
        return InContextClassifier(transformer, n_estimators=1).fit(support, labels).predict_proba(queries)

    expected = predicted(x[:40], y[:40], x[40:])
    assert np.ptp(expected, axis=0).max() > 1e-3  # no constant, or all that follows would show nothing
    close(predicted(x[:40][rows], y[:40][rows], x[40:]), expected)
    close(predicted(x[:40, columns], y[:40], x[40:, columns]), expected)
    padded = np.pad(x, ((0, 0), (0, 3)))
    close(predicted(padded[:40], y[:40], padded[40:]), expected)
    close(np.concatenate([predicted(x[:40], y[:40], row[None]) for row in x[40:]]), expected)


def test_columns_of_another_unit_and_a_constant_one_change_nothing(classes, numbers):
    """Units whose squares no double holds too, and an offset that single precision would swallow."""
    x, y = table()
    expected = InContextClassifier(classes, n_estimators=1).fit(x, y).predict_proba(x)
    units = np.array([1e-200, 1e200, 1.0, 1e5])
    close(InContextClassifier(classes, n_estimators=1).fit(x * units, y).predict_proba(x * units), expected)
    shifted = np.round(x * 2**20) / 2**20 + np.array([0.0, 2**30, 0.0, 0.0])
    close(InContextClassifier(classes, n_estimators=1).fit(shifted, y).predict_proba(shifted), expected)
    x, y = line()
    expected = InContextRegressor(numbers, n_estimators=1).fit(x, y).predict(x)
    constant = np.column_stack([x, np.full(60, 0.1)])
    fitted = InContextRegressor(numbers, n_estimators=1).fit(constant, y)
    np.testing.assert_allclose(fitted.predict(constant), expected, rtol=1e-5)
    constant[:, 3] = 7.0  # a value that the support set has no scale for
    np.testing.assert_allclose(fitted.predict(constant), expected, rtol=1e-5)
    constant[0, 0] = 1.7e308
    assert np.isfinite(fitted.predict(constant)).all()


def test_a_fixed_network_whose_tasks_were_padded_takes_narrower_tables_and_no_wider(classes, monkeypatch):
    """Columns of zeros behind the table are what the training had."""
    from distmeta.sklearn.source import loaded

    predictor = loaded(str(classes))
    x, y = table(columns=3)
    expected = (
        InContextClassifier(classes, n_estimators=1)
        .fit(np.column_stack([x, np.ones(60)]), y)
        .predict_proba(np.column_stack([x, np.ones(60)]))
    )
    monkeypatch.setattr(predictor, "_takes", lambda count: False)
    with pytest.raises(ValueError, match=r"The rows have 3 numbers; Predictor.* takes 4. Choose as many columns"):
        InContextClassifier(classes).fit(x, y)
    monkeypatch.setattr(predictor, "spec", distmeta.TaskSpec((4,), 5, "classification", 20, 20, padded=True))
    close(InContextClassifier(classes, n_estimators=1).fit(x, y).predict_proba(x), expected)
    with pytest.raises(ValueError, match="The rows have 5 numbers"):
        InContextClassifier(classes).fit(np.zeros((4, 5)), [0, 1, 0, 1])


# -- answers -----------------------------------------------------------------------------------------------------------


def test_one_member_gives_what_the_learner_gives(classes, numbers):
    x, y = table(columns=7)
    fast = distmeta.load(classes).adapt(x, y)
    close(
        InContextClassifier(classes, n_estimators=1, standardise=False).fit(x, y).predict_proba(x),
        fast.predict_proba(x),
    )
    x, y = line(columns=5)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    fast = distmeta.load(numbers).adapt(x, y[:, None])
    found = InContextRegressor(numbers, n_estimators=1).fit(x, y)
    mean, scale = found.predict(x, return_std=True)
    given = fast.predict_distribution(x)
    close(mean, given.mean[:, 0])
    close(scale, given.scale[:, 0])
    close(found.predict_quantiles(x, [0.05, 0.95]), np.concatenate(fast.predict_interval(x), 1))


def test_probabilities_are_the_mean_over_members_and_intervals_hold_what_they_claim(classes, numbers):
    x, y = table()
    found = InContextClassifier(classes, n_estimators=5).fit(x, y)
    proba = found.predict_proba(x)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-12)
    assert found.score(x, y) > 0.9
    x, y = line(400)
    found = InContextRegressor(numbers).fit(x[:50], y[:50])
    low, middle, high = found.predict_quantiles(x).T
    assert (low < middle).all()
    assert (middle < high).all()
    assert found.score(x[50:], y[50:]) > 0.9
    with pytest.raises(ValueError, match=r"quantiles=\[0.5, 1\]; expected probabilities above 0 and below 1"):
        found.predict_quantiles(x, [0.5, 1])


def test_the_same_seed_gives_the_same_members_and_another_gives_others(classes):
    x, y = table(columns=6)
    a, b, c = (InContextClassifier(classes, random_state=n).fit(x, y).predict_proba(x) for n in (3, 3, 4))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_five_folds_of_wine_a_pickle_and_another_run_at_its_place(classes, numbers, tmp_path):
    x, y = load_wine(return_X_y=True)
    names = np.array(["barolo", "grignolino", "barbera"], object)[y]
    assert cross_val_score(InContextClassifier(classes), x, names, cv=5).mean() > 0.9
    distmeta.export(classes, tmp_path / "e")
    found = InContextClassifier(tmp_path / "e").fit(x, names)
    content = pickle.dumps(found)
    assert b"Near" not in content
    assert np.array_equal(pickle.loads(content).predict_proba(x), found.predict_proba(x))
    assert not hasattr(clone(found), "classes_")
    (tmp_path / "e").rename(tmp_path / "old")
    distmeta.export(numbers, tmp_path / "e")
    with pytest.raises(CheckpointMismatch, match="has other parameters than when fit was called"):
        pickle.loads(content).predict(x)


def test_columns_of_a_data_frame_have_their_names(classes):
    pandas = pytest.importorskip("pandas")
    x, y = table()
    frame = pandas.DataFrame(x, columns=list("abcd"))
    found = InContextClassifier(classes).fit(frame, pandas.Series(y).map({0: "u", 1: "v", 2: "w"}))
    assert found.feature_names_in_.tolist() == list("abcd")
    assert set(found.predict(frame)) <= {"u", "v", "w"}
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(frame[list("dcba")])


# -- hard tables -------------------------------------------------------------------------------------------------------


def test_one_row_one_class_one_column(classes, numbers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = InContextClassifier(classes).fit([[1.0, 2.0]], ["only"])
        assert one.predict([[5.0, 6.0], [1.0, 2.0]]).tolist() == ["only", "only"]
        close(one.predict_proba([[5.0, 6.0]]), [[1.0]])
        x = np.random.default_rng(0).normal(size=(9, 1))
        assert set(InContextClassifier(classes).fit(x, [4] * 9).predict(x)) == {4}
        single = InContextRegressor(numbers).fit([[1.0]], [50.0])
        assert single.predict([[1.0]]) == pytest.approx([50.0])
        constant = InContextRegressor(numbers).fit(x, np.full(9, 1e6))
        assert constant.predict(x) == pytest.approx(np.full(9, 1e6))


def test_missing_cells_and_text_are_refused_with_the_fix_which_works(classes):
    x, y = table()
    missing = x.copy()
    missing[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        InContextClassifier(classes).fit(missing, y)
    assert make_pipeline(SimpleImputer(), InContextClassifier(classes)).fit(missing, y).score(missing, y) > 0.9
    text = np.column_stack([x.astype(object), np.where(y > 0, "red", "blue")])
    with pytest.raises(ValueError, match=r"X has text.*'blue'.*make_pipeline\(OrdinalEncoder\(\), InContextClassifier"):
        InContextClassifier(classes).fit(text, y)
    encoded = make_column_transformer((OrdinalEncoder(), [4]), remainder="passthrough")
    assert make_pipeline(encoded, InContextClassifier(classes)).fit(text, y).score(text, y) > 0.9


def test_more_classes_than_outputs_are_refused_with_the_fix_which_works(classes):
    x, y = load_digits(return_X_y=True)
    x, y = x[:300], y[:300]
    with pytest.raises(LearnerContractError, match=r"y has 10 classes, 0, 1, .* at most 5 apart. Use .*OneVsRestClass"):
        InContextClassifier(classes).fit(x, y)
    found = OneVsRestClassifier(InContextClassifier(classes, n_estimators=1)).fit(x[:200], y[:200])
    assert found.score(x[200:], y[200:]) > 0.7


def test_a_hundred_thousand_rows_are_read_in_part_with_a_warning(classes, numbers):
    """Every class is read, the rare one too; a pickle holds the rows that are read."""
    random = np.random.default_rng(0)
    y = (random.random(100_000) < 0.5).astype(int)
    y[77] = 2
    x = 4 * np.eye(3)[y] + random.normal(size=(100_000, 3))
    estimator = InContextClassifier(classes, max_rows=100)
    with pytest.warns(UserWarning, match="X has 100,000 rows; each member reads 100 of them"):
        estimator.fit(x, y)
    assert estimator.classes_.tolist() == [0, 1, 2]
    assert estimator.score(x, y) > 0.95
    assert len(pickle.dumps(estimator)) < 100_000
    few, labels = table(30)
    read = InContextClassifier(classes, max_rows=None).fit(few, labels)
    close(read.predict_proba(few), InContextClassifier(classes, max_rows=30).fit(few, labels).predict_proba(few))
    with pytest.warns(UserWarning, match="reads 1,000 of them"):
        assert InContextRegressor(numbers).fit(x, x[:, 0]).score(x, x[:, 0]) > 0.9


def test_what_is_no_such_learner_is_refused_with_the_one_that_is(classes, numbers, tmp_path):
    from helpers import SINES

    x, y = table()
    with pytest.raises(ConfigError, match=r"InContext for regression of 1 targets; .*InContextRegressor\(source\)"):
        InContextClassifier(numbers).fit(x, y)
    with pytest.raises(ConfigError, match=r"InContext for classification; .*InContextClassifier\(source\)"):
        InContextRegressor(classes).fit(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        (tmp_path / "job.py").write_text(SINES)
        distmeta.meta_train(distmeta.load_job(tmp_path / "job.py"), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"MAML of inputs .* expected an InContext learner of tables"):
        InContextRegressor(tmp_path / "run").fit(x, y)
    with pytest.raises(ConfigError, match="There is no folder"):
        InContextClassifier(tmp_path / "nix").fit(x, y)
    for settings in ({"n_estimators": 0}, {"max_rows": 0}, {"max_rows": 1.5}):
        with pytest.raises(ValueError, match="is no whole number from 1 on"):
            InContextClassifier(classes, **settings).fit(x, y)
