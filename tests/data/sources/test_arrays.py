"""Numpy arrays become a dataset, and class splits are what was asked for."""

import contextlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from distmeta.data import ShardDataset, from_arrays, verify
from distmeta.data.splits import split_by_lists, split_by_percent
from distmeta.errors import DataError, SplitLeak
from distmeta.types import SPLITS

X = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
Y = np.random.default_rng(1).permutation(np.repeat(np.arange(10) - 3, 6))


def test_every_class_keeps_its_images_in_order(tmp_path):
    from_arrays(X, Y, tmp_path, splits="60/20/20")
    verify(tmp_path)
    dataset = ShardDataset.open(tmp_path)
    seen = []
    for name in SPLITS:
        split = dataset.split(name)
        for i, label in enumerate(split.names):
            assert np.array_equal(split.gather(np.full(6, i), np.arange(6)), X[int(label) == Y])
            seen.append(int(label))
    assert sorted(seen) == sorted(set(Y.tolist()))


@pytest.mark.parametrize(
    "convert",
    [
        lambda names: names,
        np.array,
        lambda names: np.array(names, object),
        lambda names: [(name, 7) for name in names],
    ],
)
def test_labels_are_anything_hashable(tmp_path, convert):
    """Strings, as arrays and as lists, gave an error that asked for integers."""
    labels = convert([f"class {label}" for label in Y])
    keys = labels if isinstance(labels, list) else labels.tolist()
    classes = list(dict.fromkeys(keys))
    manifest = from_arrays(X, labels, tmp_path, splits={"meta_train": classes[:8], "meta_test": classes[8:]})
    assert [c.name for c in manifest.splits["meta_test"].classes] == [str(key) for key in classes[8:]]
    split = ShardDataset.open(tmp_path).split("meta_train")
    for i, key in enumerate(classes[:8]):
        assert np.array_equal(split.gather(np.full(6, i), np.arange(6)), X[[key == other for other in keys]])


def test_identical_images(tmp_path):
    """The same image in meta_train and in meta_test went unnoticed."""
    x = X.copy()
    rows = {label: np.flatnonzero(label == Y) for label in range(-3, 7)}
    x[rows[0][1]] = x[rows[0][0]]
    x[rows[1][0]] = x[rows[2][0]]
    splits = {"meta_train": range(-3, 5), "meta_test": [5, 6]}
    found = from_arrays(x, Y, tmp_path / "1", splits=splits).provenance["identical"]
    assert found == {
        "within a class": {"count": 1, "first": [f"row {rows[0][0]} = row {rows[0][1]}"]},
        "in two classes": {"count": 1, "first": [f"row {rows[1][0]} = row {rows[2][0]}"]},
    }
    x[rows[6][2]] = x[rows[-3][0]]
    with pytest.raises(SplitLeak, match=rf"1 picture has .*: row {rows[-3][0]} = row {rows[6][2]}. .*allow_duplicates"):
        from_arrays(x, Y, tmp_path / "2", splits=splits)
    assert not (tmp_path / "2").exists()
    manifest = from_arrays(x, Y, tmp_path / "3", splits=splits, allow_duplicates=True)
    assert manifest.provenance["identical"]["across splits"]["count"] == 1
    assert verify(tmp_path / "3").fingerprint == manifest.fingerprint


def test_equal_rows_of_numbers_are_counted(tmp_path):
    manifest = from_arrays(np.zeros((60, 3), np.float32), Y, tmp_path)
    assert sum(kind["count"] for kind in manifest.provenance["identical"].values()) == 59
    assert all(len(kind["first"]) <= 100 for kind in manifest.provenance["identical"].values())


def test_division_depends_on_the_seed_alone(tmp_path):
    first = from_arrays(X, Y, tmp_path / "a", seed=1)
    assert from_arrays(X, Y, tmp_path / "b", seed=1) == first
    assert from_arrays(X, Y, tmp_path / "c", seed=2).fingerprint != first.fingerprint


