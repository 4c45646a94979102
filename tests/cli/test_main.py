"""The command line: every command through `distmeta.cli.main`, signals in a real process, a run in MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import distmeta
from broken_tasks import DRAWN
from broken_tasks import write as write_broken
from distmeta.cli.main import app
from distmeta.run.directory import RunDirectory
from distmeta.tracking.metrics_file import read_metrics
from helpers import run_command

JOB = '''"""Sines in a moment."""
import time
import distmeta

print("a job may print")

class Slow(distmeta.Sinusoids):
    class Config(distmeta.Sinusoids.Config):
        seconds: float = 0.0

    def draw(self, split, random):
        time.sleep(self.config.seconds)
        return super().draw(split, random)

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=Slow(shots=4, queries=4),
    outer=distmeta.Outer(iterations=12, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=2, checkpoint_every=100),
    evaluation=distmeta.Evaluation(every=6, validation_tasks=4, test_tasks=6),
)
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run one command line in this process, in a folder with ``job.py``."""
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return run_command


LOCAL = ("--backend", "local", "--no-tracking")


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """The run directory of the job, run without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "job.py").write_text(JOB)
    distmeta.meta_train(distmeta.load_job(folder / "job.py"), run_dir=folder / "run")
    return folder / "run"


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of images, four of each of ten classes."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in "abcdefghij":
        (root / name).mkdir()
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (12, 12, 3)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_folder_of_images_becomes_a_dataset(run, pictures):
    built = run(
        *("data", "build", "image-folder", "--from", pictures, "--out", "pics", "--split", "60/20/20"),
        *("--size", 8, "--channels", 1, "--json"),
    )
    assert (built.code, built.json["classes"], built.json["images"]) == (0, 10, 40)
    assert built.json["input_shape"] == [1, 8, 8]
    assert run("data", "inspect", "pics", "--json").json == built.json
    verified = run("data", "verify", "pics", "--json").json
    assert verified["ok"]
    assert (verified["fingerprint"], verified["images"]) == (built.json["fingerprint"], 40)
    shown = run("data", "inspect", "pics").out
    assert re.search(r"meta_train +6 +24 +1", shown)
    assert built.json["fingerprint"] in shown
    assert run("data", "verify", "pics").out.startswith("OK: 10 classes, 40 images, 3 shards")


def test_a_split_of_one_class_is_warned_of(run, pictures, tmp_path):
    """Of eight classes, 64/16/20 leaves one for validation: the build was silent, and the job was refused."""
    root = shutil.copytree(pictures, tmp_path / "in")
    for name in "ij":
        shutil.rmtree(root / name)
    build = ("data", "build", "image-folder", "--from", root, "--size", 8)
    shown = " ".join(run(*build, "--out", "pics", "--split", "64/16/20").out.split())
    assert "warning: meta_validation has 1 class" in shown
    assert "--split 50/25/25 gives each split at least 2 of the 8 classes" in shown
    assert "warning" not in run(*build, "--out", "again", "--split", "50/25/25").out


def test_what_is_left_out_of_a_folder_is_shown(run, pictures, tmp_path):
    """Options that mean something for folders only are refused elsewhere: they did nothing, in silence."""
    root = shutil.copytree(pictures, tmp_path / "in")
    (root / "a" / "0.png").write_bytes(b"broken")
    (root / "b" / "notes.txt").write_text("")
    (root / "k").mkdir()
    shutil.copy(root / "c" / "1.png", root / "c" / "9.png")
    Image.fromarray(np.full((12, 12), 9, np.uint8)).save(root / "k" / "1.png")
    build = ("data", "build", "image-folder", "--from", root, "--split", "60/20/20", "--channels", 1, "--min-images", 2)
    stopped = run(*build, "--out", "pics")
    assert stopped.code != 0
    assert "--skip-corrupt" in stopped.err
    shown = run(*build, "--out", "pics", "--skip-corrupt", "--workers", 1, "--size", 8)
    for line in (
        "left out, not pictures: 1 (b/notes.txt)",
        "left out, corrupt: 1 (a/0.png)",
        "left out, fewer than 2 images: 1 (k (1))",
        "warning: identical pictures within a class: 1 (c/1.png = c/9.png)",
    ):
        assert line in " ".join(shown.out.split())
    refused = run("data", "build", "glyphs", "--out", "other", "--ink")
    assert "--ink is for image-folder; glyphs has no use for it" in " ".join(refused.err.split())


def test_glyphs_are_built_without_a_download(run):
    built = run("data", "build", "glyphs", "--out", "small", "--size", 8, "--instances", 4, "--json").json
    assert built["input_shape"] == [1, 8, 8]
    assert built["classes"] > 500
    assert built["images"] == 4 * built["classes"]
    assert "font" in built["licence"].lower()


def test_the_environment_names_the_dataset_of_jobs_that_have_one(run, digits_dir, monkeypatch):
    monkeypatch.setenv("DISTMETA_DATA", str(digits_dir))
    Path("few.py").write_text(
        "import distmeta\n"
        "experiment = distmeta.Experiment(learner=distmeta.MAML(distmeta.mlp((2,)), inner_lr=0.1),\n"
        "    tasks=distmeta.FewShot('nowhere', ways=3, queries=2), outer=distmeta.Outer(iterations=2))\n"
    )
    assert run("check", "few.py").code == 0
    assert run("check", "job.py").code == 0  # sines need no data
    assert "no dataset 'elsewhere'" in run("check", "few.py", "--data", "elsewhere").err


# -- a run from beginning to end -------------------------------------------------------------------------------------


def test_train_resume_evaluate_inspect(run, straight):
    facts = distmeta.inspect_run(straight)
    trained = run("train", "job.py", *LOCAL, "--run-dir", "half", "--set", "outer.iterations=6", "--json")
    assert (trained.code, trained.json["step"], trained.json["run_dir"]) == (0, 6, "half")
    assert "a job may print" in trained.err  # not between the lines of the JSON
    resumed = run("resume", "half", *LOCAL, "--set", "outer.iterations=12", "--workers", 2, "--json")
    assert resumed.json["params_sha256"] == facts["params_sha256"] != trained.json["params_sha256"]
    seen = run("inspect", "half", "--json").json
    for key in ("params_sha256", "step", "iterations", "status", "dataset_fingerprint", "best", "test"):
        assert seen[key] == facts[key], key
    assert (seen["status"], seen["step"]) == ("finished", 12)
    again = run("evaluate", "half", "--backend", "local", "--tasks", 6, "--json").json
    assert again["loss"] == pytest.approx(facts["test"]["loss"])
    assert (again["tasks"], again["split"], again["seed"], len(again["per_task"]["loss"])) == (6, "meta_test", 0, 6)
    other = run("evaluate", "half", "--backend", "local", "--tasks", 6, "--seed", 1, "--json").json
    assert other["per_task"]["baseline_loss"] != again["per_task"]["baseline_loss"]


def test_a_finished_run_that_is_resumed_is_judged_once(run):
    run("train", "job.py", *LOCAL, "--run-dir", "a", "--set", "outer.iterations=2")
    before = Path("a/metrics.jsonl").read_text()
    again = run("resume", "a", *LOCAL, "--set", "outer.iterations=2")
    assert again.code == 0
    assert "Training ended at step 2 already; the meta-test follows." in again.err
    assert Path("a/metrics.jsonl").read_text() == before


def test_code_that_changed_since_the_run_began_is_said(run, monkeypatch):
    Path("beside.py").write_text("WIDTH = 2\n")
    job = Path("job.py").read_text() + "\nimport beside\n"
    Path("uses.py").write_text(job)
    monkeypatch.setitem(sys.modules, "beside", None)
    del sys.modules["beside"]
    run("train", "uses.py", *LOCAL, "--run-dir", "a", "--set", "outer.iterations=2")
    assert set(json.loads(Path("a/run.json").read_text())["code"]) == {"job.py", "beside.py"}
    resumed = run("resume", "a", *LOCAL, "--set", "outer.iterations=3")
    assert "not as when the run" not in resumed.err
    Path("beside.py").write_text("WIDTH = 3\n")
    resumed = run("resume", "a", *LOCAL, "--set", "outer.iterations=4")
    assert "beside.py: not as when the run was last started" in resumed.err
    assert resumed.code == 0
    Path("beside.py").write_text("WIDTH = 4\n")
    judged = run("evaluate", "a", "--backend", "local", "--tasks", 2)
    assert "beside.py: not as when the run was last started. If that changes what is computed, the code" in judged.err
    assert judged.code == 0


def test_what_ended_before_it_began_is_in_nobody_s_way(run):
    Path("a").mkdir()
    Path("a/.lock").write_text("")
    assert run("train", "job.py", *LOCAL, "--run-dir", "a", "--set", "outer.iterations=2").code == 0
    assert "exists already" in run("train", "job.py", *LOCAL, "--run-dir", "a").err
    Path("b").mkdir()
    Path("b/job.py").write_text("# mine")
    assert "exists already" in run("train", "job.py", *LOCAL, "--run-dir", "b").err


def test_a_run_keeps_the_settings_that_it_was_last_resumed_with(run):
    run("train", "job.py", *LOCAL, "--run-dir", "a", "--set", "outer.iterations=2")
    run("resume", "a", *LOCAL, "--set", "outer.iterations=4")
    seen = run("inspect", "a", "--json").json
    assert (seen["iterations"], seen["experiment"]["outer"]["iterations"]) == (4, 4)
    assert run("resume", "a", *LOCAL, "--json").json["step"] == 4
    assert seen["experiment"]["name"] == "job"


def test_a_resumed_run_keeps_its_name(run):
    Path("sines.py").write_text(JOB)
    run("train", "sines.py", *LOCAL, "--run-dir", "a", "--set", "outer.iterations=2")
    run("resume", "a", *LOCAL, "--set", "outer.iterations=4")
    assert run("inspect", "a", "--json").json["experiment"]["name"] == "sines"


def test_a_result_no_better_than_guessing_is_called_that(run):
    Path("blind.py").write_text(
        "import numpy, distmeta\n"
        "@distmeta.task_distribution\n"
        "def easy(random, split):\n"
        "    x, y = numpy.eye(3, dtype='float32'), numpy.arange(3)\n"
        "    return x, y, x, y\n"
        "class Easy(distmeta.FunctionTasks):\n"
        "    class Config(distmeta.FunctionTasks.Config):\n"
        "        ways: int = 3\n"
        "        shots: int = 1\n"
        "experiment = distmeta.Experiment(\n"
        "    learner=distmeta.MAML(distmeta.mlp((4,)), inner_steps=0), tasks=Easy(easy.function),\n"
        "    outer=distmeta.Outer(iterations=1, lr=1e-9), evaluation=distmeta.Evaluation(every=0, test_tasks=9),\n"
        ")\n"
    )
    shown = run("train", "blind.py", *LOCAL)
    assert shown.code == 0
    assert "warning: the accuracy is no better than guessing (33%)" in shown.err
    assert "meta-test: 3-way 1-shot, 9 tasks" in shown.out


def test_what_a_person_sees(run):
    shown = run("train", "job.py", *LOCAL, "--run-dir", "here")
    assert "a job may print" in shown.out
    for text in (
        "meta-test: Slow, 6 tasks, mean ± 95 % interval",
        "loss on the queries",
        "run      here",
        "curves.png",
    ):
        assert text in shown.out
    # No terminal, so lines instead of a bar: few of them, the last step among them.
    assert re.search(r"(?m)^1 worker on local: .*torch", shown.err)
    assert re.search(r"(?m)^step 12/12  \d+ tasks/s  loss \d+\.\d{3}$", shown.err)
    assert re.search(r"(?m)^step 6: validation loss \d+\.\d+ ± \d+\.\d+$", shown.err)
    assert len(shown.err.splitlines()) <= 10  # four parts of the start, and the meta-test
    assert "\x1b" not in shown.err + shown.out
    inspected = run("inspect", "here").out
    record = run("inspect", "here", "--json").json
    assert re.search(rf"(?m)^params_sha256 +{record['params_sha256']}$", inspected)
    assert re.search(r"(?m)^step +12 of 12$", inspected)
    assert re.search(r"(?m)^test loss +\d+\.\d{4} ± \d+\.\d{4}$", inspected)
    evaluated = run("evaluate", "here", "--backend", "local", "--tasks", 6).out
    assert "\nmeta_test: 6 tasks of seed 0, mean ± 95 % interval\n" in evaluated


def test_what_a_person_sees_of_sequences(run, digits_dir):
    Path("labels.py").write_text(
        "import distmeta\n"
        "experiment = distmeta.Experiment(\n"
        "    learner=distmeta.MANN(distmeta.mann(size=6, slots=8, width=4, reads=1)),\n"
        f"    tasks=distmeta.LabelSequences(data={str(digits_dir)!r}, ways=3, length=6, size=8, augment=False),\n"
        "    outer=distmeta.Outer(iterations=1, meta_batch_size=2),\n"
        "    evaluation=distmeta.Evaluation(every=0, test_tasks=4),\n"
        ")\n"
    )
    shown = run("train", "labels.py", *LOCAL, "--run-dir", "here")
    assert shown.code == 0, shown.err
    assert re.search(r"(?m)^meta-test: digits, 4 tasks, mean ± 95 % interval \(parameters of step 1\)$", shown.out)
    for label in ("accuracy", "accuracy, instance 2", "nearest earlier image, instance 2"):
        assert re.search(rf"(?m)^  {label} +\d+\.\d\d % ± ", shown.out), label
    assert Path("here", "memory.png").is_file()


def test_a_default_run_directory_is_new_and_told(run):
    first, second = (run("train", "job.py", *LOCAL, "--set", "outer.iterations=1", "--json").json for _ in range(2))
    assert re.fullmatch(r"runs/job-\d{8}-\d{6}(-\d+)?", first["run_dir"])
    assert first["run_dir"] != second["run_dir"]


def test_two_processes_do_not_work_on_one_run(run, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "busy")
    with RunDirectory.open(tmp_path / "busy").hold():
        refused = run("resume", "busy", *LOCAL)
    assert refused.code == 1
    assert "Another process is working on the run busy" in refused.err
    assert run("resume", "busy", *LOCAL, "--json").json["step"] == 12


# -- list and check --------------------------------------------------------------------------------------------------


def test_list(run, monkeypatch):
    Path("jobs").mkdir()
    Path("jobs", "first.py").write_text('"""My first job.\n\nMore."""\nraise SystemExit("not run")\n')
    Path("jobs", "broken.py").write_text("x = (")
    listed = run("list", "--json").json
    assert set(listed) == {"learners", "tasks", "datasets", "jobs"}
    assert "MAML" in listed["learners"]
    assert {"FewShot", "Sinusoids", "FunctionTasks"} <= set(listed["tasks"])
    assert set(listed["datasets"]) == {"glyphs", "omniglot", "omniglot-runs"}
    assert listed["jobs"] == {"jobs/broken.py": "", "jobs/first.py": "My first job."}
    shown = run("list").out
    assert re.search(r"(?m)^  jobs/first.py +My first job\.$", shown)


def test_check_of_a_good_job(run):
    shown = run("check", "job.py")
    assert (shown.code, shown.out.count("\nok  ")) == (0, 6)
    assert "ok  inner loop: lowers the query loss" in shown.out
    found = run("check", "job.py", "--json").json
    assert found["ok"]
    assert (found["learner"], found["engine"]) == ("MAML", "vmap")
    assert max(found["difference_errors"].values()) < 1e-5
    assert set(found["difference_errors"]) >= {"head.weight", "head.bias"}
    steep = run("check", "job.py", "--set", "learner.inner_lr=30")
    assert "!!  inner loop: raises the query loss" in steep.out
    assert "Lower learner.inner_lr" in steep.out
    first_order = run("check", "job.py", "--set", "learner.first_order=true")
    assert "finite differences: left out" in first_order.out


BROKEN = {
    "half its gradient": (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.good, self.bad = nn.Linear(1, 4), nn.Linear(4, 1)\n"
        "    def forward(self, x):\n"
        "        h = self.good(x)\n"
        "        w = self.bad.weight\n"
        "        return h @ (w / 2 + w.detach() / 2).T + self.bad.bias\n",
        r"meta-gradient of .*bad\.weight \(relative error .*Look for \.detach\(\)",
    ),
    "a buffer that it changes": (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.line = nn.Linear(1, 1)\n"
        "        self.register_buffer('count', torch.zeros(()))\n"
        "    def forward(self, x):\n"
        "        self.count += 1\n"
        "        return self.line(x)\n",
        r"changes its own buffer count in forward",
    ),
    "a parameter that it does not use": (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.line, self.spare = nn.Linear(1, 1), nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return self.line(x)\n",
        r"does not depend on the parameter spare\.weight, spare\.bias",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_of_a_broken_model_names_what_is_wrong(name, run):
    code, message = BROKEN[name]
    Path("broken.py").write_text(
        f"import torch\nfrom torch import nn\nimport distmeta\n\n{code}\n"
        "experiment = distmeta.Experiment(learner=distmeta.MAML(Net(), inner_lr=0.01), tasks=distmeta.Sinusoids())\n"
    )
    checked = run("check", "broken.py", "--json")
    assert (checked.code, checked.out) == (1, "")
    assert re.search(message, checked.err), checked.err


def test_check_of_tasks_that_draw_their_own_random_numbers(run):
    Path("random_job.py").write_text(
        "import numpy, distmeta\n"
        "@distmeta.task_distribution\n"
        "def tasks(random, split):\n"
        "    x = numpy.random.default_rng().normal(size=(8, 1))\n"
        "    return x[:4], x[:4], x[4:], x[4:]\n"
        "experiment = distmeta.Experiment(learner=distmeta.MAML(distmeta.mlp((4,)), inner_lr=0.01), tasks=tasks)\n"
    )
    checked = run("check", "random_job.py")
    assert checked.code == 1
    assert "the generator that the task function is given" in checked.err


def test_audit_of_a_good_job_and_of_one_that_reads_the_time(run):
    found = run("audit", "job.py", "--tasks", 2, "--json")
    assert (found.code, found.json["ok"], found.json["findings"]) == (0, True, [])
    path, number = write_broken(Path.cwd(), "late", DRAWN["time"][2])
    shown = run("audit", path, "--tasks", 2)
    assert shown.code == 1
    assert f"late.py:{number}: shift = datetime.datetime.now().minute  # HERE   (reads datetime.now())" in shown.out
    assert f"(follows from late.py:{number})" in shown.out
    Path("own.py").write_text(
        "import numpy, torch, distmeta\n\n\ndef get_batch(batch_size):\n"
        "    x = torch.from_numpy(numpy.random.default_rng().normal(size=(batch_size, 8, 2))).float()\n"
        "    return x, (x.sum(-1) > 0).long()\n\n\n"
        "tasks = distmeta.Prior(get_batch, classes=2, support=4)\n"
        "experiment = distmeta.Experiment(learner=distmeta.InContext(distmeta.table_transformer()), tasks=tasks)\n"
    )
    shown = run("audit", "own.py", "--tasks", 2)  # what refuses itself is audited all the same
    assert shown.code == 1
    assert "own.py:5" in shown.out


# -- help ------------------------------------------------------------------------------------------------------------


def test_the_version(run):
    assert run("--version").out == f"distmeta {distmeta.__version__}\n"


def test_help_names_every_command(run):
    shown = run("--help")
    assert shown.code == 0
    for name in get_command(app).commands:
        assert name in shown.out


# -- signals ---------------------------------------------------------------------------------------------------------


def interrupted(folder: Path, *words: str, number: signal.Signals, group: bool) -> tuple[int, str, str]:
    """Train in a process of its own, end it by a signal after a few steps; to the whole group, as a terminal does."""
    command = [sys.executable, "-m", "distmeta", "train", "job.py", "--no-tracking", "--json", "--run-dir", "run"]
    process = subprocess.Popen(
        [*command, "--set", "tasks.seconds=0.05", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and len(read_metrics(folder / "run")) < 3:
            time.sleep(0.02)
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate()
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("backend", "number", "group"),
    [
        ("local", signal.SIGINT, False),
        pytest.param("ray", signal.SIGINT, True, marks=pytest.mark.ray),
        pytest.param("ray", signal.SIGTERM, False, marks=pytest.mark.ray),
    ],
    ids=["local-ctrl-c", "ray-ctrl-c", "ray-term"],
)
def test_a_signal_checkpoints_and_says_how_to_go_on(backend, number, group, run, straight, tmp_path):
    if backend == "ray":
        pytest.importorskip("ray")
    words = ("--backend", backend, *(("--workers", "1") if backend == "ray" else ()))
    code, out, err = interrupted(tmp_path, *words, number=number, group=group)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "Interrupted. Go on with: distmeta resume run"
    assert "Traceback" not in err
    seen = run("inspect", "run", "--json").json
    assert seen["status"] == "interrupted"
    assert 3 <= seen["step"] < 12 or seen["step"] == 0  # 0 if it came while a step was being written down
    assert run("inspect", "run").out.endswith("Go on with: distmeta resume run\n")
    resumed = run("resume", "run", *LOCAL, "--set", "tasks.seconds=0.05", "--json")
    assert resumed.code == 0, resumed.err
    expected = distmeta.inspect_run(straight)
    assert resumed.json["params_sha256"] == expected["params_sha256"]
    assert run("inspect", "run", "--json").json["best"] == expected["best"]


# -- MLflow ----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_not_tracked_is_sent_to_mlflow_later(run, straight, tmp_path):
    pytest.importorskip("mlflow")
    shutil.copytree(straight, tmp_path / "late")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-m", "distmeta", "track", "sync", "late", "--tracking-uri", uri, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["rows_sent"] == len(read_metrics(straight))
    assert run("inspect", "late", "--json").json["mlflow_run_id"] == sent["run_id"]
