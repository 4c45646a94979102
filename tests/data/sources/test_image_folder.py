"""Folders of images become datasets, and what is wrong with a folder is said with its name."""

import json

import numpy as np
import pytest
from PIL import Image

from distmeta.data import ShardDataset, build_image_folder, verify
from distmeta.errors import DataError, SplitLeak


def save(path, pixels, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **settings)


def pixels(seed, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def flat(tmp_path):
    """``photos/class/*.png``: ten classes of two colour images, 6 high and 5 wide."""
    root = tmp_path / "photos"
    for c in range(10):
        for i in range(2):
            save(root / f"class {c}" / f"{i}.png", pixels(10 * c + i))
    return root


def names(manifest):
    return {split: [c.name for c in entry.classes] for split, entry in manifest.splits.items()}


@pytest.mark.parametrize("folders", [("meta_train", "meta_validation", "meta_test"), ("train", "val", "test")])
def test_split_folders(tmp_path, folders):
    root = tmp_path / "photos"
    for i, folder in enumerate(folders):
        save(root / folder / f"c{i}" / "b.PNG", pixels(i))
        save(root / folder / f"c{i}" / "a.png", pixels(10 + i))
        (root / folder / ".DS_Store").write_text("")
        (root / folder / f"c{i}" / "notes.txt").write_text("not an image")
    manifest = build_image_folder(root, tmp_path / "out")
    assert names(manifest) == {"meta_train": ["c0"], "meta_validation": ["c1"], "meta_test": ["c2"]}
    assert manifest.name == "photos"
    assert manifest.input_shape == (3, 6, 5)
    got = ShardDataset.open(tmp_path / "out").split("meta_test").gather(np.array([0, 0]), np.array([0, 1]))
    expected = np.stack([pixels(12), pixels(2)]).transpose(0, 3, 1, 2)
    assert np.array_equal(got, expected), "in the order of the file names, channels first, exact"
    verify(tmp_path / "out")


def test_percentages_divide_classes_always_alike(flat, tmp_path):
    seen = []
    one = build_image_folder(flat, tmp_path / "1", split="60/20/20", progress=lambda *at: seen.append(at))
    two = build_image_folder(flat, tmp_path / "2", split="60/20/20")
    assert one == two
    assert {split: len(members) for split, members in names(one).items()} == {
        "meta_train": 6,
        "meta_validation": 2,
        "meta_test": 2,
    }
    assert seen == [(i, 10) for i in range(1, 11)]


def test_lists_in_a_file(flat, tmp_path):
    lists = {"meta_train": [f"class {i}" for i in range(8)], "meta_test": ["class 9", "class 8"]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    assert names(build_image_folder(flat, tmp_path / "out", split=tmp_path / "lists.json")) == lists


def test_size_scales_the_shorter_side_and_crops_the_longer(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255
    save(tmp_path / "in/train/a/1.jpg", image, quality=95)
    build_image_folder(tmp_path / "in", tmp_path / "out", size=20)
    got = ShardDataset.open(tmp_path / "out").split("meta_train").gather(np.array([0]), np.array([0]))
    assert got.shape == (1, 3, 20, 20)
    assert got.mean() > 240, "the centre"


def test_channels_convert(flat, tmp_path):
    save(flat / "class 0" / "grey.png", pixels(0, (6, 5)))
    with pytest.raises(DataError, match=r"grey.png is grey, but .*0.png is colour.*--channels"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20")
    assert build_image_folder(flat, tmp_path / "1", split="60/20/20", channels=1).input_shape == (1, 6, 5)
    assert build_image_folder(flat, tmp_path / "3", split="60/20/20", channels=3).input_shape == (3, 6, 5)


def test_transparent_parts_are_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255
    save(tmp_path / "in/train/a/1.png", image)
    build_image_folder(tmp_path / "in", tmp_path / "out")
    got = ShardDataset.open(tmp_path / "out").split("meta_train").gather(np.array([0]), np.array([0]))[0]
    assert (got[:, :2] == 0).all()
    assert (got[:, 2:] == 255).all()


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "in/train/a/1.jpg", pixels(0, (16, 8, 3)), exif=exif)
    assert build_image_folder(tmp_path / "in", tmp_path / "out").input_shape == (3, 8, 16)


def test_unequal_sizes(flat, tmp_path):
    save(flat / "class 3" / "wide.png", pixels(0, (6, 9, 3)))
    with pytest.raises(DataError, match=r"wide.png is 9x6, but .*0.png is 5x6.*--size"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20")
    assert build_image_folder(flat, tmp_path / "sized", split="60/20/20", size=8).input_shape == (3, 8, 8)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_unreadable_image_is_named(flat, tmp_path, content):
    (flat / "class 5" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"class 5/bad.png cannot be read as an image"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_truncated_image_is_named(flat, tmp_path):
    path = flat / "class 5" / "0.png"
    save(path, pixels(0, (60, 50, 3)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"class 5/0.png cannot be read"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20", size=8)


def test_sixteen_bit_images_are_scaled_to_eight(tmp_path):
    (tmp_path / "in/train/a").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 257 * 155 + 100, np.uint16)).save(tmp_path / "in/train/a/1.png")
    build_image_folder(tmp_path / "in", tmp_path / "out")
    split = ShardDataset.open(tmp_path / "out").split("meta_train")
    assert split.gather(np.array([0]), np.array([0])).max() == 155


def test_a_class_in_two_splits(tmp_path):
    save(tmp_path / "in/train/cat/1.png", pixels(0))
    save(tmp_path / "in/test/cat/1.png", pixels(1))
    with pytest.raises(SplitLeak, match="'cat' is in meta_train and in meta_test"):
        build_image_folder(tmp_path / "in", tmp_path / "out")


def test_one_split_under_two_names(tmp_path):
    """``train`` and ``meta_train`` are the same split: their classes are put together, a repeated one is refused."""
    save(tmp_path / "in/train/cat/1.png", pixels(0))
    save(tmp_path / "in/meta_train/dog/1.png", pixels(1))
    assert names(build_image_folder(tmp_path / "in", tmp_path / "out")) == {"meta_train": ["cat", "dog"]}
    save(tmp_path / "in/meta_train/cat/1.png", pixels(1))
    with pytest.raises(DataError, match="'cat' is twice in meta_train"):
        build_image_folder(tmp_path / "in", tmp_path / "out2")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (None, "--split 64/16/20"),
        ("50/50/50", "sum to 100"),
        ("98/1/1", "leave none for meta_validation"),
        ("lists.json", "does not exist"),
    ],
)
def test_bad_split(flat, tmp_path, split, message):
    with pytest.raises(DataError, match=message):
        build_image_folder(flat, tmp_path / "out", split=split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not lists of class names"),
        ('{"meta_train": "class 0"}', "not lists of class names"),
        ('{"meta_train": ["class 77"]}', "'class 77', which is not in the data"),
        ('{"meta_train": ["class 0"]}', "leaves out 9 of 10"),
        ('{"meta_train": ["class 0"], "meta_test": ["class 0"]}', "is in meta_train and in meta_test"),
        ('{"train": ["class 0"]}', "no split 'train'"),
    ],
)
def test_bad_split_file(flat, tmp_path, text, message):
    (tmp_path / "lists.json").write_text(text)
    with pytest.raises(DataError, match=message):
        build_image_folder(flat, tmp_path / "out", split=tmp_path / "lists.json")


def test_bad_folders(flat, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        build_image_folder(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    for root in (tmp_path / "empty", tmp_path / "empty" / "train"):
        with pytest.raises(DataError, match="holds no class folders"):
            build_image_folder(root, tmp_path / "out")
    (flat / "class x").mkdir()
    with pytest.raises(DataError, match=r"class x holds no png"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20")
    (flat / "train" / "y").mkdir(parents=True)
    with pytest.raises(DataError, match="has split folders"):
        build_image_folder(flat, tmp_path / "out")


@pytest.mark.parametrize("settings", [{"size": 0}, {"channels": 2}])
def test_bad_settings(flat, tmp_path, settings):
    with pytest.raises(DataError, match="expected"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20", **settings)
