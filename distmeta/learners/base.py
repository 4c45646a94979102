"""The contract of every algorithm: what an author writes.

A new algorithm is a subclass of :class:`MetaLearner` in one file, found by scanning. Most write
:meth:`~MetaLearner.query_logits` for ONE task and stop. Three families have a base of their own:
:class:`~distmeta.learners.inner_loop.GradientLearner`, :class:`~distmeta.learners.metric.MetricLearner` and
:class:`~distmeta.learners.sequence.SequenceLearner`.

The other two audiences of a learner have their own files: the runtime calls
:class:`~distmeta.learners.engine.Engine`, users call :class:`~distmeta.learners.user_face.UserFace`.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, Literal, NoReturn, Self, final, get_args

import numpy as np
import torch
from torch import nn

from distmeta import config
from distmeta.errors import LearnerContractError
from distmeta.learners.engine import ModelKind
from distmeta.learners.functional import differentiable_twice, kernels_of_model, trainable
from distmeta.learners.losses import of_task, prediction_loss, prediction_metrics
from distmeta.learners.pictures import Picture
from distmeta.learners.precision import Precision, of_algorithm, of_model
from distmeta.learners.user_face import UserFace
from distmeta.learners.user_model import plain, require_tensor
from distmeta.types import Episode, Metrics, ModelFactory, Params

_HOOKS = (
    "fast_params",
    "descent",
    "sequence_loss",
    "query_logits",
    "meta_loss",
    "init_meta_params",
    "for_evaluation",
    "at_step",
    "exact_gradient",
    "support_weights",
    "pictures",
)


class MetaLearner(UserFace):
    """A meta-learning algorithm: one task's mathematics around a plain ``nn.Module``.

    A subclass writes ``query_logits``, and any of the hooks ``meta_loss``, ``init_meta_params``, ``for_evaluation``,
    ``at_step``, ``exact_gradient`` and ``pictures``; it calls ``forward`` and reads ``model`` and ``config``. What is
    marked final cannot be overridden.

    Args:
        model: the network, or a factory ``TaskSpec -> nn.Module`` such as :func:`distmeta.conv4`. An instance keeps the
            weights that it has (a pretrained encoder, say); a factory is built from the seed of the run.
        settings: the fields of the nested ``Config``, by keyword.

    Raises:
        ConfigError: a setting is unknown or out of range.

    Example:
        A whole algorithm: class means of the support set, nearest mean for the queries.

        >>> class NearestMean(MetaLearner):
        ...     def query_logits(self, params, episode):
        ...         support = self.forward(params, episode.support_x)
        ...         query = self.forward(params, episode.query_x)
        ...         one_hot = F.one_hot(episode.support_y, episode.ways).to(support)
        ...         means = one_hot.T @ support / one_hot.sum(0)[:, None]
        ...         return -torch.cdist(query, means)
        >>> NearestMean(nn.Flatten()).config.vectorise
        'auto'
    """

    class Config(config.Config):
        """Settings that every learner has.

        Args:
            batch_norm: whose statistics batch normalisation uses. ``"batch"``: of the batch at hand, in training and in
                evaluation, as in the papers (query accuracies are then transductive; evaluation reports the
                non-transductive ones beside them). Running averages are refused: they leak between tasks. Only a frozen
                part (``part.requires_grad_(False).eval()``) keeps its own, in training too: it learns nothing.
            vectorise: how the tasks of a chunk are computed. ``"loop"``: one after the other; ``"vmap"``: in one
                vectorised call of torch's own kernels; ``"vmap-2"``: the same with distmeta's kernels for 2-d
                convolutions, their norms and pooling, on CPUs; ``"auto"``: probed once before the first worker starts.
                A run goes on with what it began with. All compute the same function, and round otherwise.
            precision: what the model computes with in training. ``"float32"``; ``"tf32"``: products and convolutions of
                a GPU in TF32; ``"bfloat16"``: products and convolutions, and what lies between them, in bfloat16, for
                GPUs; a CPU rounds the same numbers and is hardly faster, or slower. Parameters, losses, the steps in a
                task and the meta-gradient are float32 in any case, and so is all of evaluation and use.
        """

        batch_norm: Literal["batch"] = "batch"
        vectorise: Literal["auto", "vmap", "vmap-2", "loop"] = "auto"
        precision: Precision = "float32"

    config: Config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass that overrides what is final, or uses a name that no longer has an effect."""
        super().__init_subclass__(**kwargs)
        _require_names(cls)
        _require_finals(cls)

    def __init__(self, model: nn.Module | ModelFactory, **settings: Any) -> None:
        super().__init__(**settings)
        # Without the wrappers that a model may come in, and with the same parameters.
        self._model, self._unused_wrapper = plain(model) if isinstance(model, nn.Module) else (model, "")
        self._own = {}
        self._attach(model)

    @abstractmethod
    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """Predictions for the queries of ONE task after learning from its support set.

        Args:
            params: the meta-parameters theta, by name.
            episode: one task, not stacked.

        Returns:
            ``[N*Q, N]`` logits (or log-probabilities) for classification, ``[N*Q, D]`` values for regression.
        """

    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """Hook: the loss of ONE task. Its gradient trains the meta-parameters, and evaluation reports it.

        Returns:
            A scalar, and scalars worth recording.
        """
        prediction = of_task(self.query_logits(params, episode), episode)
        return prediction_loss(prediction, episode.query_y), prediction_metrics(prediction, episode.query_y)

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """Hook: the first meta-parameters, where the algorithm has parameters of its own beside the model's."""
        return trainable(self.model)

    def for_evaluation(self) -> Self:
        """Hook: the learner as it is used on validation and test tasks (more inner steps, say)."""
        return self

    def at_step(self, step: int) -> Self:
        """Hook: the learner as it is at one outer step of meta-training, where something is annealed.

        A chunk carries its outer step, so what depends on the step depends on no worker and needs no state: a run that
        is resumed, or a chunk that is computed again elsewhere, finds the same learner.

        Args:
            step: outer steps done before this one.
        """
        return self

    @property
    def exact_gradient(self) -> bool:
        """Hook: whether ``meta_gradient`` is the derivative of the mean ``meta_loss`` (FOMAML and Reptile are not)."""
        return True

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """Hook: pictures of how this learner learns, drawn at the end of a run, one PNG per entry.

        Return data, not a drawing: one of the kinds of :mod:`distmeta.learners.pictures`. ``Curves`` are per-task
        numbers over some quantity (see ``adaptation_curve``); ``Attention`` is a grid of weights between images;
        ``Heatmaps`` are matrices over one time axis, such as the read and write weights of a memory; ``Gallery`` is
        rows of images with captions, such as nearest pairs. The runtime knows none of this by algorithm::

            def pictures(self, params, episodes):
                episode = unstack(episodes)[0]
                with torch.no_grad(), vectorised(False):
                    reads, writes = self.weights(params, episode)  # each [slots, time]
                return {"memory": Heatmaps("one episode", "time", {"read": reads.cpu(), "write": writes.cpu()})}

        Args:
            params: the meta-parameters that the run is evaluated by.
            episodes: T stacked held-out tasks, at most 100; take the first for a picture of one task.

        Returns:
            The pictures by file name without its ending; none where there is nothing to see, as for inputs that are
            no images.
        """
        return {}

    @property
    def _scores_predictions(self) -> bool:
        """Whether ``meta_loss`` is the one above."""
        return type(self).meta_loss is MetaLearner.meta_loss

    @property
    @final
    def model(self) -> nn.Module:
        """The network.

        Raises:
            LearnerContractError: a factory was given and no task distribution has been seen yet.
        """
        if not isinstance(self._model, nn.Module):
            raise LearnerContractError(
                f"{type(self).__name__} was given a model factory and has not seen its tasks yet. "
                "Call train(tasks) or bind(tasks.spec) first, or give an nn.Module."
            )
        return self._model

    @final
    def forward(self, params: Params, *inputs: torch.Tensor) -> torch.Tensor:
        """``model(*inputs)`` with ``params`` in place of the model's own; the algorithm's own are left aside.

        One batch ``x``, or for a model of sets the support inputs, their targets and the query inputs.
        """
        model = self.model
        theta = {name: params[name] for name, _ in model.named_parameters() if name in params}
        once = self.model_kind in ("sequence", "set")
        with (
            contextlib.nullcontext() if once else differentiable_twice(model),
            kernels_of_model(),
            of_model(inputs[0].device),
        ):
            output = torch.func.functional_call(model, theta, inputs)
        return of_algorithm(require_tensor(output, type(self).__name__))


