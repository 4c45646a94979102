"""MAML++: how to train your MAML (Antoniou, Edwards, Storkey 2019), the parts that change the algorithm.

With K inner steps, theta = phi_0 and a learned rate for every parameter tensor n and every step k (LSLR)::

    phi_k[n] = phi_{k-1}[n] - alpha[n, k] * d L(phi_{k-1}, D) / d phi_{k-1}[n]
    loss     = sum_k w_k L(phi_k, D')                                           multi-step loss (MSL)

The importances go linearly from ``w_k = 1 / K`` at the first outer step to the last inner step alone at outer step
``multi_step_until``, after which this is MAML's loss (the authors' code keeps 0.03 / K on the other steps until then).
Before outer step ``first_order_until`` the inner gradients are constants, after it derivatives of second order are
taken (derivative-order annealing, DA). The rates are meta-learned under the names ``rate/NAME``, ``[K]`` each.

The paper's cosine outer rate is ``Outer(schedule="cosine")``. Its batch normalisation with statistics, weights and
biases per inner step is left out: a model here has one set of them, and the statistics of the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, model_validator

from distmeta.learners.inner_loop import gradient_descent, select, split_rates, with_rates
from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.mixed_gradient import Descent, DescentLearner
from distmeta.types import Episode, Metrics, Params


class MAMLPlusPlus(DescentLearner):
    """MAML with learned rates per layer and step, a loss after every step, and first-order gradients to begin with.

    With ``learned_rates=False`` and nothing else set it is :class:`distmeta.MAML`.

    Args:
        model: a network with one output per class (or per regression target), or a factory of one.
        inner_lr: alpha, the learning rate of the inner loop; where the learned ones begin.
        inner_steps: K, gradient steps on the support set in meta-training.
        test_inner_steps: gradient steps in evaluation, at most K, since every step has rates of its own; as in training
            when left out.
        adapt: which parameters move in the inner loop: ``"all"``, ``"head"`` (ANIL) or patterns of parameter names.
        learned_rates: LSLR: learn one rate for every parameter tensor and inner step.
        multi_step_until: MSL: the outer step from which the loss after the last inner step alone counts; 0: from the
            start.
        first_order_until: DA: the outer step from which second derivatives are taken; 0: from the start.
        gradient: ``"unroll"``; ``"mixed"``: the same derivative in memory that hardly grows with the steps; ``"auto"``:
            unrolled where the memory is enough.

    Example:
        >>> from torch import nn
        >>> learner = MAMLPlusPlus(nn.Linear(4, 5), inner_steps=3, multi_step_until=10)
        >>> learner.at_step(0).step_weights, learner.at_step(5).step_weights, learner.at_step(10).step_weights
        ([0.333..., 0.333..., 0.333...], [0.166..., 0.166..., 0.666...], [0.0, 0.0, 1.0])
        >>> params = learner.init_meta_params(np.random.default_rng(0))
        >>> params["rate/weight"].tolist()
        [0.1..., 0.1..., 0.1...]
    """

    class Config(DescentLearner.Config):
        """The settings of :class:`MAMLPlusPlus`."""

        inner_lr: PositiveFloat = 0.1
        inner_steps: NonNegativeInt = 5
        adapt: str = "all"
        learned_rates: bool = True
        multi_step_until: NonNegativeInt = 0
        first_order_until: NonNegativeInt = 0

        @model_validator(mode="after")
        def _no_more_steps_than_rates(self) -> Self:
            if self.learned_rates and (self.test_inner_steps or 0) > self.inner_steps:
                raise ValueError(
                    f"test_inner_steps={self.test_inner_steps}, but rates are learned for inner_steps="
                    f"{self.inner_steps} steps; expected at most that many, or learned_rates=False"
                )
            return self

    config: Config
    _step: float = math.inf  # of the outer loop; outside of training everything is annealed

    def at_step(self, step: int) -> Self:
        """With the loss and the order of derivatives of outer step ``step``."""
        clone = copy.copy(self)
        clone._step = step
        return clone

    @property
    def step_weights(self) -> list[float]:
        """w_1 to w_K: how much the query loss after each inner step counts."""
        others, until = max(self.config.inner_steps, 1) - 1, self.config.multi_step_until
        share = (1 - self._step / until) / (others + 1) if self._step < until else 0.0
        return [share] * others + [1 - others * share]

    @property
    def exact_gradient(self) -> bool:
        """False before ``first_order_until``, while second derivatives are left out."""
        return self._step >= self.config.first_order_until

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """theta as the model has it, and the rates, if they are learned."""
        theta, c = super().init_meta_params(rng), self.config
        moving = select(c.adapt, theta) if c.learned_rates and c.inner_steps else ()
        start = torch.full((c.inner_steps,), c.inner_lr, dtype=torch.float64)
        return with_rates(theta, dict.fromkeys(moving, start))

    def trajectory(self, params: Params, episode: Episode) -> Iterator[Params]:
        """phi_1 to phi_K: theta after each step of the inner loop on the support set of one task; theta if K is 0."""
        fast, rates = split_rates(params)
        moving = select(self.config.adapt, fast)
        loss = self.support_loss(episode)
        if not self.config.inner_steps:
            yield fast
        for k in range(self.config.inner_steps):
            lr = {name: rate[k] for name, rate in rates.items()} or self.config.inner_lr
            first_order = not self.exact_gradient
            fast = gradient_descent(loss, fast, lr=lr, steps=1, adapted=moving, first_order=first_order)
            yield fast

    def fast_params(self, params: Params, episode: Episode) -> Params:
        """phi_K."""
        *_, last = self.trajectory(params, episode)
        return last

    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """``sum_k w_k L(phi_k, D')``, and the accuracy of phi_K."""
        loss = episode.query_x.new_zeros(())
        for weight, fast in zip(self.step_weights, self.trajectory(params, episode), strict=True):
            if weight:  # the last one always
                prediction = of_task(self.forward(fast, episode.query_x), episode)
                loss = loss + weight * prediction_loss(prediction, episode.query_y)
        return loss, prediction_metrics(prediction, episode.query_y)

    def descent(self, params: Params) -> Descent:
        """The same inner loop, as data."""
        theta, _ = split_rates(params)
        moving = select(self.config.adapt, theta)
        return Descent(moving, self.config.inner_lr, self.config.learned_rates, tuple(self.step_weights))
