"""Reptile: a first-order meta-learning algorithm (Nichol, Achiam, Schulman 2018, algorithm 1 and its batch version).

For each task: ``phi = U^k(theta)``, k steps of SGD or Adam on mini-batches of the task; then::

    theta <- theta + epsilon * mean_i (phi_i - theta)

The meta-gradient is ``theta - phi``, so the outer optimizer is SGD whose rate is epsilon: ``Outer(optimizer="sgd",
lr=1.0, schedule="linear")`` is the paper's epsilon from 1 to 0. ``meta_batch_size=1`` is the serial version.

The inner optimizer starts every task afresh; in the authors' code Adam's statistics live on from task to task, which
would make a task depend on the tasks before it.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from distmeta.learners.fast_adam import adam_descent
from distmeta.learners.functional import stacking
from distmeta.learners.inner_loop import GradientLearner, first_order_descent
from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.over_tasks import map_tasks
from distmeta.occurrences import occurrence
from distmeta.types import Episode, Metrics, Params


class Reptile(GradientLearner):
    """Move the initialisation towards the weights that each task leads to.

    Args:
        model: a network with one output per class (or per regression target), or a factory of one.
        inner_lr: learning rate of the inner loop.
        inner_steps: k, steps per task in meta-training.
        inner_batch: examples per inner step; the whole support set when left out.
        inner_optimizer: ``"adam"`` (beta1 = 0, as the authors), ``"sgd"``, or ``"adamw"`` (beta1 = 0.9, with decay):
            with it and ``Outer(optimizer="sgd", lr=0.7, momentum=0.9, nesterov=True)`` Reptile is DiLoCo (Douillard et
            al. 2023), with ``"sgd"`` and outer rate 1 it is FedAvg (McMahan et al. 2017); a task is then a client.
        inner_weight_decay: of ``"adamw"``.
        test_inner_steps: steps in evaluation; as in training when left out.
        test_inner_batch: examples per step in evaluation; as in training when left out.

    Example:
        >>> from torch import nn
        >>> learner = Reptile(nn.Linear(4, 5), inner_steps=2)
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> learner.meta_gradient(theta, Episode(x, y, x, y)).tasks
        2
    """

    class Config(GradientLearner.Config):
        """The settings of :class:`Reptile`."""

        inner_lr: PositiveFloat = 1e-3
        inner_steps: NonNegativeInt = 5
        inner_batch: PositiveInt | None = None
        inner_optimizer: Literal["adam", "adamw", "sgd"] = "adam"
        inner_weight_decay: NonNegativeFloat = 0.0
        test_inner_batch: PositiveInt | None = None

        @model_validator(mode="after")
        def _no_decay_without_effect(self) -> Self:
            if self.inner_weight_decay and self.inner_optimizer != "adamw":
                raise ValueError(
                    f"inner_weight_decay={self.inner_weight_decay:g} has no effect on {self.inner_optimizer}; expected "
                    "adamw. Leave learner.inner_weight_decay out, or set learner.inner_optimizer=adamw"
                )
            return self

    config: Config

    def fast_params(self, params: Params, episode: Episode) -> Params:
        """phi: ``params`` after the inner loop on mini-batches of the support set of one task."""
        count = len(episode.support_x)
        size = self.config.inner_batch or count
        order = _in_turn(episode)

        def loss(point: Params, step: int) -> torch.Tensor:
            rows = order[[(step * size + i) % count for i in range(size)]]
            prediction = of_task(self.forward(point, episode.support_x[rows]), episode)
            return prediction_loss(prediction, episode.support_y[rows])

        c = self.config
        settings: dict[str, Any] = {"lr": c.inner_lr, "steps": c.inner_steps, "optimizer": c.inner_optimizer}
        if c.inner_optimizer == "adamw":
            settings |= {"beta1": 0.9, "weight_decay": c.inner_weight_decay}
        level = stacking() if settings["optimizer"] != "sgd" else None
        if level is not None:
            del settings["optimizer"]
            return adam_descent(loss, params, level, **settings)
        return first_order_descent(loss, params, **settings)

    def chunk_gradient(self, params: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """``sum_i theta - phi_i`` over the tasks of a chunk, and the losses of phi_i on the queries."""

        def one(theta: Params, episode: Episode) -> tuple[Params, Metrics]:
            phi = self.fast_params(theta, episode)
            prediction = of_task(self.forward(phi, episode.query_x), episode)
            metrics = {"loss": prediction_loss(prediction, episode.query_y)}
            return phi, metrics | prediction_metrics(prediction, episode.query_y)

        with torch.no_grad():
            fast, metrics = map_tasks(one, params, episodes, loop=self.loops)
        return {name: (p - fast[name]).sum(0) for name, p in params.items()}, metrics

    @property
    def exact_gradient(self) -> bool:
        """False: theta - phi is the derivative of no loss in general."""
        return False


def _in_turn(episode: Episode) -> torch.Tensor:
    """Support-set order that cycles through the classes, so that every mini-batch is balanced."""
    labels = episode.support_y
    if episode.ways is None:
        return torch.arange(len(labels), device=labels.device)
    return occurrence(labels[None])[0].argsort(stable=True)
