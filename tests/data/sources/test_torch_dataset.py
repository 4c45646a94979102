"""Any torch Dataset of (image, label) becomes a dataset, item by item."""

import os
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from distmeta.data import Preprocessing, ShardDataset, from_arrays, from_dataset, verify
from distmeta.errors import DataError, SplitLeak

X = np.random.default_rng(0).integers(2, 256, (60, 3, 8, 8), dtype=np.uint8)
Y = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6))


class Items(Dataset):
    """Images by a function, labels from a list."""

    def __init__(self, image, labels=Y):
        self.image, self.labels = image, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.image(index), self.labels[index]


class Stream(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return (self.dataset[i] for i in range(len(self.dataset)))


def picture(i):
    return Image.fromarray(X[i].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        TensorDataset(torch.from_numpy(X).float() / 255, torch.from_numpy(Y)),
        Items(lambda i: X[i]),
        Items(lambda i: X[i].transpose(1, 2, 0)),
        Items(lambda i: X[i] / 255),
        Items(picture),
        Items(picture, [int(y) for y in Y]),
        Subset(Items(picture), range(60)),
        Stream(Items(picture)),
        [(picture(i), Y[i], "more") for i in range(60)],
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_the_same_as_from_arrays(tmp_path, dataset):
    manifest = from_dataset(dataset, tmp_path / "1")
    assert manifest.fingerprint == from_arrays(X, Y, tmp_path / "2").fingerprint
    assert verify(tmp_path / "1").fingerprint == manifest.fingerprint
    assert manifest.name == type(dataset).__name__
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == [
        "manifest.json",
        "meta_test",
        "meta_train",
        "meta_validation",
    ]


def test_strings_and_class_names(tmp_path):
    names = [f"kind {y}" for y in Y]
    splits = {"meta_train": [f"kind {i}" for i in range(8)], "meta_test": ["kind 9", "kind 8"]}
    manifest = from_dataset(Items(picture, names), tmp_path / "1", splits=splits)
    assert [c.name for c in manifest.splits["meta_test"].classes] == ["kind 9", "kind 8"]
    named = from_dataset(Items(picture), tmp_path / "2", splits="100/0/0", class_names=list("abcdefghij"))
    assert [c.name for c in named.splits["meta_train"].classes] == list("abcdefghij")


@pytest.mark.parametrize("ink", [False, True])
def test_pictures_of_any_size_are_converted_as_a_run_does_it(tmp_path, ink):
    def page(i):
        image = Image.new("RGB", (20 + i % 7, 25), "white")
        image.paste((i, 0, 0), (6, 6, 12 + i % 5, 7 + i // 5))
        return image

    seen = []
    from_dataset(
        Items(page), tmp_path, size=12, channels=1, ink=ink, progress=lambda *at: seen.append(at), name="pages"
    )
    assert seen == [(i, 60) for i in range(1, 61)]
    dataset = ShardDataset.open(tmp_path)
    made = Preprocessing.of(dataset.manifest)
    assert made == Preprocessing((1, 12, 12), "uint8", ink=ink)
    assert dataset.name == "pages"
    split = dataset.split("meta_train")
    for position, name in enumerate(split.names):
        rows = np.flatnonzero(int(name) == Y)
        got = split.gather(np.full(6, position), np.arange(6)).astype(np.float32) / np.float32(255)
        assert np.array_equal(made.inputs([page(i) for i in rows]), got)


def test_feature_vectors(tmp_path):
    features = torch.randn(60, 5)
    manifest = from_dataset(TensorDataset(features, torch.from_numpy(Y)), tmp_path)
    assert (manifest.dtype, manifest.input_shape) == ("float32", (5,))
    split = ShardDataset.open(tmp_path).split("meta_train")
    rows = np.flatnonzero(int(split.names[0]) == Y)
    assert np.array_equal(split.gather(np.zeros(6, int), np.arange(6)), features[rows].numpy())


def test_memory_does_not_grow_with_the_items(tmp_path):
    """55 MB of pictures are read, and what is in memory at the end of it is their labels."""
    peak = 0

    def measure(done, total):
        nonlocal peak
        peak = max(peak, tracemalloc.get_traced_memory()[1])

    dataset = Items(lambda i: np.full((96, 96, 3), i % 251, np.uint8), [i // 20 for i in range(2_000)])
    tracemalloc.start()
    try:
        with pytest.raises(SplitLeak):
            from_dataset(dataset, tmp_path / "out", progress=measure)
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def raising(i):
    if i == 7:
        raise OSError("the file is gone")
    return X[i]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Items(lambda i: X[i] if i else X[i, :, :4]),
            r"Item 1 is uint8 \[3, 8, 8\], but item 0 is uint8 \[3, 4, 8\].*size=",
        ),
        (Items(lambda i: X[i] if i else X[i, 0]), r"Item 1 is .*channels="),
        (Items(lambda i: (X[i] / 255 - 0.5) / 0.2), "Item 0 is float64 from .* Undo the normalisation"),
        (Items(lambda i: X[i].astype(float)), "Item 0 is float64 .* Divide by 255"),
        (Items(lambda i: np.full((8, 8), np.nan)), "Item 0 has NaN"),
        (Items(lambda i: "nowhere.png"), "Item 0: nowhere.png does not exist"),
        (Items(lambda i: {"a": 1}), "Item 0: the image is a dict; expected a PIL image"),
        (Items(lambda i: np.array(["a"])), "Item 0: the image is a <U1 array"),
        (Items(lambda i: np.zeros((5, 8, 8), np.uint8)), r"Item 0 has shape \[5, 8, 8\]; expected pictures"),
        (Items(lambda i: np.zeros((3, 8, 3), np.uint8)), "Item 0 has .* may be the first or the last.*Give PIL images"),
        (Items(raising), "Item 7 of the Items failed: the file is gone"),
        (Items(lambda i: X[i], np.eye(60)), r"Item 0: label array.* is a ndarray; .*label.argmax"),
        (Items(lambda i: X[i], [0.5] * 60), "Item 0: label 0.5 is a float"),
        (Items(lambda i: X[i], [[1]] * 60), r"Item 0: label \[1\] is a list"),
        ([X[0]], r"Item 0 is a ndarray; expected \(image, label\)"),
        ([], "has no items"),
        (Items(lambda i: np.eye(8, dtype=np.int64) ^ (i == 3)), "All images are integers of 0 and 1; .* 255 times"),
        (3, "A int has no items; expected a torch.utils.data.Dataset"),
    ],
)
def test_bad_datasets(tmp_path, dataset, message):
    with pytest.raises(DataError, match=message):
        from_dataset(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_end_well_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="sum to 100"):
        from_dataset(Items(raising), tmp_path / "out", splits="60/20/10")
    assert not (tmp_path / "out").exists()
    from_arrays(X, Y, tmp_path)
    with pytest.raises(DataError, match="already holds a dataset"):
        from_dataset(Items(raising), tmp_path)


def test_identical_images_across_splits(tmp_path):
    same = Items(lambda i: X[i % 59])
    splits = {"meta_train": [y for y in range(10) if y != Y[59]], "meta_test": [int(Y[59])]}
    if Y[0] == Y[59]:
        pytest.fail("the test wants two classes")
    with pytest.raises(SplitLeak, match=r"row 0 = row 59"):
        from_dataset(same, tmp_path / "1", splits=splits)
    assert not (tmp_path / "1").exists()
    manifest = from_dataset(same, tmp_path / "2", splits=splits, allow_duplicates=True)
    assert manifest.provenance["identical"]["across splits"]["count"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot write"):
        from_dataset(Items(picture), tmp_path / "out")
