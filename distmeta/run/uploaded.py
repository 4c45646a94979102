"""A finished run put together again from its artifacts in a store of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from distmeta.errors import ConfigError
from distmeta.run.directory import CODE, KEPT, NEEDED, RunDirectory

BEST = "best"
"""The folder of the best checkpoint among a run's artifacts."""


def put_together(artifacts: Path, out: Path, source: str) -> Path:
    """Make a run directory of what a finished run has uploaded: it can be used, not gone on with.

    Args:
        artifacts: the folder of its artifacts.
        out: a new folder.
        source: where they come from, for messages.

    Returns:
        ``out``.

    Raises:
        ConfigError: the artifacts are not those of a finished run.
        OSError: the disk refuses.
    """
    missing = [name for name in (*NEEDED, f"{BEST}/state.json") if not (artifacts / name).is_file()]
    if missing:
        raise ConfigError(
            f"{source} has no {', '.join(missing)} among its artifacts; expected a run that finished, of this version "
            "or a later one. Send what is missing with `distmeta track sync RUN_DIR`, or give the run directory itself."
        )
    out.mkdir(parents=True)
    for name in (*NEEDED, *KEPT):
        if (artifacts / name).is_file():
            shutil.copyfile(artifacts / name, out / name)
    if (artifacts / CODE).is_dir():
        shutil.copytree(artifacts / CODE, out / CODE)
    try:
        step = int(json.loads((artifacts / BEST / "state.json").read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source}: {BEST}/state.json is no checkpoint's ({error}). Upload the run again.") from None
    shutil.copytree(artifacts / BEST, RunDirectory(out).checkpoints().path(step))
    return out


__all__ = ["BEST", "put_together"]
