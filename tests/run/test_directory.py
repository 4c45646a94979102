"""The run directory: a folder of its own, one holder at a time, a record that is found damaged when it is."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import distmeta
from distmeta.data import dataset
from distmeta.errors import CheckpointDamaged, ConfigError, FileDamaged, ServerLost, TaskContractError
from distmeta.files import read_record
from distmeta.run import directory, training
from distmeta.run.directory import RunDirectory
from distmeta.run.record import DatasetFacts, RunRecord
from helpers import SINES, sines


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_two_runs_that_begin_in_the_same_second_have_two_folders(monkeypatch):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2, 3, 4, 5, tzinfo=tz)

    driver, other = training.Driver, []

    def slow(*words, **options):
        """Another run begins, and ends, while this one is still checked."""
        if not other:
            other.append(None)
            other[0] = distmeta.meta_train(sines())
        return driver(*words, **options)

    monkeypatch.setattr(directory.datetime, "datetime", Stopped)
    monkeypatch.setattr(training, "Driver", slow)
    first = distmeta.meta_train(sines())
    assert first.run_dir == Path("runs/sines-20310102-030405")
    assert other[0].run_dir == Path("runs/sines-20310102-030405-2")
    assert all(distmeta.inspect_run(run.run_dir)["status"] == "finished" for run in (first, other[0]))


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_cannot_begin_leaves_nothing(there):
    if there:
        Path("runs").mkdir()
    with pytest.raises(TaskContractError):
        distmeta.meta_train(sines(tasks=distmeta.FunctionTasks(lambda random, split: None)))
    assert [path.name for path in Path().rglob("*")] == ["runs"] * there


def test_where_no_folder_can_be_made_the_message_names_the_fix():
    Path("runs").write_text("")
    with pytest.raises(ConfigError, match=r"runs/sines-\S+ cannot be written: .*another --run-dir"):
        distmeta.meta_train(sines())


# -- what an existing run records --------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, monkeypatch) -> RunDirectory:
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("sines.py").write_text(SINES)
    distmeta.meta_train(distmeta.load_job("sines.py"), run_dir="run")
    return RunDirectory.open("run")


def test_the_record_is_typed_and_says_what_was_run(finished):
    record = finished.record
    assert (record.status, record.step, record.iterations, record.stopped_early) == ("finished", 2, 2, False)
    assert record.dataset == DatasetFacts("Sinusoids", (1,))
    assert Path(record.job.path).name == "sines.py"
    assert set(record.code) == {"job.py"}
    assert RunRecord.from_dict(record.to_dict()) == record
    later = record.to_dict() | {"of a later version": 1}
    later["job"] = {**later["job"], "of a later version": 1}
    assert RunRecord.from_dict(later) == record


def test_a_held_run_is_running_and_nobody_else_s(finished):
    finished.update(status="running")
    assert RunDirectory.open("run").status() == "interrupted"
    with finished.hold():
        assert RunDirectory.open("run").status() == "running"
        with pytest.raises(ConfigError, match=r"Another process is working on the run run; .*distmeta inspect"):
            RunDirectory.open("run").hold().__enter__()
    finished.update(host="elsewhere")
    assert RunDirectory.open("run").status() == "running"  # the lock of another machine cannot be seen


def test_the_job_file_is_the_one_that_the_run_wrote(finished):
    assert finished.job().experiment.outer.iterations == 2
    assert finished.job({"outer.iterations": 5}).experiment.outer.iterations == 5
    path = Path("run/job.py")
    path.write_text(path.read_text().replace("inner_lr=0.01", "inner_lr=0.02"))
    with pytest.raises(ConfigError, match=r"run/job.py is not the file .*damaged or edited.*--changed-code"):
        finished.job()
    assert finished.job(accept_changed=True).experiment.learner.config.inner_lr == 0.02
    path.unlink()
    with pytest.raises(ConfigError, match=r"run/job.py cannot be read: .*Restore it from .*sines.py"):
        finished.job()


def test_names_are_reserved_for_one(finished):
    first, second = (finished.reserve_evaluation("meta_test") for _ in range(2))
    assert [path.name for path in (first, second)] == ["meta_test-1.json", "meta_test-2.json"]


def test_the_full_text_of_an_error_is_kept_in_a_file_that_its_message_names(finished):
    errors = [ServerLost("It died.", raw=f"all of {n}") for n in (1, 2)]
    for error in errors:
        finished.keep_raw_text(error)
    for number, error in enumerate(errors, start=1):
        file = finished.path / "errors" / f"ServerLost-{number}.txt"
        assert str(error).endswith(f"Full text: {file}")
        assert file.read_text() == f"all of {number}"


def test_an_error_without_a_full_text_and_a_disk_that_refuses_leave_the_message_alone(finished):
    for error in (ServerLost("It died."), ValueError("no error of distmeta")):
        before = str(error)
        finished.keep_raw_text(error)
        assert str(error) == before
        assert not (finished.path / "errors").exists()
    (finished.path / "errors").write_text("a file")
    error = ServerLost("It died.", raw="all of it")
    finished.keep_raw_text(error)
    assert "Full text" not in str(error)


@pytest.mark.parametrize("name", ["run.json", "experiment.json", "result.json"])
def test_damage_in_200_places_is_found(finished, name):
    path, random = Path("run") / name, np.random.default_rng(0)
    content = path.read_bytes()
    for place, bit in zip(random.integers(len(content), size=200), random.integers(8, size=200), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(bit)
        path.write_bytes(flipped)
        with pytest.raises(FileDamaged, match=name):
            read_record(path, undigested=True)
    for torn in (b"", content[: len(content) // 2], content[:-1], content + b" "):
        path.write_bytes(torn)
        with pytest.raises(FileDamaged, match=name):
            read_record(path, undigested=True)
    if name == "run.json":
        with pytest.raises(
            FileDamaged, match=r"run.json .*The run keeps a copy of it: cp run/.run.json.copy run/run.json"
        ):
            RunDirectory.open("run")


def test_damage_in_200_places_of_the_job_file_is_found(finished):
    path, random = Path("run/job.py"), np.random.default_rng(1)
    content = path.read_bytes()
    for place, bit in zip(random.integers(len(content), size=200), random.integers(8, size=200), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(bit)
        path.write_bytes(flipped)
        with pytest.raises(ConfigError, match=r"run/job.py is not the file that the run wrote"):
            finished.job()


# -- opened once -------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_the_job_once_reads_the_record_once_and_verifies_the_data_once(digits_dir, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    shutil.copytree(digits_dir, "copy")  # not verified by another test
    Path("digits_job.py").write_text(
        """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.ProtoNet(distmeta.conv4(width=4, head=False)),
    tasks=distmeta.FewShot(data="copy", ways=3, shots=1, queries=1),
    outer=distmeta.Outer(iterations=1, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=2),
)
"""
    )
    counts, verified = Counter(), Counter()

    def counted(name, function):
        def call(*words, **options):
            counts[name] += 1
            return function(*words, **options)

        return call

    sha256_of, read = dataset.sha256_of, directory.read_record
    monkeypatch.setattr(dataset, "sha256_of", lambda path: verified.update([path]) or sha256_of(path))
    distmeta.meta_train(distmeta.load_job("digits_job.py"), run_dir="run")
    monkeypatch.setattr(directory, "load_job", counted("job file", directory.load_job))
    monkeypatch.setattr(directory, "read_record", lambda path, **options: counted(path.name, read)(path, **options))
    assert len(distmeta.sweep("run", "shots", [1, 2, 3, 4]).results) == 4
    assert counts["job file"] == counts["run.json"] == 1
    assert set(verified.values()) == {1}, "the training and four evaluations verify each shard once"


def test_a_finished_run_whose_end_is_damaged_is_not_evaluated_by_older_parameters(finished):
    distmeta.meta_train(finished.job({"outer.iterations": 150}), run_dir="run", resume=True)
    before = distmeta.inspect_run("run")
    path = Path("run/checkpoints/step-00000150/params.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert list(distmeta.inspect_run("run")["damaged"]) == ["checkpoint of step 150"]
    with pytest.raises(
        CheckpointDamaged, match=r"step-00000150 \(params.safetensors has sha256 .*`distmeta resume run`"
    ):
        distmeta.evaluate("run")
    job = RunDirectory.open("run").job()
    assert distmeta.meta_train(job, run_dir="run", resume=True).params_sha256 == before["params_sha256"]
    assert distmeta.inspect_run("run")["damaged"] == {}
    assert distmeta.evaluate("run").params_sha256 == before["params_sha256"]


def test_a_run_resumed_from_python_with_an_edited_job_keeps_that_job(finished):
    Path("sines.py").write_text(SINES + "# a remark\n")
    distmeta.meta_train(distmeta.load_job("sines.py"), run_dir="run", resume=True)
    assert RunDirectory.open("run").job().source.endswith("# a remark\n")
    assert distmeta.evaluate("run", distmeta.EvaluationRequest(tasks=2)).report.tasks == 2


def test_a_file_system_without_locks_is_no_reason_not_to_train(finished, monkeypatch):
    def refuse(*words, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with finished.hold():
        finished.update(status="running")
    assert RunDirectory.open("run").status() == "running"  # this process is alive
    finished.update(pid=2**22 + 1)  # no process has a number that high
    assert RunDirectory.open("run").status() == "interrupted"


def test_comparing_needs_no_permission_to_write_the_other_run(finished, monkeypatch):
    shutil.copytree("run", "other")
    refused = []
    require = RunDirectory.require_writable
    monkeypatch.setattr(RunDirectory, "require_writable", lambda self: refused.append(self.path.name) or require(self))
    distmeta.compare("run", "other", distmeta.EvaluationRequest(tasks=2))
    assert refused == ["run"]
    assert not Path("other/evaluations").exists()


def test_a_damaged_tracking_record_does_not_hide_the_run(finished):
    Path("run/tracking.json").write_text("[")
    facts = distmeta.inspect_run("run")
    assert (facts["status"], facts["mlflow_run_id"]) == ("finished", None)
    assert "tracking.json is damaged" in facts["damaged"]["tracking.json"]


@pytest.mark.parametrize("name", ["experiment.json", "result.json", "metrics.jsonl", "job.py"])
def test_inspect_names_every_damaged_file(finished, name):
    assert distmeta.inspect_run("run")["damaged"] == {}
    path = Path("run") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    facts = distmeta.inspect_run("run")
    assert list(facts["damaged"]) == [name]
    assert (facts["status"], facts["step"]) == ("finished", 2)


def test_the_copy_of_the_record_is_the_record(finished):
    record = Path("run/run.json").read_bytes()
    Path("run/run.json").write_bytes(record[:-9])
    with pytest.raises(FileDamaged, match=r"cp run/\.run\.json\.copy run/run\.json"):
        distmeta.inspect_run("run")
    shutil.copy("run/.run.json.copy", "run/run.json")
    assert Path("run/run.json").read_bytes() == record
