"""Classes and rows that are in two splits, or in both halves of an episode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.tasks.base import TaskDistribution
from distmeta.types import Episode, Split, TaskRef

_FEWEST_NUMBERS = 4


def shared_rows(tasks: TaskDistribution, episodes: Mapping[TaskRef, Episode]) -> dict[str, Any]:
    """Rows that two splits, or both halves of an episode, have in common, byte for byte.

    A row is an input, of a regression with its target: a function may be asked at the same points again. Across splits
    only rows of 4 numbers or more count, and of 3 different ones: two short rows may agree by chance. Rows of
    sequences are not compared.

    Args:
        tasks: the distribution.
        episodes: tasks by their names.

    Returns:
        ``compared`` (number of rows), ``repeated`` (of these, those that are twice in one half: a sign that rows are
        discrete), ``halves`` and ``splits``: each a list of ``count``, two ``refs``, and the ``row`` of the first.
    """
    found: dict[str, Any] = {"compared": 0, "repeated": 0, "halves": [], "splits": []}
    homes: dict[Split, dict[str, tuple[TaskRef, str]]] = {}
    for ref, episode in episodes.items():
        if tasks.spec_of(ref.split).kind == "sequence" or not len(episode.support_x):
            continue
        support, query = _rows(episode.support_x, episode.support_y), _rows(episode.query_x, episode.query_y)
        found["compared"] += len(support) + len(query)
        found["repeated"] += len(support) + len(query) - len({row[0] for row in support}) - len({r[0] for r in query})
        both = {row for row, _, _ in support} & {row for row, _, _ in query}
        if both:
            row = next(x for row, x, _ in support if row in both)
            found["halves"].append({"count": len(both), "refs": [_key(ref)] * 2, "row": row})
        home = homes.setdefault(ref.split, {})
        for row, x, telling in (*support, *query):
            if telling:
                home.setdefault(row, (ref, x))
    for first, second in combinations(homes, 2):
        shared = [row for row in homes[first] if row in homes[second]]
        if shared:
            (ref, x), (other, _) = homes[first][shared[0]], homes[second][shared[0]]
            found["splits"].append({"count": len(shared), "refs": [_key(ref), _key(other)], "row": x})
    return found


def shared_classes(tasks: TaskDistribution, refs: Iterable[TaskRef], seed: int) -> dict[str, Any]:
    """Classes that two splits have in common, by the names that :meth:`TaskDistribution.class_names` gives.

    Returns:
        ``compared`` (number of different names) and ``splits``, a list as in :func:`shared_rows` with ``name``.
    """
    homes: dict[Split, dict[str, TaskRef]] = {}
    for ref in refs:
        for name in tasks.class_names(ref, seed) or ():
            homes.setdefault(ref.split, {}).setdefault(name, ref)
    found: dict[str, Any] = {"compared": len({name for home in homes.values() for name in home}), "splits": []}
    for first, second in combinations(homes, 2):
        shared = [name for name in homes[first] if name in homes[second]]
        if shared:
            refs_of = [_key(homes[split][shared[0]]) for split in (first, second)]
            found["splits"].append({"count": len(shared), "refs": refs_of, "name": shared[0]})
    return found


def has_row(value: Any, row: str, most: int) -> bool:
    """Return whether ``value`` is an array of at most ``most`` inputs, one of which has the digest ``row``."""
    if isinstance(value, list | tuple):
        return len(value) <= most and any(has_row(part, row, most) for part in value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.hasobject or not value.size:
        return False
    flat = value.astype(np.float32)
    rows = [flat.reshape(-1), *(flat.reshape(-1, *flat.shape[axes:]) for axes in range(1, flat.ndim))]
    return any(digest(one) == row for part in rows[1:] if len(part) <= most for one in part) or digest(rows[0]) == row


def digest(row: npt.NDArray[Any]) -> str:
    """Digest of an input, as float32."""
    return hashlib.blake2b(np.ascontiguousarray(row, np.float32).tobytes(), digest_size=12).hexdigest()


def _rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[str, str, bool]]:
    """Of each example: digest of the row, digest of its input, and whether two such rows hardly agree by chance."""
    found = []
    targets = y.is_floating_point()
    for one, target in zip(x.numpy(), y.numpy(), strict=True):
        if not targets and target < 0:  # padding
            continue
        x_digest = digest(one)
        row = x_digest + digest(target) if targets else x_digest
        found.append((row, x_digest, one.size >= _FEWEST_NUMBERS and len(np.unique(one)) >= 3))
    return found


def _key(ref: TaskRef) -> str:
    return f"{ref.split}/{ref.step}/{ref.index}"
