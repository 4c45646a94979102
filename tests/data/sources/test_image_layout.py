"""Every layout of folders is read in one way, or refused with the way out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distmeta import FewShot
from distmeta.data import ShardDataset, build_image_folder
from distmeta.data.sources.image_layout import find_classes
from distmeta.errors import DataError, SplitLeak


@pytest.fixture
def put(tmp_path):
    """Write pictures that all differ, and other files, below ``in``."""
    count = iter(range(10_000))

    def write(*names):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".tif", ".PGM"):
                n = next(count)
                Image.fromarray(np.array([[n % 256, n // 256, 7, 9]] * 4, np.uint8)).save(path)
            else:
                path.write_text("")
        return tmp_path / "in"

    return write


def found(root, split=None, min_images=1):
    layout = find_classes(root, split, min_images)
    return [(c.split, c.name, [Path(path).relative_to(root).as_posix() for path in c.paths]) for c in layout.classes]


def test_nested_folders_are_groups(put, tmp_path):
    """Omniglot's own layout: characters of the same number in many alphabets."""
    root = put(*(f"{a}/character0{c}/{i}.png" for a in ("Greek", "Latin") for c in (1, 2, 3) for i in range(4)))
    manifest = build_image_folder(root, tmp_path / "out", split="100/0/0")
    names = [c.name for c in manifest.splits["meta_train"].classes]
    assert names == sorted(f"{a}/character0{c}" for a in ("Greek", "Latin") for c in (1, 2, 3))
    assert set(ShardDataset.open(tmp_path / "out").split("meta_train").groups) == {"Greek", "Latin"}
    tasks = FewShot(data=str(tmp_path / "out"), ways=3, shots=1, queries=1, within_group="all")
    assert tasks.spec.outputs == 3


def test_super_classes_in_splits_and_any_depth(put):
    root = put("train/animals/cat/1.png", "train/cars/a/b/1.png", "train/plain/1.png", "test/animals/dog/1.tif")
    assert found(root) == [
        ("meta_train", "animals/cat", ["train/animals/cat/1.png"]),
        ("meta_train", "cars/a/b", ["train/cars/a/b/1.png"]),
        ("meta_train", "plain", ["train/plain/1.png"]),
        ("meta_test", "animals/dog", ["test/animals/dog/1.tif"]),
    ]


def test_lists_name_nested_classes(put, tmp_path):
    root = put("a/x/1.png", "a/y/1.png", "b/x/1.PGM")
    lists = {"meta_train": ["b/x", "a/x"], "meta_test": ["a/y"]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    assert [(split, name) for split, name, _ in found(root, tmp_path / "lists.json")] == [
        ("meta_train", "b/x"),
        ("meta_train", "a/x"),
        ("meta_test", "a/y"),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "a/b/2.png"], r"in/a holds pictures \(1.png\) and a folder with pictures \(b\).* Move"),
        (["1.png", "a/2.png"], r"in holds pictures \(1.png\) and a folder with pictures \(a\)"),
        (["1.png", "2.png"], "in holds pictures, but no class folders.*a folder of its own"),
        (["train/1.png"], "train holds pictures, but no class folders"),
        (["train/a/1.png", "cover.png"], "split folders .*but also the picture cover.png"),
        (["train/a/1.png", "extra/b/1.png"], "split folders .*but also 'extra' with pictures"),
        (["a/notes.txt", "b/c/data.csv"], r"no class folders with pictures.* 2 other files: a/notes.txt, b/c/data.csv"),
    ],
)
def test_two_readings_or_none(put, names, message):
    with pytest.raises(DataError, match=message):
        find_classes(put(*names), None, 1)


def test_other_files_beside_pictures(put):
    root = put("train/a/1.png", "train/a/labels/1.xml", "annotations/b.json", "train/list.txt", "LICENCE")
    layout = find_classes(root, None, 1)
    assert [c.name for c in layout.classes] == ["a"]
    assert layout.strangers["not pictures"].first == [
        "LICENCE",
        "annotations/b.json",
        "train/a/labels/1.xml",
        "train/list.txt",
    ]


def test_links(put):
    root = put("a/1.png", "b/1.png")
    (root / "a/loop").symlink_to(root)
    with pytest.raises(DataError, match="loop is a link to a folder above it"):
        find_classes(root, "50/0/50", 1)
    (root / "a/loop").unlink()
    (root / "c").symlink_to(root / "b")
    (root / "a/gone.png").symlink_to(root / "nowhere.png")
    assert len(found(root, "100/0/0")) == 3
    assert found(root, "100/0/0")[0][2] == ["a/1.png", "a/gone.png"], "named as corrupt when it is read"


