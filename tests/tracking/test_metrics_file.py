"""A file of metrics that cannot be read is named, and the line in it; what a Tracker writes is in test_tracker.py."""

import math

import numpy as np
import pytest

from distmeta.errors import RuntimeFailure
from distmeta.tracking.metrics_file import (
    METRICS_FILE,
    format_row,
    open_for_append,
    parse_row,
    read_metrics,
    whole_lines,
)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 1.0}\nrubbish\n{"step": 1, "time": 2.0}\n')
    with pytest.raises(RuntimeFailure, match="line 2, is damaged"):
        read_metrics(tmp_path)


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_damage_in_200_places_is_found_row_by_row(tmp_path):
    lines = [format_row(step, 1e9 + step, {"train/loss": 1 / (step + 1), "x": math.nan}) for step in range(8)]
    rows = [parse_row(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(8))
    content, random = b"".join(lines), np.random.default_rng(0)
    starts = np.cumsum([0, *map(len, lines)])
    for place, bit in zip(random.integers(len(content), size=200), random.integers(8, size=200), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(bit)
        (tmp_path / METRICS_FILE).write_bytes(flipped)
        hit = int(np.searchsorted(starts, place, "right")) - 1
        found = [parse_row(line) for line in whole_lines(tmp_path / METRICS_FILE)]
        if place == len(content) - 1:  # the end of the file is no part of a number
            assert [str(row) for row in found] == [str(row) for row in rows]
            continue
        assert None in found
        assert all(str(row) in map(str, rows) for row in found if row is not None), hit
        with pytest.raises(RuntimeFailure, match=rf"line {hit + 1}, is damaged"):
            read_metrics(tmp_path)


def test_a_row_of_an_earlier_version_is_read():
    old = b'{"step": 1, "time": 2.0, "train/loss": "inf"}\n'
    assert parse_row(old) == {"step": 1, "time": 2.0, "train/loss": math.inf}


LINES = [format_row(step, 2.0, {"loss": step / 2}) for step in range(4)]


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (b"".join(LINES), 4),
        *((b"".join(LINES)[:-1] + bytes([10 ^ 1 << bit]), 4) for bit in range(8)),
        (b"".join(LINES)[:-1], 4),
        (b"".join(LINES)[:-2], 3),
        (b"".join(LINES)[:-3] + b"0}\n"[:1], 3),
        (b"".join(LINES[:3])[:-1] + b"x" + LINES[3][:-9], 3),
        (b"".join(LINES[:3])[:-1] + b"x" + LINES[3][:-1], 4),
        (b"".join(LINES[:3]) + LINES[3][:20], 3),
        (b"".join(LINES[:3]) + LINES[3].replace(b"1.5", b"1.6")[:-1], 3),
        (LINES[0] + b'{"step": 1, "time": 2.0}', 1),
        (b"", 0),
    ],
)
def test_a_last_row_is_whole_if_its_checksum_fits_whatever_became_of_its_end(tmp_path, content, whole):
    """A damaged newline made the last row look torn, and it was cut off."""
    path = tmp_path / METRICS_FILE
    path.write_bytes(content)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(whole))
    with open_for_append(path) as file:
        file.write(format_row(9, 2.0, {}))
    assert path.read_bytes() == b"".join(LINES[:whole]) + format_row(9, 2.0, {})
    assert [p.name for p in tmp_path.iterdir()] == [METRICS_FILE]
