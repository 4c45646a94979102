"""Tasks that are drawn together have the bytes that each has alone: those of the plain definition below, which is the
former code."""

import hashlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from distmeta import FewShot, LabelSequences, LakeRuns, Sinusoids
from distmeta.data import ClassImages, write_dataset
from distmeta.errors import DataError
from distmeta.tasks.augment import augment, turn_and_shift
from distmeta.tasks.base import TaskDistribution
from distmeta.types import SPLITS, Episode, TaskRef

CLASSES = {"meta_train": 10, "meta_validation": 5, "meta_test": 7}


@pytest.fixture(scope="module", params=["bytes", "floats", "shards", "ragged"])
def data(request, tmp_path_factory):
    """Images whose every pixel counts; also as floats, over several shards, and in classes of 6 to 10 examples."""
    out = tmp_path_factory.mktemp(request.param) / "data"
    random = np.random.default_rng(0)
    made = []
    for split, count in CLASSES.items():
        for i in range(count):
            examples = random.integers(6, 11) if request.param == "ragged" else 10
            x = random.integers(0, 256, (examples, 2, 6, 6)).astype(np.uint8)
            x = (x / 7 - 3).astype(np.float32) if request.param == "floats" else x
            made.append(ClassImages(split, f"{'ab'[i % 2]}/{split}{i}", x))
    write(out, made, shard_bytes=2000 if request.param == "shards" else 2**20)
    return out


def write(out, classes, **settings):
    write_dataset(out, classes, name="made", provenance=None, licence="CC0", **settings)


def generator(tasks, ref, seed):
    path = (seed, tasks.fingerprint, ref.split, ref.step, ref.index)
    key = int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def plain_images(tasks, split, random):
    """One task ``[N, K + Q, C, H, W]``, as it was drawn before several were."""
    train = split == "meta_train"
    c, data = tasks.config, tasks.dataset.split(split)
    numbers = ((train and getattr(c, f"train_{n}")) or getattr(c, n) for n in ("ways", "shots", "queries"))
    ways, shots, queries = (n[0] if isinstance(n, tuple) else n for n in numbers)  # tests are of the lower bounds
    turns = 4 if c.rotations == "all" or (c.rotations == "meta_train" and train) else 1
    chosen = random.choice(data.classes * turns, size=ways, replace=False)
    classes, quarter_turns = chosen // turns, chosen % turns
    counts = data.counts[classes]
    keys = random.random((ways, int(counts.max())))
    keys[np.arange(keys.shape[1]) >= counts[:, None]] = np.inf
    rows = keys.argsort(axis=1, kind="stable")[:, : shots + queries]
    x = data.gather(np.repeat(classes, shots + queries), rows.ravel())
    x = x.reshape(ways, shots + queries, *x.shape[1:])
    for turn in (1, 2, 3):
        turned = quarter_turns == turn
        if turned.any():
            x[turned] = np.rot90(x[turned], turn, axes=(-2, -1))
    images = torch.from_numpy(x).float()
    images = images / 255 if x.dtype == np.uint8 else images
    if train and c.augment != "none":
        images = augment(images.flatten(0, 1), c.augment, random).reshape(images.shape)
    return images, shots


def plain(tasks, ref, seed):
    now = tasks.shaped(ref, seed)
    images, shots = plain_images(now, ref.split, generator(tasks, ref, seed))
    labels = torch.arange(len(images))
    return (
        images[:, :shots].flatten(0, 1),
        labels.repeat_interleave(shots),
        images[:, shots:].flatten(0, 1),
        labels.repeat_interleave(images.shape[1] - shots),
    )


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.numpy().tobytes() == b.contiguous().numpy().tobytes()


numbers = st.one_of(st.integers(1, 3), st.sampled_from([(1, 2), (2, 3)]))


@st.composite
def asked(draw):
    config = {
        "ways": draw(st.one_of(st.integers(2, 5), st.just((2, 5)))),
        "shots": draw(numbers),
        "queries": draw(numbers),
        "rotations": draw(st.sampled_from(["none", "meta_train", "all"])),
        "augment": draw(st.sampled_from(["none", "none", "small", "affine"])),
    }
    for name in ("ways", "shots", "queries"):
        if isinstance(config[name], int) and draw(st.booleans()):
            config[f"train_{name}"] = draw(st.integers(2, 3))
    split, step = draw(st.sampled_from(SPLITS)), draw(st.integers(0, 9))
    indices = draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))  # any order, also the same one twice
    return config, [TaskRef(split, step if split == "meta_train" else 0, i) for i in indices]


