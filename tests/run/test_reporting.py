"""The report of real runs: what the end of a run keeps for it, and what is made of it without the job and the data."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import distmeta
from distmeta.config import parse_overrides
from distmeta.data import from_arrays
from distmeta.data.dataset import ShardDataset
from distmeta.data.leaks import identical_across_splits
from distmeta.errors import ConfigError, FileDamaged
from distmeta.run import finishing, reporting
from distmeta.run.directory import RunDirectory
from distmeta.run.reporting import _as_yaml, collect, pair, report
from helpers import SINES, run_command, sines

OLD = Path(__file__).parent / "old_runs"
EVALUATION = distmeta.Evaluation(every=2, validation_tasks=4, test_tasks=12)


def digits(data: Path, learner: distmeta.MetaLearner, **tasks: int) -> distmeta.Experiment:
    return distmeta.Experiment(
        learner=learner,
        tasks=distmeta.FewShot(**{"data": str(data), "ways": 3, "shots": 1, "queries": 2} | tasks),
        outer=distmeta.Outer(iterations=2, meta_batch_size=2),
        evaluation=EVALUATION,
        name="<script>alert(1)</script>",
    )


def maml() -> distmeta.MetaLearner:
    return distmeta.MAML(distmeta.conv4(width=4), inner_lr=0.1)


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory) -> Path:
    return distmeta.meta_train(digits(digits_dir, maml()), run_dir=tmp_path_factory.mktemp("reported") / "run").run_dir


@pytest.fixture(scope="module")
def other(digits_dir, tmp_path_factory) -> Path:
    learner = distmeta.ProtoNet(distmeta.conv4(width=4, head=False))
    return distmeta.meta_train(digits(digits_dir, learner), run_dir=tmp_path_factory.mktemp("reported") / "o").run_dir


# -- the end of a run -------------------------------------------------------------------------------------------------


def test_a_finished_run_has_its_report_and_writing_it_again_gives_the_same_bytes(run, digits_dir, tmp_path):
    written = (run / "report.html").read_bytes()
    assert b"<script" not in written
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in written
    moved = shutil.copytree(run, tmp_path / "run")
    assert report([moved]).path.read_bytes() == written


def test_the_examples_are_the_first_tasks_and_the_hardest_with_the_learner_s_own_answers(run, digits_dir):
    facts = RunDirectory.open(run).report_facts()
    result = json.loads((run / "result.json").read_text())
    accuracies = result["per_task"]["accuracy_non_transductive"]
    hardest = int(np.argmin(accuracies))
    assert [one["index"] for one in facts["examples"]] == list(dict.fromkeys([0, 1, 2, hardest]))
    for one in facts["examples"]:
        assert one["right"] / one["of"] == pytest.approx(accuracies[one["index"]], abs=1e-6)
        assert one["baseline"]["baseline_accuracy"] == pytest.approx(
            result["per_task"]["baseline_accuracy"][one["index"]], abs=1e-6
        )
        assert bool(one["hardest"]) == (one["index"] == hardest)
        answers = [(x["answer"] == c["label"]) for c in one["classes"] for x in c["queries"]]
        assert (sum(answers), len(answers)) == (one["right"], one["of"])


def test_tasks_that_take_too_long_are_left_out_with_the_remedy(digits_dir, tmp_path, monkeypatch):
    experiment = digits(digits_dir, maml(), shots=2, queries=3)
    with monkeypatch.context() as slow:
        slow.setattr("distmeta.run.example_tasks._SECONDS", -1.0)
        left_out = distmeta.meta_train(experiment, run_dir=tmp_path / "run")
    assert re.search(r"[23] of [34] example tasks are left out: .*distmeta resume RUN", left_out.report.read_text())
    again = distmeta.meta_train(experiment, run_dir=tmp_path / "run", resume=True)  # the remedy that the report names
    assert "example tasks are left out" not in again.report.read_text()
    assert len(RunDirectory.open(again.run_dir).report_facts()["examples"]) in (3, 4)
    assert again.params_sha256 == left_out.params_sha256


def test_many_queries_are_cut_which_is_said(digits_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("distmeta.run.example_tasks._QUERIES", 6)
    monkeypatch.setattr("distmeta.run.example_tasks._SHOTS", 1)
    result = distmeta.meta_train(digits(digits_dir, maml(), shots=2, queries=3), run_dir=tmp_path / "run")
    one = RunDirectory.open(result.run_dir).report_facts()["examples"][0]
    assert (one["of"], one["queries"], [len(c["queries"]) for c in one["classes"]]) == (6, 9, [2, 2, 2])
    page = result.report.read_text()
    assert f"{one['right']} of the first 6 right" in page
    assert "1 more support examples and 1 more queries not shown" in page


def test_class_names_are_those_of_the_images(run, digits_dir):
    """A task's record names the class whose images it shows."""
    tasks, data = distmeta.FewShot(data=digits_dir, ways=3, queries=2), ShardDataset.open(digits_dir)
    split = data.split("meta_test")
    for task in tasks.take(4):
        x, y = task.sample()
        names = tasks.class_names(task.ref, task.seed)
        for image, label in zip(x, y.tolist(), strict=True):
            position = split.names.index(names[label])
            own = split.gather(np.full(split.counts[position], position), np.arange(split.counts[position]))
            assert any(np.array_equal(image.numpy() * 255, one) for one in own)
    examples = RunDirectory.open(run).report_facts()["examples"]
    assert [c["name"] for c in examples[0]["classes"]] == list(tasks.class_names(tasks.take(1)[0].ref, 0))


