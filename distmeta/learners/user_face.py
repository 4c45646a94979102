"""What users call on a learner or on their own model: train, adapt, load."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import numpy.typing as npt
import torch
from torch import nn

from distmeta.errors import LearnerContractError
from distmeta.learners.engine import Engine
from distmeta.learners.fast_model import FastModel
from distmeta.learners.functional import trainable
from distmeta.learners.labels import Labels
from distmeta.seeding import rng
from distmeta.types import Params

if TYPE_CHECKING:
    from distmeta.run.finishing import RunResult
    from distmeta.run.place import Place
    from distmeta.tasks.base import TaskDistribution

# Training is three floors up, and imports go only downwards. A name, not an import: train() also works where nothing
# but one algorithm's module was imported, and nobody has to register anything before.
_TRAINER = "distmeta.run.training:train_learner"


class Trainer(Protocol):
    """The function behind :meth:`UserFace.train`."""

    def __call__(
        self,
        learner: Any,
        tasks: TaskDistribution,
        *,
        run_dir: Path | str | None,
        place: Place | None,
        **settings: Any,
    ) -> RunResult:
        """Run the experiment, then give the learner the trained model and its parameters (:meth:`UserFace.adopt`)."""


class UserFace(Engine):
    """The methods of a learner that users call, all of them final."""

    @final
    def train(
        self,
        tasks: TaskDistribution,
        *,
        run_dir: Path | str | None = None,
        place: Place | None = None,
        **settings: Any,
    ) -> RunResult:
        """Meta-train on a task distribution; the model then holds the meta-learned parameters.

        Args:
            tasks: the distribution that training, validation and test tasks come from.
            run_dir: a new folder for the run; ``runs/NAME-TIME`` when left out.
            place: where the run computes and where it is recorded; this process, with a line of progress now and then,
                when left out.
            settings: those of :class:`distmeta.Outer`, for example ``iterations=2000``; ``seed``, ``name``, and others
                by dotted name, ``**{"runtime.workers": 2}``.

        Raises:
            DistmetaError: see :func:`distmeta.meta_train`.
        """
        module, _, name = _TRAINER.partition(":")
        trainer = cast("Trainer", getattr(importlib.import_module(module), name))
        return trainer(self, tasks, run_dir=run_dir, place=place, **settings)

    @final
    def adapt(
        self,
        support_x: torch.Tensor,
        support_y: Labels,
        *,
        transductive: bool = False,
        params: Params | None = None,
    ) -> FastModel:
        """Learn one new task from its support set, once.

        Args:
            support_x: ``[S, ...]`` inputs.
            support_y: ``[S]`` labels: a tensor of integers, or any hashable values in a list or an array; or ``[S, D]``
                floats for regression.
            transductive: let the inputs of a later ``predict`` share batch statistics, so that each prediction depends
                on the others. Otherwise a prediction depends on the support set and its own input alone.
            params: the meta-parameters to start from; those that the model holds now when left out.

        Raises:
            LearnerContractError: these are no examples with their labels, there are more classes than the model has
                outputs, or the learner takes no support set.
        """
        if self.model_kind == "sequence":
            raise LearnerContractError(
                f"{type(self).__name__} learns a task from one sequence that holds the labels too; expected no "
                "separate support set. Call model(sequences) with [B, L, ...] inputs, or learner.evaluate(params, "
                "episodes)."
            )
        now = self.meta_params if params is None else params
        return FastModel(self.for_evaluation(), now, support_x, support_y, transductive=transductive)

    @property
    @final
    def meta_params(self) -> Params:
        """Current meta-parameters: the model's, plus the algorithm's own (learned rates, say)."""
        return self._with_own({**self.init_meta_params(rng(0, "init")), **trainable(self.model)})

    @final
    def load(self, params: Params) -> None:
        """Take over meta-parameters: the model's into the model, the algorithm's own beside it.

        Args:
            params: by name, as ``init_meta_params`` names them.
        """
        model = dict(self.model.named_parameters())
        with torch.no_grad():
            for name in params.keys() & model.keys():
                model[name].copy_(params[name])
        self._own = {name: p.detach().clone() for name, p in params.items() if name not in model}

    @final
    def adopt(self, model: nn.Module, params: Params) -> None:
        """Hold ``model`` from now on, with ``params``: what a training leaves behind.

        A model that is on a GPU is kept: it was trained as a copy in main memory.
        """
        if not isinstance(self._model, nn.Module) or self.in_main_memory() is self:
            self._model = model
        self._attach()
        self.load(params)

    @final
    def _attach(self, given: object = None) -> None:
        models: tuple[object, object] = (self._model, given)
        for model in models:
            if isinstance(model, MetaModule):
                model.attach(self)


class MetaModule:
    """A mix-in that lets any ``nn.Module`` adapt and evaluate itself once a learner holds it.

    Example:
        >>> import distmeta
        >>> class MyModel(distmeta.MetaModule, nn.Linear): pass
        >>> model = MyModel(2, 3)
        >>> meta_learner = distmeta.MAML(model, inner_lr=0.1)
        >>> _ = model.adapt(torch.rand(3, 2), torch.arange(3))
        >>> model.evaluate(torch.rand(3, 2), torch.arange(3)) > 0
        True
    """

    _meta_learner: UserFace | None = None
    _fast_model: FastModel | None = None

    def attach(self, learner: UserFace) -> None:
        """Use ``learner`` from now on; called by the learner that takes this model."""
        self._meta_learner, self._fast_model = learner, None

    def adapt(self, x: torch.Tensor, y: Labels, *, transductive: bool = False) -> FastModel:
        """Learn one task from labelled examples ``x`` and ``y``; the other methods then use it.

        See :meth:`UserFace.adapt`.
        """
        if self._meta_learner is None:
            raise LearnerContractError(
                "adapt() was called on a model that no meta-learner holds. Make one first: MAML(model)."
            )
        self._fast_model = self._meta_learner.adapt(x, y, transductive=transductive)
        return self._fast_model

    def predict(self, x: torch.Tensor) -> torch.Tensor | npt.NDArray[Any]:
        """Labels or values from the adapted model, see :meth:`FastModel.predict`."""
        return self._adapted().predict(x)

    def predict_proba(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities from the adapted model, see :meth:`FastModel.predict_proba`."""
        return self._adapted().predict_proba(x)

    def evaluate(self, x: torch.Tensor, y: Labels) -> float:
        """Loss of the adapted model, see :meth:`FastModel.evaluate`."""
        return self._adapted().evaluate(x, y)

    def _adapted(self) -> FastModel:
        if self._fast_model is None:
            raise LearnerContractError("The model has not been adapted yet. Call adapt(x, y) first.")
        return self._fast_model