def _require_names(cls: type[MetaLearner]) -> None:
    """Raise on a name of an earlier version, which would be without effect in silence, and on an unknown model kind."""
    renamed = {"network": "model_kind", "at": "at_step"}
    for old, new in renamed.items():
        value = cls.__dict__.get(old)
        if isinstance(value, str) if old == "network" else callable(value):
            raise LearnerContractError(
                f"{cls.__name__} sets {old!r}, which has no effect any more; expected {new!r}. Rename it."
            )
    if isinstance(cls.model_kind, property):
        raise LearnerContractError(
            f"{cls.__name__} has model_kind as a property; expected a class attribute, one of "
            f'{", ".join(get_args(ModelKind))}. Write model_kind = "classifier", say, in the class.'
        )
    if cls.model_kind not in get_args(ModelKind):
        raise LearnerContractError(
            f"{cls.__name__} sets model_kind={cls.model_kind!r}; expected one of {', '.join(get_args(ModelKind))}. "
            "Name what the model returns."
        )


def _require_finals(cls: type[MetaLearner]) -> None:
    """Raise on an override of a final method: the engine may not call it, so that it would be half in effect."""
    for place, owner in enumerate(cls.__mro__):  # a mixin that comes before the learner overrides it too
        for parent in cls.__mro__[place + 1 :]:
            for name in owner.__dict__:
                if _is_final(parent.__dict__.get(name)):
                    _refuse_override(cls, owner, parent, name)


def _refuse_override(cls: type, owner: type, parent: type, name: str) -> NoReturn:
    by = "" if owner is cls else f" by its base {owner.__name__}"
    hooks = [hook for hook in _HOOKS if hasattr(cls, hook) and not _is_final(getattr(parent, hook, None))]
    raise LearnerContractError(
        f"{cls.__name__} overrides {name}{by}, which is final in {parent.__name__}; expected one of the hooks "
        f"{', '.join(hooks)}, or another name. Write the hook, or rename the method."
    )


def _is_final(method: object) -> bool:
    return getattr(method.fget if isinstance(method, property) else method, "__final__", False)
