"""The engine: what the runtime calls on a learner, and the vectorisation of one task's mathematics over a chunk.

Nothing here belongs to an algorithm. One task's functions are mapped over the T tasks of a chunk with
``torch.func.vmap``, or in a plain loop for models that ``vmap`` cannot take; a family whose model takes a whole chunk
natively replaces :meth:`Engine.chunk_losses`.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, Self, final

import numpy as np
import torch
from torch import nn

from distmeta import config, uncertainty
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners import queries_alone
from distmeta.learners.functional import evaluating, in_training, laid_out, using_engine, vectorised
from distmeta.learners.losses import of_task, prediction_metrics
from distmeta.learners.over_tasks import map_tasks, unstack
from distmeta.learners.precision import computing_in
from distmeta.learners.predictive import Predictive
from distmeta.learners.support_statistics import keeping_statistics
from distmeta.learners.user_model import built_for, plain, require_usable
from distmeta.seeding import torch_seed
from distmeta.types import Episode, MetaGradient, Metrics, ModelFactory, Params, TaskSpec

ModelKind = Literal["classifier", "encoder", "sequence", "set", "any"]

Predict = Callable[[torch.Tensor], torch.Tensor]
"""Logits ``[M, N]`` (or values ``[M, D]``) of a batch of inputs ``[M, ...]``, in one forward pass."""


class Engine(config.Configurable, ABC):
    """The methods of a learner that the runtime calls.

    Methods marked final are the runtime's. The others are hooks of families: an author of one algorithm reads
    :class:`~distmeta.learners.base.MetaLearner` instead.
    """

    model_kind: ClassVar[ModelKind] = "any"
    """What the model must return: ``"classifier"``: one number per class or target, ``[B, outputs]``; ``"encoder"``:
    features ``[B, D]``; ``"sequence"``: ``[B, L, outputs]`` for sequences ``[B, L, ...]``; ``"set"``:
    ``[T, Q, outputs]`` for ``(support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...])``."""

    joins_support: ClassVar[bool] = False
    """Whether ``query_logits`` passes the support set through the model in one batch with the queries."""

    _model: nn.Module | ModelFactory
    _own: Params  # learned meta-parameters that are not the model's
    _input_shape: tuple[int, ...] | None = None  # of one input of the tasks that it was last bound to
    _unused_wrapper: str  # a line about what the model came in and is not used; empty where there is nothing

    # -- written by MetaLearner, or by the algorithm

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The network."""

    @abstractmethod
    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """Predictions for the queries of one task."""

    @abstractmethod
    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """Loss and metrics of one task."""

    @abstractmethod
    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """The first meta-parameters."""

    @abstractmethod
    def for_evaluation(self) -> Self:
        """The learner as it is used on validation and test tasks."""

    @abstractmethod
    def forward(self, params: Params, *inputs: torch.Tensor) -> torch.Tensor:
        """``model(*inputs)`` with ``params`` in place of the model's own."""

    @abstractmethod
    def _attach(self, given: object = None) -> None:
        """Let the model use this learner, where it is made for that; and ``given``, the model with its wrappers on."""

    # -- hooks of families

    def spec_for_model(self, spec: TaskSpec) -> TaskSpec:
        """Hook: the shapes that a factory builds the model for, where it returns other numbers than the targets'."""
        return spec

    def bound_to(self, spec: TaskSpec) -> None:
        """Hook: read sizes off the model once it is built and the shapes of the tasks are known."""
        return

    def learned(self, params: Params, episode: Episode) -> Params:
        """Hook: what one task's support set teaches, tensors by name; nothing where predictions need no step before.

        Args:
            params: the meta-parameters.
            episode: one task; its queries are not used.
        """
        return {}

    def using(self, params: Params, learned: Params, episode: Episode) -> Predict:
        """Hook: the function that predicts the queries of a task whose support set was learned from.

        Args:
            params: the meta-parameters.
            learned: what :meth:`learned` returned.
            episode: the task; its queries are not used.
        """
        return partial(self._predict, params, episode)

    def chunk_learned(self, params: Params, episodes: Episode) -> Params:
        """Hook: :meth:`learned` of T stacked tasks, each tensor with a leading axis T."""
        found: Params = map_tasks(self.learned, params, episodes, loop=False, exact_norms=False)
        return found

    def chunk_answers(self, params: Params, episodes: Episode) -> torch.Tensor:
        """Hook: logits ``[T, M, N]`` of the queries of T stacked tasks, by the statistics of the support sets."""

        def answered(params: Params, episode: Episode) -> torch.Tensor:
            predict = self.keeping_statistics(self.adapted(params, episode), params, episode)
            # Never a batch of one, which some layers refuse and some models squeeze.
            return predict(torch.cat([episode.support_x[:1], episode.query_x]))[1:]

        logits: torch.Tensor = map_tasks(answered, params, episodes, loop=False, exact_norms=False)
        return logits

    def predictive(
        self, params: Params, learned: Params, episode: Episode
    ) -> Callable[[torch.Tensor], Predictive] | None:
        """Hook: the function from queries ``[M, ...]`` to the distributions of their targets ``[M, D]``.

        ``None`` for learners that predict a regression's values alone.
        """
        return None

    def explained(self, params: Params, episode: Episode, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hook: what decided the predictions of ``x [M, ...]``, each without the others.

        Returns:
            Any of ``support_weights [M, S]``, the weight of each support example, and ``logits_by_step
            [M, steps + 1, N]``, the logits after each inner step.
        """
        return {}

    def chunk_losses(self, params: Params, episodes: Episode) -> Generator[tuple[torch.Tensor, Metrics]]:
        """Hook: the losses and metrics of T stacked tasks, each ``[tasks]``, in parts that are differentiated apart."""
        if self.loops:
            for episode in unstack(episodes):
                with vectorised(False):
                    loss, metrics = self.meta_loss(params, episode)
                yield loss[None], {name: value[None] for name, value in metrics.items()}
        else:
            with vectorised(True):  # autograd must come back through the vectorised call with the exact norms
                yield map_tasks(self.meta_loss, params, episodes, loop=False)

    def chunk_predictions(
        self, params: Params, episodes: Episode
    ) -> Generator[tuple[Metrics, torch.Tensor | Predictive | None]]:
        """Hook: what evaluation reports of T stacked tasks, and the predictions that it measures uncertainty by.

        The default is the losses and metrics of :meth:`chunk_losses`. Classification with a support set adds
        accuracies, and the logits of each query alone; of a regression learners predict values only.

        Yields:
            In parts that follow each other: metrics ``[tasks]``, ``loss`` among them; and logits ``[tasks, Q, N]``, the
            distributions of targets ``[tasks, Q, D]``, or ``None`` where predictions have no probabilities.
        """
        adapts = bool(episodes.support_x.shape[1]) and not episodes.query_y.is_floating_point()
        if adapts and self._scores_predictions:
            found, logits = queries_alone.measured(self, params, episodes)
        else:
            with contextlib.closing(self.chunk_losses(params, episodes)) as parts:
                found = _join([{"loss": losses} | metrics for losses, metrics in parts])
            if not adapts:
                yield found, None
                return
            if "accuracy" not in found:
                found |= map_tasks(self._accuracy_together, params, episodes, loop=self.loops)
            logits = queries_alone.logits_alone(self, params, episodes)
        alone = (logits.argmax(-1) == episodes.query_y).to(found["loss"]).mean(-1)
        yield found | {"accuracy_non_transductive": alone}, logits

    def chunk_gradient(self, params: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """Hook: the meta-gradient summed over T stacked tasks, and metrics ``[T]``; ``loss`` must be among them.

        The default is the derivative of :meth:`chunk_losses`. An algorithm that replaces it has another
        ``exact_gradient`` than ``True``.
        """
        theta = {name: p.detach().requires_grad_() for name, p in params.items()}
        total: Params = {}
        rows: list[Metrics] = []
        with contextlib.closing(self.chunk_losses(theta, episodes)) as parts:
            for losses, metrics in parts:
                _accumulate(total, losses.sum(), theta)
                rows.append({"loss": losses.detach()} | {name: value.detach() for name, value in metrics.items()})
        return {n: total[n] if n in total else torch.zeros_like(p) for n, p in theta.items()}, _join(rows)

    @property
    def _scores_predictions(self) -> bool:
        """Hook: whether the loss of a task is that of the predictions for its queries, so that these tell it."""
        return False

    # -- called by the runtime

    @property
    def loops(self) -> bool:
        """Whether tasks are computed in a plain loop instead of one vectorised call."""
        return bool(self.config.vectorise == "loop")

    @final
    def bind(self, spec: TaskSpec, seed: int = 0) -> Self:
        """This learner with its model built for ``spec``; a module instance is kept as it is.

        Args:
            spec: shapes of the tasks.
            seed: the run's seed; the factory's random initialisation depends on it alone.

        Raises:
            LearnerContractError: the tasks are of a kind that the algorithm cannot learn from.
            ModelContractError: the factory builds no model for these tasks.
        """
        _require_kind(self, spec)
        bound = self
        if not isinstance(self._model, nn.Module):
            if not callable(self._model):
                raise ModelContractError(
                    f"{type(self).__name__} was given a {type(self._model).__name__} as its model; expected an "
                    "nn.Module, or a function TaskSpec -> nn.Module such as conv4()."
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(seed, "model"))
                built, wrapper = plain(built_for(self._model, self.spec_for_model(spec)))
            bound = self.with_model(built)
            bound._unused_wrapper = wrapper
            bound._attach()
        require_usable(bound.model)
        bound._input_shape = spec.input_shape
        bound.bound_to(spec)
        return bound

    @final
    def with_model(self, model: nn.Module) -> Self:
        """A copy of this learner that holds ``model``."""
        clone = copy.copy(self)
        clone._model = model
        return clone

    @final
    def in_main_memory(self) -> Self:
        """This learner where its model is on the CPU; otherwise a copy that is, which can be sent to any worker."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return self if all(t.device.type == "cpu" for t in tensors) else self.on(torch.device("cpu"))

    @final
    def on(self, device: torch.device) -> Self:
        """A copy of this learner with a copy of its model on ``device``; this one's model stays where it is."""
        return self.with_model(copy.deepcopy(self.model).to(device))

    @final
    def starting_params(self, rng: np.random.Generator) -> Params:
        """The meta-parameters that a training starts from: the first ones, or what an earlier training has learned."""
        return self._with_own(self.init_meta_params(rng))

    @property
    def own_params(self) -> Mapping[str, torch.Tensor]:
        """Learned meta-parameters that belong to the algorithm and not to the model, such as inner learning rates."""
        return self._own

    @final
    def meta_gradient(self, params: Params, episodes: Episode) -> MetaGradient:
        """The sum over the tasks of a chunk of d meta_loss / d meta_params.

        Args:
            params: theta, by name.
            episodes: T stacked tasks, ``[T, ...]``.

        Returns:
            The summed gradient, T and per-task metrics ``[T]``.
        """
        device = next(iter(params.values())).device
        precision = computing_in(self.config.precision, device)
        with in_training(self.model), using_engine(self._engine_for(params)), precision:
            gradient, metrics = self.chunk_gradient(laid_out(params), episodes)
        return MetaGradient(gradient, tasks=len(episodes.query_x), metrics=metrics)

    @final
    def evaluate(self, params: Params, episodes: Episode) -> Metrics:
        """The metrics of :meth:`measure` alone."""
        return self.measure(params, episodes)[0]

    @final
    def measure(self, params: Params, episodes: Episode) -> tuple[Metrics, torch.Tensor | None]:
        """Per-task metrics ``[T]`` of a chunk, and the sums behind its calibration; no graph is kept.

        Args:
            params: theta, by name.
            episodes: T stacked tasks, ``[T, ...]``.

        Returns:
            ``loss`` and the metrics of ``meta_loss``. Classification with a support set adds
            ``accuracy_non_transductive``, each query alone with the support set, and ``accuracy``, all queries of a
            task in one batch (transductive where the model has batch statistics), unless ``meta_loss`` returns it.

            Uncertainty is that of each query alone: of classes ``nll`` and ``roc_auc`` (not that of ``loss``, which is
            of all queries in one batch); of predictive distributions ``coverage_50``, ``coverage_90`` and
            ``coverage_95``. The sums ``[T, rows, bins]`` are those of :mod:`distmeta.uncertainty`; ``None`` where
            predictions have no probabilities.
        """
        rows: list[Metrics] = []
        tables: list[torch.Tensor] = []
        with (
            evaluating(self.model),
            torch.no_grad(),
            using_engine(self._engine_for(params)),
            contextlib.closing(self.chunk_predictions(laid_out(params), episodes)) as parts,
        ):
            start = 0
            for found, predictions in parts:
                tasks = slice(start, start + len(found["loss"]))
                start = tasks.stop
                if predictions is None:
                    rows.append(found)
                    continue
                y = episodes.query_y[tasks]
                if isinstance(predictions, Predictive):
                    measured, table = uncertainty.of_intervals(predictions.cdf(y).cpu())
                else:
                    measured, table = uncertainty.of_classes(
                        *(part.cpu() for part in (predictions, y, episodes.support_y[tasks]))
                    )
                rows.append(found | {name: value for name, value in measured.items() if name not in found})
                tables.append(table)
        return _join(rows), torch.cat(tables) if len(tables) == len(rows) else None

    @final
    def adapted(self, params: Params, episode: Episode) -> Predict:
        """Learn one task from its support set, once, and return the function that predicts its queries in one batch.

        Args:
            params: the meta-parameters.
            episode: one task; its queries are not used.
        """
        return self.using(params, self.learned(params, episode), episode)

    @final
    def keeping_statistics(self, predict: Predict, params: Params, episode: Episode) -> Predict:
        """``predict`` with batch statistics fixed to those of the support set, so that no input sees another's.

        Args:
            predict: what :meth:`using` returned, or another function that makes the same forward passes.
            params: the meta-parameters.
            episode: the task; its queries are not used.
        """
        support = episode.support_x
        if self.model_kind == "set":  # no query takes part in the statistics of another: the probe has shown it
            return predict
        if self.joins_support:  # the support set is in the batch of its own accord: once is enough
            return keeping_statistics(predict, lambda: self.forward(params, support))
        return keeping_statistics(predict, lambda: predict(support))

    @final
    def query_logits_alone(self, params: Params, episode: Episode) -> torch.Tensor:
        """Like ``query_logits``, each query predicted without the others: the non-transductive figure.

        Batch statistics are those of the support set. Where a model mixes the inputs of a batch in any other way, each
        query joins the support set in a forward pass of its own (Nichol et al. 2018, section 6.1).
        """
        predict = self.keeping_statistics(self.adapted(params, episode), params, episode)
        if self.model_kind == "set":
            return predict(episode.query_x)
        return self.predict_alone(predict, episode.support_x, episode.query_x, loop=self.loops)

    @final
    def predict_alone(
        self, predict: Predict, support_x: torch.Tensor, query_x: torch.Tensor, *, loop: bool
    ) -> torch.Tensor:
        """``predict`` of each query in a batch with the support set and no other query, ``[M, N]``.

        Args:
            predict: what :meth:`adapted` returned.
            support_x: ``[S, ...]``.
            query_x: ``[M, ...]``.
            loop: compute one query after the other.
        """
        return queries_alone.predict_alone(predict, support_x, query_x, joins_support=self.joins_support, loop=loop)

    def _predict(self, params: Params, episode: Episode, x: torch.Tensor) -> torch.Tensor:
        return self.query_logits(params, replace(episode, query_x=x))

    def _accuracy_together(self, params: Params, episode: Episode) -> Metrics:
        return prediction_metrics(of_task(self.query_logits(params, episode), episode), episode.query_y)

    def _engine_for(self, params: Params) -> Literal[1, 2]:
        """2 where the settings ask for it, on CPUs: its kernels have been measured there alone."""
        fast = self.config.vectorise == "vmap-2" and all(p.is_cpu for p in params.values())
        return 2 if fast else 1

    def _with_own(self, params: Params) -> Params:
        """Overlay the algorithm's learned parameters, moved to the model's device; skip names that no longer exist."""
        learned = {n: p for n, p in self._own.items() if n in params and params[n].shape == p.shape}
        return params | {name: p.to(params[name]) for name, p in learned.items()}


def _join(parts: list[Metrics]) -> Metrics:
    """Metrics of parts of a chunk as those of the chunk; a metric that some part lacks is left out."""
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in common}


