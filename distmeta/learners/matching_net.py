"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016).

A query is classified by attention over the labelled support set (equation 1)::

    p(y | x, S) = sum_i a(x, x_i) y_i,     a(x, x_i) = softmax_i( c(f(x), g(x_i)) / temperature )

with c the cosine similarity (section 2.1.1), or minus the squared Euclidean distance. The paper has no temperature
(``temperature=1``): a cosine lies within [-1, 1], so its softmax is nearly flat and learns slowly; 0.1 does much
better.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat

from distmeta.learners.base import MetaLearner, unstack
from distmeta.learners.functional import vectorised
from distmeta.learners.metric import cosine, embed, one_hot, squared_distance
from distmeta.learners.pictures import Attention, Picture
from distmeta.types import Episode, Params


class MatchingNet(MetaLearner):
    """Learn an embedding in which the nearest labelled examples tell the class. Any number of ways at test.

    Args:
        model: an encoder, ``[B, ...]`` to features ``[B, D]``, such as ``conv4(head=False)``; f = g.
        distance: ``"cosine"`` (as in the paper) or ``"euclidean"`` (squared).
        temperature: of the attention; towards 0 it becomes the nearest neighbour.

    Example:
        >>> from torch import nn
        >>> learner = MatchingNet(nn.Linear(4, 8))
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> learner.meta_gradient(theta, Episode(x, y, x, y)).tasks
        2
    """

    network = "encoder"

    class Config(MetaLearner.Config):
        """The settings of :class:`MatchingNet`."""

        distance: Literal["cosine", "euclidean"] = "cosine"
        temperature: PositiveFloat = 0.1

    config: Config

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """``log p(y | query, S)``."""
        support, query = embed(self, params, episode)
        attention = self.log_attention(query, support)
        # The sum over a class's examples, in logarithms: no probability underflows to log 0.
        outside = one_hot(episode, support).T == 0
        return attention[:, None, :].masked_fill(outside, -torch.inf).logsumexp(-1)

    def log_attention(self, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """``log a(x, x_i)``, ``[M, N*K]``: whom each query looks at."""
        kernel = cosine if self.config.distance == "cosine" else lambda a, b: -squared_distance(a, b)
        return (kernel(query, support) / self.config.temperature).log_softmax(-1)

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``attention``: of one query of each class, ten classes at most, over the support set of the first task."""
        episode = unstack(episodes)[0]
        if episode.support_x.dim() != 4 or episode.support_x.shape[1] not in (1, 3):
            return {}  # no images
        self.model.eval()
        with torch.no_grad(), vectorised(False):
            # All queries in one batch, as where the accuracy comes from, then those that are shown.
            support, query = embed(self, params, episode)
            labels = episode.query_y.tolist()
            shown = [labels.index(label) for label in sorted(set(labels))[:10]]
            seen = slice(25)
            weights = self.log_attention(query, support).exp()[shown, seen]
        right = episode.query_y[shown][:, None] == episode.support_y[None, seen]
        title = "attention of queries over the support set"
        if len(support) > 25:
            title += f" (the first 25 of {len(support)})"
        images = (episode.query_x[shown].cpu(), episode.support_x[seen].cpu())
        return {"attention": Attention(title, *images, weights.cpu(), right.cpu())}
