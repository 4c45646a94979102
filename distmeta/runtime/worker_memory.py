"""The memory that each worker of a run may use, as far as this machine tells."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from distmeta.data.picture_workers import cpus
from distmeta.experiment.settings import Runtime

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of containers


def workers_of(runtime: Runtime) -> int:
    """How many workers a run has on this machine.

    Example:
        >>> workers_of(Runtime(workers=3))
        3
    """
    return runtime.workers or max(1, cpus() // runtime.threads)


def bytes_per_worker(runtime: Runtime) -> int:
    """Main memory, or a GPU's where there is one, over the workers that share it; this machine stands for all.

    Example:
        >>> bytes_per_worker(Runtime(workers=1)) > 4 * bytes_per_worker(Runtime(workers=8)) > 2**20
        True
    """
    workers = workers_of(runtime)
    if torch.cuda.is_available() and runtime.gpus_per_worker != 0:
        share = runtime.gpus_per_worker or torch.cuda.device_count() / workers
        return int(torch.cuda.get_device_properties(0).total_memory * min(share, 1))
    return main_memory() // workers


def main_memory() -> int:
    """Bytes of main memory, of the container where it has fewer.

    Example:
        >>> main_memory() > 2**20
        True
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # otherwise "max"
            sizes.append(int(text))
    return min(sizes)