@settings(max_examples=40)
@given(asked(), st.integers(0, 3))
def test_a_chunk_has_the_bytes_of_its_tasks_by_the_plain_definition(data, given, seed):
    config, refs = given
    tasks = FewShot(data, **config)
    stacked = tasks.episodes(refs, seed)
    assert all(part.is_contiguous() for part in stacked)
    for i, ref in enumerate(refs):
        same((part[i] for part in stacked), plain(tasks, ref, seed))
        same(tasks.episode(ref, seed), plain(tasks, ref, seed))  # alone, and after others
    assert stacked.ways == stacked.outputs == len(stacked.support_y[0].unique())


def test_within_groups(data):
    tasks = FewShot(data, ways=2, within_group="all", rotations="all")
    refs = [TaskRef("meta_validation", 0, i) for i in range(8)]
    stacked = tasks.episodes(refs, 0)
    split = tasks.dataset.split("meta_validation")
    groups = list(split.groups.values())
    assert len(groups) == 2
    for i, ref in enumerate(refs):
        random = generator(tasks, ref, 0)
        of_group = groups[int(random.integers(2))]
        picked = random.choice(len(of_group) * 4, size=2, replace=False)
        classes, turns = of_group[picked // 4], picked % 4
        counts = split.counts[classes]
        keys = random.random((2, int(counts.max())))
        keys[np.arange(keys.shape[1]) >= counts[:, None]] = np.inf
        images = split.gather(classes, keys.argmin(axis=1))
        turned = [torch.from_numpy(np.rot90(x, n, axes=(-2, -1)).copy()) for x, n in zip(images, turns, strict=True)]
        expected = torch.stack(turned).float()
        same([stacked.support_x[i]], [expected / 255 if images.dtype == np.uint8 else expected])
        suffixes = [f", turned by {90 * turn} degrees" if turn else "" for turn in turns]
        assert tasks.class_names(ref, 0) == tuple(split.names[k] + s for k, s in zip(classes, suffixes, strict=True))


def test_many_tasks_are_drawn_in_parts_of_any_size(data, monkeypatch):
    tasks = FewShot(data, ways=3, shots=1, queries=2, rotations="all")
    refs = [TaskRef("meta_train", 0, i) for i in range(9)]
    expected = tasks.episodes(refs, 0)
    for keys, most_bytes in ((1, 1), (70, 500), (2**30, 2**30)):
        monkeypatch.setattr("distmeta.tasks.gathering._MOST_KEYS", keys)
        monkeypatch.setattr("distmeta.tasks.gathering._MOST_BYTES", most_bytes)
        same(tasks.episodes(refs, 0), expected)


def test_too_few_examples_are_an_error_of_the_data(data):
    tasks = FewShot(data, ways=2, shots=1, queries=30)
    with pytest.raises(DataError, match="Lower shots"):
        tasks.episodes([TaskRef("meta_train", 0, i) for i in range(3)], 0)


class OwnDraw(FewShot):
    """Draws one task in its own way; the base knows nothing of it."""

    def draw(self, split, random):
        return super().draw(split, random).map(lambda part: part.flip(0))


class OwnRefs(FewShot):
    def draw_ref(self, ref, seed):
        return super().draw_ref(TaskRef(ref.split, ref.step, 0), seed)


def test_a_subclass_that_draws_a_task_in_its_own_way_is_not_passed_by(data):
    refs = [TaskRef("meta_train", 0, i) for i in range(3)]
    usual = FewShot(data, ways=3).episodes(refs, 0)
    same(OwnDraw(data, ways=3).episodes(refs, 0), usual.map(lambda part: part.flip(1)))
    first = usual.map(lambda part: part[:1].expand_as(part))
    same(OwnRefs(data, ways=3).episodes(refs, 0), first)


def test_a_copy_for_one_step_shares_the_opened_dataset(data):
    """Each step of drawn ways opened the dataset anew: manifest, shards and all."""
    tasks = FewShot(data, ways=(2, 5))
    opened = tasks.dataset
    assert tasks.shaped(TaskRef("meta_train", 0, 0), 0).dataset is opened
    assert tasks.with_config(ways=3).dataset is opened


def one_by_one(tasks, refs, seed):
    return TaskDistribution.draw_refs(tasks.shaped(refs[0], seed), refs, seed)


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 99), min_size=1, max_size=6), st.integers(0, 3))
def test_sinusoids(shots, queries, indices, seed):
    tasks = Sinusoids(shots=shots, queries=queries)
    refs = [TaskRef("meta_train", 4, i) for i in indices]
    stacked = tasks.episodes(refs, seed)
    assert all(part.is_contiguous() for part in stacked)
    same(one_by_one(tasks, refs, seed), stacked)
    for i, ref in enumerate(refs):
        random = generator(tasks, ref, seed)
        amplitude, phase = random.uniform(0.1, 5.0), random.uniform(0.0, np.pi)
        x = random.uniform(-5.0, 5.0, size=(shots + queries, 1))
        points, values = (torch.from_numpy(part).float() for part in (x, amplitude * np.sin(x - phase)))
        expected = points[:shots], values[:shots], points[shots:], values[shots:]
        same((part[i] for part in stacked), expected)


