"""``distmeta export``: a finished run as a folder to carry elsewhere, see :mod:`distmeta.serving.exported`."""

from __future__ import annotations

from pathlib import Path

from distmeta.serving.finished_learner import FinishedLearner
from distmeta.serving.sealed import require_new, write_sealed


def export(run_dir: Path | str, out: Path | str) -> Path:
    """Write a finished run as a folder that :func:`distmeta.load` takes, on any machine with this package.

    Args:
        run_dir: a run that was started from a job file.
        out: a new folder.

    Returns:
        The folder.

    Raises:
        ConfigError: ``out`` holds something, or cannot be written; the run has no job file.
        CheckpointError: there is no whole checkpoint, or the model is not the one that was trained.
    """
    require_new(Path(out))
    return write_sealed(Path(out), FinishedLearner.open(run_dir).exported().files())


__all__ = ["export"]
