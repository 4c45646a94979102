"""One task's function over the stacked tasks of a chunk: in one vectorised call, or in a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import vmap

from distmeta.learners.functional import vectorised
from distmeta.types import Episode, Params


def map_tasks(
    function: Callable[[Params, Episode], Any],
    params: Params,
    episodes: Episode,
    *,
    loop: bool,
    exact_norms: bool = True,
) -> Any:
    """``function(params, episode)`` of each of T stacked tasks, vectorised or in a loop.

    Args:
        function: returns a tensor, or tuples and dictionaries of tensors.
        params: shared by all tasks.
        episodes: T stacked tasks.
        loop: compute one task after the other.
        exact_norms: see :func:`~distmeta.learners.functional.vectorised`.

    Returns:
        What ``function`` returns, each tensor with a leading axis T.
    """
    if loop:
        with vectorised(False):
            return _stack([function(params, episode) for episode in unstack(episodes)])
    ways = episodes.counted().ways

    def one(*parts: torch.Tensor) -> Any:
        return function(params, Episode(*parts, ways=ways, outputs=episodes.outputs))

    with vectorised(True, exact_norms=exact_norms):
        return vmap(one, randomness="different")(*episodes)


def unstack(episodes: Episode) -> list[Episode]:
    """The T tasks of a stacked episode."""
    counted = episodes.counted()
    return [counted.map(lambda part, i=i: part[i]) for i in range(len(episodes.query_x))]  # type: ignore[misc]


def _stack(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, dict):
        return {key: _stack([result[key] for result in results]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack([result[i] for result in results]) for i in range(len(first)))
    return torch.stack(results)
