"""Lake's one-shot runs: from a small made-up archive, and from the official one."""

import io
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from distmeta import LakeRuns
from distmeta.data import ShardDataset, build_omniglot_runs, from_arrays, verify
from distmeta.data.sources import omniglot as archives
from distmeta.data.sources import omniglot_runs as module
from distmeta.errors import ConfigError, DataError, TaskContractError
from distmeta.tasks import lake_runs
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
    for where in (module, lake_runs):
        monkeypatch.setattr(where, "RUNS", 2)
        monkeypatch.setattr(where, "WAYS", 2)
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


def test_task_i_is_run_i(source, tmp_path):
    build_omniglot_runs(tmp_path / "out", source=source)
    tasks = LakeRuns(tmp_path / "out", ways=2, train_queries=3)
    tasks.check()
    assert tasks.count("meta_train") is None
    runs = tasks.dataset.split("meta_test")
    for i in (0, 1):
        one = tasks.episode(TaskRef("meta_test", 0, i), seed=i)
        assert (one.support_y.tolist(), one.query_y.tolist(), one.ways) == ([0, 1], [0, 1], 2)
        classes = np.array([2 * i, 2 * i + 1])
        for x, row in ((one.support_x, 0), (one.query_x, 1)):
            expected = runs.gather(classes, np.array([row, row]))
            assert torch.equal((x * 255).round().to(torch.uint8), torch.from_numpy(expected))
    assert len(tasks.take(20)) == 2
    assert [len(part) for part in tasks.episode(TaskRef("meta_train", 0, 0), 0)] == [2, 2, 6, 6]
    with pytest.raises(TaskContractError, match=r"There are 2 runs, 0 to 1; run 2 was asked for.*test_tasks=2"):
        tasks.episode(TaskRef("meta_test", 0, 2), 0)


def test_more_test_tasks_than_runs_are_refused_before_training(source, tmp_path):
    import distmeta

    build_omniglot_runs(tmp_path / "out", source=source)
    experiment = distmeta.Experiment(
        learner=distmeta.Siamese(distmeta.mlp((8,), head=False)), tasks=LakeRuns(tmp_path / "out", ways=2)
    )
    with pytest.raises(ConfigError, match=r"test_tasks=600, but meta_test has 2 different tasks. Set .*test_tasks=2"):
        distmeta.meta_train(experiment, run_dir=tmp_path / "run")


def test_a_finished_run_is_judged_on_as_many_runs_as_there_are(source, tmp_path, monkeypatch):
    import distmeta
    from distmeta.run.evaluating import evaluate
    from distmeta.run.results import EvaluationRequest

    build_omniglot_runs(tmp_path / "out", source=source)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "job.py").write_text(
        "from distmeta import *\n"
        "experiment = Experiment(learner=Siamese(mlp((8,), head=False)), tasks=LakeRuns('out', ways=2), "
        "outer=Outer(iterations=1, meta_batch_size=1), evaluation=Evaluation(every=0, test_tasks=2))"
    )
    monkeypatch.chdir(tmp_path)
    done = distmeta.meta_train(distmeta.load_job("job.py"), run_dir="run")
    assert evaluate("run").report.tasks == 2
    assert evaluate("run").report.mean("accuracy") == done.test.mean("accuracy")
    with pytest.raises(ConfigError, match=r"--tasks=3, but meta_test has 2 different tasks\. Set --tasks=2 or less"):
        evaluate("run", EvaluationRequest(tasks=3))


@pytest.mark.parametrize("settings", [{"ways": 5}, {"shots": 2}, {"queries": 2}, {"rotations": "all"}])
def test_the_protocol_is_fixed(settings):
    with pytest.raises(TaskContractError, match=r"Lake's runs are 20-way 1-shot.*tasks.train_ways"):
        LakeRuns(**settings)
    with pytest.raises(TaskContractError, match="20-way 1-shot"):
        LakeRuns().with_config(**settings)


def test_other_data_are_not_the_runs(digits_dir):
    with pytest.raises(TaskContractError, match=r"expected the 400 of Lake's runs.*distmeta data build omniglot-runs"):
        LakeRuns(digits_dir, train_ways=2).check()


def test_classes_without_runs_names(source, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (80, 1, 8, 8)).astype(np.uint8)
    from_arrays(x, np.repeat(np.arange(8), 10), tmp_path / "other", splits="50/0/50")
    with pytest.raises(TaskContractError, match="Lake's runs"):
        LakeRuns(tmp_path / "other", ways=2).check()


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