def test_names_that_cannot_be_written(put):
    with pytest.raises(DataError, match="unprintable"):
        find_classes(put("a\nb/1.png"), "100/0/0", 1)


# -- CSV splits, as of mini-ImageNet -----------------------------------------------------------------------------------


@pytest.fixture
def mini(put):
    root = put(*(f"images/n{c}_{i}.png" for c in range(6) for i in range(3)), "images/unlisted.png", "images/notes.txt")
    for name, classes in [("train", (3, 0, 1)), ("val", (2,)), ("test", (4, 5))]:
        lines = [f"n{c}_{i}.png,n{c}" for c in classes for i in (2, 0, 1)]
        (root / f"{name}.csv").write_text("filename,label\n" + "\n".join(lines) + "\n")
    return root


def test_csv_splits(mini, tmp_path):
    manifest = build_image_folder(mini, tmp_path / "out")
    assert {split: [c.name for c in entry.classes] for split, entry in manifest.splits.items()} == {
        "meta_train": ["n0", "n1", "n3"],
        "meta_validation": ["n2"],
        "meta_test": ["n4", "n5"],
    }
    assert manifest.provenance["split"] == "CSV"
    assert manifest.provenance["left out"] == {
        "not pictures": {"count": 1, "first": ["images/notes.txt"]},
        "in no CSV": {"count": 1, "first": ["images/unlisted.png"]},
    }
    assert found(mini)[0] == ("meta_train", "n0", ["images/n0_0.png", "images/n0_1.png", "images/n0_2.png"])


def test_csv_of_a_spreadsheet(mini):
    """A byte order mark, other columns, capitals, spaces, quotes; pictures beside the files."""
    for path in mini.glob("*.csv"):
        if path.name != "train.csv":
            path.unlink()
    (mini / "train.csv").write_bytes(
        b'\xef\xbb\xbfid,Filename, Label \r\n1,"n0_0.png","n0, the first"\r\n2, n1_0.png ,n1\r\n'
    )
    assert [name for _, name, _ in found(mini)] == ["n0, the first", "n1"]
    for path in (mini / "images").iterdir():
        path.rename(mini / path.name)
    (mini / "images").rmdir()
    assert found(mini)[1] == ("meta_train", "n1", ["n1_0.png"])


def test_split_folders_go_before_csv_files(mini, put):
    put("train/a/1.png", "test/b/1.png")
    for path in (mini / "images").glob("*.png"):
        path.unlink()
    layout = find_classes(mini, None, 1)
    assert [c.name for c in layout.classes] == ["a", "b"]
    assert "train.csv" in layout.strangers["not pictures"].first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.csv has no columns; expected filename and label"),
        ("file,class\na,b\n", "train.csv has the columns file, class; expected filename and label"),
        ("filename,label\nn0_0.png\n", "line 2: no filename or no label"),
        ("filename,label\nn0_0.png, \n", "line 2: no filename or no label"),
        ("filename,label\nn0_0.png,n0\nn9_9.png,n9\n", "line 3: .*n9_9.png does not exist. Add the picture"),
        ("filename,label\n../train.csv,n0\n", r"line 2: filename '../train.csv' is not a path inside"),
        ("filename,label\n/etc/passwd,n0\n", "line 2: filename '/etc/passwd' is not a path inside"),
        (b"filename,label\n\xff\xfe,n0\n", "cannot be read as a CSV: .* Expected UTF-8"),
        ("filename,label\n", "train.csv"),
    ],
)
def test_bad_csv(mini, text, message):
    (mini / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    if text == "filename,label\n":
        assert {split for split, _, _ in found(mini)} == {"meta_validation", "meta_test"}
        return
    with pytest.raises(DataError, match=message):
        find_classes(mini, None, 1)


def test_a_label_in_two_csv_files(mini):
    with (mini / "test.csv").open("a") as file:
        file.write("n0_0.png,n0\n")
    with pytest.raises(SplitLeak, match="'n0' is in meta_train and in meta_test"):
        find_classes(mini, None, 1)


def test_a_picture_in_two_csv_files(mini, tmp_path):
    with (mini / "test.csv").open("a") as file:
        file.write("n0_0.png,n9\n")
    with pytest.raises(SplitLeak, match=r"images/n0_0.png = images/n0_0.png"):
        build_image_folder(mini, tmp_path / "out")


def test_a_split_beside_csv_files(mini):
    with pytest.raises(DataError, match=r"has split files \(test.csv, train.csv, val.csv\), but the split '64/16/20'"):
        find_classes(mini, "64/16/20", 1)
