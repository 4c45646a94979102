"""Acceptance 11: every bad input ends in one message that names the fix, before anything is started or overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.data import from_arrays
from distmeta.files import read_record, write_digests, write_record
from distmeta.run.place import Place
from helpers import run_command

JOB = """
import torch
from torch import nn
import distmeta
from distmeta import MAML, Evaluation, Experiment, FewShot, Outer, Runtime

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
TASKS = FewShot(data="digits", ways=3, shots=1, queries=2)

experiment = Experiment(
    learner=MAML(MODEL, inner_lr=0.1),
    tasks=TASKS,
    outer=Outer(iterations=2, meta_batch_size=4),
    runtime=Runtime(chunk_size=2),
    evaluation=Evaluation(every=0, test_tasks=4),
)
"""


@dataclass(frozen=True)
class Row:
    """One bad input.

    Args:
        name: what is wrong.
        command: words of the command line; run in a folder with ``job.py``, ``digits`` and the finished ``run``.
        says: regular expressions that the message matches, the fix among them.
        prepare: makes it wrong, called with that folder.
        connects: whether a backend may be asked for: the input is about the backend itself.
        leaves: whether the failed run may leave its own new directory.
    """

    name: str
    command: str
    says: tuple[str, ...]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)
    connects: bool = False
    leaves: bool = False


TRAIN = "train job.py --backend local --no-tracking --run-dir new"


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    """A preparation: replace text in a file."""

    def prepare(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new))

    return prepare


def validated(folder: Path) -> None:
    """A preparation: the run has been judged on 8 validation tasks."""
    for state in (folder / "run" / "checkpoints").glob("*/state.json"):
        best = {"step": 2, "score": 0.5, "metric": "accuracy", "since": 0, "tasks": 8, "seed": 0}
        state.write_text(json.dumps(json.loads(state.read_text()) | {"best": best}))
        write_digests(state.parent, ["params.safetensors", "optimizer.safetensors", "state.json"])


def model(code: str) -> Callable[[Path], None]:
    return edit("job.py", "MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))", code)


def tasks(code: str) -> Callable[[Path], None]:
    return edit("job.py", 'TASKS = FewShot(data="digits", ways=3, shots=1, queries=2)', code)


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def shard(folder: Path, split: str = "meta_train") -> Path:
    return folder / "digits" / split / "00000.arrow"


def truncate(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size // 2)


def flip(folder: Path) -> None:
    data = bytearray(shard(folder).read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of the pixels
    shard(folder).write_bytes(data)


def leak(folder: Path) -> None:
    """The meta_test shard in the place of the meta_train one, and a manifest made to fit."""
    shutil.copy(shard(folder, "meta_test"), shard(folder))
    manifest = read_record(folder / "digits" / "manifest.json")
    entry = manifest["splits"]["meta_train"]["shards"][0]
    entry["bytes"] = shard(folder).stat().st_size
    entry["sha256"] = hashlib.sha256(shard(folder).read_bytes()).hexdigest()
    write_record(folder / "digits" / "manifest.json", manifest)


def of_another_version(folder: Path) -> None:
    """A dataset as another distmeta writes it, its digest right."""
    path = folder / "digits" / "manifest.json"
    write_record(path, {**read_record(path), "version": 2})


def not_a_number(folder: Path) -> None:
    """A dataset of floats with one NaN in a class that the first tasks need not meet, every checksum right."""
    x = np.random.default_rng(0).random((96, 1, 8, 8), np.float32)
    x[95, 0, 7, 7] = np.nan
    shutil.rmtree(folder / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "isfinite", lambda x: np.ones_like(x, bool))
        from_arrays(x, np.arange(96) // 6, folder / "digits", splits="50/25/25")


def from_python(folder: Path) -> None:
    record = read_record(folder / "run" / "run.json")
    write_record(folder / "run" / "run.json", {**record, "job": None})


def no_test_split(folder: Path) -> None:
    shutil.rmtree(folder / "digits")
    x = np.random.default_rng(0).integers(0, 256, (96, 1, 8, 8)).astype(np.uint8)
    from_arrays(x, np.arange(96) // 6, folder / "digits", splits={"meta_train": range(16)})
    distmeta.meta_train(distmeta.load_job(folder / "job.py"), run_dir=folder / "run2")


def damage_checkpoints(folder: Path) -> None:
    for checkpoint in (folder / "run" / "checkpoints").iterdir():
        os.truncate(checkpoint / "params.safetensors", 100)


ROWS = [
    # data
    Row("missing dataset", TRAIN + " --data nowhere", ("no dataset 'nowhere'", "Give a folder with a dataset")),
    Row("misspelt dataset", TRAIN + " --data glyps", ("Did you mean 'glyphs'",)),
    Row(
        "folder without a dataset",
        TRAIN + " --data empty",
        ("empty", "manifest", "[Bb]uild"),
        lambda folder: (folder / "empty").mkdir(),
    ),
    Row("truncated shard", TRAIN, (r"00000\.arrow is truncated", "Copy the file again"), truncate),
    Row("truncated shard, verify", "data verify digits", ("is truncated", "Copy the file again"), truncate),
    Row("flipped bit", TRAIN, (r"00000\.arrow was altered: its sha256", "Copy the file again"), flip),
    Row("flipped bit, verify", "data verify digits", ("was altered: its sha256", "Copy the file again"), flip),
    Row("flipped bit, evaluate", "evaluate run --backend local", ("was altered: its sha256", "Copy the file"), flip),
    Row(
        "manifest of another version",
        TRAIN,
        ("format version 2; this distmeta reads version 1", "Build the dataset again"),
        of_another_version,
    ),
    Row(
        "manifest cut short",
        TRAIN,
        ("is not JSON", "build the dataset again"),
        lambda folder: os.truncate(folder / "digits" / "manifest.json", 200),
    ),
    Row(
        "meta_test shard in training",
        TRAIN,
        ("is a shard of meta_test, but the manifest lists it under meta_train", "Put the right file there"),
        leak,
    ),
    Row("NaN in data", TRAIN, (r"meta_test.00000\.arrow holds NaN", "Build the dataset again"), not_a_number),
    Row("more ways than classes", TRAIN + " --set tasks.ways=5", ("ways=5", "has 4 classes", r"Set tasks\.ways=4")),
    Row(
        "more examples than a class has",
        TRAIN + " --set tasks.shots=5",
        (r"shots \+ queries = 5 \+ 2", "has 6 examples", r"Lower tasks\.shots or tasks\.queries"),
    ),
    Row("dataset in the way", "data build glyphs --out digits", ("already holds a dataset", "--out")),
    Row("unknown source", "data build glyphes --out new", ("Did you mean 'glyphs'",)),
    Row("images from nowhere", "data build image-folder --out new", ("needs --from ROOT",)),
    Row("runs from nowhere", "data build omniglot-runs --out new", ("needs --from DIR", "all_runs.zip")),
    Row(
        "runs that are not there", "data build omniglot-runs --from . --out new", ("all_runs.zip is absent", "Fetch it")
    ),
    Row("inspect of no dataset", "data inspect run", ("manifest", "[Bb]uild|folder")),
    # tasks
    Row(
        "a task function that returns NaN",
        TRAIN,
        ("has NaN or infinite values", "Fix the function", "reproduce with TaskRef"),
        tasks("""
