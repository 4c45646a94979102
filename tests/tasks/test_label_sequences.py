"""Label sequences over coded images: every pixel value tells class and row, so that a sequence can be read back."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from distmeta import LabelSequences, TaskDistribution, from_arrays
from distmeta.errors import ConfigError, TaskContractError
from distmeta.types import SPLITS, Episode, TaskRef, TaskSpec

CLASSES, ROWS, SIZE = 12, 6, 4
SPLIT_OF = {"meta_train": range(6), "meta_validation": range(6, 9), "meta_test": range(9, 12)}
PLAIN = {"size": SIZE, "rotations": "none", "augment": False}


def coded_images(classes=CLASSES, rows=ROWS, shape=(1, SIZE, SIZE)):
    """The top left pixel holds the class, the one below it the row; where they are tells how the image was turned."""
    y, row = np.repeat(np.arange(classes), rows), np.tile(np.arange(rows), classes)
    x = np.zeros((len(y), *shape), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 1, 0] = y + 1, row + 101
    return x, y


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("coded") / "data"
    from_arrays(*coded_images(), out, splits=SPLIT_OF)
    return out


def read(episode):
    """``(class, row, quarter turns)`` of every image, and the code of the label before it."""
    pixels = (episode.query_x[:, : SIZE * SIZE] * 255).round().int().reshape(-1, SIZE, SIZE).numpy()
    corners, found = [(0, 0), (-1, 0), (-1, -1), (0, -1)], []
    for image in pixels:
        (turn,) = [t for t, (i, j) in enumerate(corners) if 0 < image[i, j] <= CLASSES]
        upright = np.rot90(image, -turn)
        found.append((int(upright[0, 0]) - 1, int(upright[1, 0]) - 101, turn))
    return found, episode.query_x[:, SIZE * SIZE :]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SPLITS),
    st.integers(2, 3),
    st.integers(2, ROWS),
    st.sampled_from(["one-hot", "strings"]),
    st.sampled_from(["none", "meta_train", "all"]),
    st.integers(0, 10**6),
)
def test_every_sequence_is_what_it_says(data, split, ways, each, labels, rotations, index):
    config = PLAIN | {"ways": ways, "length": ways * each, "labels": labels, "rotations": rotations}
    tasks, ref = LabelSequences(data, **config), TaskRef(split, 3, index)
    episode = tasks.episode(ref, seed=1)
    images, previous = read(episode)
    assert len(episode.support_x) == 0
    assert len(set(images)) == len(images) == ways * each  # no image twice
    kinds = [(klass, turn) for klass, _, turn in images]
    assert len(set(kinds)) == ways
    assert {kinds.count(kind) for kind in kinds} == {each}
    assert {klass for klass, _ in kinds} <= set(SPLIT_OF[split])
    if not (rotations == "all" or (rotations == "meta_train" and split == "meta_train")):
        assert {turn for _, turn in kinds} == {0}
    # One label for each class, another for every other.
    symbols = episode.query_y.reshape(ways * each, -1)
    assert symbols.shape[1] == (1 if labels == "one-hot" else 5)
    assert len({(kind, *code) for kind, code in zip(kinds, symbols.tolist(), strict=True)}) == ways
    assert len({tuple(code) for code in symbols.tolist()}) == ways
    # The label of step t is in the input of step t + 1, and nothing else is.
    decoded = previous.reshape(ways * each, symbols.shape[1], -1)
    assert not decoded[0].any()
    assert torch.equal(decoded[1:].argmax(-1), symbols[:-1])
    assert torch.equal(decoded[1:].sum(-1), torch.ones_like(symbols[1:], dtype=torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(episode, LabelSequences(data, **config).episode(ref, 1), strict=True))


def test_labels_and_places_are_shuffled(data):
    """Over many sequences a class has every label, and every step shows every label, equally often."""
    tasks = LabelSequences(data, ways=3, length=9, **PLAIN)
    of_class, at_step = np.zeros((6, 3)), np.zeros((9, 3))
    for task in tasks.take(600, split="meta_train"):
        images, _ = read(task.episode)
        for step, ((klass, *_), label) in enumerate(zip(images, task.episode.query_y.tolist(), strict=True)):
            of_class[klass, label] += 1 / 3
            at_step[step, label] += 1
    assert abs(of_class - 100).max() < 5 * np.sqrt(100)
    assert abs(at_step - 200).max() < 5 * np.sqrt(200)


def test_string_characters_are_drawn_evenly(data):
    tasks = LabelSequences(data, ways=3, length=6, labels="strings", **PLAIN)
    symbols = torch.cat([task.episode.query_y.unique(dim=0) for task in tasks.take(300)])
    for place in range(5):
        counts = symbols[:, place].bincount(minlength=5)
        assert len(counts) == 5
        assert (counts - 180).abs().max() < 5 * 180**0.5


def test_a_class_is_turned_as_a_whole(data):
    tasks = LabelSequences(data, ways=3, length=9, **PLAIN | {"rotations": "all"})
    turns = []
    for task in tasks.take(200):
        images, _ = read(task.episode)
        of_label = {}
        for image, label in zip(images, task.episode.query_y.tolist(), strict=True):
            assert of_label.setdefault(label, image[::2]) == image[::2]
        turns += [turn for _, turn in of_label.values()]
    assert np.abs(np.bincount(turns, minlength=4) - 150).max() < 5 * np.sqrt(150)


def test_only_training_images_are_augmented(data):
    on, off = (LabelSequences(data, ways=3, length=6, **PLAIN | {"augment": augment}) for augment in (True, False))
    for split in SPLITS:
        one, other = (tasks.episode(TaskRef(split, 0, 0), 0) for tasks in (on, off))
        assert torch.equal(one.query_x, other.query_x) == (split != "meta_train")
        assert torch.equal(one.query_y, other.query_y)


def test_images_are_resized(data):
    tasks = LabelSequences(data, ways=3, length=6, **PLAIN | {"size": 2})
    small = tasks.episode(TaskRef("meta_test", 0, 0), 0).query_x[:, :4]
    large = tasks.with_config(size=SIZE).episode(TaskRef("meta_test", 0, 0), 0).query_x[:, : SIZE**2]
    assert tasks.spec.input_shape == (4 + 3,)
    assert float(small.sum()) == pytest.approx(float(large.sum()) / 4, rel=0.1)  # the ink is kept


def test_the_baseline_by_hand():
    class Known(LabelSequences):
        def __init__(self):
            pass

        spec = TaskSpec((3,), 2, "sequence", 0, 5)

    # Pixels 0, 10, 1, 9, 4: nearest earlier ones are -, 0, 0, 10, 1.
    x = torch.tensor([[[0.0], [10], [1], [9], [4]]])
    x = torch.cat([x, torch.rand(1, 5, 2) * 1000], -1)  # the label's code is not looked at
    found = Known().baseline(Episode(x[:, :0], x[:, :0], x, torch.tensor([[0, 1, 0, 1, 1]])))
    assert {name: float(value) for name, value in found.items()} == {
        "baseline_accuracy": pytest.approx(2 / 5),
        "baseline_accuracy_instance_1": 0.0,
        "baseline_accuracy_instance_2": 1.0,
        "baseline_accuracy_instance_3": 0.0,
    }


def test_the_baseline_of_strings_needs_all_five_characters(data):
    tasks = LabelSequences(data, ways=3, length=9, labels="strings", **PLAIN)
    one_hot = tasks.with_config(labels="one-hot")
    refs = [TaskRef("meta_test", 0, index) for index in range(20)]
    episodes = tasks.episodes(refs, 0)
    # The same images with labels 0, 1, 2 in place of the strings: the nearest image is the same.
    names = torch.stack([y.unique(dim=0, return_inverse=True)[1] for y in episodes.query_y])
    plain = Episode(
        names[:, :0], names[:, :0], torch.cat([episodes.query_x[..., :-25], torch.zeros(20, 9, 3)], -1), names
    )
    strings, numbers = tasks.baseline(episodes), one_hot.baseline(plain)
    assert strings.keys() == numbers.keys() >= {"baseline_accuracy", "baseline_accuracy_instance_3"}
    assert all(torch.equal(strings[name], numbers[name]) for name in strings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ways": 4, "length": 8}, "ways=4 but meta_validation of 'arrays' has 3 classes"),
        ({"ways": 3, "length": 8}, "length=8 is not a multiple of ways=3, at least twice.*Set tasks.length=6"),
        ({"ways": 3, "length": 3}, "length=3 is not a multiple of ways=3, at least twice.*Set tasks.length=6"),
        (
            {"ways": 3, "length": 21},
            r"length / ways = 7 images of each class, but class '\d' of meta_train has 6; .* Set tasks.length=18",
        ),
    ],
)
def test_settings_that_the_data_cannot_serve(data, config, message):
    with pytest.raises(TaskContractError, match=message):
        LabelSequences(data, **PLAIN | config).check()
    with pytest.raises(TaskContractError, match=message.replace("meta_train", "meta_validation")):
        LabelSequences(data, **PLAIN | config).check_split("meta_validation")  # all that an evaluation checks
    LabelSequences(data, ways=3, length=18, **PLAIN).check()


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match=r"LabelSequences setting 'ways' is 1: .* greater than or equal to 2"):
        LabelSequences(ways=1, length=4)


@pytest.mark.parametrize("shape", [(5,), (1, 4, 6)])
def test_images_must_be_square(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 255, (CLASSES * ROWS, *shape)).astype(np.uint8)
    from_arrays(x, np.repeat(np.arange(CLASSES), ROWS), tmp_path / "data", splits=SPLIT_OF)
    with pytest.raises(TaskContractError, match="needs square images"):
        LabelSequences(tmp_path / "data", ways=3, length=6).check()


def test_another_process_and_a_copy_find_the_same_tasks(data):
    tasks = LabelSequences(data, ways=3, length=6, **PLAIN)
    ref = TaskRef("meta_test", 0, 5)
    here, sent = tasks.episode(ref, 0), pickle.dumps(tasks)
    assert len(sent) < 2000  # a path, not the data
    for other in (pickle.loads(sent), tasks.with_config(ways=2, length=4).with_config(ways=3, length=6)):
        assert isinstance(other, TaskDistribution)
        assert all(torch.equal(a, b) for a, b in zip(here, other.episode(ref, 0), strict=True))
