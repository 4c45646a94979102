"""Jobs of several folders in one process: each finds the modules beside it, whatever names another's have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distmeta.errors import ConfigError
from distmeta.experiment.job import load_job

JOB = """
import distmeta
import beside
from package import part

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,))), tasks=distmeta.Sinusoids(shots=beside.SHOTS, queries=part.QUERIES)
)
"""


@pytest.fixture(autouse=True)
def _undo(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("beside", "package", "package.part", "mine"):
        sys.modules.pop(name, None)


def write(folder: Path, number: int) -> Path:
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "part.py").write_text(f"QUERIES = {number}\n")
    (folder / "beside.py").write_text(f"SHOTS = {number}\n")
    (folder / "job.py").write_text(JOB)
    return folder / "job.py"


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a/c"), ("a/c", "a")])  # one may be inside of the other
def test_equal_names_in_two_folders(names, tmp_path):
    one, other = (write(tmp_path / name, number) for number, name in enumerate(names, start=2))
    loaded = [load_job(path) for path in (one, other, one)]
    found = [(job.experiment.tasks.config.shots, job.experiment.tasks.config.queries) for job in loaded]
    assert found == [(2, 2), (3, 3), (2, 2)]
    assert loaded[0].code == loaded[2].code != loaded[1].code


def test_a_module_that_only_the_first_folder_has_stays_what_it_is(tmp_path):
    """Its classes are in use, and a second copy of them would be others."""
    one, other = write(tmp_path / "a", 2), write(tmp_path / "b", 3)
    (tmp_path / "a" / "mine.py").write_text("")
    one.write_text(JOB + "import mine\n")
    first = load_job(one).module.mine
    load_job(other)
    assert sys.modules["mine"] is load_job(one).module.mine is first


@pytest.mark.parametrize(
    ("name", "whose"), [("copy.py", "Python's own module copy"), ("torch.py", "the package torch")]
)
def test_a_file_that_would_be_imported_for_another_is_refused(name, whose, tmp_path):
    """The job itself, or one beside it; the folder comes first on the path of every process."""
    job = write(tmp_path, 2)
    job.rename(tmp_path / name)
    for path in (tmp_path / name, write(tmp_path / "other", 2)):
        with pytest.raises(ConfigError, match=rf"{name} has the name of {whose} .* Rename it"):
            load_job(path)
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_text("")


def test_names_that_hide_nothing_are_taken(tmp_path):
    job = write(tmp_path, 2)
    (tmp_path / "antigravity.py").write_text("")  # nobody imports it
    (tmp_path / "json").mkdir()  # no package: Python's own comes before it
    assert load_job(job).experiment.tasks.config.shots == 2
