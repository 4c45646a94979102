"""N-way K-shot tasks over shards: every image says which class and which row it is, so that a task can be read back."""

import pickle
import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from distmeta import FewShot, LakeRuns, from_arrays
from distmeta.errors import ConfigError, DataError, TaskContractError
from distmeta.types import SPLITS, TaskRef

CLASSES, ROWS, SIZE = 20, 12, 3
SPLIT_OF = {"meta_train": range(10), "meta_validation": range(10, 14), "meta_test": range(14, 20)}


def coded_images(classes=CLASSES, rows=ROWS, shape=(2, SIZE, SIZE)):
    """The top left corner of both channels holds class and row; the other corners tell how the image was turned."""
    y, row = np.repeat(np.arange(classes), rows), np.tile(np.arange(rows), classes)
    x = np.zeros((len(y), *shape), np.uint8)
    x[:, 0, 0, 0], x[:, 1, 0, 0] = y + 1, row + 1
    return x, y


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("coded") / "data"
    from_arrays(*coded_images(), out, splits=SPLIT_OF)
    return out


def read(images):
    """``(class, row, quarter turns)`` of every image ``[n, 2, H, H]``."""
    pixels = (images * 255).round().int().numpy()
    corners = [(0, 0), (-1, 0), (-1, -1), (0, -1)]  # where np.rot90 takes the top left corner
    found = []
    for image in pixels:
        (turn,) = [t for t, (i, j) in enumerate(corners) if image[0, i, j]]
        i, j = corners[turn]
        assert (image != 0).sum() == 2
        found.append((int(image[0, i, j]) - 1, int(image[1, i, j]) - 1, turn))
    return found


@st.composite
def asked(draw):
    split = draw(st.sampled_from(SPLITS))
    shots = draw(st.integers(1, ROWS - 1))
    queries = draw(st.integers(1, ROWS - shots))
    rotations = draw(st.sampled_from(["none", "meta_train", "all"]))
    turns = 4 if rotations == "all" or (rotations == "meta_train" and split == "meta_train") else 1
    ways = draw(st.integers(2, turns * len(SPLIT_OF[split])))
    return split, turns, {"ways": ways, "shots": shots, "queries": queries, "rotations": rotations}


@settings(max_examples=60)
@given(asked(), st.integers(0, 10**6), st.integers(0, 10**4))
def test_every_task_is_what_it_says(data, wanted, step, index):
    split, turns, config = wanted
    ways, shots, queries = config["ways"], config["shots"], config["queries"]
    tasks = FewShot(data, **config)
    ref = TaskRef(split, step, index)
    episode = tasks.episode(ref, seed=3)
    assert episode.support_x.shape == (ways * shots, 2, SIZE, SIZE)
    assert episode.query_x.shape == (ways * queries, 2, SIZE, SIZE)
    assert episode.support_y.tolist() == [way for way in range(ways) for _ in range(shots)]
    assert episode.query_y.tolist() == [way for way in range(ways) for _ in range(queries)]
    assert episode.support_x.dtype == torch.float32
    assert 0 <= float(episode.support_x.min()) <= float(episode.support_x.max()) <= 1

    support, query = read(episode.support_x), read(episode.query_x)
    assert not set(support) & set(query)
    assert len(set(support)) == len(support)
    assert len(set(query)) == len(query)
    class_of = {}  # label -> (class, turn): one and the same for all its images, support and query
    for label, (klass, _, turn) in zip(
        [*episode.support_y.tolist(), *episode.query_y.tolist()], support + query, strict=True
    ):
        assert class_of.setdefault(label, (klass, turn)) == (klass, turn)
        assert turn < turns
        assert klass in SPLIT_OF[split]
    assert len(set(class_of.values())) == ways

    again = FewShot(data, **config).episode(ref, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(episode, again, strict=True))
    assert tasks.spec.outputs == ways


