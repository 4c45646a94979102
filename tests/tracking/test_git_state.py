"""What git knows of the code is in the tags; nothing where there is no checkout."""

import os
import subprocess
from pathlib import Path

import pytest

from distmeta.tracking.git_state import git_tags


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder that is no checkout, and no settings of the developer's."""
    for name in [name for name in os.environ if name.startswith(("DISTMETA_", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_git_tags_of_a_checkout(outside):
    assert git_tags() == {}

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-b", "trunk")
    Path("code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    clean = {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": "trunk",
        "distmeta.git_dirty": "false",
    }
    assert git_tags() == clean
    Path("code.py").write_text("a = 2\n")
    assert git_tags() == {**clean, "distmeta.git_dirty": "true"}
    git("checkout", "--detach")
    assert "mlflow.source.git.branch" not in git_tags()


def test_git_tags_captured_at_submission_win(outside, monkeypatch):
    for name, value in {"SHA": "abc123", "BRANCH": "main", "DIRTY": "1"}.items():
        monkeypatch.setenv(f"DISTMETA_GIT_{name}", value)
    assert git_tags() == {
        "mlflow.source.git.commit": "abc123",
        "mlflow.source.git.branch": "main",
        "distmeta.git_dirty": "true",
    }
    monkeypatch.delenv("DISTMETA_GIT_DIRTY")
    monkeypatch.delenv("DISTMETA_GIT_BRANCH")
    assert git_tags() == {"mlflow.source.git.commit": "abc123"}
