"""Files are written whole or not at all."""

import json

import pytest

from distmeta import files
from distmeta.files import write_json


class Killed(BaseException):
    """What ends a process in the middle."""


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def die(handle):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", die)
        with pytest.raises(Killed):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", ["plain", "Ж ∂ 字", "bytes of a file name: \udc80"])
def test_any_text_comes_back(text, tmp_path):
    write_json(tmp_path / "a.json", {"text": text})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": text}
