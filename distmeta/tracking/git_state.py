"""Which code a run was made with, as far as git knows."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from pathlib import Path


def git_tags(folder: Path | None = None) -> dict[str, str]:
    """The state of the code as MLflow tags; empty outside a git checkout.

    A submitted job runs in a copy without ``.git``; there the environment says what was captured at submission:
    ``DISTMETA_GIT_SHA``, ``DISTMETA_GIT_BRANCH``, ``DISTMETA_GIT_DIRTY``.

    Args:
        folder: in the checkout; the current directory when left out.

    Returns:
        ``mlflow.source.git.commit``, ``mlflow.source.git.branch`` (absent on a detached head) and
        ``distmeta.git_dirty`` (``"true"`` when tracked files were changed).
    """
    environ = os.environ
    if environ.get("DISTMETA_GIT_SHA"):
        commit, branch = environ["DISTMETA_GIT_SHA"], environ.get("DISTMETA_GIT_BRANCH")
        dirty = environ.get("DISTMETA_GIT_DIRTY")
    else:
        there = ("-C", str(folder or Path.cwd()))
        found = _git(*there, "rev-parse", "HEAD")
        if not found:
            return {}
        commit, branch = found, _git(*there, "symbolic-ref", "--short", "-q", "HEAD")
        changes = _git(*there, "status", "--porcelain", "--untracked-files=no")
        dirty = None if changes is None else str(bool(changes))
    tags = {"mlflow.source.git.commit": commit}
    if branch:
        tags["mlflow.source.git.branch"] = branch
    if dirty:
        tags["distmeta.git_dirty"] = "true" if dirty.lower() in {"1", "true", "yes"} else "false"
    return tags


def source_tags() -> dict[str, str]:
    """The tags that MLflow's fluent interface would set: who ran what."""
    tags = {"mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    # A container's user often has no name.
    with contextlib.suppress(KeyError, OSError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git(*arguments: str) -> str | None:
    try:
        # Optional locks off: tracking must not make a concurrent git command of the user fail.
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
