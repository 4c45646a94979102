"""Files are written whole or not at all, and their damage is found."""

import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from distmeta import files
from distmeta.errors import FileDamaged
from distmeta.files import damage_in, read_record, write_digests, write_record, write_whole


class Killed(BaseException):
    """What ends a process in the middle."""


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_whole(path, b"one")

    def die(*args):
        raise Killed

    for module, name in ((files.os, "fsync"), (files.Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, die)
            with pytest.raises(Killed):
                write_whole(path, b"two")
        assert path.read_bytes() == b"one"
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    write_whole(path, b"three")
    assert path.read_bytes() == b"three"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "run.json", b"one")
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", ["plain", "Ж ∂ 字", "bytes of a file name: \udc80"])
def test_any_text_comes_back(text, tmp_path):
    write_record(tmp_path / "a.json", {"text": text})
    assert read_record(tmp_path / "a.json") == {"text": text}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["text"] == text


# -- one file under its own digest -------------------------------------------------------------------------------------

RECORD = {"name": "a run", "step": 80, "rate": 1e-05, "text": "Ж \udc80", "none": None, "deep": {"list": [1, {"a": 2}]}}


def damaged(content: bytes, random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """One flipped bit, a cut, a doubled byte, each at a random place."""
    at, bit, cut, again = (int(n) for n in random.integers(0, [len(content), 8, len(content), len(content)]))
    yield f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    yield f"cut to {cut} bytes", content[:cut]
    yield f"byte {again} twice", content[:again] + content[again : again + 1] + content[again:]


def test_a_record_comes_back_and_says_how_it_is_checked(tmp_path):
    path = tmp_path / "run.json"
    write_record(path, RECORD)
    assert read_record(path) == RECORD
    content = path.read_bytes()
    *rest, last, end = content.split(b"\n")[:-1]
    digits = last[-65:-1]
    assert last == b' "digest": "sha256:' + digits + b'"'
    without = b"\n".join([*rest, last.replace(digits, b""), end, b""])
    assert digits.decode() == hashlib.sha256(without).hexdigest()
    write_record(path, {})
    assert read_record(path) == {}
    with pytest.raises(ValueError, match="'digest' is taken"):
        write_record(path, {"digest": 1})


@pytest.mark.parametrize("undigested", [False, True])
def test_damage_at_any_place_of_a_record_is_found(tmp_path, undigested):
    path = tmp_path / "run.json"
    write_record(path, RECORD)
    content, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        for what, changed in damaged(content, random):
            path.write_bytes(changed)
            with pytest.raises(FileDamaged, match=f"^{path} .* Build it again."):
                pytest.fail(f"{what}: {read_record(path, undigested=undigested, fix='Build it again.')}")
    path.write_bytes(content)
    assert read_record(path) == RECORD


def test_every_bit_of_the_line_with_the_digest_counts(tmp_path):
    """A damaged digest does not make the file pass for one of the time before digests."""
    path = tmp_path / "run.json"
    write_record(path, {"a": 1})
    content = path.read_bytes()
    for at in range(content.index(b'"digest"') - 3, len(content)):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            with pytest.raises(FileDamaged):
                read_record(path, undigested=True)


def test_a_file_without_a_digest_is_read_where_that_is_said(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RECORD))
    assert read_record(path, undigested=True) == RECORD
    with pytest.raises(FileDamaged, match=r"run.json does not end with its own sha256.*Restore it from a copy"):
        read_record(path)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "absent.json")


@pytest.mark.parametrize("text", ["[1]", "1", "", "[" * 100_000])
def test_what_is_no_record_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileDamaged, match=r"a\.json"):
        read_record(tmp_path / "a.json", undigested=True)


# -- a folder under the digests of its manifest ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(np.random.default_rng(len(name)).bytes(300))
    write_digests(tmp_path, ["a.bin", "b.bin"])
    return tmp_path


def test_a_whole_folder_has_no_damage(folder):
    (folder / "notes.txt").write_text("not listed")
    assert damage_in(folder) == []


@pytest.mark.parametrize("name", ["a.bin", "b.bin", "manifest.json"])
def test_damage_at_any_place_of_a_folder_is_found_and_named(folder, name):
    content, random = (folder / name).read_bytes(), np.random.default_rng(1)
    for _ in range(200):
        for what, changed in damaged(content, random):
            (folder / name).write_bytes(changed)
            (finding,) = damage_in(folder)
            assert finding.startswith(f"{name} "), what
    (folder / name).unlink()
    assert damage_in(folder) == [f"{name} cannot be read: No such file or directory"]
    (folder / name).write_bytes(content)
    assert damage_in(folder) == []


@pytest.mark.parametrize("values", [{}, {"files": []}, {"files": {"a.bin": 3}}, {"files": {"a.bin": {"bytes": "x"}}}])
def test_a_manifest_of_another_shape_is_damage(folder, values):
    write_record(folder / "manifest.json", values)
    assert damage_in(folder) == ["manifest.json is not a list of digests"]


def test_each_damaged_file_is_named(folder):
    (folder / "a.bin").write_bytes(b"short")
    (folder / "b.bin").unlink()
    assert damage_in(folder) == [
        "a.bin has 5 bytes, expected 300",
        "b.bin cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
@pytest.mark.parametrize("name", ["a.bin", "manifest.json"])
def test_a_file_that_cannot_be_read_now_is_no_damage(folder, monkeypatch, code, name):
    real = io.open

    def refuse(path, *args, **kwargs):
        if str(path) == str(folder / name):
            raise OSError(code, os.strerror(code))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        damage_in(folder)


def test_a_job_leaves_nothing_beside_it(tmp_path, monkeypatch):
    """Python wrote __pycache__ beside the job, and into the folder of a run or an export that was loaded."""
    from distmeta.experiment.job import load_job
    from helpers import SINES

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "job.py").write_text("import beside_it\n" + SINES)
    (tmp_path / "beside_it.py").write_text("")
    load_job(tmp_path / "job.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside_it.py", "job.py"]
    assert not sys.dont_write_bytecode
