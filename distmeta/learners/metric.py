"""The metric family: embeddings of an episode and similarities between them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import final

import torch
import torch.nn.functional as F

from distmeta.errors import LearnerContractError
from distmeta.learners.base import MetaLearner
from distmeta.learners.engine_choice import fills_caches
from distmeta.learners.functional import differentiated_once, on_engine_2
from distmeta.learners.over_tasks import unstack
from distmeta.types import Episode, Metrics, Params


class MetricLearner(MetaLearner):
    """An algorithm that compares queries with the support set in the space of an encoder; any number of ways at test.

    A subclass compares them in ``query_logits``, from the features that :meth:`embed` returns.
    """

    model_kind = "encoder"
    joins_support = True

    @final
    def embed(self, params: Params, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the support set ``[N*K, D]`` and of the queries ``[M, D]``, from one pass of the encoder.

        One pass, as in the authors' code of Prototypical networks: where the encoder has batch statistics, both halves
        share them.
        """
        features = self.forward(params, torch.cat([episode.support_x, episode.query_x]))
        support, query = features[: len(episode.support_x)], features[len(episode.support_x) :]
        return support, query

    def chunk_losses(self, params: Params, episodes: Episode) -> Generator[tuple[torch.Tensor, Metrics]]:
        """Hook: the losses and metrics of T stacked tasks; on engine 2 large ones task by task.

        Tasks share weights and not statistics: vectorised, large ones would save a few calls and leave the caches.
        """
        tasks = unstack(episodes) if on_engine_2() else []
        if not tasks or (len(tasks) > 1 and not fills_caches(self, params, tasks[0])):
            yield from super().chunk_losses(params, episodes)
            return
        for episode in tasks:
            with differentiated_once():
                loss, metrics = self.meta_loss(params, episode)
            yield loss[None], {name: value[None] for name, value in metrics.items()}

    def support_weights(self, params: Params, episode: Episode) -> torch.Tensor:
        """Hook: the weight of each support example in the decision about each query, ``[M, N*K]``; rows sum to 1.

        By default the softmax of minus the squared distances between features, relative to their mean.
        """
        support, query = self.embed(params, episode)
        distance = squared_distance(query, support)
        return (-distance / distance.mean(-1, keepdim=True).clamp_min(1e-12)).softmax(-1)

    @final
    def explained(self, params: Params, episode: Episode, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``support_weights`` of each input."""

        def weights(batch: torch.Tensor) -> torch.Tensor:
            return self.support_weights(params, replace(episode, query_x=batch))

        return {"support_weights": self.keeping_statistics(weights, params, episode)(x)}


def one_hot(episode: Episode, like: torch.Tensor) -> torch.Tensor:
    """Support labels as ``[N*K, N]``, in the type of ``like``.

    Raises:
        LearnerContractError: the targets are numbers, not classes.
    """
    if episode.ways is None:
        raise LearnerContractError(
            f"A metric learner compares with the examples of each class; the targets are {episode.support_y.dtype} "
            "numbers, expected int64 class positions. Use MAML or Reptile for regression."
        )
    return F.one_hot(episode.support_y, episode.ways).to(like.dtype)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``|a_i - b_j|^2`` for ``[A, D]`` and ``[B, D]``, as ``[A, B]``.

    From differences, not from ``|a|^2 - 2ab + |b|^2``: that loses digits where it matters, between near neighbours.

    Example:
        >>> squared_distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0]])).item()
        25.0
    """
    return (a[:, None, :] - b[None, :, :]).square().sum(-1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine similarities of ``[A, D]`` and ``[B, D]``, as ``[A, B]``.

    Example:
        >>> cosine(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 5.0], [1.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
