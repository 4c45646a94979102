"""Processes read pictures in order, never far ahead, and tell how they ended."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distmeta.data import picture_workers
from distmeta.data.picture_workers import BATCH, WORTH_A_PROCESS, read_pictures
from distmeta.data.pictures import Recipe
from distmeta.errors import DataError


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Enough pictures for two processes: picture i is all i % 256; every hundredth does not exist."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(2 * WORTH_A_PROCESS):
        if i % 100:
            Image.new("L", (4, 3), i % 256).save(root / f"{i}.png")
    return [str(root / f"{i}.png") for i in range(2 * WORTH_A_PROCESS)]


@pytest.mark.parametrize("workers", [1, 2, 5, None])
@pytest.mark.parametrize("size", [None, (2, 2)])
def test_results_are_in_order(paths, workers, size):
    reads = list(read_pictures(paths, Recipe(size), workers))
    assert len(reads) == len(paths)
    for i, read in enumerate(reads):
        if i % 100:
            assert np.array_equal(read.pixels, np.full((1, *(size or (3, 4))), i % 256))
            assert read.error == ""
        else:
            assert read.pixels is None
            assert f"/{i}.png does not exist" in read.error


def test_few_are_read_ahead(paths, monkeypatch):
    asked = []
    ask = picture_workers._Processes.ask
    monkeypatch.setattr(picture_workers._Processes, "ask", lambda self, some: asked.append(some) or ask(self, some))
    paths = paths * 4
    reads = read_pictures(paths, Recipe((2, 2)), 2)
    for _ in range(BATCH):
        next(reads)
    assert len(asked) <= 2 * picture_workers._AHEAD
    reads.close()
    assert len(asked) <= 2 * picture_workers._AHEAD
    assert len(paths) > 3 * BATCH * len(asked)


@pytest.mark.parametrize(("size", "most"), [(None, 1), ((2, 2), BATCH), ((224, 224), 27), ((2000, 2000), 1)])
def test_large_pictures_are_asked_for_in_small_requests(paths, monkeypatch, size, most):
    asked = []
    monkeypatch.setattr(
        picture_workers._Processes,
        "ask",
        lambda self, some: asked.append(len(some)) or [picture_workers.Read(None, "")] * len(some),
    )
    assert len(list(read_pictures(paths, Recipe(size), 2))) == len(paths)
    assert max(asked) == most


def test_few_pictures_are_read_by_this_process(paths, monkeypatch):
    """A process takes longer to start than to read them."""
    monkeypatch.setattr(picture_workers._Processes, "ask", None)
    assert len(list(read_pictures(paths[: 2 * WORTH_A_PROCESS - 1], Recipe(), 8))) == 2 * WORTH_A_PROCESS - 1


def test_no_workers(paths):
    with pytest.raises(DataError, match="workers is 0"):
        read_pictures(paths, Recipe(), 0)


def test_a_process_that_dies_is_named(paths, monkeypatch):
    monkeypatch.setattr(picture_workers, "_START", "import os, sys; sys.stdin.buffer.read(9); os._exit(7)")
    with pytest.raises(
        DataError,
        match=rf"ended by itself \(exit code 7\), at one of .*0.png to .*{BATCH - 1}.png: .* with --workers 1",
    ):
        list(read_pictures(paths, Recipe((2, 2)), 2))


def test_reading_processes_import_neither_torch_nor_pyarrow():
    """Each starts in a tenth of a second instead of two."""
    program = (
        "import sys, distmeta.data.picture_workers, distmeta.data.pictures\n"
        "print({'torch', 'pyarrow', 'pydantic', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_a_job_named_as_a_module_of_python_is_not_taken_for_it(paths, tmp_path, monkeypatch):
    """A job's folder stays in front of sys.path; it was in front of the reading processes' too."""
    for name in ("copy.py", "dataclasses.py"):
        (tmp_path / name).write_text("raise SystemExit('this is a job')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(list(read_pictures(paths, Recipe(), 2))) == len(paths)
