"""Who holds a run directory: one process at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from distmeta.errors import ConfigError

LOCK_FILE = ".lock"

_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without locks answer."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run directory, made if absent, against a second process; the lock ends with this process at the latest.

    Waits up to a second for it.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    lock = filelock.FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=1)  # longer than is_held() holds it
    except filelock.Timeout:
        raise ConfigError(
            f"Another process is working on the run {folder}; expected one at a time. Wait for it or end it; "
            f"`distmeta inspect {folder}` shows how far it is."
        ) from None
    except NotImplementedError:  # a platform without locks
        pass
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise cannot_write(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path, pid: int) -> bool:
    """Return whether a process of this machine works on the run.

    Args:
        folder: the run directory.
        pid: the process that last did; it decides where no lock can be had, as in a folder that may only be read.
    """
    try:
        with filelock.FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (NotImplementedError, OSError):
        return _alive(pid)


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    """The error for a run directory that refuses a file."""
    return ConfigError(
        f"The run directory {folder} cannot be written: {error}. Give another --run-dir, or fix its permissions."
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
