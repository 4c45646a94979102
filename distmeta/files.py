"""Files that a reader sees whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def write_json(path: Path, values: Any) -> None:
    """:func:`write_whole` of ``values`` as JSON.

    Args:
        path: the file.
        values: JSON-ready.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # a path may hold what is no text


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
