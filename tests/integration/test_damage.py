"""Damage to any file that a run is read from is named, or the newest whole checkpoint is used; never other numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.errors import CheckpointDamaged, DataError, ManifestError, ShardCorrupt, SplitLeak
from distmeta.run.place import Place
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.events import Event

FILES = ("params.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
STEPS, STOPPED = 12, 9


def damaged(content: bytes, seed: int, places: int = 200) -> Iterator[bytes]:
    """The content with one flipped bit, cut, and with a byte more, at random places."""
    random = np.random.default_rng(seed)
    for _ in range(places):
        at, bit, cut = (int(n) for n in random.integers(0, [len(content), 8, len(content)]))
        yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        yield content[:cut]
        yield content + content[at : at + 1]


def flip(path: Path) -> None:
    path.write_bytes(next(damaged(path.read_bytes(), seed=len(path.name))))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def sines(validate: int = 0) -> distmeta.Experiment:
    return distmeta.Experiment(
        learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
        tasks=distmeta.Sinusoids(shots=4, queries=4),
        outer=distmeta.Outer(iterations=STEPS, meta_batch_size=4),
        runtime=distmeta.Runtime(checkpoint_every=3),
        evaluation=distmeta.Evaluation(every=validate, validation_tasks=4, test_tasks=4),
    )


def resume(folder: Path, experiment: distmeta.Experiment) -> tuple[distmeta.RunResult, list[str]]:
    """The finished run, and what it said on the way."""
    said: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "message":
            said.append(event.text)

    return distmeta.meta_train(experiment, run_dir=folder, resume=True, place=Place(watch=watch)), said


def interrupted(folder: Path, experiment: distmeta.Experiment, at: int) -> Path:
    """A run that was stopped after ``at`` steps."""

    def stop(event: Event) -> None:
        if (event.kind, event.step) == ("step", at + 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distmeta.meta_train(experiment, run_dir=folder, place=Place(watch=stop))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> distmeta.RunResult:
    """The run that nothing happened to."""
    return distmeta.meta_train(sines(), run_dir=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    folder = interrupted(tmp_path_factory.mktemp("stopped") / "run", sines(), STOPPED)
    assert CheckpointStore(folder / "checkpoints").steps() == [6, 9]
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def newest_file(run: Path, name: str) -> Path:
    return run / "checkpoints" / f"step-{STOPPED:08d}" / name


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_in_a_checkpoint_is_found(run, name):
    store = CheckpointStore(run / "checkpoints")
    before, path = store.load(6).params_sha256, newest_file(run, name)
    content = path.read_bytes()
    for changed in damaged(content, seed=1):
        path.write_bytes(changed)
        newest = store.newest()
        assert (newest.checkpoint.step, newest.checkpoint.params_sha256) == (6, before)
        assert newest.damaged[9].startswith(name)
        assert list(store.damage()) == [9]
    path.unlink()
    assert store.newest().checkpoint.step == 6
    path.write_bytes(content)
    assert store.newest().checkpoint.step == 9


@pytest.mark.parametrize("damage", [flip, cut, append, os.remove])
@pytest.mark.parametrize("name", FILES)
def test_a_resumed_run_ends_with_the_same_bits_and_one_line_names_the_damage(run, whole, name, damage):
    damage(newest_file(run, name))
    result, said = resume(run, sines())
    assert result.params_sha256 == whole.params_sha256
    assert result.test.summary() == whole.test.summary()
    lines = [line for line in said if "damaged" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"Checkpoint step-00000009 ({name} ")
    assert lines[0].endswith(") is damaged; going on from step 6.")
    store = CheckpointStore(run / "checkpoints")
    assert (store.steps(), store.damage()) == ([9, 12], {})


def test_a_finished_run_whose_end_is_damaged_is_made_whole(whole, tmp_path):
    run = Path(shutil.copytree(whole.run_dir, tmp_path / "run"))
    flip(run / "checkpoints" / f"step-{STEPS:08d}" / "params.safetensors")
    result, said = resume(run, sines())
    assert result.params_sha256 == whole.params_sha256
    assert any("going on from step 9" in line for line in said)
    result, said = resume(run, sines())
    assert result.params_sha256 == whole.params_sha256
    assert not any("damaged" in line for line in said)


def never(event: Event) -> None:
    assert event.kind != "step"


def test_where_all_are_damaged_each_is_named_and_the_way_out_has_the_same_bits(run, whole):
    for path in (run / "checkpoints").glob("*/params.safetensors"):
        flip(path)
    with pytest.raises(
        CheckpointDamaged, match=r"step-00000009: params.*step-00000006: params.*delete them all: .*resume"
    ):
        distmeta.meta_train(sines(), run_dir=run, resume=True, place=Place(watch=never))
    for path in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(path)
    assert resume(run, sines())[0].params_sha256 == whole.params_sha256


def test_a_damaged_best_is_named_before_a_step_and_the_way_out_has_the_same_bits(tmp_path):
    experiment = sines(validate=2)
    whole = distmeta.meta_train(experiment, run_dir=tmp_path / "whole")
    run = interrupted(tmp_path / "run", experiment, STOPPED)
    store = CheckpointStore(run / "checkpoints")
    best = store.newest().checkpoint.best_step
    if best == store.steps()[-1]:
        pytest.fail("the test needs a best that is not the last; choose other settings")
    flip(store.path(best) / "params.safetensors")
    with pytest.raises(CheckpointDamaged, match=rf"step-{best:08d} is damaged: params.*delete it and all later ones"):
        distmeta.meta_train(experiment, run_dir=run, resume=True, place=Place(watch=never))
    for step in store.steps():
        if step >= best:
            shutil.rmtree(store.path(step))
    result, _ = resume(run, experiment)
    assert (result.params_sha256, result.best_step) == (whole.params_sha256, whole.best_step)
    assert result.test.summary() == whole.test.summary()


# -- datasets ----------------------------------------------------------------------------------------------------------

JOB = """
from distmeta import MAML, Evaluation, Experiment, FewShot, Outer, Runtime
from torch import nn

