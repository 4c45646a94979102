"""The only source of randomness: every random number is a pure function of a seed and a path of names and integers.

No worker draws a seed of its own and no generator state is kept, so a task can be rebuilt by any process at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

_KEY_BYTES = 16


def rng(run_seed: int, *path: str | int) -> np.random.Generator:
    """Make a generator that depends on ``run_seed`` and ``path`` alone (counter-based Philox).

    Args:
        run_seed: seed of the experiment.
        path: names and integers that identify the use of the numbers, for example
            ``(fingerprint, split, step, index)``.

    Returns:
        A fresh numpy generator; equal arguments give equal streams on every machine. It does not ``spawn`` others;
        give them paths of their own.

    Example:
        >>> a = rng(7, "meta_train", 12, 3).integers(1000, size=3)
        >>> b = rng(7, "meta_train", 12, 3).integers(1000, size=3)
        >>> bool((a == b).all())
        True
    """
    return _generator(_digest(run_seed, path))


def rngs(run_seed: int, *path: str | int, ends: Iterable[int]) -> list[np.random.Generator]:
    """Make ``rng(run_seed, *path, end)`` for each of ``ends``; what they have in common is hashed once.

    Example:
        >>> one, two = rngs(7, "meta_train", 12, ends=[2, 3])
        >>> two.random() == rng(7, "meta_train", 12, 3).random()
        True
    """
    if not path:
        return [rng(run_seed, end) for end in ends]
    start = hashlib.blake2b(_text(run_seed, path)[:-1], digest_size=_KEY_BYTES)  # all but the closing bracket
    found = []
    for end in ends:
        whole = start.copy()
        whole.update(b", %d)" % end)
        found.append(_generator(whole.digest()))
    return found


def torch_seed(run_seed: int, *path: str | int) -> int:
    """Make a seed for ``torch.manual_seed`` by the same rule as :func:`rng`."""
    return int.from_bytes(_digest(run_seed, path), "little") % 2**63


def _generator(digest: bytes) -> np.random.Generator:
    # numpy takes any ISeedSequence, as it documents; its types name only its own.
    return np.random.Generator(np.random.Philox(_PhiloxKey(digest)))  # type: ignore[arg-type]


class _PhiloxKey(ISeedSequence):
    """The key of a Philox generator, where numpy expects a seed to make a key from.

    It gives the stream of ``Philox(key=...)``, which first asks the system for random bytes that it then does not use:
    more than half of the time of a fresh generator.
    """

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[np.uint64]:
        if n_words != len(self._words) or dtype is not np.uint64:
            raise ValueError(f"a Philox key is 2 words of 64 bits; {n_words} of {dtype} were asked for")
        return self._words


def _digest(run_seed: int, path: tuple[str | int, ...]) -> bytes:
    return hashlib.blake2b(_text(run_seed, path), digest_size=_KEY_BYTES).digest()


def _text(run_seed: int, path: tuple[str | int, ...]) -> bytes:
    # A hash keeps str and int parts apart (repr) and spreads neighbouring indices over the whole key space.
    # A numpy integer counts as the integer; its repr differs between numpy 1 and 2.
    return repr((int(run_seed), *[str(p) if isinstance(p, str) else int(p) for p in path])).encode()
