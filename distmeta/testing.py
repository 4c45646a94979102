"""Checks for your own models, tasks and learners, as ``distmeta check JOB.py`` and your tests run them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from distmeta.errors import LearnerContractError, listed
from distmeta.experiment.experiment import Experiment
from distmeta.learners.base import MetaLearner
from distmeta.learners.engine_errors import in_float64
from distmeta.learners.functional import in_training
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.probe import probe
from distmeta.seeding import rng
from distmeta.types import Episode, Params, TaskRef

TOLERANCE = 1e-5


@dataclass(frozen=True)
class GradientCheck:
    """How exact a meta-gradient is, in float64.

    Args:
        engine: ``"vmap"``, ``"vmap-2"`` or ``"loop"``, as the runtime would use it.
        loop_error: relative difference from a plain loop over the tasks; 0 where the engine is that loop.
        difference_errors: per parameter, the relative error against central finite differences; empty for a learner
            whose meta-gradient is not a derivative (FOMAML, Reptile).
        tolerance: the largest error that passes.
    """

    engine: str
    loop_error: float
    difference_errors: Mapping[str, float]
    tolerance: float = TOLERANCE

    @property
    def wrong(self) -> dict[str, float]:
        """Parameters whose gradient fails, with their errors."""
        return {name: error for name, error in self.difference_errors.items() if not error <= self.tolerance}

    def require(self) -> None:
        """Raise if a check fails.

        Raises:
            LearnerContractError: names the parameters.
        """
        if not self.loop_error <= 1e-9:
            raise LearnerContractError(
                f"The vectorised meta-gradient differs from a plain loop's by {self.loop_error:.1e}, relative; "
                "expected at most 1e-9. Set learner.vectorise=loop and report the layer."
            )
        if self.wrong:
            wrong = listed(f"{name} (relative error {error:.1e})" for name, error in self.wrong.items())
            raise LearnerContractError(
                f"The meta-gradient of {wrong} is not the derivative of the loss; expected an error of at most "
                f"{self.tolerance:.0e}. Look for .detach(), .data, torch.no_grad() or a custom backward where the "
                "model uses it. If fewer learner.inner_steps pass, the model is right, and the derivative through so "
                "many steps is beyond the digits of float64."
            )


def check_model(learner: MetaLearner, experiment: Experiment) -> str | None:
    """Shapes, batch-norm policy, buffers, unused parameters: raises on the first that fails.

    Returns:
        Why a slower engine would be used, or what of the model would not be; ``None`` otherwise.
    """
    spec, episodes = experiment.tasks.spec_of("meta_train"), _episodes(experiment, 2)
    return probe(learner.bind(spec, experiment.seed).in_main_memory(), spec, episodes, experiment.tasks.spec).message


def check_task(experiment: Experiment) -> None:
    """Check that a task is a pure function of its name: the same twice, and another for another index.

    Raises:
        TaskContractError, DataError: the tasks cannot be made.
        LearnerContractError: a task is not reproducible, or all are the same.
    """
    tasks = experiment.tasks
    tasks.check()
    first, again, other = (tasks.episode(TaskRef("meta_train", 0, index), experiment.seed) for index in (0, 0, 1))
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise LearnerContractError(
            "The same task came out differently the second time; expected a pure function of its name. Take every "
            "random number from the generator that the task function is given."
        )
    if all(torch.equal(a, b) for a, b in zip(first, other, strict=True)):
        raise LearnerContractError(
            "Two tasks came out equal; expected different ones. Take random numbers from the generator that the task "
            "function is given."
        )


def check_gradient(experiment: Experiment, *, tasks: int = 3) -> GradientCheck:
    """Compare the meta-gradient of a chunk, through the engine as the runtime calls it, with slower truths in float64.

    Args:
        experiment: learner and tasks.
        tasks: T, tasks in the chunk.

    Raises:
        LearnerContractError: the gradient is 0, so that there is nothing to compare.

    Example:
        >>> import distmeta
        >>> learner = distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.1)
        >>> check = check_gradient(distmeta.Experiment(learner=learner, tasks=distmeta.Sinusoids()))
        >>> check.engine, check.wrong
        ('vmap', {})
    """
    spec = experiment.tasks.spec_of("meta_train")
    exact = experiment.learner.with_config(precision="float32")
    learner = in_float64(exact.bind(spec, experiment.seed).in_main_memory())
    episodes = _episodes(experiment, tasks).to(torch.device("cpu"), torch.float64)
    learner = probe(learner, spec, episodes, experiment.tasks.spec).learner
    params = learner.init_meta_params(rng(experiment.seed, "init"))
    layout = ParamLayout.of(params)
    gradient = learner.meta_gradient(params, episodes).gradient
    flat = torch.from_numpy(layout.flatten(gradient))
    if not flat.any():
        raise LearnerContractError(
            "The meta-gradient of an untrained model is 0 in every parameter, so that nothing would be learned; "
            "expected numbers. Look at the first weights (all zero?), or for tasks whose loss is 0 whatever the model "
            "returns."
        )
    looped = learner.with_config(vectorise="loop").meta_gradient(params, episodes).gradient
    loop_error = float((flat - torch.from_numpy(layout.flatten(looped))).norm() / flat.norm())
    errors: dict[str, float] = {}
    if learner.exact_gradient:
        random = rng(0, "directions")
        for name, part in gradient.items():
            direction = torch.from_numpy(random.standard_normal(tuple(part.shape))).reshape(part.shape)
            direction /= direction.norm()
            errors[name] = _direction_error(learner, params, episodes, name, direction, part, float(flat.norm()))
    return GradientCheck(learner.config.vectorise, loop_error, errors)


def check_adaptation(experiment: Experiment, *, tasks: int = 20) -> tuple[float, float] | None:
    """Mean query loss of untrained parameters before and after the inner loop of evaluation, on training tasks.

    Afterwards it should be lower, or at least not much higher: else the inner rate is too high for these inputs.

    Returns:
        Loss before and after; ``None`` for a learner without inner steps.

    Example:
        >>> import distmeta
        >>> learner = distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01)
        >>> before, after = check_adaptation(distmeta.Experiment(learner=learner, tasks=distmeta.Sinusoids()))
        >>> after < before
        True
    """
    spec = experiment.tasks.spec_of("meta_train")
    bound = experiment.learner.bind(spec, experiment.seed).in_main_memory()
    learner = bound.with_config(vectorise="loop").for_evaluation()
    if "inner_steps" not in type(learner.config).model_fields:
        return None
    params = learner.init_meta_params(rng(experiment.seed, "init"))
    layout = ParamLayout.of(params)
    episodes = _episodes(experiment, tasks).to(torch.device("cpu"), layout.torch_dtype)
    before, after = (
        float(who.evaluate(params, episodes)["loss"].mean()) for who in (learner.with_config(inner_steps=0), learner)
    )
    return before, after


def _direction_error(
    learner: MetaLearner,
    params: Params,
    episodes: Episode,
    name: str,
    direction: torch.Tensor,
    gradient: torch.Tensor,
    norm: float,
) -> float:
    def loss(offset: float) -> float:
        moved = {**params, name: params[name] + offset * direction}
        theta = {key: value.detach().requires_grad_() for key, value in moved.items()}
        # The loss of an exact gradient is that of chunk_losses: no backward pass, which is most of the time.
        with in_training(learner.model), contextlib.closing(learner.chunk_losses(theta, episodes)) as parts:
            return sum(float(losses.detach().sum()) for losses, _ in parts)

    claimed = float((gradient * direction).sum())
    least = math.inf
    # A kink of ReLU or max-pooling may lie within one, hardly within all. Longer ones suffer less from rounding.
    for step in (1e-5, 1e-6, 1e-7, 1e-4):
        true = (loss(step) - loss(-step)) / (2 * step)
        least = min(least, abs(true - claimed) / max(abs(true), abs(claimed), 1e-3 * norm))
        if least <= TOLERANCE:
            break
    return least


def _episodes(experiment: Experiment, count: int) -> Episode:
    return experiment.tasks.episodes([TaskRef("meta_train", 0, i) for i in range(count)], experiment.seed)


__all__ = ["GradientCheck", "check_adaptation", "check_gradient", "check_model", "check_task"]
