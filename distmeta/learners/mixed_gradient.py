"""The exact meta-gradient through gradient descent, in memory that hardly grows with the number of inner steps.

Unrolling keeps the activations of every inner step until the outer derivative has come back through them. Here each
step keeps its fast parameters alone. The way back, with g and H the gradient and Hessian of the support loss, starts at
``v = d L(phi_K, D') / d phi_K`` and takes for i = K-1 to 0::

    d L / d alpha_i = - v o g(phi_i)
    v              <- v - H(phi_i) (alpha_i o v)

The product with the Hessian is the forward-mode derivative of the reverse-mode gradient (Pearlmutter 1994; Kemaev et
al. 2025, MixFlow-MG), which needs the memory of one step. It is the same derivative as the unrolled one, otherwise
rounded.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple, final

import torch

from distmeta.errors import LearnerContractError
from distmeta.learners.base import MetaLearner
from distmeta.learners.curvature import curvature, gradient_and_output, held_curvature
from distmeta.learners.functional import same_noise_after, task_gradient
from distmeta.learners.inner_loop import GradientLearner, split_rates, with_rates
from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.over_tasks import map_tasks
from distmeta.types import Episode, Metrics, Params


class Descent(NamedTuple):
    """An inner loop of gradient descent, as far as walking it back needs.

    Args:
        moving: names of the parameters that move.
        lr: the rate where none is learned.
        per_step: whether learned rates are one number per step, instead of one tensor for all steps.
        weights: how much the query loss counts after each of the steps 1 to K.
    """

    moving: tuple[str, ...]
    lr: float
    per_step: bool
    weights: tuple[float, ...]

    def rate(self, rates: Params, name: str, step: int) -> float | torch.Tensor:
        """The rate of a parameter at a step, of the learned rates by name."""
        if name not in rates:
            return self.lr
        return rates[name][step] if self.per_step else rates[name]


class DescentLearner(GradientLearner):
    """An algorithm that adapts by gradient descent: its meta-gradient is unrolled or walked back."""

    class Config(GradientLearner.Config):
        """The settings of every learner that differentiates through gradient descent.

        Args:
            gradient: how the exact meta-gradient is computed: ``"unroll"`` keeps the graph of all inner steps, with
                ``"mixed"`` memory hardly grows with their number. The two differ by rounding. ``"auto"``: unrolled
                where the predicted memory of a chunk allows it; chosen once, before the first worker starts, and a run
                goes on with what it began with. On another machine a new run may choose, and round, otherwise.
        """

        gradient: Literal["unroll", "mixed", "auto"] = "unroll"

    config: Config

    @abstractmethod
    def descent(self, params: Params) -> Descent:
        """The inner loop of :meth:`fast_params`, as data."""

    @property
    @final
    def walks_back(self) -> bool:
        """Whether ``gradient="mixed"`` can be taken, and is another way than unrolling."""
        return bool(self.exact_gradient and self.config.inner_steps) and _of_another_class(self) is None

    def chunk_gradient(self, params: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """The meta-gradient summed over T stacked tasks, and their metrics.

        Raises:
            LearnerContractError: ``gradient="mixed"`` of a subclass that has an inner loop or a loss of its own.
        """
        if self.config.gradient != "mixed" or not self.exact_gradient or not self.config.inner_steps:
            return super().chunk_gradient(params, episodes)  # there is no graph to save without second derivatives
        _require_own_loop(self)
        gradients, metrics = map_tasks(self._walked_back, params, episodes, loop=self.loops)
        return {name: gradients[name].sum(0) for name in params}, metrics

    def _walked_back(self, params: Params, episode: Episode) -> tuple[Params, Metrics]:
        """Gradient and metrics of one task."""
        theta, rates = split_rates(params)
        descent = self.descent(params)
        fixed = {name: p for name, p in theta.items() if name not in descent.moving}
        loss, noise = self.support_loss(episode), _Noise(episode.support_x.device)

        def query_loss(point: Params) -> tuple[torch.Tensor, torch.Tensor]:
            prediction = of_task(self.forward(point, episode.query_x), episode)
            return prediction_loss(prediction, episode.query_y), prediction

        # Query losses in between, where unrolling has them: a model's noise is the same then.
        fast = [{name: theta[name] for name in descent.moving}]
        value, from_queries = episode.query_x.new_zeros(()), {}
        for step, weight in enumerate(descent.weights):
            noise.keep()
            if step + 1 < len(descent.weights):
                gradient, _ = task_gradient(lambda moving: loss({**fixed, **moving}), fast[step], create_graph=False)
            else:  # the first step of the way back
                gradient, pull = held_curvature(loss, fixed, fast[step])
                held = [(gradient, pull)]
                del pull  # the graph lives as long as its last name
            rate = {name: descent.rate(rates, name, step) for name in descent.moving}
            fast.append({name: p - rate[name] * gradient[name] for name, p in fast[step].items()})
            if weight:
                gradient, one, prediction = gradient_and_output(query_loss, {**fixed, **fast[-1]})
                value = value + weight * one
                from_queries[step] = {name: weight * part for name, part in gradient.items()}

        total = {name: torch.zeros_like(p) for name, p in theta.items()}
        of_rates: dict[str, list[torch.Tensor]] = {name: [] for name in rates}
        fast.pop()
        while fast:
            step = len(fast) - 1
            for name, part in from_queries.pop(step, {}).items():
                total[name] = total[name] + part
            direction = {name: descent.rate(rates, name, step) * total[name] for name in descent.moving}
            point = fast.pop()
            if held:
                gradient, pull = held.pop()
                product = pull(direction)
                del pull
            else:
                with noise.of(step):
                    gradient, product = curvature(loss, fixed, point, direction, needs_gradient=bool(rates))
            for name, found in of_rates.items():
                found.insert(0, -total[name] * gradient[name])
                if not descent.per_step:  # one sum, not a tensor for each step
                    found[:] = [sum(found[1:], found[0])]
            total = {name: part - product[name] for name, part in total.items()}
        learned = {
            name: torch.stack([part.sum() for part in found]) if descent.per_step else found[0]
            for name, found in of_rates.items()
        }
        return with_rates(total, learned), {"loss": value, **prediction_metrics(prediction, episode.query_y)}


class _Noise:
    """The random numbers that a model drew in each inner step, for dropout say, to be drawn again on the way back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[torch.Tensor] = []

    def keep(self) -> None:
        """Keep the generator's state at the beginning of a step."""
        cuda = self._device.type == "cuda"
        self._states.append(torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state())

    @contextlib.contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Draw the numbers of a step again."""
        with same_noise_after(self._device):
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._states[step], self._device)
            else:
                torch.set_rng_state(self._states[step])
            yield


def _of_another_class(learner: DescentLearner) -> tuple[str, str] | None:
    """The method that a subclass replaces, and the class whose inner loop :meth:`descent` describes, if so."""
    kind = type(learner)
    of_descent = next(base for base in kind.__mro__ if "descent" in base.__dict__)
    for name in ("fast_params", "meta_loss"):
        owner = next(base for base in kind.__mro__ if name in base.__dict__)
        if owner not in (of_descent, MetaLearner):
            return name, of_descent.__name__
    return None


def _require_own_loop(learner: DescentLearner) -> None:
    """Raise where a subclass adapts or scores in a way that the walk back is not of."""
    found = _of_another_class(learner)
    if found is not None:
        raise LearnerContractError(
            f"{type(learner).__name__} replaces {found[0]}, and learner.gradient=mixed walks the inner loop of "
            f"{found[1]} back; expected the two to be of one class. Use gradient=unroll, or write descent() too."
        )
