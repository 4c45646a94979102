"""Folders of images become datasets, and what is wrong with a folder is said with its name."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distmeta.data import ShardDataset, build_image_folder, verify
from distmeta.data.remarks import remarks
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


@pytest.mark.parametrize(
    "folders", [("meta_train", "meta_validation", "meta_test"), ("train", "val", "test"), ("Training", "Valid", "TEST")]
)
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
    assert seen == [(i, 20) for i in range(1, 21)]


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
        ("98/1/1", "leave none for meta_validation.* such as 64/16/20"),
        ("lists.json", "does not exist"),
    ],
)
def test_bad_split(flat, tmp_path, split, message):
    with pytest.raises(DataError, match=message):
        build_image_folder(flat, tmp_path / "out", split=split)


def test_the_file_of_lists_that_is_suggested_is_json(flat, tmp_path):
    with pytest.raises(DataError) as caught:
        build_image_folder(flat, tmp_path / "out")
    suggested = str(caught.value)[str(caught.value).index("{") : str(caught.value).rindex("}") + 1]
    assert set(json.loads(suggested.replace(", ...", ""))) == {"meta_train", "meta_test"}


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
    (flat / "train" / "y").mkdir(parents=True)
    with pytest.raises(DataError, match="has split folders"):
        build_image_folder(flat, tmp_path / "out")


@pytest.mark.parametrize("settings", [{"size": 0}, {"channels": 2}, {"min_images": 0}, {"workers": 0}])
def test_bad_settings(flat, tmp_path, settings):
    with pytest.raises(DataError, match="expected"):
        build_image_folder(flat, tmp_path / "out", split="60/20/20", **settings)


# -- what is left out --------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_named(flat, tmp_path):
    """Files of other kinds were passed over in silence; a class without pictures stopped the build."""
    (flat / "class 0" / "list.txt").write_text("")
    (flat / "class 1" / "photo.heic").write_text("")
    (flat / "README").write_text("")
    for hidden in (".DS_Store", "Thumbs.db", "class 0/desktop.ini", "class 0/.hidden.png"):
        (flat / hidden).write_text("")
    (flat / "class x").mkdir()
    manifest = build_image_folder(flat, tmp_path / "out", split="60/20/20")
    assert manifest.provenance["left out"] == {
        "not pictures": {"count": 3, "first": ["README", "class 0/list.txt", "class 1/photo.heic"]},
        "fewer than 1 images": {"count": 1, "first": ["class x (0)"]},
    }
    assert remarks(manifest.provenance) == [
        "left out, not pictures: 3 (README, class 0/list.txt, class 1/photo.heic)",
        "left out, fewer than 1 images: 1 (class x (0))",
    ]
    assert sum(len(members) for members in names(manifest).values()) == 10
    assert "left out" in ShardDataset.open(tmp_path / "out").manifest.provenance


def test_small_classes(flat, tmp_path):
    save(flat / "single" / "1.png", pixels(99))
    manifest = build_image_folder(flat, tmp_path / "1", split="60/20/20", min_images=2)
    assert manifest.provenance["left out"] == {"fewer than 2 images": {"count": 1, "first": ["single (1)"]}}
    assert manifest == build_image_folder(flat, tmp_path / "2", split="60/20/20", min_images=2)
    with_it = build_image_folder(flat, tmp_path / "3", split="60/20/20")
    assert sum(len(members) for members in names(with_it).values()) == 11
    lists = {"meta_train": [f"class {i}" for i in range(10)], "meta_test": ["single"]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    with pytest.raises(DataError, match=r"meta_test has no class with at least 2 .*: single \(1\). Lower --min-images"):
        build_image_folder(flat, tmp_path / "4", split=tmp_path / "lists.json", min_images=2)


def test_corrupt_pictures_can_be_skipped(flat, tmp_path):
    for c in (3, 5):
        (flat / f"class {c}" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"class \d/0.png cannot be read .* --skip-corrupt") as caught:
        build_image_folder(flat, tmp_path / "1", split="60/20/20")
    assert "2 pictures cannot be read: class" in str(caught.value), "all at once, not the next after each build"
    assert not (tmp_path / "1").exists(), "nothing half-written"
    manifest = build_image_folder(flat, tmp_path / "2", split="60/20/20", skip_corrupt=True)
    found = manifest.provenance["left out"]["corrupt"]
    assert (found["count"], sorted(found["first"])) == (2, ["class 3/0.png", "class 5/0.png"])
    assert sum(verify(tmp_path / "2").images.values()) == 18
    smaller = build_image_folder(flat, tmp_path / "3", split="60/20/20", skip_corrupt=True, min_images=2)
    assert sorted(smaller.provenance["left out"]["fewer than 2 images"]["first"]) == ["class 3 (1)", "class 5 (1)"]
    assert sum(verify(tmp_path / "3").images.values()) == 16


def test_corrupt_and_identical_pictures_are_named_in_one_message(tmp_path):
    """Three builds were needed to hear of three bad files."""
    for split, name in (("train", "a"), ("train", "b"), ("test", "c")):
        save(tmp_path / "in" / split / name / "1.png", pixels(0 if name != "b" else 1))
        save(tmp_path / "in" / split / name / "2.png", pixels(ord(name)))
    (tmp_path / "in/train/a/3.png").write_bytes(b"broken")
    (tmp_path / "in/train/b/4.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        build_image_folder(tmp_path / "in", tmp_path / "out")
    for text in ("2 pictures cannot be read: train/a/3.png, train/b/4.png.", "--skip-corrupt", "--allow-duplicates"):
        assert text in str(caught.value)
    assert "train/a/1.png = test/c/1.png" in str(caught.value)
    with pytest.raises(DataError) as caught:
        build_image_folder(tmp_path / "in", tmp_path / "out", allow_duplicates=True)
    assert "--allow-duplicates" not in str(caught.value)


def test_a_split_that_loses_all_its_classes(tmp_path):
    save(tmp_path / "in/train/a/1.png", pixels(0))
    (tmp_path / "in/test/b").mkdir(parents=True)
    (tmp_path / "in/test/b/1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="meta_test has no class with at least 1 pictures left"):
        build_image_folder(tmp_path / "in", tmp_path / "out", skip_corrupt=True)
    assert not (tmp_path / "out").exists()


# -- identical pictures ------------------------------------------------------------------------------------------------


def test_identical_pictures(tmp_path):
    """By their pixels: another file format or name does not hide them."""
    root = tmp_path / "in"
    for split, name, file, seed in [
        ("train", "a", "1.png", 1),
        ("train", "a", "2.bmp", 1),
        ("train", "b", "1.png", 2),
        ("train", "c", "1.webp", 2),
        ("test", "d", "1.png", 3),
    ]:
        save(root / split / name / file, pixels(seed), **({"lossless": True} if file.endswith("webp") else {}))
    manifest = build_image_folder(root, tmp_path / "1")
    assert manifest.provenance["identical"] == {
        "within a class": {"count": 1, "first": ["train/a/1.png = train/a/2.bmp"]},
        "in two classes": {"count": 1, "first": ["train/b/1.png = train/c/1.webp"]},
    }
    assert remarks(manifest.provenance)[1].startswith("warning: identical pictures in two classes: 1 (train/b/1.png")
    for i in range(5):
        save(root / "test" / "e" / f"{i}.png", pixels(1))
    with pytest.raises(SplitLeak, match=r"5 pictures have .*: train/a/1.png = test/e/0.png, .* and 2 more. "):
        build_image_folder(root, tmp_path / "2")
    assert not (tmp_path / "2").exists()
    manifest = build_image_folder(root, tmp_path / "3", allow_duplicates=True)
    assert manifest.provenance["identical"]["across splits"]["count"] == 5
    # Alike after the conversion only: as a learner sees them.
    save(root / "train/f/1.png", np.full((6, 5, 3), 40))
    save(root / "val/g/1.png", np.full((6, 5), 40))
    build_image_folder(root / "train", tmp_path / "4", split="100/0/0")
    with pytest.raises(SplitLeak, match=r"train/f/1.png = val/g/1.png"):
        build_image_folder(root, tmp_path / "5", channels=1)


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_drawings_are_inverted_and_padded(tmp_path):
    page = np.full((20, 40), 250, np.uint8)
    page[10, 2:38] = 0
    save(tmp_path / "in/train/line/1.png", page)
    build_image_folder(tmp_path / "in", tmp_path / "out", size=20, ink=True)
    dataset = ShardDataset.open(tmp_path / "out")
    got = dataset.split("meta_train").gather(np.array([0]), np.array([0]))[0, 0]
    assert dataset.manifest.provenance["ink"] is True
    assert got[:4].max() == 0
    assert (got.max(0) > 60)[2:18].all(), "the line from end to end"
    save(tmp_path / "in/train/line/2.png", np.full((20, 40), 128))
    with pytest.raises(DataError, match=r"line/2.png has a background of 128, neither"):
        build_image_folder(tmp_path / "in", tmp_path / "out2", size=20, ink=True)


# -- many pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """``many/class/*.png``: 600 pictures, enough for two processes; one of them is broken."""
    root = tmp_path_factory.mktemp("many")
    for c in range(12):
        for i in range(50):
            save(root / f"class {c:02}" / f"{i:02}.png", pixels(100 * c + i, (9, 7, 3)))
    (root / "class 04" / "07.png").write_bytes(b"broken")
    return root


def test_processes_change_nothing(many, tmp_path):
    options = {"split": "50/25/25", "size": 8, "skip_corrupt": True}
    seen = []
    one = build_image_folder(many, tmp_path / "1", workers=1, **options)
    two = build_image_folder(many, tmp_path / "2", workers=2, progress=lambda *at: seen.append(at), **options)
    assert one == two
    for path in (tmp_path / "1").rglob("*.arrow"):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()
    assert seen == [(i, 600) for i in range(1, 601)]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing(many, tmp_path, workers):
    def interrupt(done, total):
        if done == 300:
            raise KeyboardInterrupt

    options = {"split": "50/25/25", "skip_corrupt": True, "workers": workers}
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        build_image_folder(many, tmp_path / "out", progress=interrupt, **options)
    assert not (tmp_path / "out").exists()
    assert threading.active_count() == before
    assert build_image_folder(many, tmp_path / "out", **options).input_shape == (3, 9, 7)


def ended(pid):
    """Whether a process is gone, or only waits to be collected by a parent that is none of ours."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["os.killpg(0, signal.SIGINT)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_build_that_is_ended_leaves_no_process(many, tmp_path, how):
    """Ctrl-C as a terminal sends it, to the whole group: exit 130, one line. And a parent that is killed."""
    program = f"""
import os, signal, sys, threading
from distmeta.data import picture_workers
ask = picture_workers._Processes.ask
once = threading.Lock()  # two threads ask; a second ctrl-C would end the clearing up after the first
def then_end(self, paths):
    answer = ask(self, paths)
    if "class 06" in paths[0] and once.acquire(blocking=False):
        print(*(process.pid for process in self._started), flush=True)
        {how}
    return answer
picture_workers._Processes.ask = then_end
from distmeta.cli.main import main
main()
"""
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "data", "build", "image-folder", "--from", str(many)),
            *("--out", str(tmp_path / "out"), "--split", "50/25/25", "--skip-corrupt", "--workers", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        process_group=0,
    )
    started = {int(pid) for line in done.stdout.splitlines() for pid in line.split()}
    assert started, done.stderr
    deadline = time.monotonic() + 30
    while not all(map(ended, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(ended, started))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert "Traceback" not in done.stderr
    if "SIGKILL" in how:
        return
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Interrupted."
    assert not (tmp_path / "out").exists()
