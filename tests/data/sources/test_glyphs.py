"""The embedded dataset: enough classes, disjoint by script, and a task that pixels alone do not solve."""

import unicodedata

import numpy as np
import pytest

from distmeta.data import ShardDataset, build_glyphs, inspect, verify
from distmeta.data.sources.glyphs import BLOCKS
from distmeta.errors import DataError
from distmeta.types import SPLITS


@pytest.fixture(scope="module")
def glyphs(glyphs_dir):
    return ShardDataset.open(glyphs_dir)


def images(split, instances=20):
    """``[classes, instances, size, size]``."""
    classes = np.arange(split.classes)
    x = split.gather(np.repeat(classes, instances), np.tile(np.arange(instances), split.classes))
    return x[:, 0].reshape(split.classes, instances, *x.shape[2:])


def test_enough_classes_of_twenty_images(glyphs, glyphs_dir):
    verify(glyphs_dir)
    assert glyphs.input_shape == (1, 28, 28)
    counts = {name: glyphs.split(name).classes for name in SPLITS}
    assert counts["meta_train"] >= 400
    assert counts["meta_validation"] >= 60
    assert counts["meta_test"] >= 80
    assert all((glyphs.split(name).counts == 20).all() for name in SPLITS)


def test_splits_are_unicode_blocks(glyphs):
    for name in SPLITS:
        for class_name in glyphs.split(name).names:
            code, _, description = class_name.partition(" ")
            character = int(code.removeprefix("U+"), 16)
            assert unicodedata.name(chr(character)) == description
            assert any(first <= character <= last for _, first, last in BLOCKS[name])


def test_look_alikes_are_one_class(glyphs):
    names = {name.split(" ")[0] for split in SPLITS for name in glyphs.split(split).names}
    assert "U+0041" in names, "Latin A is kept"
    for twin in ("U+0391", "U+0410", "U+0555", "U+0425", "U+0455"):
        assert twin not in names, "Alpha, Cyrillic A, Armenian Oh (as O), Cyrillic Ha (as X) and Dze (as s) are not"


def test_every_image_has_bright_ink_on_a_dark_ground(glyphs):
    for name in SPLITS:
        x = images(glyphs.split(name))
        assert (x.max(axis=(2, 3)) > 150).all(), "no blank image, no half-bright stroke"
        border = np.concatenate([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], axis=-1)
        assert (border > 0).mean() < 0.02, "glyphs stay inside the image"
        assert 0.03 < (x > 127).mean() < 0.4


def test_instances_of_a_class_differ(glyphs):
    x = images(glyphs.split("meta_test")).reshape(-1, 20, 28 * 28).astype(np.int64)
    for one in x:
        assert len(np.unique(one, axis=0)) == 20


def test_pixels_alone_solve_about_half(glyphs):
    """5-way 1-shot by the nearest neighbour in pixel space: neither hopeless nor trivial."""
    split = glyphs.split("meta_test")
    x = images(split).reshape(split.classes, 20, -1).astype(np.float32)
    made = np.random.default_rng(0)
    right = []
    for _ in range(1000):
        classes = made.choice(split.classes, 5, replace=False)
        rows = made.permutation(20)
        support, query = x[classes, rows[0]], x[classes, rows[1]]
        distance = ((query[:, None] - support[None]) ** 2).sum(-1)
        right.append(distance.argmin(1) == np.arange(5))
    assert 0.45 < np.mean(right) < 0.75


def test_two_builds_have_the_same_pixels(glyphs, tmp_path):
    """A second build in another size of class: the instances that both have are bit for bit the same."""
    seen = []
    manifest = build_glyphs(tmp_path, instances=2, progress=lambda done, total: seen.append((done, total)))
    again = ShardDataset.open(tmp_path)
    for name in SPLITS:
        assert again.split(name).names == glyphs.split(name).names
        assert np.array_equal(images(again.split(name), 2), images(glyphs.split(name), 2))
    total = inspect(tmp_path)["classes"]
    assert seen == [(i, total) for i in range(1, total + 1)]
    assert manifest.provenance["instances"] == 2


@pytest.mark.parametrize("settings", [{"size": 4}, {"instances": 0}])
def test_bad_sizes(tmp_path, settings):
    with pytest.raises(DataError, match="at least 8 pixels"):
        build_glyphs(tmp_path, **settings)


def test_missing_fonts_are_named(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans.ttf is absent. Reinstall matplotlib"):
        build_glyphs(tmp_path / "out")