@pytest.mark.parametrize(("rotations", "turns"), [("none", 1), ("all", 4)])
def test_classes_rows_and_turns_are_drawn_evenly(data, rotations, turns):
    tasks = FewShot(data, ways=5, shots=1, queries=1, rotations=rotations)
    seen = []
    for index in range(400):
        seen += read(tasks.episode(TaskRef("meta_train", 0, index), 0).support_x)
    for values, kinds in ((0, 10), (1, ROWS), (2, turns)):
        counts = np.bincount([image[values] for image in seen], minlength=kinds)
        expected = len(seen) / kinds
        assert len(counts) == kinds
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_other_names_are_other_tasks(data):
    tasks = FewShot(data, ways=3, shots=2, queries=2)
    refs = [TaskRef(split, step, index) for split in SPLITS for step in (0, 1) for index in range(30)]
    seen = {tuple(read(tasks.episode(ref, 0).support_x)) for ref in refs}
    assert len(seen) == len(refs)
    assert read(tasks.episode(refs[0], 1).support_x) != read(tasks.episode(refs[0], 0).support_x)


def test_the_same_index_is_comparable_across_learners_but_not_across_datasets(data, tmp_path):
    x, y = coded_images()
    from_arrays(255 - x, y, tmp_path / "other", splits=SPLIT_OF)
    ref = TaskRef("meta_train", 0, 0)
    here, there = (FewShot(path).episode(ref, 0).support_y.shape for path in (data, tmp_path / "other"))
    assert here == there
    assert FewShot(data).fingerprint != FewShot(tmp_path / "other").fingerprint


def test_float_images_are_left_as_they_are(tmp_path):
    x, y = coded_images()
    from_arrays(x.astype(np.float32) - 7.5, y, tmp_path / "floats", splits=SPLIT_OF)
    tasks = FewShot(tmp_path / "floats", rotations="all")
    assert float(tasks.episode(TaskRef("meta_train", 0, 0), 0).support_x.min()) == -7.5


def test_classes_of_unequal_size_are_used_whole(tmp_path):
    """Padding never shows: a class with few images has only its own rows drawn."""
    x, y = coded_images()
    keep = np.array([row < 3 + y % 5 for y, row in zip(y, np.tile(np.arange(ROWS), CLASSES), strict=True)])
    from_arrays(x[keep], y[keep], tmp_path / "ragged", splits=SPLIT_OF)
    FewShot(tmp_path / "ragged", ways=4, shots=2, queries=1).check()
    tasks = FewShot(tmp_path / "ragged", ways=10, shots=2, queries=1)
    rows = {}
    for index in range(200):
        for klass, row, _ in read(tasks.episode(TaskRef("meta_train", 0, index), 0).support_x):
            rows.setdefault(klass, set()).add(row)
    assert rows == {klass: set(range(3 + klass % 5)) for klass in range(10)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"ways": 5},
            "ways=5 but meta_validation of 'arrays' has 4 classes; expected at least as many as ways. Set tasks.ways=4 "
            "or less, or use a larger dataset.",
        ),
        ({"ways": 17, "rotations": "all"}, "has 16 classes"),
        (
            {"ways": 11, "rotations": "none"},
            "has 10 classes; expected at least as many as ways. Set tasks.ways=4 or less (all that meta_validation "
            "has), or",
        ),
        (
            {"ways": 4, "shots": 10, "queries": 3},
            "shots + queries = 10 + 3 but class '0' of meta_train has 12 examples; expected at most that many. Lower",
        ),
    ],
)
def test_settings_that_the_data_cannot_serve(data, config, message):
    with pytest.raises(TaskContractError) as caught:
        FewShot(data, **config).check()
    assert message in str(caught.value)


@pytest.mark.parametrize("ways", [5, 2])
def test_a_split_of_one_class_is_no_reason_to_advise_one_way(tmp_path, ways):
    x, y = coded_images(8)
    from_arrays(x, y, tmp_path / "data", splits="64/16/20")
    with pytest.raises(TaskContractError) as caught:
        FewShot(tmp_path / "data", ways=ways).check()
    assert f"ways={ways} but meta_validation of 'arrays' has 1 class; expected at least as many" in str(caught.value)
    assert "splits=50/25/25 gives each split at least 2 of the 8 classes." in str(caught.value)
    assert str(caught.value).endswith("Then set tasks.ways=2.") == (ways == 5), "five are too many for eight classes"
    from_arrays(x, y, tmp_path / "again", splits="50/25/25")
    FewShot(tmp_path / "again", ways=2).check()


