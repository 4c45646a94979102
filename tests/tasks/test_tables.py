"""Random tables, and scikit-learn's own as test tasks."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta import MAML, InContext, Tables, mlp, table_transformer
from distmeta.errors import ConfigError, LearnerContractError, TaskContractError
from distmeta.learners.probe import require_equal_ways
from distmeta.seeding import rng
from distmeta.tasks import tables
from distmeta.tasks.table_sets import SETS, TableSets
from distmeta.types import SPLITS, TaskRef

TRAIN = [TaskRef("meta_train", 3, i) for i in range(200)]


def digest(episode):
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in episode)).hexdigest()


def test_the_default_is_the_prior_of_the_card():
    tasks = Tables()
    tasks.check()
    seen = set()
    for step in range(80):
        episode = tasks.episodes([TaskRef("meta_train", step, i) for i in range(2)], 0)
        assert episode.support_x.shape[1] + episode.query_x.shape[1] == 50
        assert episode.support_x.shape[2] == 3
        seen.add((episode.support_x.shape[1], episode.outputs))
    supports, classes = {s for s, _ in seen}, {n for _, n in seen}
    assert min(supports) >= 10
    assert max(supports) <= 47
    assert len(supports) > 25
    assert classes == {2, 3}
    spec, test = tasks.spec_of("meta_train"), tasks.spec
    assert (spec.input_shape, spec.outputs, spec.fewest, spec.support) == ((3,), 3, 2, 47)
    assert (test.outputs, test.support, test.queries, test.padded) == (3, 28, 22, False)


@pytest.mark.parametrize("prior", ["mlp", "scm"])
@given(
    rows=st.integers(6, 60),
    features=st.integers(1, 40),
    support=st.floats(0, 1),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_every_class_of_a_table_is_in_its_support_set(prior, rows, features, support, classes, seed):
    classes = min(classes, rows - 1)
    size = classes + int(support * (rows - 1 - classes))
    tasks = Tables(prior=prior, rows=rows, features=features, support=size, classes=classes)
    episode = tasks.episode(TaskRef("meta_train", 0, seed), seed)  # raises for NaN, labels out of range, wrong shapes
    assert episode.support_y.unique().tolist() == list(range(classes))
    assert episode.support_x.shape == (size, features)
    assert episode.query_x.shape == (rows - size, features)
    assert len(torch.cat([episode.support_x, episode.query_x]).unique(dim=0)) == rows  # no row twice, none lost


def test_a_split_that_has_every_class_is_left_as_it_is():
    labels = np.array([0, 1, 1, 2, 0, 0, 2])
    assert tables.every_class_first(labels, 4).tolist() == list(range(7))
    order = tables.every_class_first(labels, 3)
    assert sorted(order.tolist()) == list(range(7))
    assert order.tolist() == [0, 1, 3, 2, 4, 5, 6]  # one of the two rows of class 1 gives way to the first of class 2


@given(st.lists(st.integers(0, 5), min_size=6, max_size=30))
def test_the_first_row_of_a_class_that_is_absent_takes_the_place_of_a_spare_one(labels):
    labels = np.array(labels)
    support = len(labels) // 2 + 3
    order = np.arange(len(labels))  # the plain definition, with sets
    for label in np.setdiff1d(labels, labels[:support]):
        inside = labels[order[:support]].tolist()
        into = max(i for i, one in enumerate(inside) if inside.count(one) > 1)
        out = support + labels[order[support:]].tolist().index(label)
        order[[into, out]] = order[[out, into]]
    assert tables.every_class_first(labels, support).tolist() == order.tolist()


def test_inputs_are_standard_normal_and_labels_have_no_order():
    episodes = Tables(classes=3, support=25).episodes(TRAIN, 0)
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    y = torch.cat([episodes.support_y, episodes.query_y], 1)
    assert x.mean().abs() < 0.02
    assert (x.var() - 1).abs() < 0.03
    # The cut of the upper class leaves 15 % to 85 % of the rows; numbers of classes are permuted, so all are alike.
    counts = torch.stack([(y == c).sum(1) for c in range(3)]).double()
    assert (counts.mean(1) / 50 - 1 / 3).abs().max() < 0.05
    assert counts.min() >= 1
    assert counts.max() <= 50 - 7 - 1


@pytest.mark.parametrize(("classes", "rows"), [(2, 50), (3, 50), (10, 50), (5, 6)])
def test_cuts_are_quantiles_between_15_and_85_percent_and_no_class_is_empty(classes, rows):
    for seed in range(200):
        y = np.random.default_rng(seed).normal(size=rows)
        labels = tables._classes(rng(seed, "cuts"), y, classes)
        in_order = labels[y.argsort()]
        changes = np.flatnonzero(np.diff(in_order)) + 1
        assert len(changes) == classes - 1  # each class is one interval of y
        assert len(set(labels)) == classes
        if classes <= 3:
            assert changes.min() >= int(0.15 * rows)
            assert changes.max() <= int(0.85 * rows) + 1


def test_the_target_depends_on_the_features_more_than_on_noise():
    """Ridge on 47 rows explains a good part of a linear table, so features and target are paired rightly."""
    tasks = Tables(target="number", support=47)
    explained = []
    for episode in (tasks.episode(ref, 0) for ref in TRAIN):
        x = torch.cat([episode.support_x, episode.query_x]).double()
        y = torch.cat([episode.support_y, episode.query_y]).double()
        assert y.mean().abs() < 1e-6
        assert (y.var(correction=0) - 1).abs() < 1e-5
        left = y - x @ torch.linalg.lstsq(x, y).solution
        explained.append(1 - float(left.square().mean()))
    assert np.mean(explained) > 0.5  # shuffled targets give 3 / 50
    assert min(explained) < 0.3  # and some tables are no lines


def test_causes_make_columns_that_depend_on_each_other():
    def correlation(prior):
        episodes = Tables(prior=prior, features=6).episodes(TRAIN, 0)
        x = torch.cat([episodes.support_x, episodes.query_x], 1)
        found = torch.stack([torch.corrcoef(one.T) for one in x]).nan_to_num()
        return float(found[:, ~torch.eye(6, dtype=torch.bool)].abs().mean())

    assert correlation("mlp") < 0.15  # that of 50 independent pairs is 0.11
    assert correlation("scm") > 0.25


@pytest.mark.parametrize("prior", ["mlp", "scm"])
def test_a_table_is_a_function_of_its_ref_in_any_process(prior):
    tasks = Tables(prior=prior)
    refs = TRAIN[:20]
    alone = [digest(tasks.episode(ref, 7)) for ref in reversed(refs)][::-1]
    stacked = tasks.episodes(refs, 7)
    assert alone == [digest(stacked.map(lambda part, i=i: part[i])) for i in range(20)]
    assert len(set(alone)) == 20
    assert alone[0] != digest(tasks.episode(refs[0], 8))
    code = (
        "import hashlib, numpy, torch; numpy.random.seed(3); torch.manual_seed(5)\n"
        "from distmeta import Tables; from distmeta.types import TaskRef\n"
        f"episode = Tables(prior={prior!r}).episode(TaskRef('meta_train', 3, 0), 7)\n"
        "print(hashlib.sha256(b''.join(part.numpy().tobytes() for part in episode)).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.split() == [alone[0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": 47}, r"support=\(10, 47\) leaves no query of rows=47; expected fewer. Set support=46"),
        ({"rows": (40, 60), "support": (5, 40)}, "leaves no query"),
        ({"classes": 1}, "expected 2 classes or more"),
        ({"classes": (2, 12)}, r"classes=\(2, 12\) with support=\(10, 47\)"),
        ({"features": (5, 2)}, "a lower and an upper bound"),
        ({"prior": "gp"}, "'mlp' or 'scm'"),
        ({"rws": 5}, "Did you mean 'rows'"),
    ],
)
def test_settings_that_fit_no_table_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Tables(**given)


# -- scikit-learn's


def test_three_real_tables_padded_to_one_shape():
    datasets = pytest.importorskip("sklearn.datasets")
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    tasks = Tables(test=("iris", "wine", "breast_cancer"), test_splits=2)
    tasks.check()
    assert (tasks.spec.padded, tasks.spec.input_shape, tasks.spec.support, tasks.spec.queries) == (
        True,
        (30,),
        284,
        285,
    )
    assert not tasks.spec_of("meta_train").padded
    assert tasks.count("meta_test") == 6
    assert tasks.count("meta_train") is None
    episodes = tasks.episodes([TaskRef("meta_test", 0, i) for i in range(6)], 0)
    for index, name in enumerate(("iris", "wine", "breast_cancer") * 2):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        parts = split(x, y, test_size=0.5, stratify=y, random_state=42 + index // 3)
        for mine_x, mine_y, their_x, their_y in (
            (episodes.support_x, episodes.support_y, parts[0], parts[2]),
            (episodes.query_x, episodes.query_y, parts[1], parts[3]),
        ):
            rows, columns = their_x.shape
            assert torch.equal(mine_x[index, :rows, :columns], torch.from_numpy(their_x).float())
            assert torch.equal(mine_y[index, :rows], torch.from_numpy(their_y))
            assert (mine_y[index, rows:] == -1).all()
            assert (mine_x[index, rows:] == 0).all()
            assert (mine_x[index, :, columns:] == 0).all()
    assert torch.equal(episodes.query_x[0], tasks.episode(TaskRef("meta_test", 0, 0), 99).query_x)  # no seed of the run


def test_the_baselines_of_padded_tables_do_not_count_padding():
    pytest.importorskip("sklearn")
    padded, alone = Tables(test=("iris", "breast_cancer")), Tables(test=("iris",))
    ref = TaskRef("meta_test", 0, 0)
    one, other = (tasks.baseline(tasks.episodes([ref], 0)) for tasks in (padded, alone))
    for name in ("baseline_accuracy", "baseline_mean_accuracy", "baseline_probe_accuracy"):
        assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-6)
        assert float(one[name]) > 0.85


def test_every_table_that_is_offered():
    pytest.importorskip("sklearn")
    for name, (target, _) in SETS.items():
        sets = TableSets([name], 1, target)
        episode = sets.episode(0)
        assert episode.support_x.isfinite().all()
        if target == "class":
            assert episode.support_y.unique().tolist() == list(range(sets.spec.outputs))
        assert len(sets.digest) == 64
    assert TableSets(["digits"], 1, "class").spec.input_shape == (16,)
    assert TableSets(["digits"], 1, "class").spec.outputs == 10


def test_validation_tables_are_random_ones_and_the_stream_follows_the_recipe():
    pytest.importorskip("sklearn")
    tasks = Tables(test=("iris",))
    for split in SPLITS[:2]:
        assert tasks.episode(TaskRef(split, 0, 0), 0).support_x.shape[1] == 3
    assert tasks.fingerprint != Tables(prior="scm", test=("iris",)).fingerprint != Tables(prior="scm").fingerprint


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"test": ("irs",)}, ConfigError, r"no table 'irs'. Did you mean 'iris'"),
        ({"test": ("diabetes",)}, ConfigError, r"'diabetes' is a number; expected a class"),
        ({"test": ("digits",)}, TaskContractError, r"up to 10 classes, those of training 3.*tasks.classes=\(2, 10\)"),
        ({"test": ("diabetes", "friedman1"), "target": "number"}, ConfigError, "differ in rows"),
    ],
)
def test_real_tables_that_do_not_fit_are_refused_before_a_worker_starts(given, error, message):
    pytest.importorskip("sklearn")
    with pytest.raises(error, match=message):
        Tables(**given).check()


@pytest.mark.parametrize(
    "settings",
    [{"test": ("iris",)}, {"test": ("diabetes",), "target": "number", "features": 10}, {"features": (2, 5)}],
)
def test_learners_of_one_shape_are_refused_before_a_worker_starts(settings):
    pytest.importorskip("sklearn")
    tasks = Tables(**settings)
    train, test = tasks.spec_of("meta_train"), tasks.spec
    learner = MAML(mlp((4,)))
    if test.padded:
        with pytest.raises(LearnerContractError, match=r"shape \[3\]; the test tasks are filled up.*InContext"):
            require_equal_ways(learner, train, test)
    else:
        require_equal_ways(learner, train, test)
        with pytest.raises(LearnerContractError, match=r"test tasks have inputs of shape \[4\].*Use InContext"):
            require_equal_ways(learner, train, replace(test, input_shape=(4,)))
    require_equal_ways(InContext(table_transformer()), train, test)


def test_without_scikit_learn_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'distmeta\[sklearn\]'"):
        Tables(test=("iris",)).check()
    Tables().check()
