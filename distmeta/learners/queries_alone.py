"""What evaluation reports of a task with a support set: its queries together, and each without the others.

Batch statistics make a prediction depend on the other queries, so both are measured. The second takes statistics from
the support set. Where nothing else mixes the inputs of a batch, all queries then pass in one batch as each would alone.
Whether that is so is measured: the last query of every task is also computed in a forward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.func import vmap

from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.over_tasks import map_tasks
from distmeta.types import Episode, Metrics, Params

if TYPE_CHECKING:
    from distmeta.learners.engine import Engine, Predict


def measured(learner: Engine, params: Params, episodes: Episode) -> tuple[Metrics, torch.Tensor]:
    """Loss and metrics of the queries of T stacked tasks in one batch per task, and the logits of each alone.

    Each support set is learned from once.

    Args:
        learner: its loss is the cross-entropy of its predictions.
        params: the meta-parameters.
        episodes: T stacked classification tasks with support sets.

    Returns:
        ``loss`` and ``accuracy`` ``[T]``, and logits ``[T, Q, N]``.
    """

    def task(params: Params, episode: Episode) -> tuple[Metrics, torch.Tensor, torch.Tensor]:
        predict = learner.adapted(params, episode)
        prediction = of_task(predict(episode.query_x), episode)
        metrics = {"loss": prediction_loss(prediction, episode.query_y)}
        metrics |= prediction_metrics(prediction, episode.query_y)
        fixed = learner.keeping_statistics(predict, params, episode)
        return metrics, *_both(learner, fixed, episode, prediction if fixed is predict else None)

    metrics, together, last = map_tasks(task, params, episodes, loop=learner.loops)
    return metrics, _alone_if_mixed(learner, params, episodes, together, last)


def logits_alone(learner: Engine, params: Params, episodes: Episode) -> torch.Tensor:
    """Logits ``[T, Q, N]`` of the queries of T stacked tasks, each predicted without the others."""

    def task(params: Params, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
        predict = learner.keeping_statistics(learner.adapted(params, episode), params, episode)
        return _both(learner, predict, episode, None)

    together, last = map_tasks(task, params, episodes, loop=learner.loops)
    return _alone_if_mixed(learner, params, episodes, together, last)


def predict_alone(
    predict: Predict, support_x: torch.Tensor, query_x: torch.Tensor, *, joins_support: bool, loop: bool
) -> torch.Tensor:
    """``predict`` of each query in a batch with the support set and no other query, ``[M, N]``.

    Args:
        predict: predicts a batch of inputs.
        support_x: ``[S, ...]``.
        query_x: ``[M, ...]``.
        joins_support: ``predict`` puts the support set into the batch of its own accord.
        loop: compute one query after the other.
    """

    def one(query: torch.Tensor) -> torch.Tensor:
        return predict(query[None] if joins_support else torch.cat([support_x, query[None]]))[-1]

    if loop:
        return torch.stack([one(query) for query in query_x])
    # A query alone is a forward pass of the whole support set: some at a time, or memory would be a multiple of
    # what training needs.
    at_once = max(1, 256 // max(1, len(support_x)))
    mapped: torch.Tensor = vmap(one, randomness="different", chunk_size=at_once)(query_x)
    return mapped


def _both(
    learner: Engine, predict: Predict, episode: Episode, together: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[Q, N]`` of all queries in one batch, given or computed here, and ``[1, N]`` of the last alone."""
    if together is None:  # never a batch of one, which some layers refuse and some models squeeze
        together = of_task(predict(torch.cat([episode.support_x[:1], episode.query_x]))[1:], episode)
    last = learner.predict_alone(predict, episode.support_x, episode.query_x[-1:], loop=True)
    return together, of_task(last, episode)


def _alone_if_mixed(
    learner: Engine, params: Params, episodes: Episode, together: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """``together`` where each last query came out as it does alone; otherwise all queries in passes of their own."""
    relative = 1e-10 if together.dtype == torch.float64 else 1e-4
    if bool(((together[:, -1:] - last).abs().amax(-1) <= relative * last.abs().amax(-1)).all()):
        return together
    alone: Callable[[Params, Episode], torch.Tensor] = learner.query_logits_alone
    found: torch.Tensor = map_tasks(
        lambda params, episode: of_task(alone(params, episode), episode), params, episodes, loop=learner.loops
    )
    return found