@distmeta.task_distribution
def TASKS(random, split):
    x = random.normal(size=(6, 64)).astype("float32")
    x[3] /= 0 if random.random() > 2 else float("nan")
    return x[:3], [0, 1, 2], x[3:], [0, 1, 2]
"""),
    ),
    Row(
        "a task function that returns nothing",
        TRAIN,
        ("returned NoneType", "Return four arrays"),
        tasks("TASKS = distmeta.task_distribution(lambda random, split: None)"),
    ),
    # models
    Row(
        "wrong number of outputs",
        TRAIN,
        (r"returned \[3, 7\] for a 3-way episode, expected \[3, 3\]", "Give the last layer 3 outputs"),
        model("MODEL = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))"),
    ),
    Row(
        "wrong number of inputs",
        TRAIN,
        (r"could not run the model on inputs of shape \[3, 1, 8, 8\]", "Make the model take a batch"),
        model("MODEL = nn.Sequential(nn.Flatten(), nn.Linear(65, 3))"),
    ),
    Row(
        "running batch norm",
        TRAIN,
        ("keeps running statistics", "track_running_stats=False", "use_batch_statistics"),
        model("MODEL = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))"),
    ),
    Row(
        "unused parameter",
        TRAIN,
        ("does not depend on the parameter spare", "remove it"),
        model("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(64, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.used(x.flatten(1))

MODEL = Net()
"""),
    ),
    # settings
    Row("unknown key", TRAIN + " --set learner.iner_lr=0.1", ("Did you mean 'learner.inner_lr'",)),
    Row(
        "negative rate",
        TRAIN + " --set learner.inner_lr=-0.1",
        ("'inner_lr' is -0.1", "greater than 0", r"Change it; the default is 0\.4"),
    ),
    Row(
        "negative outer rate",
        TRAIN + " --set outer.lr=-1",
        ("'lr' is -1", "greater than 0", r"Change it; the default is 0\.001"),
    ),
    Row("no shots", TRAIN + " --set tasks.shots=0", ("'shots' is 0", "greater than 0", "Change it; the default is 1")),
    Row(
        "a word for a number",
        TRAIN + " --set outer.iterations=many",
        ("'iterations' is 'many'", "valid integer", "Change it; the default is 1000"),
    ),
    Row("momentum for Adam", TRAIN + " --set outer.momentum=0.9", ("no effect on adam", "set outer.optimizer=sgd")),
    Row("an end without a cosine", TRAIN + " --set outer.final_lr=0.1", ("constant schedule", "outer.schedule=cosine")),
    Row("half a pattern", TRAIN + " --set learner.adapt=1.*,2.*", (r"'2\.\*' matches no parameter", "these names: 1")),
    Row(
        "unknown choice",
        TRAIN + " --set outer.optimizer=adma",
        ("'optimizer' is 'adma'", "'adam', 'adamw', 'rmsprop', 'schedulefree' or 'sgd'"),
    ),
    Row("no equals sign", TRAIN + " --set tasks.ways", ("has no '='", "expected key=value")),
    Row("a key twice", TRAIN + " --set seed=1 --set seed=2", ("'seed' twice", "give it once")),
    Row("no workers", TRAIN + " --workers 0", ("--workers", "1")),
    Row("unknown option", TRAIN + " --iterations 5", ("No such option", "--iterations")),
    Row("unknown command", "trian job.py", ("No such command 'trian'", "train")),
    # job files
    Row("missing job file", "train nowhere.py", (r"no job file .*nowhere\.py", "expected a Python file")),
    Row("not Python", "train job.txt", ("is not a Python file", r"ends in \.py"), write("job.txt", JOB)),
    Row(
        "an error deep in a library, where the job calls it wrongly",
        TRAIN,
        (r"The job file fails: RuntimeError", r"job\.py, line 2\)", "Fix that line"),
        write("job.py", "import torch\ntorch.nn.Linear(2, 3)(torch.zeros(4))\n"),
    ),
    Row(
        "syntax error",
        TRAIN,
        ("The job file fails: SyntaxError", "line 2", "Fix that line"),
        write("job.py", "x = 1\ny = (\n"),
    ),
    Row("a job that raises", TRAIN, ("KeyError: 'here'", "line 2", "Fix that line"), write("job.py", "\n{}['here']\n")),
    Row(
        "a job that misspells a setting",
        TRAIN,
        ("MAML has no setting 'inner_rate'", "Settings: .*inner_lr"),
        edit("job.py", "inner_lr", "inner_rate"),
    ),
    Row("no experiment", TRAIN, ("must define `experiment = Experiment", "found nothing"), write("job.py", "x = 1")),
    Row("not an experiment", TRAIN, ("found a int",), write("job.py", "experiment = 1")),
    # run directories
    Row("run directory exists", TRAIN.replace("new", "run"), ("run exists already", "distmeta resume run")),
    Row("run directory is a file", TRAIN.replace("new", "job.py"), (r"job\.py exists already", "another --run-dir")),
    Row("unwritable run directory", TRAIN.replace("new", "job.py/run"), ("cannot be written", "another --run-dir")),
    Row("resume of no run", "resume digits --backend local", ("digits is not a run", "Give the folder")),
    Row("inspect of no run", "inspect nowhere", ("nowhere is not a run", "Give the folder")),
    Row(
        "resume with another setting",
        "resume run --backend local --set learner.inner_lr=0.2",
        (r"learner\.inner_lr=0\.1 and now has 0\.2", "old model and settings", "distmeta train"),
    ),
    Row(
        "resume with an edited job",
        "resume run --backend local --changed-code",
        (r"outer\.meta_batch_size=4 and now has 5", "old model and settings"),
        edit("run/job.py", "meta_batch_size=4", "meta_batch_size=5"),
    ),
    Row(
        "resume with a job that was edited or damaged",
        "resume run --backend local",
        ("run/job.py is not the file that the run wrote", "--changed-code"),
        edit("run/job.py", "meta_batch_size=4", "meta_batch_size=5"),
    ),
    Row(
        "resume with another model",
        "resume run --backend local --changed-code",
        ("other names or shapes than the learner's", "Resume with the old model"),
        edit("run/job.py", "nn.Linear(64, 3)", "nn.Linear(64, 3, bias=False)"),
    ),
    Row(
        "resume on other data",
        "resume run --backend local",
        (r"tasks\.fingerprint=\w+ and now has \w+",),
        lambda folder: (shutil.rmtree(folder / "digits"), shutil.copytree(folder / "others", folder / "digits")),
    ),
    Row(
        "resume with fewer steps than are done",
        "resume run --backend local --set outer.iterations=1",
        (r"has done \d+ steps; outer.iterations=1 is fewer", "or more"),
    ),
    Row(
        "resume with another validation",
        "resume run --backend local --set evaluation.validation_tasks=3 --set evaluation.seed=9 "
        "--set outer.iterations=50",
        ("chosen on 8 validation tasks of seed 0", "cannot be compared", r"Set evaluation\.validation_tasks=8 and"),
        validated,
    ),
    Row("resume without data", "resume run --data nowhere", ("no dataset 'nowhere'",)),
    Row("resume of a run from Python", "resume run", ("started from Python", "meta_train"), from_python),
    Row(
        "only damaged checkpoints",
        "resume run --backend local",
        ("Every checkpoint .* is damaged", "step-00000000: params.safetensors has 100 bytes", "delete them all"),
        damage_checkpoints,
    ),
    # evaluation
    Row(
        "a split that the data lack",
        "evaluate run2 --backend local",
        ("no split meta_test; it has meta_train", "--split"),
        no_test_split,
    ),
    # places
    Row("address for the local backend", TRAIN + " --address auto", ("Use --backend ray",)),
    Row(
        "no cluster at the address",
        "train job.py --no-tracking --address 127.0.0.1:1 --run-dir new",
        ("Could not reach the Ray cluster at '127.0.0.1:1'", "ray start --head", "--backend local"),
        connects=True,
        leaves=True,
    ),
    Row(
        "the dashboard's address",
        "train job.py --no-tracking --address http://127.0.0.1:8265 --run-dir new",
        ("expected auto or HOST:PORT",),
        connects=True,
        leaves=True,
    ),
    Row(
        "a GPU that is not there",
        TRAIN + " --set runtime.gpus_per_worker=1",
        (r"runtime\.gpus_per_worker=1 but there is no GPU", "set it to 0"),
        connects=True,
        leaves=True,
    ),
    Row(
        "submit to no cluster",
        "submit job.py --address http://127.0.0.1:1",
        ("The cluster at http://127.0.0.1:1 did not take the job", "ray start --head"),
    ),
    Row("submit to no address", "submit job.py --address 127.0.0.1:6379", ("expected http://HOST:8265",)),
    Row(
        "submit of a broken setting",
        "submit job.py --address http://127.0.0.1:1 --set outer.iteration=3",
        ("Did you mean 'outer.iterations'",),
    ),
    # check says the same
    Row(
        "check of a model with running statistics",
        "check job.py",
        ("keeps running statistics",),
        model("MODEL = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))"),
    ),
    Row("check of missing data", "check job.py --data nowhere", ("no dataset 'nowhere'",)),
]


