"""MAML: Model-Agnostic Meta-Learning (Finn, Abbeel, Levine 2017, algorithm 2).

For each task i with support set D_i and query set D'_i::

    phi_i  = theta - alpha * grad_theta L(theta, D_i)         inner loop, repeated inner_steps times
    theta <- theta - beta * grad_theta sum_i L(phi_i, D'_i)   outer loop, through the inner one (second order)

``first_order=True`` is FOMAML (section 5.2): ``grad_theta`` of the outer loss is taken at phi_i as if phi_i did not
depend on theta. ``adapt="head"`` is ANIL (Raghu et al. 2020): only the last layer moves in the inner loop.
"""

from __future__ import annotations

from pydantic import PositiveFloat

from distmeta.learners.inner_loop import gradient_descent, select
from distmeta.learners.mixed_gradient import Descent, DescentLearner
from distmeta.types import Episode, Params


class MAML(DescentLearner):
    """Learn an initialisation from which a few gradient steps solve a new task.

    Args:
        model: a network with one output per class (or per regression target), or a factory of one.
        inner_lr: alpha, the learning rate of the inner loop.
        inner_steps: gradient steps on the support set in meta-training.
        test_inner_steps: gradient steps in evaluation; as in training when left out.
        first_order: FOMAML: ignore second derivatives.
        adapt: which parameters move in the inner loop: ``"all"``, ``"head"`` (ANIL) or patterns of parameter names.
        gradient: ``"unroll"``; ``"mixed"``: the same derivative in memory that hardly grows with the steps; ``"auto"``:
            unrolled where the memory is enough.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> learner = MAML(nn.Linear(4, 5), inner_lr=0.4, test_inner_steps=3)
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> gradient = learner.meta_gradient(theta, Episode(x, y, x, y))
        >>> gradient.tasks, gradient.gradient["weight"].shape
        (2, torch.Size([5, 4]))
    """

    class Config(DescentLearner.Config):
        """The settings of :class:`MAML`."""

        inner_lr: PositiveFloat = 0.4
        first_order: bool = False
        adapt: str = "all"

    config: Config

    def fast_params(self, params: Params, episode: Episode) -> Params:
        """phi: ``params`` after the inner loop on the support set of one task."""
        return gradient_descent(
            self.support_loss(episode),
            params,
            lr=self.config.inner_lr,
            steps=self.config.inner_steps,
            adapted=select(self.config.adapt, params),
            first_order=self.config.first_order,
        )

    def descent(self, params: Params) -> Descent:
        """The same inner loop, as data."""
        c = self.config
        return Descent(select(c.adapt, params), c.inner_lr, False, (*[0.0] * (c.inner_steps - 1), 1.0))

    @property
    def exact_gradient(self) -> bool:
        """False for FOMAML, whose gradient leaves out the second derivatives."""
        return not self.config.first_order
