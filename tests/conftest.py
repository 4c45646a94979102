"""What every test shares: a world of its own (home, caches, Ray's folder) and datasets that are built once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

# Run directories of an earlier version: their job files are data.
collect_ignore = ["run/old_runs"]

# Ray's sockets live below this folder, and a Unix socket's path may have about 100 characters.
_WORLD = Path(tempfile.mkdtemp(prefix="dm-", dir="/tmp" if os.path.isdir("/tmp") else None))

# Processes side by side: each has a world of its own, and the cache of the process that started them.
_SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ

# Set before any test module is imported: matplotlib, Ray and MLflow read some of these on import.
os.environ.update(
    HOME=str(_WORLD / "home"),
    DISTMETA_CACHE=os.environ["DISTMETA_CACHE"] if _SIDE_BY_SIDE else str(_WORLD / "cache"),
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


# Files of these rooms take longest; what runs last should be short, so that no process waits for another's long file.
_LONG = ("tests/integration/", "tests/tracking/", "tests/cli/", "tests/learners/")


@pytest.hookimpl(tryfirst=True)  # before xdist reads these options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in one process per CPU, 4 at most, and files that are named in one; ``-n`` says otherwise."""
    option = config.option
    if _SIDE_BY_SIDE or not hasattr(option, "numprocesses"):
        return
    # pytest-cov has chosen how it measures by now: with it, -n must be on the command line.
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not getattr(option, "cov_source", None)
    if whole and option.numprocesses is None and not (option.usepdb or option.collectonly):
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        option.numprocesses = min(4, cpus) if cpus > 1 else 0
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadgroup", False


def pytest_configure(config: pytest.Config) -> None:
    if _SIDE_BY_SIDE:
        import torch

        torch.set_num_threads(1)  # the other CPUs belong to the other processes


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process gets all tests that start Ray, first of all; any other file stays in one process.

    Two Ray clusters at a time would want more CPUs and memory than a small machine has.
    """
    for item in items:
        if {"cluster", "head"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("ray")
        on_ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if on_ray else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, not item.nodeid.startswith(_LONG)))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_WORLD, ignore_errors=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: for tiny networks a second one only waits, and a worker sets the threads of its process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once: the migrations take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = f"import mlflow; mlflow.MlflowClient(tracking_uri='sqlite:///{path}').search_experiments()"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[ModuleType]:
    """A Ray cluster of this machine with logical CPUs for every test; backends find it and leave it running."""
    ray = pytest.importorskip("ray")
    import distmeta.runtime.ray_backend  # noqa: F401  (sets Ray's environment before the cluster starts)

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
