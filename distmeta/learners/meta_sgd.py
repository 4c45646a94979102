"""Meta-SGD: learning to learn quickly (Li, Zhou, Chen, Li 2017, algorithm 1).

MAML with the inner learning rate learned too, one for every parameter::

    phi_i         = theta - alpha o grad_theta L(theta, D_i)              inner loop, o elementwise
    (theta, alpha) <- (theta, alpha) - beta * grad sum_i L(phi_i, D'_i)   outer loop, through the inner one

alpha gives direction and length of the step: nothing keeps it positive. It is meta-learned like theta, under the names
``rate/NAME`` beside theta's ``NAME``.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import PositiveFloat, field_validator

from distmeta.learners.inner_loop import gradient_descent, split_rates, with_rates
from distmeta.learners.mixed_gradient import Descent, DescentLearner
from distmeta.types import Episode, Params


class MetaSGD(DescentLearner):
    """Learn an initialisation and, for every parameter, the rate of the few gradient steps that solve a new task.

    Args:
        model: a network with one output per class (or per regression target), or a factory of one.
        inner_lr: alpha before meta-training: bounds that every element is drawn between, those of the paper, or one
            number for all.
        inner_steps: gradient steps on the support set in meta-training; the paper takes one.
        test_inner_steps: gradient steps in evaluation; as in training when left out.
        gradient: ``"unroll"``; ``"mixed"``: the same derivative in memory that hardly grows with the steps; ``"auto"``:
            unrolled where the memory is enough.

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

    class Config(DescentLearner.Config):
        """The settings of :class:`MetaSGD`."""

        inner_lr: PositiveFloat | tuple[PositiveFloat, PositiveFloat] = (0.005, 0.1)

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

    def fast_params(self, params: Params, episode: Episode) -> Params:
        """phi: theta after the inner loop on the support set of one task."""
        theta, alpha = split_rates(params)
        return gradient_descent(self.support_loss(episode), theta, lr=alpha, steps=self.config.inner_steps)

    def descent(self, params: Params) -> Descent:
        """The same inner loop, as data."""
        theta, _ = split_rates(params)
        return Descent(tuple(theta), 0.0, False, (*[0.0] * (self.config.inner_steps - 1), 1.0))