@pytest.mark.parametrize("settings", [{"ways": 1}, {"train_ways": 1}, {"ways": (1, 5)}, {"train_ways": (1, 5)}])
def test_a_task_of_one_class_is_refused(settings):
    with pytest.raises(ConfigError, match=r"FewShot: .*: a task of one class has nothing to tell apart; expected 2 cl"):
        FewShot(**settings)


def test_the_largest_settings_that_the_data_can_serve(data):
    FewShot(data, ways=4, shots=6, queries=6).check()
    FewShot(data, ways=16, shots=1, queries=1, rotations="all").check()


def test_the_class_that_is_too_small_is_named(tmp_path):
    x, y = coded_images()
    keep = np.ones(len(y), bool)
    keep[y == 15] = np.arange(ROWS) < 2
    from_arrays(
        x[keep], y[keep], tmp_path / "small", splits=SPLIT_OF, class_names=[f"letter {i}" for i in range(CLASSES)]
    )
    with pytest.raises(TaskContractError, match="class 'letter 15' of meta_test has 2 examples"):
        FewShot(tmp_path / "small", ways=2, shots=1, queries=2).check()


def test_rotations_need_square_images(tmp_path):
    x, y = coded_images(shape=(2, 3, 4))
    from_arrays(x, y, tmp_path / "wide", splits=SPLIT_OF)
    FewShot(tmp_path / "wide", ways=2).check()
    with pytest.raises(TaskContractError, match=r"needs square images \[C, H, H\]; the dataset has .* \[2, 3, 4\]"):
        FewShot(tmp_path / "wide", ways=2, rotations="meta_train").check()


def test_a_dataset_without_training_classes(tmp_path):
    x, y = coded_images()
    from_arrays(x, y, tmp_path / "test", splits={"meta_test": range(CLASSES)})
    tasks = FewShot(tmp_path / "test")
    assert tasks.splits == ("meta_test",)
    with pytest.raises(TaskContractError, match="has no meta_train classes, only meta_test"):
        tasks.check()
    assert tasks.episode(TaskRef("meta_test", 0, 0), 0).query_y.tolist() == [0, 1, 2, 3, 4]


def test_another_process_finds_the_same_tasks(data):
    tasks = FewShot(data, ways=3)
    ref = TaskRef("meta_test", 0, 7)
    here = tasks.episode(ref, 0)
    sent = pickle.dumps(tasks)
    assert len(sent) < 1000  # a path, not the data
    there = pickle.loads(sent)
    assert there._opened is None
    assert all(torch.equal(a, b) for a, b in zip(here, there.episode(ref, 0), strict=True))


@pytest.mark.parametrize("name", ["data", "omniglot"])  # a folder may have the name of a dataset
def test_a_relative_folder_is_found_by_a_process_elsewhere(data, name, tmp_path, monkeypatch):
    (tmp_path / name).symlink_to(data)
    monkeypatch.chdir(tmp_path)
    tasks = FewShot(name, ways=3)
    assert tasks.fingerprint
    sent = pickle.dumps(tasks)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(sent).fingerprint == tasks.fingerprint
    assert tasks.config.data == tasks.with_config(ways=2).config.data == name  # only what is sent is changed


def test_a_dataset_in_the_cache_is_sent_by_its_name(glyphs_dir):
    tasks = FewShot("glyphs")
    assert tasks.dataset.directory == glyphs_dir
    assert pickle.loads(pickle.dumps(tasks)).config.data == "glyphs"


@pytest.mark.parametrize("hops", [1, 3])
def test_another_dataset_at_the_same_path_is_refused(tmp_path, hops):
    x, y = coded_images()
    from_arrays(x, y, tmp_path / "data", splits=SPLIT_OF)
    tasks = FewShot(tmp_path / "data", ways=3)
    assert tasks.fingerprint
    for _ in range(hops):  # sent on by a process that never opened it
        sent = pickle.dumps(tasks)
        tasks = pickle.loads(sent)
    shutil.rmtree(tmp_path / "data")
    from_arrays(255 - x, y, tmp_path / "data", splits=SPLIT_OF)
    with pytest.raises(DataError, match=r"the run was started with .* Put the same dataset on every node"):
        tasks.episode(TaskRef("meta_train", 0, 0), 0)


