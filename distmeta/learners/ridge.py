"""Ridge regression as the last layer, solved in closed form: R2-D2 (Bertinetto, Henriques, Torr, Vedaldi 2019).

With X ``[S, D]`` the embedded support set and Y ``[S, N]`` its one-hot labels, the weights of a task are (equation 4)::

    W = argmin |X W - Y|^2 + lambda |W|^2 = (X^T X + lambda I)^-1 X^T Y

By the Woodbury identity a system of S equations is enough where S < D, as it is with few examples (equation 6)::

    W = X^T (X X^T + lambda I)^-1 Y

The queries' predictions are scaled to logits, ``alpha X' W + beta`` (equation 8), and the loss is the cross-entropy.
lambda, alpha and beta are meta-learned beside the encoder, here by the logarithms of lambda and alpha, which keeps them
positive. beta is added to every class: a softmax does not depend on it, so it keeps its value.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import PositiveFloat

from distmeta.learners.metric import MetricLearner, one_hot
from distmeta.types import Episode, Params


class Ridge(MetricLearner):
    """Learn an embedding in which ridge regression on the support set classifies the queries. Any number of ways.

    Args:
        model: an encoder, ``[B, ...]`` to features ``[B, D]``, such as ``conv4(head=False)``; on features of a frozen
            encoder ``adapter()``.
        regularisation: lambda before meta-training.
        scale: alpha before meta-training.

    Example:
        >>> from torch import nn
        >>> learner = Ridge(nn.Linear(4, 8))
        >>> theta = learner.init_meta_params(np.random.default_rng(0))
        >>> list(theta)
        ['weight', 'bias', 'ridge/log_lambda', 'ridge/log_alpha', 'ridge/beta']
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> learner.meta_gradient(theta, Episode(x, y, x, y)).tasks
        2
    """

    class Config(MetricLearner.Config):
        """The settings of :class:`Ridge`."""

        regularisation: PositiveFloat = 1.0
        scale: PositiveFloat = 10.0

    config: Config

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """The encoder's parameters, and log lambda, log alpha and beta, scalars."""
        params, c = super().init_meta_params(rng), self.config
        like = next(iter(params.values()), torch.zeros(()))
        own = {"log_lambda": math.log(c.regularisation), "log_alpha": math.log(c.scale), "beta": 0.0}
        return params | {f"ridge/{name}": like.new_full((), value) for name, value in own.items()}

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """``alpha X' W + beta``."""
        support, query = self.embed(params, episode)
        weights = ridge(support, one_hot(episode, support), params["ridge/log_lambda"].exp())
        return params["ridge/log_alpha"].exp() * (query @ weights) + params["ridge/beta"]


def ridge(x: torch.Tensor, y: torch.Tensor, regularisation: torch.Tensor) -> torch.Tensor:
    """The minimiser ``W [D, N]`` of ``|x W - y|^2 + regularisation |W|^2``, by the smaller of the two systems.

    Args:
        x: ``[S, D]``.
        y: ``[S, N]``.
        regularisation: a positive scalar.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [4.0]])
        >>> ridge(x, y, torch.tensor(1.0)).item()  # (2 + 4) / (1 + 1 + 1)
        2.0
    """
    examples, features = x.shape
    weights: torch.Tensor
    if examples < features:
        weights = x.T @ torch.linalg.solve(x @ x.T + regularisation * _identity(x, examples), y)
    else:
        weights = torch.linalg.solve(x.T @ x + regularisation * _identity(x, features), x.T @ y)
    return weights


def _identity(like: torch.Tensor, size: int) -> torch.Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
