"""Which images, and how they become floats."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from distmeta.data import ClassImages, ShardDataset, write_dataset
from distmeta.errors import DataError
from distmeta.tasks import gathering
from distmeta.tasks.gathering import gathered, smallest


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 200)),
        elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, np.inf]) | st.floats(0, 1),
    ),
    st.integers(1, 8),
)
def test_the_smallest_are_the_first_of_a_stable_sort(keys, count):
    """Also with many equal keys, where a partition alone could take another of them."""
    count = min(count, keys.shape[-1])
    assert np.array_equal(smallest(keys, count), keys.argsort(-1, kind="stable")[..., :count])


def test_the_smallest_of_many():
    keys = np.random.default_rng(0).random((4, 5, 600))
    assert np.array_equal(smallest(keys, 20), keys.argsort(-1, kind="stable")[..., :20])
    keys[0, 0, :300] = keys[0, 0].min()
    assert smallest(keys, 20)[0, 0].tolist() == list(range(20))


def test_the_smallest_of_few_and_of_many_are_found_alike(monkeypatch):
    keys = np.random.default_rng(0).integers(0, 30, (4, 5, 60)) / 30
    for few in (0, 1000):
        monkeypatch.setattr(gathering, "_FEW", few)
        assert np.array_equal(smallest(keys, 3), keys.argsort(-1, kind="stable")[..., :3])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every byte that there is, in three shards."""
    out = tmp_path_factory.mktemp("bytes") / "d"
    x = np.random.default_rng(0).permuted(np.tile(np.arange(256, dtype=np.uint8), 3)).reshape(3, 4, 1, 8, 8)
    classes = [ClassImages("meta_train", str(i), one) for i, one in enumerate(x)]
    write_dataset(out, classes, name="bytes", provenance=None, licence="CC0", shard_bytes=1)
    return x, ShardDataset.open(out).split("meta_train")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(1, 400))
def test_images_are_turned_and_divided_in_parts_of_any_size(data, wanted, most_bytes):
    x, split = data
    classes, rows, turns = (
        (np.array(part, np.int64) for part in zip(*wanted, strict=True)) if wanted else np.zeros((3, 0), int)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_MOST_BYTES", most_bytes)
        found = gathered(split, classes, rows, turns)
    assert found.shape == (len(wanted), 1, 8, 8)
    assert found.dtype == torch.float32
    for image, k, row, turn in zip(found, classes, rows, turns, strict=True):
        expected = torch.from_numpy(np.rot90(x[k, row], turn, axes=(-2, -1)).copy()).float() / 255
        assert torch.equal(image, expected)


def test_a_position_that_does_not_exist_is_named(data):
    one = np.zeros(1, np.int64)
    with pytest.raises(DataError, match="has 4 images; image 4 was asked for"):
        gathered(data[1], one, one + 4, one)
