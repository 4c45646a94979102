"""Images from some of their pixels."""

import pickle

import numpy as np
import pytest
import torch

from distmeta import ImageCompletion, from_arrays
from distmeta.data.dataset import ShardDataset
from distmeta.errors import ConfigError, TaskContractError
from distmeta.types import SPLITS, TaskRef


def written(out, shape, dtype="uint8", classes=6):
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), 4)
    x = random.integers(0, 256, (len(y), *shape)).astype(dtype)
    splits = {"meta_train": range(2), "meta_validation": range(2, 4), "meta_test": range(4, 6)}
    from_arrays(x, y, out, splits=splits)
    return out


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return written(tmp_path_factory.mktemp("pixels") / "data", (3, 5, 7))


def back(episode, shape):
    """The image that all pixels of a task make; NaN where it has none."""
    _, height, width = shape
    image = torch.full(shape, torch.nan)
    places = torch.cat([episode.support_x, episode.query_x]) * torch.tensor([height - 1, width - 1])
    rows, columns = places.round().long().T
    assert torch.allclose(places, places.round(), atol=1e-5)
    image[:, rows, columns] = torch.cat([episode.support_y, episode.query_y]).T
    return image


def test_the_pixels_of_a_task_are_those_of_one_image_of_its_split(colours):
    tasks = ImageCompletion(colours, pixels=9)
    tasks.check()
    dataset = ShardDataset.open(colours)
    for split in SPLITS:
        data = dataset.split(split)
        everything = torch.from_numpy(
            data.gather(np.repeat(np.arange(2), 4), np.tile(np.arange(4), 2)).astype("float32") / 255
        )
        found = set()
        for index in range(40):
            episode = tasks.episode(TaskRef(split, 0, index), 0)
            image = back(episode, (3, 5, 7))  # NaN nowhere: every pixel is in the support set or asked for
            same = [i for i, one in enumerate(everything) if torch.equal(one, image)]
            assert len(same) == 1
            found.add(same[0])
        assert len(found) == 8


def test_shapes(colours):
    tasks = ImageCompletion(colours, pixels=(2, 20), queries=8)
    seen = {
        tasks.episodes([TaskRef("meta_train", step, i) for i in range(2)], 0).support_x.shape[1] for step in range(150)
    }
    assert seen == set(range(2, 21))
    assert {tasks.episode(TaskRef(split, 0, 0), 0).support_x.shape for split in SPLITS[1:]} == {(11, 2)}
    spec = tasks.spec_of("meta_train")
    assert (spec.input_shape, spec.outputs, spec.kind, spec.support, spec.queries) == ((2,), 3, "regression", 20, 8)
    assert (tasks.spec.support, tasks.spec.queries) == (11, 8)
    whole = ImageCompletion(colours, pixels=(2, 20), test_pixels=30)
    assert (whole.spec_of("meta_train").queries, whole.spec.queries) == (33, 5)
    assert whole.episodes([TaskRef("meta_train", 1, 0)], 0).query_x.shape[1] >= 15
    assert tasks.classes("meta_test") == 2
    first = tasks.episode(TaskRef("meta_train", 0, 0), 0)
    assert first.support_x.dtype == first.support_y.dtype == torch.float32
    assert first.support_x.min() >= 0
    assert first.support_x.max() <= 1


def test_a_task_is_a_function_of_its_ref(colours):
    tasks = ImageCompletion(colours)
    sent = pickle.loads(pickle.dumps(ImageCompletion(colours, pixels=(2, 20))))
    tasks = tasks.with_config(pixels=(2, 20))
    refs = [TaskRef("meta_train", 2, i) for i in range(20)]
    stacked = tasks.episodes(refs, 3)
    for i, ref in reversed(list(enumerate(refs))):
        assert all(torch.equal(a, b[i]) for a, b in zip(sent.episode(ref, 3), stacked, strict=True))
    assert len({part.numpy().tobytes() for part in stacked.support_y}) == 20
    assert not torch.equal(tasks.episodes(refs, 4).support_y[0], stacked.support_y[0])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pixels": 35}, TaskContractError, r"35 support pixels and 1 queries, .*have 35 pixels.*Set tasks.pixels=34"),
        ({"pixels": 5, "queries": 31}, TaskContractError, "5 support pixels and 31 queries"),
        ({"pixels": 5, "test_pixels": 40}, TaskContractError, r"Set tasks.test_pixels=34"),
        ({"pixels": 5, "test_pixels": 5}, ConfigError, "Leave test_pixels out"),
        ({"pixels": (9, 3)}, ConfigError, "lower and an upper bound"),
        ({"pixles": 5}, ConfigError, "Did you mean 'pixels'"),
    ],
)
def test_numbers_that_fit_no_image_are_refused(colours, given, error, message):
    with pytest.raises(error, match=message):
        ImageCompletion(colours, **given).check()


def test_vectors_are_no_images(tmp_path):
    data = written(tmp_path / "data", (12,), "float32")
    with pytest.raises(TaskContractError, match=r"needs images \[C, H, W\]; the dataset has inputs of shape \[12\]"):
        ImageCompletion(data, pixels=3).check()
