"""A file of metrics that cannot be read is named, and the line in it; what a Tracker writes is in test_tracking.py."""

import pytest

from distmeta.errors import RuntimeFailure
from distmeta.tracking.metrics_file import read_metrics


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 1.0}\nrubbish\n{"step": 1, "time": 2.0}\n')
    with pytest.raises(RuntimeFailure, match="line 2, is not a row of metrics"):
        read_metrics(tmp_path)


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