def test_turned_classes_are_named_so(digits_dir):
    tasks = distmeta.FewShot(data=digits_dir, ways=8, rotations="all")
    names = [name for task in tasks.take(5) for name in tasks.class_names(task.ref, task.seed)]
    assert any(name.endswith(", turned by 90 degrees") for name in names)
    sequences = distmeta.LabelSequences(data=digits_dir, ways=2, length=4, size=8, rotations="none")
    task = sequences.take(1)[0]
    assert set(sequences.class_names(task.ref, task.seed)) <= set(
        ShardDataset.open(digits_dir).split("meta_test").names
    )
    assert sequences.images(task.episode).shape == (4, 1, 8, 8)


def test_the_card_counts_classes_and_the_same_picture_in_two_splits(tmp_path):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    x[50], x[51] = x[0], x[0]  # one picture of meta_train, twice in meta_test
    from_arrays(
        x,
        np.repeat(np.arange(15), 4),
        tmp_path / "leaky",
        class_names=[f"<b>{i}" for i in range(15)],
        licence="<i>CC0",
        splits={"meta_train": range(9), "meta_validation": [9, 10, 11], "meta_test": [12, 13, 14]},
        allow_duplicates=True,
    )
    shared = {(one.first, one.second): one for one in identical_across_splits(ShardDataset.open(tmp_path / "leaky"))}
    assert {pair: one.images for pair, one in shared.items()} == {
        ("meta_train", "meta_validation"): 0,
        ("meta_train", "meta_test"): 1,
        ("meta_validation", "meta_test"): 0,
    }
    assert shared["meta_train", "meta_test"].example == ("<b>0", "<b>12")
    result = distmeta.meta_train(digits(tmp_path / "leaky", maml()), run_dir=tmp_path / "run")
    card = RunDirectory.open(result.run_dir).report_facts()["dataset"]
    assert [(s["classes"], s["images"]) for s in card["splits"].values()] == [(9, 36), (3, 12), (3, 12)]
    page = result.report.read_text()
    assert "1 picture is in both meta_train and meta_test, byte for byte" in page
    assert "&lt;b&gt;12" in page
    assert "<b>12" not in page
    assert "&lt;i&gt;CC0" in page
    assert "meta_test has 3 classes" in page


def test_too_many_pictures_are_not_read_again_and_that_is_said(digits_dir, monkeypatch):
    monkeypatch.setattr("distmeta.run.dataset_card._IMAGES", 10)
    assert "identical" not in reporting.dataset_card(distmeta.FewShot(data=digits_dir))