experiment = Experiment(
    learner=MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inner_lr=0.1),
    tasks=FewShot(data="digits", ways=3, shots=1, queries=1),
    outer=Outer(iterations=2, meta_batch_size=2),
    runtime=Runtime(checkpoint_every=1),
    evaluation=Evaluation(every=0, test_tasks=2, validation_tasks=2),
)
"""


@pytest.fixture(scope="module")
def once_trained(digits_dir, tmp_path_factory) -> Path:
    """A folder with a dataset, a job file and a run of it."""
    folder = tmp_path_factory.mktemp("job")
    shutil.copytree(digits_dir, folder / "digits")
    (folder / "job.py").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        distmeta.meta_train(distmeta.load_job("job.py"), run_dir="run")
    return folder


@pytest.fixture
def trained(once_trained, tmp_path, monkeypatch) -> Path:
    """A copy of that folder; the current folder."""
    shutil.copytree(once_trained, tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    return tmp_path / "job"


def train() -> None:
    distmeta.meta_train(distmeta.load_job("job.py"), run_dir="new", place=Place(watch=never))


def go_on() -> None:
    job = distmeta.load_job("job.py", {"outer.iterations": 3})
    distmeta.meta_train(job, run_dir="run", resume=True, place=Place(watch=never))


def evaluate() -> None:
    distmeta.evaluate("run", distmeta.EvaluationRequest(tasks=2))


@pytest.mark.parametrize("name", ["manifest.json", "meta_train/00000.arrow", "meta_test/00000.arrow"])
@pytest.mark.parametrize("damage", [flip, cut, append, os.remove])
@pytest.mark.parametrize("use", [train, go_on, evaluate])
def test_a_damaged_dataset_is_named_before_the_first_step(trained, use: Callable[[], None], name, damage):
    damage(trained / "digits" / name)
    with pytest.raises(DataError, match=str(name if damage is not os.remove else "manifest")) as error:
        use()
    assert isinstance(error.value, ManifestError | ShardCorrupt | SplitLeak)


@pytest.mark.parametrize("name", ["manifest.json", "meta_validation/00000.arrow"])
def test_damage_anywhere_in_a_dataset_is_found_by_the_check_before_a_run(trained, name):
    path = trained / "digits" / name
    for changed in damaged(path.read_bytes(), seed=2):
        path.write_bytes(changed)
        with pytest.raises((ManifestError, ShardCorrupt, SplitLeak), match=name):
            distmeta.FewShot(data="digits", ways=3, shots=1, queries=1).check()
