"""The gradient family: learners that adapt by gradient steps on one task's support set, and their parts."""

from __future__ import annotations

import contextlib
import fnmatch
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Self, final

import numpy.typing as npt
import torch
from pydantic import NonNegativeInt

from distmeta.config import did_you_mean
from distmeta.errors import ConfigError, listed
from distmeta.learners.base import MetaLearner
from distmeta.learners.engine import Predict
from distmeta.learners.functional import task_gradient
from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.over_tasks import map_tasks
from distmeta.learners.pictures import Curves, Picture
from distmeta.types import Episode, Metrics, Params

_RATE = "rate/"  # no name of a module's parameter has a slash unless someone goes out of their way


class GradientLearner(MetaLearner):
    """An algorithm that adapts parameters to the support set and then uses them: ``f(query_x; phi)``.

    A subclass writes :meth:`fast_params`; predictions, evaluation and the adaptation picture follow from it.

    Example:
        Steps along the sign of the gradient:

        >>> class SignSteps(GradientLearner):
        ...     def fast_params(self, params, episode):
        ...         loss = self.support_loss(episode)
        ...         for _ in range(self.config.inner_steps):
        ...             gradient, _ = task_gradient(loss, params)
        ...             params = {name: p - 0.01 * gradient[name].sign() for name, p in params.items()}
        ...         return params
        >>> fast = SignSteps(torch.nn.Linear(2, 3), test_inner_steps=5).adapt(torch.eye(3, 2), torch.arange(3))
        >>> fast.logits(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    model_kind = "classifier"

    class Config(MetaLearner.Config):
        """The settings of every gradient learner; in evaluation a setting ``test_NAME`` replaces ``NAME``.

        Args:
            inner_steps: gradient steps on the support set in meta-training.
            test_inner_steps: gradient steps in evaluation; as in training when left out.
        """

        inner_steps: NonNegativeInt = 1
        test_inner_steps: NonNegativeInt | None = None

    config: Config

    @abstractmethod
    def fast_params(self, params: Params, episode: Episode) -> Params:
        """phi: the parameters after ``inner_steps`` steps on the support set of ONE task.

        Args:
            params: the meta-parameters theta, by name.
            episode: one task, not stacked; its queries are not for adaptation.

        Returns:
            The model's parameters, by name.
        """

    def support_loss(self, episode: Episode) -> Callable[[Params], torch.Tensor]:
        """The loss on the support set of one task as a function of the model's parameters."""

        def loss(point: Params) -> torch.Tensor:
            return prediction_loss(of_task(self.forward(point, episode.support_x), episode), episode.support_y)

        return loss

    @final
    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """f(query_x; phi), the outputs that stand for classes of the task."""
        return of_task(self.forward(self.fast_params(params, episode), episode.query_x), episode)

    @final
    def learned(self, params: Params, episode: Episode) -> Params:
        """phi, after one inner loop."""
        return self.fast_params(params, episode)

    @final
    def using(self, params: Params, learned: Params, episode: Episode) -> Predict:
        """f(.; phi)."""
        return partial(self.forward, learned)

    @final
    def explained(self, params: Params, episode: Episode, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``logits_by_step``: the logits after 0 to ``inner_steps`` steps, as far as the settings allow."""
        found = []
        for steps in range(self.config.inner_steps + 1):
            with contextlib.suppress(ConfigError):
                learner = self.with_config(inner_steps=steps, test_inner_steps=steps)
                found.append(learner.keeping_statistics(learner.adapted(params, episode), params, episode)(x))
        return {"logits_by_step": torch.stack(found, 1)}

    @final
    def for_evaluation(self) -> Self:
        """With the value of every setting ``test_NAME`` that is given in place of a setting ``NAME``."""
        test = {key.removeprefix("test_"): value for key, value in self.config if key.startswith("test_")}
        fields = type(self.config).model_fields
        changes = {key: value for key, value in test.items() if value is not None and key in fields}
        return self.with_config(**changes) if changes else self

    @final
    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``adaptation``: loss and accuracy on the queries after every inner step that the settings allow."""

        def after(steps: int) -> GradientLearner:
            return self.with_config(inner_steps=steps, test_inner_steps=steps)

        return {"adaptation": adaptation_curve(after, self.config.inner_steps, params, episodes)}


def gradient_descent(
    loss: Callable[[Params], torch.Tensor],
    params: Params,
    *,
    lr: float | Params,
    steps: int,
    adapted: Iterable[str] | None = None,
    first_order: bool = False,
) -> Params:
    """``phi_0 = theta; phi_{i+1} = phi_i - lr * d loss(phi_i) / d phi_i`` (Finn et al. 2017, equation 1).

    Args:
        loss: support loss as a function of all parameters, a scalar.
        params: theta, tensors by name.
        lr: the inner learning rate, one number or one tensor per adapted name.
        steps: number of gradient steps.
        adapted: names that move; ``None`` moves all.
        first_order: treat the inner gradient as a constant (FOMAML).

    Returns:
        phi, under the same names; names that do not move are passed through.

    Example:
        >>> phi = gradient_descent(lambda p: (p["w"] ** 2).sum(), {"w": torch.tensor([1.0])}, lr=0.25, steps=1)
        >>> phi["w"].tolist()
        [0.5]
    """
    names = list(params) if adapted is None else list(adapted)
    fixed = {name: p for name, p in params.items() if name not in set(names)}
    fast = {name: params[name] for name in names}
    for _ in range(steps):
        gradient, _value = task_gradient(lambda moving: loss({**fixed, **moving}), fast, create_graph=not first_order)
        fast = {name: fast[name] - (lr if isinstance(lr, float | int) else lr[name]) * gradient[name] for name in names}
    return {name: fast.get(name, params[name]) for name in params}


def first_order_descent(
    loss: Callable[[Params, int], torch.Tensor],
    params: Params,
    *,
    lr: float,
    steps: int,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    beta1: float = 0.0,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Params:
    """Plain training from ``params``, gradients taken as constants: SGD, Adam or AdamW.

    Adam, from ``m_0 = v_0 = 0``, and AdamW with its decoupled decay w (0 for Adam)::

        m_i   = beta1 m_{i-1} + (1 - beta1) g_i
        v_i   = beta2 v_{i-1} + (1 - beta2) g_i^2
        phi_i = (1 - lr w) phi_{i-1} - lr (m_i / (1 - beta1^i)) / (sqrt(v_i / (1 - beta2^i)) + epsilon)

    Args:
        loss: of a point and the number of the step, so that steps may see different mini-batches.
        params: theta, tensors by name.
        lr: learning rate.
        steps: number of steps.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        beta1: decay of the gradient, Adam's momentum; 0 for none, as in the code of Reptile.
        beta2: Adam's decay of the squared gradient.
        epsilon: keeps Adam's quotient finite.
        weight_decay: of AdamW.

    Returns:
        phi, under the same names.

    Example:
        >>> start = {"w": torch.tensor([1.0])}
        >>> phi = first_order_descent(lambda p, i: (p["w"] ** 2).sum(), start, lr=0.25, steps=1, optimizer="adam")
        >>> round(float(phi["w"]), 4)
        0.75
    """
    fast, square = dict(params), {name: torch.zeros_like(p) for name, p in params.items()}
    mean = square
    for step in range(steps):
        gradient, _value = task_gradient(partial(_at, loss, step), fast, create_graph=False)
        move = gradient
        if optimizer != "sgd":
            square = {name: beta2 * square[name] + (1 - beta2) * gradient[name].square() for name in fast}
            correction = 1 - beta2 ** (step + 1)
            if beta1:
                mean = {name: beta1 * mean[name] + (1 - beta1) * gradient[name] for name in fast}
                move = {name: mean[name] / (1 - beta1 ** (step + 1)) for name in fast}
            move = {name: move[name] / ((square[name] / correction).sqrt() + epsilon) for name in fast}
        if optimizer == "adamw":
            fast = {name: (1 - lr * weight_decay) * p for name, p in fast.items()}
        fast = {name: p - lr * move[name] for name, p in fast.items()}
    return fast


def _at(loss: Callable[[Params, int], torch.Tensor], step: int, point: Params) -> torch.Tensor:
    return loss(point, step)


def select(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """The parameter names that ``adapt=pattern`` moves in the inner loop.

    Args:
        pattern: ``"all"``; ``"head"``: the parameters of the last module (ANIL, Raghu et al. 2020); or shell patterns
            of parameter names, comma separated, such as ``"features.3.*,head.*"``.
        names: all meta-parameter names, in the model's order.

    Raises:
        ConfigError: a pattern matches no parameter.

    Example:
        >>> select("head", ["features.0.weight", "features.0.bias", "head.weight", "head.bias"])
        ('head.weight', 'head.bias')
    """
    known = tuple(names)
    if pattern == "all" or not known:
        return known
    if pattern == "head":
        last, _, _ = known[-1].rpartition(".")
        return tuple(name for name in known if name.rpartition(".")[0] == last)
    parts = [part.strip() for part in pattern.split(",")]
    for part in parts:
        if not fnmatch.filter(known, part):
            raise ConfigError(
                f"adapt={pattern!r}: {part!r} matches no parameter.{did_you_mean(part, known)} "
                f"Give 'all', 'head' or patterns of these names: {listed(known, 10)}."
            )
    return tuple(name for name in known if any(fnmatch.fnmatchcase(name, part) for part in parts))


def with_rates(theta: Params, rates: Params) -> Params:
    """theta and learned inner rates as one set of meta-parameters: ``NAME``, and ``rate/NAME`` for its rate.

    Args:
        theta: the model's parameters.
        rates: by the name of the parameter that they move; taken to its type and device.

    Example:
        >>> list(with_rates({"w": torch.ones(2)}, {"w": torch.tensor(0.1)}))
        ['w', 'rate/w']
    """
    return {**theta, **{_RATE + name: rate.to(theta[name]) for name, rate in rates.items()}}


def split_rates(params: Params) -> tuple[Params, Params]:
    """theta, and the learned inner rates by the name of the parameter that they move.

    Example:
        >>> theta, rates = split_rates({"w": torch.ones(2), "rate/w": torch.tensor(0.5)})
        >>> list(theta), rates
        (['w'], {'w': tensor(0.5000)})
    """
    theta = {name: p for name, p in params.items() if not name.startswith(_RATE)}
    return theta, {name.removeprefix(_RATE): p for name, p in params.items() if name.startswith(_RATE)}


def adaptation_curve(
    after: Callable[[int], MetaLearner], steps: int, params: Params, episodes: Episode, *, at_once: int = 10
) -> Curves:
    """The loss and accuracy on the queries after 0 to ``steps`` inner steps.

    Args:
        after: returns the learner that takes a given number of inner steps; a number that it refuses by a
            ``ConfigError`` is left out.
        steps: the largest number.
        params: theta, by name.
        episodes: T stacked tasks.
        at_once: tasks in memory together.
    """
    marks = [k for k in (*range(11), 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000) if k < steps] + [steps]
    if len(marks) > 12:  # most of a long curve's change is early
        marks = [k for k in marks if k in (0, 1, 2, 3, 5, 7, 10) or k > 10]
    learners: dict[int, MetaLearner] = {}
    for k in marks:
        with contextlib.suppress(ConfigError):
            learners[k] = after(k)
    values: dict[str, list[npt.ArrayLike]] = {}
    for learner in learners.values():
        learner.model.eval()

        def evaluated(theta: Params, episode: Episode, learner: MetaLearner = learner) -> Metrics:
            prediction = learner.query_logits(theta, episode)
            loss = {"loss": prediction_loss(prediction, episode.query_y)}
            return loss | prediction_metrics(prediction, episode.query_y)

        parts = []
        for start in range(0, len(episodes.query_x), at_once):
            chunk = episodes.map(lambda part, start=start: part[start : start + at_once])  # type: ignore[misc]
            with torch.no_grad():
                parts.append(map_tasks(evaluated, params, chunk, loop=learner.loops))
        for name in parts[0]:
            values.setdefault(name, []).append(torch.cat([part[name] for part in parts]).cpu().numpy())
    return Curves(
        f"queries of {len(episodes.query_x)} tasks over the inner loop",
        "inner steps on the support set",
        list(learners),
        values,
    )
