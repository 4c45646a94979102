"""A disk that fills up during a run ends it in one message; what was recorded before stays, and the record says so."""

from __future__ import annotations

import errno
import json
import os

import pytest

import distmeta
from distmeta.errors import RuntimeFailure
from distmeta.tracking.metrics_file import read_metrics
from distmeta.tracking.tracker import Tracker
from helpers import sines

FULL = "/dev/full"  # every write to it fails as on a full disk

pytestmark = pytest.mark.skipif(not os.path.exists(FULL), reason="this system has no /dev/full")


@pytest.fixture
def full_metrics(monkeypatch):
    monkeypatch.setattr("distmeta.tracking.tracker.open_for_append", lambda path: open(FULL, "ab"))  # noqa: SIM115 (the tracker closes it)


def no_space(path, values):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_row_that_cannot_be_written_says_what_to_do_and_closing_never_raises(full_metrics, tmp_path):
    tracker = Tracker(tmp_path, experiment="e", run_name="r", enabled=False)
    tracker.start({}, tags={}, dataset=None)
    with pytest.raises(RuntimeFailure, match=r"cannot be written: .*No space left.*Free the disk.*distmeta resume"):
        tracker.metrics(1, {"train/loss": 1.0})
    tracker.close("FAILED")
    assert json.loads((tmp_path / "tracking.json").read_text())["status"] == "FAILED"


def test_the_run_ends_with_the_cause_also_where_its_record_cannot_be_written(full_metrics, tmp_path, monkeypatch):
    writes = []

    def full_later(path, values):
        writes.append(path.name)
        if len(writes) > 3:  # experiment.json, run.json and its copy, at the beginning
            no_space(path, values)
        path.write_text(json.dumps(values))

    monkeypatch.setattr("distmeta.run.directory.write_record", full_later)
    with pytest.raises(RuntimeFailure, match=r"cannot be written: .*Free the disk.*distmeta resume"):
        distmeta.meta_train(sines(), run_dir=tmp_path / "run")
    assert writes[3:] == ["run.json"]  # tried, not insisted on
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["status"] == "FAILED"


def test_a_result_that_cannot_be_written_is_made_up_for_by_resuming(tmp_path, monkeypatch):
    whole = distmeta.meta_train(sines(), run_dir=tmp_path / "whole")
    real = distmeta.files.write_record
    with monkeypatch.context() as patch:
        patch.setattr(
            "distmeta.run.directory.write_record",
            lambda path, v: (no_space if path.name == "result.json" else real)(path, v),
        )
        with pytest.raises(RuntimeFailure, match=r"cannot be written: .*Free the disk.*distmeta resume"):
            distmeta.meta_train(sines(), run_dir=tmp_path / "run")
    assert distmeta.inspect_run(tmp_path / "run")["status"] == "failed"
    result = distmeta.meta_train(sines(), run_dir=tmp_path / "run", resume=True)
    assert result.test.summary() == whole.test.summary()
    assert [row["step"] for row in read_metrics(tmp_path / "run")][:2] == [1, 2]