@pytest.mark.parametrize(
    ("name", "kind"), [("sines", "regression"), ("copy", "bits"), ("labels", "labels"), ("vectors", "classification")]
)
def test_every_kind_of_task_has_a_report(name, kind, digits_dir, tmp_path):
    def draw(random, split):
        x = random.normal(size=(12, 5)) + np.arange(3).repeat(4)[:, None]
        y = np.arange(3).repeat(4)
        return x[::2].astype(np.float32), y[::2], x[1::2].astype(np.float32), y[1::2]

    learner, tasks = {
        "sines": (distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01), distmeta.Sinusoids()),
        "copy": (distmeta.NTM(distmeta.lstm(size=8)), distmeta.CopyTask(bits=2, length=3, max_length=3)),
        "labels": (
            distmeta.MANN(distmeta.mann(size=8, slots=4, width=4, reads=1)),
            distmeta.LabelSequences(data=digits_dir, ways=2, length=4, size=8),
        ),
        "vectors": (distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01), distmeta.FunctionTasks(draw)),
    }[name]
    experiment = digits(digits_dir, maml()).replace(learner=learner, tasks=tasks, name=name)
    said: list[str] = []
    place = distmeta.Place(watch=lambda event: said.append(event.text))
    result = distmeta.meta_train(experiment, run_dir=tmp_path / "run", place=place)
    assert not [text for text in said if "failed" in text]
    facts = RunDirectory.open(result.run_dir).report_facts()
    assert {one["kind"] for one in facts["examples"]} == {kind}
    page = result.report.read_text()
    assert "Task 0 of meta_test" in page
    assert report([result.run_dir]).path.read_text() == page
    if kind == "regression":
        losses = result.test.metrics["loss"]
        assert [one["error"] for one in facts["examples"][:3]] == pytest.approx(losses[:3].tolist(), rel=1e-4)
    if kind == "bits":
        errors = result.test.metrics["bit_errors"]
        assert [one["wrong"] for one in facts["examples"][:3]] == errors[:3].tolist()
    if kind == "labels":
        right = [one["right"] / one["of"] for one in facts["examples"][:3]]
        assert right == pytest.approx(result.test.metrics["accuracy"][:3].tolist())


def test_a_report_that_fails_does_not_fail_the_run_and_leaves_no_old_one(tmp_path, monkeypatch):
    first = distmeta.meta_train(sines(), run_dir=tmp_path / "run")
    assert first.report == tmp_path / "run" / "report.html"

    def broken(*words):
        raise RuntimeError("no pictures today")

    said: list[str] = []
    monkeypatch.setattr(finishing, "report_facts", broken)
    place = distmeta.Place(watch=lambda event: said.append(event.text))
    again = distmeta.meta_train(sines(), run_dir=tmp_path / "run", resume=True, place=place)
    assert "The report failed: RuntimeError: no pictures today" in said
    assert again.report is None
    assert not (tmp_path / "run" / "report.html").exists()
    assert distmeta.inspect_run(tmp_path / "run")["status"] == "finished"
    assert again.params_sha256 == first.params_sha256


def test_the_report_leaves_the_random_numbers_alone(run, other, digits_dir, tmp_path):
    before = torch.random.get_rng_state().clone()
    facts = RunDirectory.open(run).report_facts()
    assert facts["task_digests"] == RunDirectory.open(other).report_facts()["task_digests"]
    report([run, other], tmp_path / "both.html")
    assert torch.equal(torch.random.get_rng_state(), before)


# -- from the run directory alone -------------------------------------------------------------------------------------


def test_the_command_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "a job.py").write_text(SINES)
    job = distmeta.load_job(tmp_path / "a job.py", {"outer.lr": 1e-05, "seed": 3, "learner.first_order": True})
    distmeta.meta_train(job, run_dir=tmp_path / "run")
    command = collect(RunDirectory.open(tmp_path / "run")).command
    assert command == (
        f"distmeta train '{tmp_path}/a job.py' --set outer.lr=1.0e-05 --set seed=3 --set learner.first_order=true"
    )


@pytest.mark.parametrize("value", [1, 1e-05, 0.5, True, None, "adam", "5", "null", "a b", "a: b", "", [1, 5], "é'\""])
def test_settings_are_written_as_they_are_read(value):
    assert parse_overrides([f"key={_as_yaml(value)}"]) == {"key": value}


