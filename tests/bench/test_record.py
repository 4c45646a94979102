"""A record as a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from distmeta.bench import Record, Row
from distmeta.errors import ConfigError
from distmeta.files import write_record


@pytest.fixture
def record():
    return Record(
        "inner-loop",
        "made up",
        {"learner.kind": "MAML", "learner.inner_lr": 0.4},
        "tasks/s",
        "higher",
        (Row({"threads": 1, "chunk": 8}, (1.0, 2.0, 4.0), {"limit_share": 0.25}), Row({"threads": 2}, (3.0,))),
        (Row({"threads": 1}, (70.0, 71.0)),),
        ("A note.",),
        {"cpu": "one", "load_average": 0.5},
    )


def test_a_record_is_read_as_it_was_written(record, tmp_path):
    record.write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    row = record.to_dict()["rows"][0]
    assert (row["median"], row["quartiles"]) == (2.0, [1.5, 3.0])


def test_the_limit_of_a_row_is_that_of_its_threads(record):
    one, two = record.rows
    assert record.limit_of(one) is record.limits[0]
    assert record.limit_of(two) is None
    assert record.limit_of(Row({"backend": "ray"}, (1.0,))) is record.limits[0]
    assert replace(record, limits=()).limit_of(one) is None


def test_what_is_no_record_is_refused(record, tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match=r"a.json cannot be read: No such file.* Give a file that `distmeta bench"):
        Record.read(path)
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds a list; expected a JSON object"):
        Record.read(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no record of a benchmark: it has no keys; expected kind"):
        Record.read(path)
    for write in (write_record, lambda path, values: path.write_text(json.dumps(values))):
        write(path, {"step": 1, "title": "a"})
        with pytest.raises(ConfigError, match="is no record of a benchmark: it has the keys step, title") as error:
            Record.read(path)
        assert "damaged" not in str(error.value)
        assert "expected kind, case, rows and 7 more. Give a file that `distmeta bench" in str(error.value)
    record.write(path)
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b"70.0", b"90.0"),
        whole.replace(b'"kind"', b'"kinf"'),
        whole.replace(b'"digest"', b'"digesu"'),
        whole[:-90],
        json.dumps(record.to_dict()).encode(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged or edited"):
            Record.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"better": "both"}, "better is 'both'"),
        ({"rows": [{"at": {}, "repetitions": [], "figures": {}}]}, "lacks repetitions"),
        ({"rows": [{"at": {}, "repetitions": [0.0], "figures": {}}]}, "lacks repetitions above 0"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(record, tmp_path, changes, message):
    write_record(tmp_path / "a.json", record.to_dict() | changes)
    with pytest.raises(ConfigError, match=message):
        Record.read(tmp_path / "a.json")
