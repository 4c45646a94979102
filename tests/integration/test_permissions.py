"""What may not be read ends in a message that names the fix, like any other bad input.

Whoever runs the tests may be allowed everything, so the system's refusal is played: ``PermissionError`` from its calls.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import distmeta
from distmeta.data import build_image_folder, verify
from distmeta.errors import DataError, ShardCorrupt
from distmeta.files import read_record, write_record
from distmeta.run.directory import RunDirectory
from helpers import run_command

JOB = """
import distmeta
experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.conv4(width=4)),
    tasks=distmeta.FewShot(data="digits", ways=3),
    outer=distmeta.Outer(iterations=1, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=2),
)
"""


def refusal(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def lock(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on the folder can be seen, but neither listed nor entered."""

    def guarded(real):
        def call(path=".", *words, **options):
            below = isinstance(path, str | os.PathLike) and folder in Path(path).absolute().parents
            listed = real in (os_listdir, os_scandir) and Path(path).absolute() == folder
            if below or listed:
                raise refusal(path)
            return real(path, *words, **options)

        return call

    os_listdir, os_scandir = os.listdir, os.scandir
    for name in ("stat", "lstat", "listdir", "scandir", "mkdir", "open"):
        patch.setattr(os, name, guarded(getattr(os, name)))


@pytest.fixture
def world(digits_dir, tmp_path, monkeypatch) -> Path:
    (tmp_path / "digits").symlink_to(digits_dir)
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


TRAIN = "train job.py --backend local --no-tracking"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"{TRAIN} --data locked/digits", "no dataset 'locked/digits'"),
        (f"{TRAIN} --run-dir locked", "The run directory locked cannot be written: .*Permission denied"),
        (f"{TRAIN} --run-dir locked/new", "The run directory locked/new cannot be written: .*Permission denied"),
        ("train locked/job.py --backend local", "There is no job file .*locked/job.py"),
    ],
)
def test_one_message(line, says, world, monkeypatch):
    lock(world / "locked", monkeypatch)
    done = run_command(*line.split())
    assert done.code == 1
    assert re.search(r"(?m)^error: ", done.err)
    assert re.search(says, done.err), done.err


def test_a_run_of_somebody_else_s_job_needs_their_folder_no_more(world, monkeypatch):
    distmeta.meta_train(distmeta.load_job("job.py"), run_dir="run")
    record = read_record(Path("run/run.json"))
    record["job"]["folder"] = str(world / "locked" / "jobs")
    write_record(Path("run/run.json"), record)
    lock(world / "locked", monkeypatch)
    assert RunDirectory.open("run").job().folder == world / "run"


def test_a_shard(digits_dir, monkeypatch):
    def refuse(path):
        raise refusal(path)

    monkeypatch.setattr("distmeta.data.dataset.sha256_of", refuse)
    with pytest.raises(ShardCorrupt, match=r"00000\.arrow cannot be read: Permission denied. Fix its permissions"):
        verify(digits_dir)


@pytest.mark.parametrize("locked", ["images", "images/train", "images/train/cat"])
def test_a_folder_of_images(locked, tmp_path, monkeypatch):
    for split, name in (("train", "cat"), ("test", "dog")):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / "1.png")
    lock(tmp_path / locked, monkeypatch)
    with pytest.raises(DataError, match=rf"{locked} cannot be read: .*Permission denied.*Fix its permissions"):
        build_image_folder(tmp_path / "images", tmp_path / "out")