def test_splits_by_label_and_class_names(tmp_path):
    splits = {"meta_train": range(-3, 5), "meta_test": [5, 6]}
    manifest = from_arrays(X, Y, tmp_path, splits=splits, class_names={i: f"class {i}" for i in range(-3, 7)})
    assert [c.name for c in manifest.splits["meta_test"].classes] == ["class 5", "class 6"]
    assert "meta_validation" not in manifest.splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": Y[1:]}, r"expected x \[n, ...\] and labels y \[n\], integers or strings"),
        ({"y": Y.astype(float)}, r"y is float64 \[60\]; .* integers or strings"),
        ({"y": Y.astype(float).tolist()}, "integers or strings"),
        ({"y": [[1, 2], [3]] * 30}, "y is a list; .* integers or strings"),
        ({"y": np.eye(60)}, "argmax"),
        ({"x": X[:0], "y": Y[:0]}, "are empty"),
        ({"splits": {"meta_train": [0, 99]}}, "'99', which is not in the data"),
        ({"splits": {"meta_train": [0, 1]}}, "leaves out 8 of 10 classes"),
        ({"splits": {"training": [0]}}, "no split 'training'"),
        ({"class_names": ["a", "b"]}, r"label -?\d has no name: class_names has 2 entries"),
        ({"class_names": dict.fromkeys(range(-3, 7), "same")}, "Two labels have the same name, 'same'"),
        ({"splits": "64/16/21"}, "sum to 100"),
        ({"x": X.astype(float)}, "float64"),
        ({"x": X & 1}, "x is integers of 0 and 1; expected 0 to 255"),
        ({"y": [1, "1"] * 30}, "Two labels have the same name, '1'"),
    ],
)
def test_bad_arrays(tmp_path, changes, message):
    given_arrays = {"x": X, "y": Y, **changes}
    with pytest.raises(DataError, match=message):
        from_arrays(out=tmp_path, **given_arrays)


def test_a_label_in_two_splits(tmp_path):
    with pytest.raises(SplitLeak, match="'0' is in meta_train and in meta_test"):
        from_arrays(X, Y, tmp_path, splits={"meta_train": range(-3, 7), "meta_test": [0]})


@given(st.integers(3, 200), st.integers(0, 100), st.integers(0, 100), st.integers(0, 3))
def test_percentages(n, a, b, seed):
    a, b = min(a, b), max(a, b)
    percentages = [a, b - a, 100 - b]
    names = [f"c{i}" for i in range(n)]
    text = "/".join(map(str, percentages))
    if any(p and p * n < 100 for p in percentages):
        # Rounding may still give such a split a class, or it may not, which is an error and not an empty split.
        with contextlib.suppress(DataError):
            assert all(split_by_percent(names, text, seed).values())
        return
    divided = split_by_percent(names, text, seed)
    assert sorted(name for members in divided.values() for name in members) == sorted(names)
    for split, percentage in zip(SPLITS, percentages, strict=True):
        assert abs(len(divided.get(split, [])) - n * percentage / 100) < 1
    assert split_by_percent(names[::-1], text, seed) == divided


@pytest.mark.parametrize("text", ["", "64/36", "64/16/10/10", "50/50/50", "a/b/c", "64.0/16/20", "-10/90/20", "100%"])
def test_bad_percentages(text):
    with pytest.raises(DataError, match="64/16/20"):
        split_by_percent(["a", "b", "c"], text, 0)


def test_too_few_classes():
    with pytest.raises(DataError, match="leave none for meta_validation"):
        split_by_percent(["a", "b", "c"], "64/16/20", 0)


def test_lists_keep_their_order():
    assert split_by_lists(
        ["a", "b", "c"], {"meta_test": ["c"], "meta_train": ["b", "a"], "meta_validation": []}, ""
    ) == {
        "meta_train": ["b", "a"],
        "meta_test": ["c"],
    }
