"""A folder from elsewhere is read as hostile: nothing outside of it is opened, no pickle is run."""

import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from distmeta.errors import ConfigError, FileDamaged
from distmeta.files import sha256_of, write_record
from distmeta.serving import sealed
from distmeta.serving.sealed import MAX_FILES, SealedFolder, write_sealed

FIX = "Export the run again."


@pytest.fixture
def folder(tmp_path):
    return write_sealed(tmp_path / "a", {"params.safetensors": save({"w": torch.eye(2)}), "code/job.py": b"x = 1\n"})


def seal(folder, names, **entries):
    """A manifest as an attacker writes it: whole, and of what they like."""
    files = {name: {"bytes": os.path.getsize(folder / name), "sha256": sha256_of(folder / name)} for name in names}
    write_record(folder / "manifest.json", {"files": {**files, **entries}})


def opened(folder):
    return SealedFolder.open(folder, fix=FIX)


def test_what_was_written_is_read(folder):
    found = opened(folder)
    assert torch.equal(found.tensors("params.safetensors")["w"], torch.eye(2))
    assert found.below("code") == {"job.py": b"x = 1\n"}


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "code/../../secret",
        "/etc/passwd",
        "C:/secret",
        "..\\secret",
        "code\\..\\..\\secret",
        "code//job.py",
        "./code/job.py",
        "",
        "code/",
        "nul",
        "code/con.py",
        "a\x00b",
        "a\nb",
        "x" * 1001,
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_opened(folder, name, monkeypatch):
    (folder.parent / "secret").write_text("mine")
    write_record(
        folder / "manifest.json", {"files": {name: {"bytes": 4, "sha256": sha256_of(folder.parent / "secret")}}}
    )
    seen, real = [], os.open
    monkeypatch.setattr(sealed.os, "open", lambda path, *more: seen.append(Path(path)) or real(path, *more))
    with pytest.raises(FileDamaged, match=r"which (leads out|is absolute|is no).* Do not use it"):
        opened(folder)
    assert seen == [folder / "manifest.json"]


def _all_of(folder):
    found = opened(folder)
    return [found.read(name) for name in found.names]


@pytest.mark.parametrize("link", ["params.safetensors", "code", "code/job.py", "manifest.json"])
def test_a_link_is_refused(folder, link):
    (folder / link).rename(folder.parent / "outside")
    (folder / link).symlink_to(folder.parent / "outside")
    with pytest.raises(FileDamaged, match=rf"{link}.* is a link; expected a file of the folder itself"):
        _all_of(folder)


def test_a_pipe_does_not_hold_the_reader(folder):
    (folder / "code/job.py").unlink()
    os.mkfifo(folder / "code/job.py")
    with pytest.raises(FileDamaged, match="no plain file"):
        opened(folder).read("code/job.py")


class Harm:
    def __reduce__(self):
        return (os.system, ("touch harm",))


def _zip():
    buffer = io.BytesIO()
    torch.save({"w": torch.eye(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (pickle.dumps(Harm(), protocol=2), "a pickle"),
        (pickle.dumps(Harm(), protocol=5), "a pickle"),
        (pickle.dumps(Harm(), protocol=0), "something else"),
        (_zip(), "a zip file"),
        (b"", "something else"),
        ((2**62).to_bytes(8, "little") + b"{}", "something else"),
        ((17 << 20).to_bytes(8, "little") + b" " * (17 << 20), "something else"),  # a header of 17 MB
    ],
    ids=["pickle 2", "pickle 5", "pickle 0", "torch.save", "empty", "header of 4 EB", "header of 17 MB"],
)
def test_what_is_called_safetensors_and_is_none(folder, content, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "params.safetensors").write_bytes(content)
    seal(folder, ["params.safetensors"])
    with pytest.raises(
        FileDamaged, match=rf"params\.safetensors is {kind}.*expected a safetensors file. Nothing of it"
    ):
        opened(folder).tensors("params.safetensors")
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 10**12]}},
        {"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"w": {"dtype": "X32", "shape": [2, 2], "data_offsets": [0, 16]}},
        {"w": 3},
        [],
    ],
    ids=str,
)
def test_a_header_that_lies(folder, header):
    text = json.dumps(header).encode()
    (folder / "params.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    seal(folder, ["params.safetensors"])
    with pytest.raises(FileDamaged, match=r"params\.safetensors is not a safetensors file"):
        opened(folder).tensors("params.safetensors")


def test_a_manifest_of_a_million_entries_is_not_parsed(folder):
    one = b'"x%07d": {"bytes": 1, "sha256": "' + b"0" * 64 + b'"},\n'
    (folder / "manifest.json").write_bytes(b'{"files": {' + b"".join(one % n for n in range(1_000_000)) + b"}}")
    with pytest.raises(FileDamaged, match=r"manifest\.json has more than 4,194,304 bytes"):
        opened(folder)
    entries = {f"{n}": {"bytes": 1, "sha256": ""} for n in range(MAX_FILES + 1)}
    write_record(folder / "manifest.json", {"files": entries})
    with pytest.raises(FileDamaged, match=r"lists 10,001 files; expected at most 10,000"):
        opened(folder)


@pytest.mark.parametrize("files", [3, [], None, {"a": 3}, {"a": {"bytes": "many", "sha256": "0"}}])
def test_a_manifest_that_is_none(folder, files):
    write_record(folder / "manifest.json", {"files": files})
    with pytest.raises(FileDamaged, match=r"manifest\.json"):
        opened(folder)


def test_sizes_that_lie(folder):
    for size in (-5, 0, 3, 10**15):
        seal(folder, [], **{"code/job.py": {"bytes": size, "sha256": sha256_of(folder / "code/job.py")}})
        with pytest.raises(FileDamaged, match=r"job\.py has 6 bytes, expected|job\.py has more than"):
            opened(folder).read("code/job.py")


def test_a_file_that_is_not_listed_is_not_read(folder):
    (folder / "code/more.py").write_text("")
    assert opened(folder).below("code") == {"job.py": b"x = 1\n"}
    with pytest.raises(FileDamaged, match=r"does not list code/more\.py"):
        opened(folder).read("code/more.py")


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "file", "link"):
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            write_sealed(tmp_path / name, {"a": b""})
    (tmp_path / "empty").mkdir()
    write_sealed(tmp_path / "empty", {"a": b""})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed, "write_digests", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_sealed(tmp_path / "new", {"a": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "link"]