def _accumulate(total: Params, loss: torch.Tensor, theta: Params) -> None:
    # Not autograd.grad: it looks up at every node whether it leads to theta, 5 to 10 % of the time of long graphs.
    loss.backward()  # type: ignore[no-untyped-call]
    for name, p in theta.items():
        if p.grad is not None:
            # The first one is kept as it is, but for the sign of its zeros: that of a sum which starts at zero.
            total[name] = total[name].add_(p.grad) if name in total else p.grad.add_(0.0)
            p.grad = None


def _require_kind(learner: Engine, spec: TaskSpec) -> None:
    """Raise if sequence tasks are given to a learner that adapts to a support set, or the other way round."""
    name = type(learner).__name__
    if spec.kind == "sequence" and learner.model_kind in ("classifier", "encoder"):
        raise LearnerContractError(
            f"{name} learns from a support set; the tasks are sequences that hold their labels in their inputs. Use "
            "MANN or NTM, or give tasks such as FewShot."
        )
    if spec.kind != "sequence" and learner.model_kind == "sequence":
        raise LearnerContractError(
            f"{name} learns from sequences; the tasks are {spec.kind} with a support set of {spec.support}. Give "
            "sequence tasks such as LabelSequences or CopyTask, or use MAML or ProtoNet."
        )
    if spec.kind == "sequence" and learner.model_kind == "set":
        raise LearnerContractError(
            f"{name} learns from a support set; the tasks are sequences that hold their labels in their inputs. Use "
            "MANN or NTM, or give tasks such as Tables, GaussianProcesses or FewShot."
        )
    if spec.padded and learner.model_kind != "set":
        raise LearnerContractError(
            f"{name} takes whole tasks; these are filled up with padding to equal shapes. Use InContext, or tasks of "
            "one shape."
        )
