"""The settings of a run that are not the learner's or the tasks' own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from distmeta.config import Config
from distmeta.errors import ConfigError


class Outer(Config):
    """The outer loop: what the parameter server does with a meta-gradient.

    Args:
        iterations: outer steps; 0 evaluates the learner as it is given.
        meta_batch_size: tasks per outer step; their gradients are averaged.
        optimizer: ``"adam"``, ``"adamw"``, ``"sgd"``, ``"rmsprop"`` in the form of Graves (2013, equations 38 to 41:
            the variance of the gradient, decay 0.95, epsilon 1e-4), or ``"schedulefree"``, AdamW without a schedule
            (Defazio et al. 2024; needs the extra ``schedulefree``), which is evaluated at its average.
        lr: learning rate at step 0.
        schedule: ``"constant"``, ``"linear"`` (to 0) or ``"cosine"`` (to ``final_lr``) over ``iterations``.
        warmup: first steps, over which the learning rate rises linearly to ``lr``; the schedule has the others.
        final_lr: where the cosine ends.
        momentum: of SGD and RMSProp.
        nesterov: take SGD's momentum in the form of Nesterov.
        average: decay of the exponential moving average of the meta-parameters that validation, test and the finished
            run use, 0.999 say; training goes on from the parameters themselves. No average when left out.
        weight_decay: of AdamW (decoupled) or of the others (added to the gradient).
        clip_norm: largest Euclidean norm of the mean meta-gradient; longer ones are scaled down.
        clip_value: largest absolute value of one element, applied before ``clip_norm``.
    """

    iterations: NonNegativeInt = 1000
    meta_batch_size: PositiveInt = 32
    optimizer: Literal["adam", "adamw", "rmsprop", "schedulefree", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: NonNegativeFloat = 0.0
    warmup: NonNegativeInt = 0
    momentum: NonNegativeFloat = 0.0
    nesterov: bool = False
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None

    @property
    def averages(self) -> bool:
        """Whether the run is evaluated at an average of its parameters instead of where training goes on from."""
        return self.average is not None or self.optimizer == "schedulefree"

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(
                f"momentum={self.momentum:g} has no effect on {self.optimizer}, which has its own; expected sgd or "
                "rmsprop. Leave outer.momentum out, or set outer.optimizer=sgd"
            )
        if self.nesterov and not (self.momentum and self.optimizer == "sgd"):
            raise ValueError(
                f"nesterov=True has no effect on {self.optimizer} with momentum={self.momentum:g}; expected sgd with "
                "momentum. Leave outer.nesterov out, or set outer.optimizer=sgd and outer.momentum=0.9"
            )
        if self.optimizer == "schedulefree" and (self.schedule != "constant" or self.average is not None):
            raise ValueError(
                f"schedule={self.schedule} and average={self.average} beside schedulefree, which averages by itself; "
                "expected neither. Leave outer.schedule and outer.average out"
            )
        if self.warmup and self.warmup >= self.iterations > 0:
            raise ValueError(
                f"warmup={self.warmup} takes all of the iterations={self.iterations}; expected fewer. Set outer.warmup="
                f"{self.iterations // 10}, say"
            )
        if self.final_lr and self.schedule != "cosine":
            raise ValueError(
                f"final_lr={self.final_lr:g} has no effect on the {self.schedule} schedule; expected cosine. Leave "
                "outer.final_lr out, or set outer.schedule=cosine"
            )
        return self


def _number_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int | float) and float(value).is_integer() and value >= 1):
        return value
    raise ValueError("expected a whole number from 1, or auto")


class Runtime(Config):
    """How the work is spread. Only ``chunk_size`` and ``threads`` can change the bits of a result.

    Args:
        chunk_size: tasks adapted in one vectorised call. ``"auto"``: as many as leave each worker that the run begins
            with one call per step, and fit in half of its memory; chosen once, reported, kept with the run.
        threads: CPU threads per worker.
        workers: worker processes; one per ``threads`` CPUs of the cluster when left out.
        gpus_per_worker: GPUs per worker, fractions allowed; ``None`` shares the cluster's GPUs out, 0 is CPU only.
        leases_per_worker: calls a worker may have, of one chunk or several, so that the next is there when one ends.
        speculate_after: seconds after which an idle worker may duplicate another's call (never before three times the
            median for as many tasks).
        chunk_timeout: seconds after which a worker that has not answered a call counts as lost.
        startup_timeout: seconds that each worker may take to start.
        max_losses: worker losses within ``loss_window`` seconds before the run fails.
        loss_window: seconds.
        checkpoint_every: outer steps between checkpoints.
        keep_checkpoints: last checkpoints kept, beside the best.
    """

    chunk_size: Annotated[PositiveInt | Literal["auto"], BeforeValidator(_number_or_auto)] = 8
    threads: PositiveInt = 1
    workers: PositiveInt | None = None
    gpus_per_worker: NonNegativeFloat | None = None
    leases_per_worker: PositiveInt = 2
    speculate_after: PositiveFloat = 20.0
    chunk_timeout: PositiveFloat = 600.0
    startup_timeout: PositiveFloat = 120.0
    max_losses: NonNegativeInt = 10
    loss_window: PositiveFloat = 600.0
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2

    @property
    def tasks_per_call(self) -> int:
        """``chunk_size`` where it is a number, as it is once a run has begun."""
        if isinstance(self.chunk_size, int):
            return self.chunk_size
        raise ConfigError(
            "runtime.chunk_size=auto is chosen when a run begins, and nothing runs here; expected a number of tasks. "
            "Set runtime.chunk_size=8, say."
        )


class Evaluation(Config):
    """When and on how many tasks the learner is evaluated. Tasks are the same for every run with the same ``seed``.

    Args:
        every: outer steps between meta-validations; 0 for none.
        validation_tasks: tasks per meta-validation.
        test_tasks: meta-test tasks at the end.
        patience: stop after so many meta-validations without a better one; never when left out.
        seed: of the evaluation tasks, apart from the run's seed so that two runs can be compared pairwise.
    """

    every: NonNegativeInt = 500
    validation_tasks: Annotated[int, Field(ge=2)] = 200
    test_tasks: Annotated[int, Field(ge=2)] = 600
    patience: PositiveInt | None = None
    seed: NonNegativeInt = 0
