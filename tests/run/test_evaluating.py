"""`distmeta evaluate`: in pairs, on other data, over shots and inner steps; and what each of these refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distmeta
from distmeta.data import from_arrays
from distmeta.files import read_record
from distmeta.run.evaluating import compare, evaluate, sweep
from distmeta.run.place import Place
from distmeta.run.results import EvaluationRequest
from distmeta.types import TaskRef
from helpers import SINES, run_command

JOB = """
from torch import nn
import distmeta

experiment = distmeta.Experiment(
    learner={learner},
    tasks=distmeta.FewShot(data="digits", ways=3, queries=2, {tasks}),
    outer=distmeta.Outer(iterations=2, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=4),
    evaluation=distmeta.Evaluation(every=0, test_tasks=6),
)
"""
MAML = "distmeta.MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), inner_lr=0.1)"
METRIC = "distmeta.MatchingNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)))"
COPY = """
import distmeta
experiment = distmeta.Experiment(
    learner=distmeta.NTM(distmeta.ntm(size=8, slots=6, width=4)),
    tasks=distmeta.CopyTask(bits=3, length=3, max_length=3),
    outer=distmeta.Outer(iterations=1, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
RUNS = {
    "copying": COPY,
    "maml": JOB.format(learner=MAML, tasks=""),
    "metric": JOB.format(learner=METRIC, tasks="train_ways=6"),
    "more_queries": JOB.format(learner=METRIC, tasks="train_ways=6").replace("queries=2", "queries=3"),
    "sines": SINES,
}


@pytest.fixture(scope="session")
def finished(digits_dir, tmp_path_factory) -> Path:
    """A folder with five finished runs and three datasets."""
    folder = tmp_path_factory.mktemp("finished-runs")
    shutil.copytree(digits_dir, folder / "digits")
    random = np.random.default_rng(1)
    for name, side in (("others", 8), ("large", 10)):
        x = random.integers(0, 256, (96, 1, side, side)).astype(np.uint8)
        from_arrays(x, np.arange(96) // 6, folder / name, splits="50/25/25", name=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for name, text in RUNS.items():
            Path(f"{name}.py").write_text(text)
            distmeta.meta_train(distmeta.load_job(f"{name}.py"), run_dir=name)
    return folder


@pytest.fixture
def world(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def run(world):
    return lambda line: run_command(*line.split())


LOCAL = "--backend local --tasks 10"


def kept(folder: str) -> list[str]:
    return sorted(path.name for path in (Path(folder) / "evaluations").iterdir())


# -- one run ---------------------------------------------------------------------------------------------------------


def test_the_judgement_of_a_run_is_that_of_its_end_and_is_kept(world):
    ended = json.loads((world / "maml" / "result.json").read_text())
    found = evaluate("maml", EvaluationRequest(tasks=6))
    assert found.report.to_dict()["per_task"] == ended["per_task"]
    assert (found.cross_domain, found.changed, found.evaluated_on) == (False, {}, "digits")
    again = evaluate("maml", EvaluationRequest(tasks=6))
    assert kept("maml") == ["meta_test-1.json", "meta_test-2.json"]  # nothing is overwritten
    first = read_record(world / "maml" / "evaluations" / "meta_test-1.json")
    assert first == found.to_dict() == again.to_dict()
    assert first["params_sha256"] == distmeta.inspect_run("maml")["params_sha256"]


def test_an_interval_over_few_classes_comes_with_a_caution(run):
    assert (
        "meta_test has 4 classes: the interval is that of the mean over tasks of these classes"
        in run(f"evaluate maml {LOCAL}").err
    )


def test_workers_and_chunks_do_not_change_a_judgement(world):
    one = evaluate("maml", EvaluationRequest(tasks=10))
    other = evaluate("maml", EvaluationRequest(tasks=10, overrides={"runtime.workers": 3, "runtime.chunk_size": 3}))
    np.testing.assert_allclose(one.report.metrics["loss"], other.report.metrics["loss"], rtol=1e-5)
    assert other.changed == {}


def test_a_metric_learner_is_evaluated_on_another_number_of_ways(world):
    found = evaluate("metric", EvaluationRequest(tasks=10, overrides={"tasks.ways": 4}))
    assert found.changed == {"tasks.ways": 4}
    tasks = distmeta.FewShot("digits", ways=4, queries=2)
    truth = [int(task.episode.query_y.max()) + 1 for task in tasks.take(2)]
    assert truth == [4, 4]
    assert found.report.mean("loss") > evaluate("metric", EvaluationRequest(tasks=10)).report.mean("loss")
    assert "tasks.ways=4" in found.title


def test_a_run_from_before_the_dataset_was_noted_can_be_judged(world):
    record = read_record(world / "maml" / "run.json")
    del record["dataset"]
    (world / "maml" / "run.json").write_text(json.dumps(record))
    assert evaluate("maml", EvaluationRequest(tasks=4, data="others")).trained_on == "digits"


def test_the_dataset_may_have_moved(world):
    before = evaluate("maml", EvaluationRequest(tasks=10))
    (world / "digits").rename(world / "elsewhere")
    moved = evaluate("maml", EvaluationRequest(tasks=10, data="elsewhere"))
    assert not moved.cross_domain
    np.testing.assert_array_equal(moved.report.metrics["loss"], before.report.metrics["loss"])


# -- other data ------------------------------------------------------------------------------------------------------


def test_another_dataset_is_cross_domain_and_needs_the_first_no_more(run):
    shutil.rmtree("digits")
    said = run(f"evaluate maml --data others {LOCAL}")
    assert said.code == 0, said.err
    assert "cross-domain: trained on digits, evaluated on others" in said.out
    (path,) = Path("maml/evaluations").glob("*.json")
    found = read_record(path)
    assert (found["cross_domain"], found["trained_on"], found["evaluated_on"]) == (True, "digits", "others")


def test_the_tasks_are_those_of_the_other_dataset(world):
    found = evaluate("maml", EvaluationRequest(tasks=5, data="others"))
    tasks = distmeta.FewShot("others", ways=3, queries=2)
    episodes = tasks.episodes([TaskRef("meta_test", 0, index) for index in range(5)], 0)
    expected = tasks.baseline(episodes)["baseline_accuracy"]
    np.testing.assert_allclose(found.report.metrics["baseline_accuracy"], expected)


def test_the_other_dataset_needs_only_the_split_that_is_judged(world):
    x = np.random.default_rng(3).integers(0, 256, (32, 1, 8, 8)).astype(np.uint8)
    classes = {"meta_train": [], "meta_validation": [], "meta_test": [0, 1, 2, 3]}
    from_arrays(x, np.arange(32) // 8, Path("test_only"), splits={k: v for k, v in classes.items() if v})
    assert evaluate("maml", EvaluationRequest(tasks=4, data="test_only")).cross_domain


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_task_by_task(run):
    said = run(f"evaluate maml --against metric {LOCAL} --json")
    found = json.loads(said.out)
    a, b = (np.array(found[side]["per_task"]["accuracy"]) for side in "ab")
    assert found["difference"]["accuracy"]["mean"] == pytest.approx(np.mean(a - b), abs=1e-6)
    expected = 1.96 * np.std(a - b, ddof=1) / np.sqrt(10)
    assert found["difference"]["accuracy"]["ci95"] == pytest.approx(expected, abs=1e-6)
    baseline = found["difference"]["baseline_accuracy"]
    assert (baseline["mean"], baseline["ci95"]) == (0, 0)  # the very same tasks
    assert kept("maml") == ["against-1.json"]
    shown = run(f"evaluate maml --against metric {LOCAL}").out
    number = r"\d+\.\d\d % ± \d+\.\d\d"
    assert re.search(rf"(?m)^ *accuracy, transductive.* {number} +{number} +[+-]{number}", shown)


def test_a_run_does_not_differ_from_itself(world):
    differences = compare("metric", "metric", EvaluationRequest(tasks=4)).differences
    assert {(d.mean, d.ci95, d.significant) for d in differences.values()} == {(0.0, 0.0, False)}


def test_a_setting_for_both_makes_them_comparable(world):
    found = compare("maml", "more_queries", EvaluationRequest(tasks=4, overrides={"tasks.queries": 4}))
    assert found.differences["baseline_accuracy"].mean == 0


# -- curves ----------------------------------------------------------------------------------------------------------


def test_a_curve_over_shots_is_a_table_a_picture_and_a_file(run):
    said = run(f"evaluate metric --shots 4,1,2 {LOCAL}")
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines() if re.match(r" *\d", line)] == ["1", "2", "4"]
    assert kept("metric") == ["shots-1.json", "shots-1.png"]
    with Image.open("metric/evaluations/shots-1.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (0x2F, 0x6F, 0xA7)).all(-1).any()
    found = read_record(Path("metric/evaluations/shots-1.json"))
    assert found["values"] == [1, 2, 4]
    alone = evaluate("metric", EvaluationRequest(tasks=10, overrides={"tasks.shots": 2})).report.to_dict()
    assert found["results"][1]["per_task"] == alone["per_task"]


def test_support_sets_grow_with_the_shots(world):
    few, many = (distmeta.FewShot("digits", ways=3, shots=shots, queries=2) for shots in (1, 3))
    for index in range(5):
        ref = TaskRef("meta_test", 0, index)
        one, three = few.episode(ref, 0).support_x, many.episode(ref, 0).support_x
        assert one.equal(three.reshape(3, 3, *three.shape[1:])[:, 0])


def test_a_curve_over_inner_steps(world):
    found = sweep("maml", "inner_steps", [0, 1, 3], EvaluationRequest(tasks=10))
    assert found.key == "learner.test_inner_steps"
    losses = [result.report.mean("loss") for result in found.results]
    assert losses[0] > losses[1] > losses[2]
    assert found.results[1].report.mean("loss") == evaluate("maml", EvaluationRequest(tasks=10)).report.mean("loss")
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    sweep("maml", "inner_steps", [0], EvaluationRequest(tasks=4))
    assert "inner_steps-2.json" in kept("maml")


def test_a_curve_over_lengths_of_sequences(world):
    found = sweep("copying", "lengths", [2, 5], EvaluationRequest(tasks=6))
    assert [result.report.mean("baseline_bits") for result in found.results] == [6, 15]
    bits = [result.report.mean("bits") for result in found.results]
    assert 0 < bits[0] < bits[1]
    assert found.picture.read_bytes().startswith(b"\x89PNG")


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "--data others --set tasks.ways=4": ("trained on 3-way tasks and tested on 4-way", "metric learner"),
    "--data large": (r"shape \[1, 8, 8\] \(digits\); large has \[1, 10, 10\]", "Build the data again"),
    "--data nowhere": ("no dataset 'nowhere'",),
    "--set outer.lr=1": (r"--set outer\.lr", "distmeta train"),
    "--set tasks.data=others": ("give --data DIR",),
    "--set tasks.shotz=3": ("Did you mean 'tasks.shots'",),
    "--set tasks.queries=90": (r"shots \+ queries = 1 \+ 90", "Lower tasks.shots or tasks.queries"),
    "--shots 1,x": ("--shots '1,x'", "--shots 1,2,5,10"),
    "--shots 0,1": ("at least 1",),
    "--shots 1,50": (r"shots \+ queries = 50 \+ 2",),
    "--shots 1 --split meta_train": ("held-out classes",),
    "--shots 1 --inner-steps 1": ("--shots and --inner-steps", "one of them"),
    "--inner-steps -1": ("at least 0",),
    "--lengths 5": (r"tasks \(FewShot\) have no setting length",),
    "--against nowhere": ("nowhere is not a run",),
    "--against more_queries": (r"tasks\.queries is 2 and 3", "--set tasks.queries=5"),
    "--against sines": ("cannot be compared task by task",),
}
OTHERS = {
    "evaluate metric --inner-steps 0,1": ("MatchingNet takes no inner steps", "gradient descent"),
    "evaluate metric --set learner.distance=cosin": ("cosine",),
    "evaluate copying --set tasks.bits=4": (
        r"NTM is trained on sequences with 3 outputs .* (judged|evaluated) on ones with 4",
        "tasks.bits",
    ),
    "evaluate sines --data others": (r"tasks \(Sinusoids\) read no dataset",),
    "evaluate digits": ("digits is not a run", "Give the folder"),
}
ROWS = {f"evaluate maml {words}": says for words, says in REFUSED.items()} | OTHERS


@pytest.mark.parametrize("line", ROWS)
def test_one_message_names_the_fix_before_anything_starts(line, run, monkeypatch):
    opened = []
    monkeypatch.setattr(Place, "_start", lambda *a: opened.append(a))
    said = run(line + " --backend local")
    assert (said.code, said.out, opened) == (1, "", [])
    assert re.search(r"(?m)^error: ", said.err)
    assert "Traceback" not in said.err
    for fragment in ROWS[line]:
        assert re.search(fragment, said.err), said.err
    assert not list(Path().glob("*/evaluations/*"))


@pytest.mark.parametrize("words", ["--split test", "--backend rey"])
def test_a_word_that_is_no_choice_is_refused_with_the_choices(words, run):
    said = run(f"evaluate maml {words}")
    assert (said.code, said.out) == (2, "")
    assert re.search(r"'(meta_train|ray)', '(meta_validation|local)'", said.err)


def test_changed_data_in_the_same_place_is_no_cross_domain(run):
    shutil.rmtree("digits")
    shutil.copytree("others", "digits")
    said = run("evaluate maml --backend local")
    assert said.code == 1
    assert re.search(r"tasks\.fingerprint=\w+ and now has \w+", said.err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_cannot_be_written_is_not_evaluated_for_nothing(run):
    Path("maml").chmod(0o555)
    try:
        said = run("evaluate maml --backend local")
    finally:
        Path("maml").chmod(0o755)
    assert "evaluations cannot be written" in said.err


def test_a_file_in_the_place_of_the_results_is_said(run):
    Path("maml/evaluations").write_text("")
    said = run("evaluate maml --backend local")
    assert said.code == 1
    assert "evaluations cannot be written" in said.err
