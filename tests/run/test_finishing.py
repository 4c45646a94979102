"""A tracked run of a job in a git checkout: what a person reads, what MLflow holds, also after ctrl-C in between."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distmeta
from distmeta.config import flatten
from distmeta.tracking.metrics_file import read_metrics
from helpers import Done, run_command

DIGITS = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.conv4(width=4), inner_lr=0.1),
    tasks=distmeta.FewShot(data="digits", ways=3, shots=1, queries=2),
    outer=distmeta.Outer(iterations=4, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=2, checkpoint_every=2),
    evaluation=distmeta.Evaluation(every=2, validation_tasks=4, test_tasks=6),
)
"""

SINES = """
import os
import time
import distmeta

class Sines(distmeta.Sinusoids):
    def draw(self, split, random):
        if split == "meta_train":
            time.sleep(float(os.environ.get("NAP", "0")))
        return super().draw(split, random)

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=Sines(shots=4, queries=4),
    outer=distmeta.Outer(iterations=12, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=2, checkpoint_every=1000),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""

LOCAL = ("--backend", "local")


def succeeds(*words: object, folder: Path) -> Done:
    done = run_command(*words, folder=folder)
    assert done.code == 0, done
    return done


@dataclass(frozen=True)
class Trained:
    """The finished run; the command was given from outside of the checkout."""

    shell: Callable[..., Done]
    run: Path
    said: Done
    commit: str


@pytest.fixture(scope="module")
def trained(digits_dir, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    repository = folder / "repository"
    repository.mkdir()
    (repository / "digits_job.py").write_text(DIGITS)

    def git(*words: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", str(repository), *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-b", "trunk")
    git("add", ".")
    git("commit", "-m", "first")
    shell = partial(succeeds, folder=folder)
    said = shell("train", "repository/digits_job.py", *LOCAL, "--data", digits_dir, "--run-dir", "run[1]")
    return Trained(shell, folder / "run[1]", said, git("rev-parse", "HEAD"))


# -- what a person reads ----------------------------------------------------------------------------------------------


def test_the_result_has_both_accuracies_a_baseline_and_where_to_look(trained):
    number = r"\d+\.\d\d % ± \d+\.\d\d"
    title, *rest = trained.said.out.strip().splitlines()
    assert re.fullmatch(
        r"meta-test: 3-way 1-shot, 6 tasks, mean ± 95 % interval \(batch norm 'batch', parameters of step [24]\)", title
    )
    for line, expected in zip(
        rest,
        [
            rf"  accuracy, transductive \(all queries in one batch\) +{number}",
            rf"  accuracy, non-transductive \(each query alone\) +{number}",
            rf"  nearest neighbour on raw inputs, same tasks +{number}",
            r"  loss on the queries +\d+\.\d+ ± \d+\.\d+",
            r"  negative log-likelihood of a query, nats, each query alone +\d+\.\d+ ± \d+\.\d+",
            r"  area under the ROC curve, one class against the others +[01]\.\d+ ± \d+\.\d+",
            r"  expected calibration error, all queries pooled +0\.\d+ ± \d+\.\d+",
            r"run      run\[1\]",
            r"report   run\[1\]/report.html",
            r"curves   run\[1\]/curves.png",
            r"picture  run\[1\]/adaptation.png",
            r"picture  run\[1\]/reliability.png",
            r"browser  mlflow ui --backend-store-uri sqlite:////.*mlflow.db",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, line)
    assert (trained.run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_progress_without_a_terminal_is_lines(trained):
    *phases, worker = itertools.takewhile(lambda line: not line.startswith("step"), trained.said.err.splitlines())
    lines = trained.said.err.splitlines()[len(phases) + 1 :]
    assert [phase.partition(" ")[0] for phase in phases] == ["loading", "checking", "probing", "starting"]
    assert worker.startswith("1 worker on local: ")
    assert re.fullmatch(r"step 1/4  \d+ tasks/s  loss \d+\.\d{3}  acc \d+\.\d%", lines[0])
    assert [line.split(": validation accuracy ")[0] for line in lines if "validation" in line] == ["step 2", "step 4"]
    assert any(line.startswith("step 4/4  ") for line in lines)


def test_inspect_names_the_best_step_and_the_test(trained):
    facts, said = trained.shell("inspect", trained.run, "--json").json, trained.shell("inspect", trained.run).out
    assert re.search(r"(?m)^run_dir +.*run\[1\]$", said)
    assert re.search(rf"(?m)^best +step {facts['best']['step']}: meta-validation accuracy 0\.\d+$", said)
    assert re.search(r"(?m)^test accuracy_non_transductive +0\.\d+ ± 0\.\d+$", said)
    assert "Go on with" not in said


# -- what MLflow holds ------------------------------------------------------------------------------------------------


def mlflow_client() -> Any:
    import mlflow

    return mlflow.MlflowClient()


def steps(run_id: str, metric: str) -> list[int]:
    return [point.step for point in mlflow_client().get_metric_history(run_id, metric)]


@pytest.fixture
def recorded(trained) -> Any:
    return mlflow_client().get_run(trained.shell("inspect", trained.run, "--json").json["mlflow_run_id"])


def test_settings_metrics_data_and_code(trained, recorded):
    facts = trained.shell("inspect", trained.run, "--json").json
    assert (recorded.info.status, recorded.info.run_name) == ("FINISHED", "run[1]")
    assert mlflow_client().get_experiment(recorded.info.experiment_id).name == "digits_job"
    assert recorded.data.params == {key: str(value) for key, value in flatten(facts["experiment"]).items()}
    assert recorded.data.params["outer.meta_batch_size"] == "4"

    run_id = recorded.info.run_id
    assert steps(run_id, "train/loss") == steps(run_id, "runtime/tasks_per_second") == [1, 2, 3, 4]
    assert steps(run_id, "validation/accuracy") == [2, 4]
    assert steps(run_id, "test/accuracy_non_transductive") == [4]
    assert recorded.data.metrics["test/accuracy"] == pytest.approx(facts["test"]["accuracy"])

    tags = recorded.data.tags
    assert tags["mlflow.source.git.commit"] == trained.commit
    assert (tags["mlflow.source.git.branch"], tags["distmeta.git_dirty"]) == ("trunk", "false")
    assert tags["distmeta.dataset_fingerprint"] == facts["dataset_fingerprint"]
    assert tags["distmeta.kernel"] == facts["kernel"]
    (used,) = recorded.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", facts["dataset_fingerprint"][:32])


def test_the_job_the_curves_and_the_best_parameters(trained, recorded, tmp_path):
    def files(folder: str | None = None) -> set[str]:
        return {item.path for item in mlflow_client().list_artifacts(recorded.info.run_id, folder)}

    assert files() == {
        *("experiment.json", "job.py", "curves.png", "adaptation.png", "result.json", "report.html", "run.json"),
        *("reliability.png", "best"),
    }
    best = trained.shell("inspect", trained.run, "--json").json["best"]["step"]
    assert files("best") == {
        f"best/{name}" for name in ("params.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    }
    copy = mlflow_client().download_artifacts(recorded.info.run_id, "best/params.safetensors", str(tmp_path))
    (kept,) = (trained.run / "checkpoints").glob(f"*{best}/params.safetensors")
    assert Path(copy).read_bytes() == kept.read_bytes()


def test_there_is_nothing_left_to_send(trained, recorded):
    said = trained.shell("track", "sync", trained.run).out
    assert said == f"MLflow run {recorded.info.run_id}: sent 0 rows and 0 artifacts.\n"


def test_ctrl_c_while_mlflow_is_waited_for_leaves_the_run_finished(tmp_path, monkeypatch):
    closed = []

    def close(tracker, status):
        closed.append(status)
        tracker._close_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("distmeta.run.training.Tracker.close", close)
    (tmp_path / "sines.py").write_text(SINES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    job = distmeta.load_job(tmp_path / "sines.py", {"outer.iterations": 1})
    with pytest.raises(KeyboardInterrupt, match=r"run is finished; .*distmeta track sync"):
        distmeta.meta_train(job, run_dir=tmp_path / "run")
    facts = distmeta.inspect_run(tmp_path / "run")
    assert (facts["status"], facts["step"], closed) == ("finished", 1, ["FINISHED"])
    assert facts["test"]["loss"] == json.loads((tmp_path / "run" / "result.json").read_text())["loss"]


# In a shell's background job SIGINT is ignored, and pytest may be one.
ENTRY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from distmeta.cli.main import main
main()
"""


def test_ctrl_c_ends_the_run_in_mlflow_and_resuming_goes_on_with_the_same_one(tmp_path):
    (tmp_path / "sines.py").write_text(SINES)
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "train", "sines.py", *LOCAL, "--run-dir", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "NAP": "0.1"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(tmp_path / "run")) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # into the middle of a step
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    shell = partial(succeeds, folder=tmp_path)
    run_id = shell("inspect", "run", "--json").json["mlflow_run_id"]
    assert mlflow_client().get_run(run_id).info.status == "KILLED"
    shell("resume", "run", *LOCAL)
    assert shell("inspect", "run", "--json").json["mlflow_run_id"] == run_id
    assert mlflow_client().get_run(run_id).info.status == "FINISHED"
    assert steps(run_id, "train/loss") == list(range(1, 13))
