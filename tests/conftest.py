"""What every test shares: a world of its own (home, caches, Ray's folder) and datasets that are built once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Ray's sockets live below this folder, and a Unix socket's path may have about 100 characters.
_WORLD = Path(tempfile.mkdtemp(prefix="dm-", dir="/tmp" if os.path.isdir("/tmp") else None))

# Set before any test module is imported: matplotlib, Ray and MLflow read some of these on import.
os.environ.update(
    HOME=str(_WORLD / "home"),
    DISTMETA_CACHE=str(_WORLD / "cache"),
    MPLCONFIGDIR=str(_WORLD / "home" / "matplotlib"),
    MLFLOW_TRACKING_URI=f"sqlite:///{_WORLD}/mlflow.db",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_TMPDIR=str(_WORLD / "ray"),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",  # everything is on the loopback; a token would outlive the test in the environment
)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("DISTMETA_DATA", None)
(_WORLD / "home").mkdir()
(_WORLD / "ray").mkdir()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_WORLD, ignore_errors=True)


@pytest.fixture(scope="session")
def glyphs_dir() -> Path:
    """The glyphs dataset, built once, through the name that users give."""
    from distmeta.data import resolve

    return resolve("glyphs")


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 8x8 uint8 images in milliseconds: 8, 4 and 4 classes of 6 images, each a pattern with noise."""
    from distmeta.data import from_arrays

    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (16, 1, 1, 8, 8))
    x = (patterns + random.integers(0, 56, (16, 6, 1, 8, 8))).astype(np.uint8).reshape(-1, 1, 8, 8)
    out = tmp_path_factory.mktemp("digits") / "digits"
    from_arrays(x, np.repeat(np.arange(16), 6), out, splits="50/25/25", name="digits")
    return out
