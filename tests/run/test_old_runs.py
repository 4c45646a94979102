"""Run directories that version 0.1.0 wrote, before digests: every command works on them, with the same bits.

``old_runs/`` holds three runs of one job: finished; killed at step 40 of 400; finished, recorded in MLflow and
evaluated. The digests below were computed by the version that wrote them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.errors import CheckpointNotFound
from distmeta.run.directory import RunDirectory
from distmeta.run.finished_run import FinishedRun
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.tracking.tracker import sync

OLD = Path(__file__).parent / "old_runs"
KERNEL = "AVX512; torch 2.13.0+cpu; 1 threads"  # of a CPU of AMD, which it did not record
FINISHED = "9de790fd4713a4362eecdccb72bcfc5f24fc98f11c2f067c5cdca2b9a8020c61"
RESUMED = "be9c6eb547f7941022d1fb9656d92db4b71e6f083ceb0426ebd2c0563b769da7"


@pytest.fixture
def old(tmp_path) -> Path:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "status", "step"),
    [("finished", "finished", 30), ("evaluated", "finished", 30), ("interrupted", "interrupted", 40)],
)
def test_inspect(old, name, status, step, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: json.loads((old / name / "run.json").read_text())["host"])
    facts = distmeta.inspect_run(old / name)
    assert (facts["status"], facts["step"]) == (status, step)
    if status == "finished":
        assert facts["params_sha256"] == FINISHED
    assert facts["experiment"]["learner"]["inner_lr"] == 0.01


@pytest.mark.parametrize("newer", [True, False])
def test_a_best_one_that_a_run_removes_meanwhile_is_looked_up_again(old, monkeypatch, newer):
    """Opening a run that trains on raised CheckpointNotFound."""
    store = RunDirectory.open(old / "interrupted").checkpoints()
    path = store.path(40) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "best": {**state["best"], "step": 30}}))
    last, real, asked = store.load(40), CheckpointStore.best, []
    best = {**state["best"], "step": 45}

    def slow(self, checkpoint):
        asked.append(checkpoint.step)
        if len(asked) == 1:
            shutil.rmtree(store.path(30))
            if newer:
                store.save(replace(last, step=45, record={**last.record, "best": best}))
        return real(self, checkpoint)

    monkeypatch.setattr(CheckpointStore, "best", slow)
    if newer:
        run = FinishedRun.open(old / "interrupted")
        assert (run.last.step, run.best.step, asked) == (45, 45, [40, 45])
    else:
        with pytest.raises(CheckpointNotFound, match="has no checkpoint of step 30"):
            FinishedRun.open(old / "interrupted")
        assert asked == [40, 40]


def test_a_killed_run_is_resumed_to_the_same_bits(old):
    shutil.copytree(old / "interrupted", old / "again")
    directory = RunDirectory.open(old / "interrupted")
    result = distmeta.meta_train(directory.job(), run_dir=directory.path, resume=True)
    assert result.step == 400
    facts = distmeta.inspect_run(directory.path)
    assert (facts["status"], facts["params_sha256"]) == ("finished", result.params_sha256)
    again = RunDirectory.open(old / "again")
    two = distmeta.meta_train(again.job(), run_dir=again.path, resume=True)
    assert two.params_sha256 == result.params_sha256
    if facts["kernel"].startswith("AuthenticAMD ") and facts["kernel"].endswith(f", {KERNEL}"):
        assert result.params_sha256 == RESUMED


def test_a_finished_run_is_resumed_for_more_steps(old):
    shutil.copytree(old / "finished", old / "again")
    one, two = (
        distmeta.meta_train(
            RunDirectory.open(old / name).job({"outer.iterations": 36}), run_dir=old / name, resume=True
        )
        for name in ("finished", "again")
    )
    assert one.step == 36
    assert one.params_sha256 == two.params_sha256 != FINISHED


def test_an_evaluation_repeats_the_kept_one(old):
    kept = json.loads((old / "evaluated" / "evaluations" / "meta_test-1.json").read_text())
    found = distmeta.evaluate(old / "evaluated", distmeta.EvaluationRequest(tasks=20))
    assert (found.step, found.params_sha256) == (kept["step"], kept["params_sha256"])
    np.testing.assert_allclose(found.report.metrics["loss"], kept["per_task"]["loss"], rtol=1e-4)
    assert sorted(path.name for path in (old / "evaluated" / "evaluations").glob("meta_test-*")) == [
        "meta_test-1.json",
        "meta_test-2.json",
    ]


def test_a_sweep_repeats_the_kept_one(old):
    kept = json.loads((old / "evaluated" / "evaluations" / "inner_steps-1.json").read_text())
    found = distmeta.sweep(old / "evaluated", "inner_steps", [0, 1, 3], distmeta.EvaluationRequest(tasks=10))
    for before, now in zip(kept["judgements"], found.results, strict=True):
        np.testing.assert_allclose(now.report.metrics["loss"], before["per_task"]["loss"], rtol=1e-4)


@pytest.mark.parametrize(("name", "rows"), [("evaluated", 34), ("finished", 34)])
def test_track_sync_sends_all_of_it_to_another_store(old, name, rows):
    report = sync(old / name, f"sqlite:///{old}/mlflow.db")
    assert report.rows_sent == rows
    assert sync(old / name).rows_sent == 0
