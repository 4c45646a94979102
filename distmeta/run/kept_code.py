"""Copies of the modules beside a job file, kept with a run: it can be used where the job's folder is gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from distmeta.errors import ConfigError
from distmeta.experiment.job import JOB, Job
from distmeta.files import sha256_of, write_whole


def keep_modules(folder: Path, job: Job) -> None:
    """Copy what the job imports from its own folder; copies of an earlier start are replaced.

    Args:
        folder: where the copies go, made if there are any.
        job: as it was loaded.

    Raises:
        OSError: a module cannot be read, or the disk refuses.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in job.code:
        if name != JOB:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, (job.folder / name).read_bytes())


def require_modules(folder: Path, code: Mapping[str, str]) -> dict[str, Path]:
    """The kept modules by their path in the job's folder, after their bytes were checked.

    Args:
        folder: where the copies are.
        code: sha256 of the job file and its modules, by path.

    Raises:
        ConfigError: one is absent, or not as it was written.
    """
    found = {}
    for name, expected in code.items():
        if name == JOB:
            continue
        path = folder / name
        try:
            seen = sha256_of(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}. Restore it from the job's own folder.") from None
        if seen != expected:
            raise ConfigError(
                f"{path} has sha256 {seen[:12]}, expected {expected[:12]}: it was damaged or edited. Restore it from "
                "the job's own folder."
            )
        found[name] = path
    return found
