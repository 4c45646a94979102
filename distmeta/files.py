"""Files that a reader sees whole or not at all, and whose damage is found: every byte is under a sha256.

One JSON file holds its own digest (:func:`write_record`, :func:`read_record`); the files of a folder are under the
digests of its ``manifest.json``, which is written last (:func:`write_digests`, :func:`damage_in`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distmeta.errors import FileDamaged

MANIFEST = "manifest.json"
"""The file of a folder that has the digests of the others."""

_SEAL = re.compile(rb'\n "digest": "sha256:([0-9a-f]{64})"\n}\n\Z')


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Run Python files without leaving ``__pycache__`` beside them: a run, an export or a model is what was written.

    Example:
        >>> with without_bytecode():
        ...     sys.dont_write_bytecode
        True
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def write_whole(path: Path, content: bytes) -> None:
    """Write, fsync, rename: a reader sees the old file or the new one, never half of one, also after a power cut.

    Args:
        path: the file, new or to be replaced.
        content: all of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a", b"one")
        ...     (Path(folder) / "a").read_bytes()
        b'one'
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """:func:`write_whole` of ``values`` as JSON, with the sha256 of the file's own bytes as its last value.

    The sha256 is over all bytes of the file but the 64 digits themselves.

    Args:
        path: the file, new or to be replaced.
        values: JSON-ready, without the key ``"digest"``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "run.json"
        ...     write_record(path, {"step": 80})
        ...     print(path.read_text().splitlines()[2].strip()[:18], read_record(path))
        "digest": "sha256: {'step': 80}
    """
    write_whole(path, record_bytes(values))


def record_bytes(values: Mapping[str, Any]) -> bytes:
    """What :func:`write_record` writes."""
    if "digest" in values:
        raise ValueError("The key 'digest' is taken by the file's own digest; rename it.")
    content = _encode({**values, "digest": "sha256:" + "0" * 64})
    return content[:-68] + _seal_of(content).encode() + content[-4:]


def read_record(path: Path, *, undigested: bool = False, fix: str = "Restore it from a copy.") -> dict[str, Any]:
    """The values of a file that :func:`write_record` wrote, after its digest was checked.

    Args:
        path: the file.
        undigested: whether a file without a digest is read too, as earlier versions wrote it. A file whose digest was
            damaged does not pass for one: the key and the prefix ``sha256:`` are two marks, and one is enough.
        fix: what the reader of the error is to do.

    Returns:
        The values without the digest.

    Raises:
        FileDamaged: a byte is not as it was written, or the file was cut short or edited.
        OSError: the file is absent or cannot be read.
    """
    return parse_record(path.read_bytes(), path, undigested=undigested, fix=fix)


def parse_record(content: bytes, path: Path, *, undigested: bool = False, fix: str) -> dict[str, Any]:
    """:func:`read_record` of bytes that were read already; ``path`` is for messages."""
    seal = _SEAL.search(content)
    if seal is not None and seal[1].decode() != (found := _seal_of(content)):
        raise FileDamaged(f"{path} has {_shown(found, seal[1].decode())}: it was damaged or edited. {fix}")
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise FileDamaged(f"{path} is not JSON ({error}): it was cut short, damaged or edited. {fix}") from None
    if not isinstance(values, dict):
        raise FileDamaged(f"{path} holds a {type(values).__name__}; expected a JSON object. {fix}")
    if seal is None:
        last = str(next(reversed(values.values()), ""))
        if not undigested or "digest" in values or last.startswith("sha256:"):
            raise FileDamaged(
                f"{path} does not end with its own sha256, expected as its last value: it was damaged or edited. {fix}"
            )
    values.pop("digest", None)
    return values


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write ``folder/manifest.json``: size and sha256 of some files of the folder. The commit point: call it last.

    Args:
        folder: where the files are.
        names: of the files, relative to it.
    """
    files = {name: {"bytes": os.path.getsize(folder / name), "sha256": sha256_of(folder / name)} for name in names}
    write_record(folder / MANIFEST, {"files": files})


def is_damage(error: OSError) -> bool:
    """Return whether an error of reading shows damage: the file is absent, of another kind, or lost by the disk.

    All else is no finding about the file: no permission, no memory, no file descriptor, a server that does not answer.

    Example:
        >>> is_damage(OSError(errno.ENOENT, "")), is_damage(OSError(errno.EMFILE, ""))
        (True, False)
    """
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


def damage_in(folder: Path) -> list[str]:
    """List what differs from ``manifest.json`` in a folder, each a clause that begins with the file; empty: all whole.

    Every byte is read. Files that the manifest does not list are passed over.

    Raises:
        OSError: a file cannot be read for a reason that is no damage (:func:`is_damage`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     _ = (folder / "a.txt").write_text("one")
        ...     write_digests(folder, ["a.txt"])
        ...     print(damage_in(folder))
        ...     _ = (folder / "a.txt").write_text("One")
        ...     print(damage_in(folder))
        []
        ['a.txt has sha256 8b12507783d5..., expected 7692c3ad3540...']
    """
    try:
        files = read_record(folder / MANIFEST, fix="")["files"].items()
        listed = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in files]
    except FileDamaged as error:
        return [error.message.removeprefix(f"{folder}{os.sep}").rstrip(". ")]
    except OSError as error:
        if not is_damage(error):
            raise
        return [f"{MANIFEST} cannot be read: {error.strerror}"]
    except (LookupError, TypeError, ValueError, AttributeError):
        return [f"{MANIFEST} is not a list of digests"]
    found = []
    for name, size, sha256 in listed:
        try:
            if (now := os.path.getsize(folder / name)) != size:
                found.append(f"{name} has {now} bytes, expected {size}")
            elif (digest := sha256_of(folder / name)) != sha256:
                found.append(f"{name} has {_shown(digest, sha256)}")
        except OSError as error:
            if not is_damage(error):
                raise
            found.append(f"{name} cannot be read: {error.strerror}")
    return found


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(values: Any) -> bytes:
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # a path may hold what is no text


def _seal_of(content: bytes) -> str:
    """sha256 of a record's bytes without the 64 digits, which are followed by four bytes only."""
    return hashlib.sha256(content[:-68] + content[-4:]).hexdigest()


def _shown(found: str, expected: str) -> str:
    return f"sha256 {found[:12]}..., expected {expected[:12]}..."
