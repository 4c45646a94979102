"""Facts of the machine that a number belongs to, and the limit that its matrix products reach."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from distmeta.data.picture_workers import cpus
from distmeta.runtime import processor
from distmeta.tracking.git_state import git_tags

LIMIT = "The limit, matmul, is the rate of float32 products of two 1024x1024 matrices, 2 x 1024^3 operations each."
"""Definition of :class:`MatmulLimit` for people."""

_REPETITION_S = 0.05


def facts(device: torch.device | None = None) -> dict[str, Any]:
    """Return the facts that a benchmark's numbers belong to: CPU, cores, load, versions, the time; JSON-ready.

    Args:
        device: the GPU that is measured, if one is.
    """
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": cpus(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "load_average": load(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        # The public names are a floor above; the package itself is loaded with this module.
        "distmeta": sys.modules["distmeta"].__version__,
        "torch": torch.__version__,
    }
    for library in ("numpy", "ray"):
        with suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    package = Path(__file__).parents[1]
    if (package.parent / ".git").exists():  # a checkout of distmeta, and not of the user's project around it
        tags = git_tags(package)
        found["git"] = tags.get("mlflow.source.git.commit")
        found["git_dirty"] = tags.get("distmeta.git_dirty") == "true"
    if device is not None and device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def load() -> float | None:
    """Processes that wanted a CPU, averaged over the last minute; ``None`` on platforms without that number."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``, all that it has started on a GPU included."""
    _finish(device)
    started = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MatmulLimit:
    """The rate of large matrix products: what convolutions and linear layers can reach at most.

    Args:
        threads: CPU threads.
        device: where they are computed.
        size: rows and columns.

    Example:
        >>> MatmulLimit(1, torch.device("cpu"), size=64)() > 0
        True
    """

    def __init__(self, threads: int, device: torch.device, size: int = 1024) -> None:
        self._threads, self._device, self._size = threads, device, size
        generator = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(size, size, generator=generator).to(device) for _ in range(2))
        self._out = torch.empty(size, size, device=device)
        self._times = 1
        self()  # the first product also starts threads and libraries
        self._times = max(1, round(_REPETITION_S * self() * 1e9 / (2 * size**3)))

    def __call__(self) -> float:
        """Measure once, GFLOP/s."""
        torch.set_num_threads(self._threads)
        seconds = timed(self._multiply, self._device)
        return float(2 * self._size**3 * self._times / seconds / 1e9)

    def _multiply(self) -> None:
        for _ in range(self._times):
            torch.mm(self._a, self._b, out=self._out)


def _cpu() -> str:
    """Name of the processor."""
    return processor.entries().get("model name") or platform.processor() or platform.machine()