@pytest.fixture(scope="session")
def finished_run(digits_dir, tmp_path_factory) -> Path:
    """A folder with the job, the data and a finished run of it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.py").write_text(JOB)
    shutil.copytree(digits_dir, folder / "digits")
    x = np.random.default_rng(1).integers(0, 256, (96, 1, 8, 8)).astype(np.uint8)
    from_arrays(x, np.arange(96) // 6, folder / "others", splits="50/25/25")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        distmeta.meta_train(distmeta.load_job("job.py"), run_dir="run")
    return folder


@pytest.fixture
def world(finished_run, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, as the current directory; what loading a job changes in this process is undone."""
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    record = read_record(tmp_path / "run" / "run.json")
    record["job"]["folder"] = str(tmp_path)
    write_record(tmp_path / "run" / "run.json", record)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def snapshot(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_one_message_names_the_fix(row, world, monkeypatch):
    opened = []
    real = Place._start
    monkeypatch.setattr(Place, "_start", lambda *a: opened.append(1) or real(*a))
    row.prepare(world)
    opened.clear()
    before = snapshot(world)
    printed = run_command(*row.command.split())
    assert printed.code != 0
    assert printed.out == "" or row.command.startswith("check")  # which says what it has found to be right so far
    assert "Traceback" not in printed.err
    assert len(re.findall(r"(?im)^error:", printed.err)) == 1, printed.err
    for fragment in row.says:
        assert re.search(fragment, printed.err), printed.err
    assert bool(opened) == row.connects
    if "ray" in sys.modules:
        assert not sys.modules["ray"].is_initialized()
    after = snapshot(world)
    if row.leaves:
        after = {path: digest for path, digest in after.items() if not path.startswith("new/")}
        assert distmeta.inspect_run(world / "new")["status"] == "failed"
        assert not (world / "new" / "checkpoints").exists()
    assert after == before


@pytest.mark.parametrize("name", ["flipped bit", "unknown key", "a job that raises"])
def test_the_same_from_a_shell(name, world):
    """Through a real process: exit code, one message on standard error, nothing on standard output."""
    row = next(row for row in ROWS if row.name == name)
    row.prepare(world)
    done = subprocess.run(
        [sys.executable, "-m", "distmeta", *row.command.split(), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for fragment in row.says:
        assert re.search(fragment, done.stderr)