@pytest.mark.parametrize("name", ["finished", "evaluated", "interrupted"])
def test_runs_of_older_versions_have_a_report_that_states_what_it_lacks(name, tmp_path):
    shutil.copytree(OLD / name, tmp_path / "run")
    page = report([tmp_path / "run"]).path.read_text()
    assert "are recorded at the end of a run" in page
    assert ("There is no result: the run is interrupted" in page) == (name == "interrupted")
    assert ("made by an older version" in page) == (name != "interrupted")
    assert "Training" in page


def test_what_the_report_is_made_of_is_under_a_digest(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    path = moved / "report.json"
    path.write_text(path.read_text().replace('"right": ', '"right":  ', 1))
    with pytest.raises(FileDamaged, match=r"report\.json"):
        report([moved])
    assert "report.json" in distmeta.inspect_run(moved)["damaged"]
    (moved / "result.json").write_text('{"split": "meta_test"}')
    path.unlink()
    with pytest.raises(FileDamaged, match="is not one that a run writes"):
        report([moved])


def test_a_picture_that_is_none_is_left_out(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    (moved / "note.png").write_text("no picture")
    shutil.copy(moved / "adaptation.png", moved / "of_mine.png")
    assert [one.name for one in collect(RunDirectory.open(moved)).pictures] == ["adaptation", "of_mine", "reliability"]


# -- several runs -----------------------------------------------------------------------------------------------------


def test_two_learners_on_the_same_tasks_are_paired(run, other, tmp_path):
    done = report([run, other], tmp_path / "deep" / "both.html")
    (pairing,) = done.pairings
    assert (pairing.tasks, pairing.why_not) == (12, "")
    results = [json.loads((path / "result.json").read_text())["per_task"]["accuracy"] for path in (run, other)]
    mean = np.mean(np.subtract(*results))
    assert pairing.differences["accuracy"].mean == pytest.approx(mean, abs=1e-9)
    assert "baseline_accuracy" not in pairing.differences
    assert "12 tasks that both were tested on" in done.path.read_text()
    first = report([run, other]).path
    assert first == run / "evaluations" / "report-1.html"
    assert first.read_bytes() == done.path.read_bytes()


def test_fewer_tasks_are_the_beginning_of_more(run, digits_dir, tmp_path):
    short = digits(digits_dir, maml()).with_overrides({"evaluation.test_tasks": 5, "tasks.train_shots": 2})
    distmeta.meta_train(short, run_dir=tmp_path / "short")
    a, b = (collect(RunDirectory.open(path)) for path in (run, tmp_path / "short"))
    found = pair(a, b)
    assert found.tasks == 5
    assert found.differences["accuracy"].a == pytest.approx(a.test.metrics["accuracy"][:5].mean())


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"tasks.shots": 2}, "shots is 1 and 2"), ({"evaluation.seed": 7}, "evaluation.seed is 0 and 7")],
)
def test_runs_on_other_tasks_are_not_paired_and_the_reason_is_given(run, digits_dir, tmp_path, changes, why):
    distmeta.meta_train(digits(digits_dir, maml()).with_overrides(changes), run_dir=tmp_path / "b")
    done = report([run, tmp_path / "b"], tmp_path / "both.html")
    (pairing,) = done.pairings
    assert why in pairing.why_not
    assert not pairing.differences
    assert why in done.path.read_text()


def test_a_run_without_a_result_and_the_same_run_twice(run, tmp_path):
    shutil.copytree(OLD / "interrupted", tmp_path / "old")
    done = report([run, tmp_path / "old"], tmp_path / "both.html")
    assert done.pairings[0].why_not == "old has no result"
    with pytest.raises(ConfigError, match="given twice"):
        report([run, run.parent / "." / "run"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written: .*--out"):
        report([run], tmp_path / "file" / "x.html")


def test_the_command_line(run, other, tmp_path):
    done = run_command("report", run, "--json")
    assert done.json == {"report": str(run / "report.html"), "runs": [str(run)], "paired": []}
    digest = hashlib.sha256((run / "report.html").read_bytes()).hexdigest()
    done = run_command("report", run, other, "--out", tmp_path / "two.html", "--json")
    assert done.json["paired"][0]["difference"]["accuracy"]["ci95"] > 0
    assert hashlib.sha256((run / "report.html").read_bytes()).hexdigest() == digest
    done = run_command("report", run)
    assert (done.code, done.out) == (0, f"report   {run / 'report.html'}\n")
    done = run_command("report", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "is not a run" in done.err
