"""The process's global random generators, for code that draws from them."""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded_globals(random: np.random.Generator) -> Iterator[None]:
    """Seed ``random``, numpy's and torch's global generators from ``random``; restore all three on leaving.

    torch computes on one thread meanwhile, since sums may have other bits on several. A GPU's generators are seeded
    and restored too, where one is in use.

    Args:
        random: source of the seeds.

    Example:
        >>> drawn = []
        >>> for _ in range(2):
        ...     with seeded_globals(np.random.default_rng(7)):
        ...         drawn.append((python_random.random(), np.random.rand(), float(torch.rand(()))))
        >>> drawn[0] == drawn[1]
        True
    """
    seeds = [int(seed) for seed in random.integers(2**32, size=3)]
    own, numpys, threads = python_random.getstate(), np.random.get_state(), torch.get_num_threads()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_num_threads(1)
            python_random.seed(seeds[0])
            np.random.seed(seeds[1])
            torch.default_generator.manual_seed(seeds[2])
            if devices:
                torch.cuda.manual_seed_all(seeds[2])
            yield
        finally:
            torch.set_num_threads(threads)
            np.random.set_state(numpys)
            python_random.setstate(own)
