"""The cache: the folder of datasets and downloads that distmeta makes by itself, safe for concurrent processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from distmeta.errors import DataError
from distmeta.files import MANIFEST


def cache_dir() -> Path:
    """``DISTMETA_CACHE`` if set, else ``~/.cache/distmeta``; the folder need not exist."""
    given = os.environ.get("DISTMETA_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "distmeta"


def build_once(target: Path, build: Callable[[Path], object]) -> Path:
    """Build the dataset ``target`` if it does not exist; safe when several processes ask at the same time.

    Each process builds into a folder of its own and renames it; the first rename wins, the others discard theirs. A
    killed process leaves only its private folder.

    Args:
        target: folder of the finished dataset.
        build: called with an empty folder to fill.

    Returns:
        ``target``.

    Raises:
        DataError: ``target`` exists but is not a dataset, or the cache cannot be written.
    """
    if os.path.isfile(target / MANIFEST):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DataError(
            f"cannot write to the cache {target.parent}: {error}. Set DISTMETA_CACHE to a folder that can be written."
        ) from None
    try:
        build(private)
        # mkdtemp makes a folder for its owner only; give the dataset the permissions of other new folders.
        private.chmod(0o777 & ~_umask())
        try:
            private.rename(target)
        except OSError as error:
            # Renaming onto a folder that is not empty fails: another process was first, and its build is used.
            if not (target / MANIFEST).is_file():
                raise DataError(
                    f"{target} is in the way: it is not a dataset ({error.strerror}). Remove it, or set DISTMETA_CACHE."
                ) from None
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
