"""Prototypical networks (Snell, Swersky, Zemel 2017).

A class is the mean of its embedded support examples, ``c_k = mean f(x_i), y_i = k`` (equation 1); a query belongs
to the nearest, ``p(y = k | x) = softmax_k(-d(f(x), c_k))`` (equation 2) with the squared Euclidean distance. That is
a linear classifier with weights ``2 c_k`` and biases ``-|c_k|^2`` (equation 8).
"""

from __future__ import annotations

from typing import Literal

import torch

from distmeta.learners.metric import MetricLearner, cosine, one_hot, squared_distance
from distmeta.types import Episode, Params


class ProtoNet(MetricLearner):
    """Learn an embedding in which classes gather around their means. Any number of ways at test.

    Args:
        model: an encoder, ``[B, ...]`` to features ``[B, D]``, such as ``conv4(head=False)``.
        distance: ``"euclidean"`` (squared, as in the paper) or ``"cosine"``.

    Example:
        >>> from torch import nn
        >>> learner = ProtoNet(nn.Linear(4, 8))
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> learner.meta_gradient(theta, Episode(x, y, x, y)).tasks
        2
    """

    class Config(MetricLearner.Config):
        """The settings of :class:`ProtoNet`."""

        distance: Literal["euclidean", "cosine"] = "euclidean"

    config: Config

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """``-d(f(query), c_k)``."""
        support, query = self.embed(params, episode)
        members = one_hot(episode, support)
        prototypes = members.T @ support / members.sum(0)[:, None]
        if self.config.distance == "cosine":
            return cosine(query, prototypes)
        return -squared_distance(query, prototypes)
