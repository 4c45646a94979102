"""Folders that come from elsewhere: only what their manifest lists is read, every byte checked, nothing outside.

The manifest has size and sha256 of each file. A folder is read as hostile: a name that leads outside, a link, a file of
another kind than a plain one are refused before anything is opened, and the bytes that were checked are the bytes that
are used. Files that the manifest does not list are never read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from distmeta.errors import ConfigError, FileDamaged
from distmeta.files import MANIFEST, parse_record, write_digests

MAX_FILES = 10_000
"""Files of a folder, at most: a model has a few, its code tens."""

_MAX_TEXT = 64 << 20  # bytes of a file that is no tensor
_MAX_MANIFEST = 4 << 20
_MAX_HEADER = 16 << 20  # of a safetensors file; 100,000 tensors have 10 MB
_TENSORS = ".safetensors"
_RESERVED = {"con", "prn", "aux", "nul"}


class SealedFolder:
    """The files of a folder that was written by :func:`write_sealed`. Make one with :meth:`open`.

    Args:
        path: the folder.
        files: size and sha256 by name.
        fix: what the reader of an error is to do.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_sealed(Path(folder) / "a", {"notes/b.txt": b"text"})
        ...     sealed = SealedFolder.open(path, fix="Copy it again.")
        ...     sealed.names, sealed.read("notes/b.txt")
        (('notes/b.txt',), b'text')
    """

    def __init__(self, path: Path, files: Mapping[str, tuple[int, str]], fix: str) -> None:
        self.path = path
        self.fix = fix
        self._files = files

    @classmethod
    def open(cls, path: Path, *, fix: str) -> SealedFolder:
        """Read the manifest; every name in it is checked, no other file is opened yet.

        Raises:
            FileDamaged: there is no whole manifest, or it lists what cannot be part of the folder.
        """
        manifest = path / MANIFEST
        content = _plain_bytes(path, MANIFEST, _MAX_MANIFEST, fix)
        files = parse_record(content, manifest, fix=fix).get("files")
        if not isinstance(files, dict):
            raise FileDamaged(f"{manifest} is not a list of digests. {fix}")
        if len(files) > MAX_FILES:
            raise FileDamaged(f"{manifest} lists {len(files):,} files; expected at most {MAX_FILES:,}. {fix}")
        found = {}
        for name, entry in files.items():
            if problem := _outside(name):
                raise FileDamaged(
                    f"{manifest} lists {name[:80]!r}, which {problem}; expected files of this folder only. Do not use "
                    f"it. {fix}"
                )
            try:
                found[name] = int(entry["bytes"]), str(entry["sha256"])
            except (LookupError, TypeError, ValueError):
                raise FileDamaged(f"{manifest} has no size and sha256 of {name!r}. {fix}") from None
        return cls(path, found, fix)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files, with ``/`` between folders."""
        return tuple(self._files)

    def below(self, folder: str) -> dict[str, bytes]:
        """The files below a folder, by their names in it.

        Raises:
            FileDamaged: as :meth:`read`.
        """
        start = f"{folder}/"
        return {name.removeprefix(start): self.read(name) for name in self.names if name.startswith(start)}

    def read(self, name: str) -> bytes:
        """The bytes of a file, after they were checked.

        Raises:
            FileDamaged: it is absent, not listed, no plain file, or not as it was written.
        """
        if name not in self._files:
            raise FileDamaged(f"{self.path / MANIFEST} does not list {name}; expected it. {self.fix}")
        size, expected = self._files[name]
        limit = size if name.endswith(_TENSORS) else _MAX_TEXT
        content = _plain_bytes(self.path, name, limit, self.fix)
        if len(content) != size:
            raise FileDamaged(f"{self.path / name} has {len(content)} bytes, expected {size}. {self.fix}")
        seen = hashlib.sha256(content).hexdigest()
        if seen != expected:
            raise FileDamaged(
                f"{self.path / name} has sha256 {seen[:12]}..., expected {expected[:12]}...: it was damaged or edited. "
                f"{self.fix}"
            )
        return content

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a safetensors file.

        Raises:
            FileDamaged: as :meth:`read`, or it is no safetensors file.
        """
        content = self.read(name)
        header = int.from_bytes(content[:8], "little") if len(content) >= 8 else -1
        if not 0 <= header <= min(len(content) - 8, _MAX_HEADER):
            kinds = {b"\x80": "a pickle", b"PK": "a zip file, as torch.save writes it, with a pickle in it"}
            kind = next((kind for mark, kind in kinds.items() if content.startswith(mark)), "something else")
            raise FileDamaged(
                f"{self.path / name} is {kind}; expected a safetensors file. Nothing of it was run. {self.fix}"
            )
        try:
            found: dict[str, torch.Tensor] = load_tensors(content)
        except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
            raise FileDamaged(f"{self.path / name} is not a safetensors file ({error}). {self.fix}") from None
        return found


def write_sealed(out: Path, files: Mapping[str, bytes]) -> Path:
    """Write files as a new folder with their digests; a reader sees the whole folder or none.

    Args:
        out: a folder that is absent or empty.
        files: content by name, with ``/`` between folders.

    Raises:
        ConfigError: ``out`` holds something, or cannot be written.
    """
    require_new(out)
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_digests(partial, files)
        partial.chmod(0o755)  # mkdtemp's are the owner's alone
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}. Give a folder that can be written.") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def require_new(out: Path) -> None:
    """Raise where a folder holds something: nothing is overwritten.

    Raises:
        ConfigError: it does, or it is no folder.
    """
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; expected a new folder, so that nothing is overwritten. Give another.")


def _outside(name: str) -> str:
    """Why a name cannot be that of a file in the folder; empty where it can."""
    parts = name.split("/")
    if name.startswith("/") or PurePosixPath(name).is_absolute() or ":" in name:
        return "is absolute"
    if ".." in parts:
        return "leads out of the folder"
    if "\\" in name or any(ord(character) < 32 for character in name) or len(name.encode(errors="replace")) > 1000:
        return "is no name for all systems"
    if "" in parts or "." in parts or any(part.split(".")[0].lower() in _RESERVED for part in parts):
        return "is no file's name"
    return ""


def _plain_bytes(folder: Path, name: str, limit: int, fix: str) -> bytes:
    """The bytes of a plain file; no link is followed below the folder, no more than ``limit`` + 1 bytes are read."""
    path = folder
    try:
        for part in name.split("/"):
            path = path / part
            kind = os.lstat(path).st_mode
            if stat.S_ISLNK(kind):
                raise FileDamaged(
                    f"{path} is a link; expected a file of the folder itself. Do not use it, or replace the link by "
                    f"what it points to. {fix}"
                )
        if not stat.S_ISREG(kind):
            raise FileDamaged(f"{path} is no plain file. {fix}")
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise FileDamaged(f"{path} cannot be read: {error}. {fix}") from None
    if len(content) > limit:
        raise FileDamaged(f"{path} has more than {limit:,} bytes; expected at most that. {fix}")
    return content


__all__ = ["MAX_FILES", "SealedFolder", "require_new", "write_sealed"]
