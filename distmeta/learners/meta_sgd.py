"""Meta-SGD: learning to learn quickly (Li, Zhou, Chen, Li 2017, algorithm 1).

MAML with the inner learning rate learned too, one for every parameter::

    phi_i         = theta - alpha o grad_theta L(theta, D_i)              inner loop, o elementwise
    (theta, alpha) <- (theta, alpha) - beta * grad sum_i L(phi_i, D'_i)   outer loop, through the inner one

alpha gives direction and length of the step: nothing keeps it positive. It is meta-learned like theta, under the names
``rate/NAME`` beside theta's ``NAME``.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, field_validator

from distmeta.learners.base import MetaLearner
from distmeta.learners.inner_loop import gradient_descent, logits_alone, split_rates, with_rates
from distmeta.learners.losses import prediction_loss
from distmeta.types import Episode, Params


class MetaSGD(MetaLearner):
    """Learn an initialisation and, for every parameter, the rate of the few gradient steps that solve a new task.

    Args:
        model: a network with one output per class (or per regression target), or a factory of one.
        inner_lr: alpha before meta-training: bounds that every element is drawn between, those of the paper, or one
            number for all.
        inner_steps: gradient steps on the support set in meta-training; the paper takes one.
        test_inner_steps: gradient steps in evaluation; as in training when left out.

    Example:
        >>> from torch import nn
        >>> learner = MetaSGD(nn.Linear(4, 5), inner_lr=0.1)
        >>> theta_and_alpha = learner.init_meta_params(np.random.default_rng(0))
        >>> list(theta_and_alpha)
        ['weight', 'bias', 'rate/weight', 'rate/bias']
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> gradient = learner.meta_gradient(theta_and_alpha, Episode(x, y, x, y))
        >>> gradient.gradient["rate/weight"].shape
        torch.Size([5, 4])
    """

    network = "classifier"

    class Config(MetaLearner.Config):
        """The settings of :class:`MetaSGD`."""

        inner_lr: PositiveFloat | tuple[PositiveFloat, PositiveFloat] = (0.005, 0.1)
        inner_steps: NonNegativeInt = 1
        test_inner_steps: NonNegativeInt | None = None

        @field_validator("inner_lr")
        @classmethod
        def _in_order(cls, value: float | tuple[float, float]) -> float | tuple[float, float]:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError("expected the lower bound first, such as [0.005, 0.1], or one number")
            return value

    config: Config

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """theta as the model has it, and alpha."""
        theta, c = super().init_meta_params(rng), self.config
        low, high = c.inner_lr if isinstance(c.inner_lr, tuple) else (c.inner_lr, c.inner_lr)
        return with_rates(theta, {name: torch.from_numpy(rng.uniform(low, high, p.shape)) for name, p in theta.items()})

    def fast_params(self, params: Params, support_x: torch.Tensor, support_y: torch.Tensor) -> Params:
        """phi: theta after the inner loop on the support set of one task."""
        theta, alpha = split_rates(params)

        def support_loss(point: Params) -> torch.Tensor:
            return prediction_loss(self.forward(point, support_x), support_y)

        return gradient_descent(support_loss, theta, lr=alpha, steps=self.config.inner_steps)

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """f(query_x; phi)."""
        fast = self.fast_params(params, episode.support_x, episode.support_y)
        return self.forward(fast, episode.query_x)

    def query_logits_alone(self, params: Params, episode: Episode) -> torch.Tensor:
        """As the parent's, with the inner loop run once for all queries."""
        return logits_alone(self, self.fast_params(params, episode.support_x, episode.support_y), episode)

    def for_evaluation(self) -> Self:
        """With ``test_inner_steps``."""
        steps = self.config.test_inner_steps
        return self if steps is None else self.with_config(inner_steps=steps)
