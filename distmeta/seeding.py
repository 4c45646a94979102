"""The only source of randomness: every random number is a pure function of a seed and a path of names and integers.

No worker draws a seed of its own and no generator state is kept, so a task can be rebuilt by any process at any time.
"""

from __future__ import annotations

import hashlib

import numpy as np


def rng(run_seed: int, *path: str | int) -> np.random.Generator:
    """Make a generator that depends on ``run_seed`` and ``path`` alone (counter-based Philox).

    Args:
        run_seed: seed of the experiment.
        path: names and integers that identify the use of the numbers, for example
            ``(fingerprint, split, step, index)``.

    Returns:
        A fresh numpy generator; equal arguments give equal streams on every machine.

    Example:
        >>> a = rng(7, "meta_train", 12, 3).integers(1000, size=3)
        >>> b = rng(7, "meta_train", 12, 3).integers(1000, size=3)
        >>> bool((a == b).all())
        True
    """
    return np.random.Generator(np.random.Philox(key=_key(run_seed, path)))


def torch_seed(run_seed: int, *path: str | int) -> int:
    """Make a seed for ``torch.manual_seed`` by the same rule as :func:`rng`."""
    return _key(run_seed, path) % 2**63


def _key(run_seed: int, path: tuple[str | int, ...]) -> int:
    # A hash keeps str and int parts apart (repr) and spreads neighbouring indices over the whole key space.
    # A numpy integer counts as the integer; its repr differs between numpy 1 and 2.
    text = repr((int(run_seed), *(str(p) if isinstance(p, str) else int(p) for p in path))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