def test_a_copy_keeps_the_dataset_and_a_copy_with_other_data_does_not(data, tmp_path):
    x, y = coded_images()
    from_arrays(255 - x, y, tmp_path / "other", splits=SPLIT_OF)
    tasks = FewShot(data)
    assert tasks.with_config(ways=2).fingerprint == tasks.fingerprint
    moved = tasks.with_config(data=str(tmp_path / "other"))
    assert moved.fingerprint != tasks.fingerprint
    assert pickle.loads(pickle.dumps(moved)).fingerprint == moved.fingerprint


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        FewShot(tmp_path / "nowhere").check()


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """Classes in groups a (6 classes), b (3) and, for validation and test, c and d (4 each)."""
    out = tmp_path_factory.mktemp("grouped") / "data"
    names = [f"{group}/{i}" for group, n in (("a", 6), ("b", 3), ("c", 4), ("d", 4)) for i in range(n)]
    random = np.random.default_rng(0)
    x = random.integers(1, 256, (len(names) * 8, 1, 12, 12)).astype(np.uint8)
    x[:, 0, 0, 0] = np.repeat(np.arange(len(names)), 8) + 1
    splits = {"meta_train": range(9), "meta_validation": range(9, 13), "meta_test": range(13, 17)}
    from_arrays(x, np.repeat(np.arange(len(names)), 8), out, splits=splits, class_names=names)
    return out


@pytest.mark.parametrize("within", ["none", "meta_train", "evaluation", "all"])
def test_within_a_group(grouped, within):
    tasks = FewShot(grouped, ways=3, queries=2, within_group=within)
    tasks.check()
    for split in ("meta_train", "meta_test"):
        by_group = within in ("all", "meta_train" if split == "meta_train" else "evaluation")
        seen = []
        for i in range(40):
            x = tasks.episode(TaskRef(split, 0, i), seed=0).support_x
            classes = (x[:, 0, 0, 0] * 255).round().int() - 1
            seen.append({"a" if c < 6 else "b" if c < 9 else "c" if c < 13 else "d" for c in classes.tolist()})
            assert len(set(classes.tolist())) == 3
        if split == "meta_train":
            assert all(len(groups) == 1 for groups in seen) == by_group
        if by_group and split == "meta_train":
            assert 8 < sum(groups == {"b"} for groups in seen) < 32, "a group is as likely as another"


def test_turned_classes_stay_in_their_group(grouped):
    tasks = FewShot(grouped, ways=4, train_ways=12, queries=2, within_group="meta_train", rotations="meta_train")
    tasks.check()
    corners = torch.stack([tasks.episode(TaskRef("meta_train", 0, i), seed=0).support_x[:, 0] for i in range(20)])
    assert corners.shape == (20, 12, 12, 12)


def test_a_group_with_too_few_classes_is_named(grouped):
    with pytest.raises(
        TaskContractError, match=r"4-way tasks within a group, but group 'b' of meta_train has 3.*ways=3"
    ):
        FewShot(grouped, ways=4, within_group="all").check()
    FewShot(grouped, ways=4, within_group="evaluation").check()


def test_data_without_groups(digits_dir):
    with pytest.raises(TaskContractError, match=r"classes named group/class; meta_train of .* without a group"):
        FewShot(digits_dir, ways=2, within_group="meta_train").check()


def test_augment_was_called_distort_and_older_job_files_still_call_it_so(digits_dir):
    old, new = FewShot(digits_dir, ways=2, distort="affine"), FewShot(digits_dir, ways=2, augment="affine")
    assert old.config == new.config
    assert "distort" not in old.config.to_dict()
    assert LakeRuns(distort="small").config.augment == "small"
    assert new.with_config(distort="none").config.augment == "none"
    ref = TaskRef("meta_train", 3, 1)
    assert torch.equal(old.episode(ref, 0).query_x, new.episode(ref, 0).query_x)
    with pytest.raises(ConfigError, match="FewShot is given 'augment' and its former name 'distort'; expected one"):
        FewShot(augment="affine", distort="affine")
    with pytest.raises(ConfigError, match="FewShot setting 'augment' is 'elastic'"):
        FewShot(distort="elastic")
