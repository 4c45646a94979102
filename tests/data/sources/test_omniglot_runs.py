"""Lake's runs as a dataset: from a small made-up archive, and from the official one."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from distmeta import LakeRuns
from distmeta.data import ShardDataset, build_omniglot_runs, verify
from distmeta.data.sources import omniglot as archives
from distmeta.data.sources import omniglot_runs as module
from distmeta.errors import DataError
from distmeta.types import TaskRef

CHARACTERS = ["One/character01", "One/character02", "Two/character01", "Two/character02", "Two/character03"]
RUN_OF = {"run01": (2, 3), "run02": (4, 2)}
"""Characters of the two runs' classes 1 and 2; alphabet One has no run."""


def drawing(character, drawer):
    """105x105, ink 0 on paper 255, another for every character and drawer."""
    paper = np.full((105, 105), 255, np.uint8)
    paper[5 + 15 * character : 20 + 15 * character, 5 + 4 * drawer : 30 + 4 * drawer] = 0
    data = io.BytesIO()
    Image.fromarray(paper).convert("1").save(data, "PNG")
    return data.getvalue()


def archive_of(path, first, characters):
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(characters):
            for drawer in range(1, 21):
                archive.writestr(f"images/{name}/{first + i:04d}_{drawer:02d}.png", drawing(i, drawer))


def runs_archive(path, labels=None, wrong_drawing=False):
    """Test item 1 is of class 2 and item 2 of class 1; drawers 3 and 7."""
    with zipfile.ZipFile(path, "w") as archive:
        for run, (a, b) in RUN_OF.items():
            for way, character in ((1, a), (2, b)):
                archive.writestr(f"{run}/training/class{way:02d}.png", drawing(character, 3))
                shown = 0 if wrong_drawing and way == 2 else character
                archive.writestr(f"{run}/test/item{3 - way:02d}.png", drawing(shown, 7))
            text = (
                f"{run}/test/item01.png {run}/training/class02.png\n{run}/test/item02.png {run}/training/class01.png\n"
            )
            archive.writestr(f"{run}/class_labels.txt", text if labels is None else labels)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVES", {"images_background.zip": 40, "images_evaluation.zip": 100})
    monkeypatch.setattr(module, "RUNS", 2)
    monkeypatch.setattr(module, "WAYS", 2)
    folder = tmp_path / "source"
    folder.mkdir()
    archive_of(folder / "images_background.zip", 1, ["Zero/character01", "Zero/character02"])
    archive_of(folder / "images_evaluation.zip", 3, CHARACTERS)
    runs_archive(folder / "all_runs.zip")
    return folder


def test_a_small_archive(source, tmp_path):
    seen = []
    build_omniglot_runs(tmp_path / "out", source=source, size=21, progress=lambda *at: seen.append(at))
    verify(tmp_path / "out")
    dataset = ShardDataset.open(tmp_path / "out")
    assert seen[-1] == (8, 8)
    assert dataset.manifest.provenance["alphabets of the runs"] == ["Two"]
    assert dataset.split("meta_train").names == ("Zero/character01", "Zero/character02")
    assert dataset.split("meta_validation").names == ("One/character01", "One/character02"), "no run is of alphabet One"
    runs = dataset.split("meta_test")
    assert runs.names == ("run01/class01", "run01/class02", "run02/class01", "run02/class02")
    assert runs.counts.tolist() == [2] * 4
    for position, character in enumerate([2, 3, 4, 2]):
        pair = runs.gather(np.array([position] * 2), np.array([0, 1]))[:, 0].astype(float)
        for image, drawer in zip(pair, (3, 7), strict=True):  # the drawing to learn from comes first
            rows, columns = np.nonzero(image > 128)
            assert rows.mean() == pytest.approx((5 + 15 * character + 7) / 5 - 0.4, abs=0.5)
            assert columns.mean() == pytest.approx((5 + 4 * drawer + 12) / 5 - 0.4, abs=0.5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "all_runs.zip").unlink(), r"all_runs.zip is absent. Fetch it from https://"),
        (lambda folder: (folder / "all_runs.zip").write_bytes(b"<html>"), "not a whole zip"),
        (lambda folder: (folder / "images_background.zip").unlink(), "images_background.zip is absent"),
        (lambda folder: runs_archive(folder / "all_runs.zip", labels=""), "does not pair 2 test drawings"),
        (
            lambda folder: runs_archive(
                folder / "all_runs.zip", labels="run01/test/item01.png run01/training/class09.png"
            ),
            "does not pair 2 test drawings",
        ),
        (
            lambda folder: runs_archive(folder / "all_runs.zip", wrong_drawing=True),
            r"two drawings of run01/class02 are not of one character",
        ),
        (lambda folder: archive_of(folder / "all_runs.zip", 1, ["A/character01"]), "holds 0 drawings, expected 8"),
    ],
)
def test_damaged_archives(source, tmp_path, damage, message):
    damage(source)
    with pytest.raises(DataError, match=message):
        build_omniglot_runs(tmp_path / "out", source=source)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_size(source, tmp_path):
    with pytest.raises(DataError, match="--size 28"):
        build_omniglot_runs(tmp_path / "out", source=source, size=0)


@pytest.mark.omniglot
def test_the_official_runs(omniglot_source, tmp_path):
    if not (omniglot_source / "all_runs.zip").is_file():
        pytest.skip("all_runs.zip is not beside the Omniglot archives")
    manifest = build_omniglot_runs(tmp_path / "out", source=omniglot_source)
    assert verify(tmp_path / "out").classes == {
        "meta_train": 964,
        "meta_validation": 277,
        "meta_test": 400,
    }
    dataset = ShardDataset.open(tmp_path / "out")
    groups = {split: set(dataset.split(split).groups) for split in ("meta_train", "meta_validation")}
    groups["runs"] = set(manifest.provenance["alphabets of the runs"])
    assert {split: len(found) for split, found in groups.items()} == {
        "meta_train": 30,
        "meta_validation": 10,
        "runs": 10,
    }
    assert len(set.union(*groups.values())) == 50, "no alphabet is in two"
    tasks = LakeRuns(tmp_path / "out", train_ways=20, within_group="evaluation")
    tasks.check()
    runs = tasks.episodes([TaskRef("meta_test", 0, i) for i in range(20)], seed=0)
    # Koch et al. (2015), table 2: 21.7 % for the nearest neighbour, on the larger images.
    assert float(tasks.baseline(runs)["baseline_accuracy"].mean()) == pytest.approx(0.217, abs=0.03)