@pytest.mark.parametrize("labels", ["one-hot", "strings"])
@pytest.mark.parametrize("split", ["meta_train", "meta_test"])
def test_sequences_of_images(data, labels, split, monkeypatch):
    tasks = LabelSequences(data, ways=3, length=9, size=6, labels=labels)
    refs = [TaskRef(split, 0, i) for i in (4, 0, 2, 7)]
    stacked = tasks.episodes(refs, 1)
    same(one_by_one(tasks, refs, 1), stacked)
    monkeypatch.setattr("distmeta.tasks.label_sequences._MOST_NUMBERS", 1)
    same(tasks.episodes(refs, 1), stacked)
    images = FewShot(data, ways=3, shots=2, queries=1, rotations="all")
    for i, ref in enumerate(refs):
        random = generator(tasks, ref, 1)
        x, _ = plain_images(images, split, random)
        x = torch.cat([x[:, :2].flatten(0, 1), x[:, 2:].flatten(0, 1)])[torch.from_numpy(random.permutation(9))]
        x = turn_and_shift(x, random) if split == "meta_train" else x
        same([stacked.query_x[i, :, :72]], [x.flatten(1)])


def test_lakes_runs_keep_their_way(tmp_path):
    """Test tasks are the 20 runs; those of training are drawn by the generators of their refs."""
    x = np.random.default_rng(0).integers(0, 256, (420, 2, 1, 3, 3)).astype(np.uint8)
    names = [f"a/{i:02d}" for i in range(20)]
    names += [f"run{run:02d}/class{way:02d}" for run in range(1, 21) for way in range(1, 21)]
    splits = ["meta_train"] * 20 + ["meta_test"] * 400
    write(tmp_path / "d", [ClassImages(*one) for one in zip(splits, names, x, strict=True)])
    tasks = LakeRuns(tmp_path / "d", train_ways=5)
    train, test = ([TaskRef(split, 0, i) for i in (3, 1)] for split in ("meta_train", "meta_test"))
    for stacked, ref in ((tasks.episodes(train, 0), train[0]), (tasks.episodes(train[:1], 0), train[0])):
        same((part[0] for part in stacked), plain(tasks, ref, 0))
    expected = torch.from_numpy(x[20:].reshape(20, 20, 2, 1, 3, 3)[[3, 1], :, 0]).float() / 255
    same([tasks.episodes(test, 0).support_x], [expected])


def test_an_episode_is_what_draw_returns_for_one_generator(data):
    tasks = FewShot(data, ways=3, augment="affine", rotations="meta_train")
    ref = TaskRef("meta_train", 2, 5)
    found = tasks.draw("meta_train", generator(tasks, ref, 0))
    assert isinstance(found, Episode)
    assert (found.ways, found.outputs) == (3, 3)
    same(found, plain(tasks, ref, 0))
