"""The contract of every algorithm, at three depths, and the engine that vectorises one task's mathematics over a chunk.

A new algorithm is a subclass of :class:`MetaLearner` in one file. Most write :meth:`~MetaLearner.query_logits` for ONE
task and stop; the engine maps it over the tasks of a chunk with ``torch.func.vmap``, or in a plain loop for models that
``vmap`` cannot take.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from torch.func import vmap

from distmeta import config
from distmeta.errors import DistmetaError, LearnerContractError, ModelContractError
from distmeta.learners.functional import differentiable_twice, trainable, vectorised
from distmeta.learners.losses import prediction_loss, prediction_metrics
from distmeta.learners.pictures import Picture
from distmeta.seeding import rng, torch_seed
from distmeta.types import Episode, MetaGradient, Metrics, ModelFactory, Params, TaskSpec


class MetaLearner(config.Configurable, ABC):
    """A meta-learning algorithm: one task's mathematics around a plain ``nn.Module``.

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

    network: ClassVar[Literal["classifier", "encoder", "sequence", "any"]] = "any"
    """What the model must return: ``"classifier"``: one number per class or target, ``[B, outputs]``; ``"encoder"``:
    features ``[B, D]``; ``"sequence"``: ``[B, L, outputs]`` for sequences ``[B, L, ...]``."""

    class Config(config.Config):
        """Settings that every learner has.

        Args:
            batch_norm: whose statistics batch normalisation uses. ``"batch"``: of the batch at hand, in training and in
                evaluation, as in the papers (query accuracies are then transductive; evaluation reports the
                non-transductive ones beside them). Running averages are refused: they leak between tasks.
            vectorise: ``"vmap"``, ``"loop"`` or ``"auto"`` (probed once before the first worker starts).
        """

        batch_norm: Literal["batch"] = "batch"
        vectorise: Literal["auto", "vmap", "loop"] = "auto"

    config: Config

    def __init__(self, model: nn.Module | ModelFactory, **settings: Any) -> None:
        super().__init__(**settings)
        self._model = model
        self._own: Params = {}  # learned meta-parameters that are not the model's
        attach(model, self)

    # -- what an algorithm writes ---------------------------------------------------------------------------------

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
        """The loss of ONE task whose gradient trains the meta-parameters; override for another loss.

        Returns:
            A scalar, and scalars worth recording.
        """
        prediction = self.query_logits(params, episode)
        return prediction_loss(prediction, episode.query_y), prediction_metrics(prediction, episode.query_y)

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """The first meta-parameters; override when the algorithm has parameters of its own."""
        return trainable(self.model)

    def for_evaluation(self) -> Self:
        """The learner as it is used on validation and test tasks (more inner steps, say)."""
        return self

    def at(self, step: int) -> Self:
        """The learner as it is at one outer step of meta-training; override when something is annealed.

        A chunk carries its outer step, so what depends on the step depends on no worker and needs no state: a run that
        is resumed, or a chunk that is computed again elsewhere, finds the same learner.

        Args:
            step: outer steps done before this one.
        """
        return self

    @property
    def exact_gradient(self) -> bool:
        """Whether ``meta_gradient`` is the derivative of the mean ``meta_loss`` (FOMAML and Reptile are not)."""
        return True

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """What can be seen of how this learner learns; drawn at the end of a run, one PNG per entry.

        Override it in the algorithm's own file. Return data, not a drawing: one of the four kinds of
        :mod:`distmeta.learners.pictures`. ``Curves`` are per-task numbers over some quantity (see
        ``adaptation_curve``); ``Attention`` is a grid of weights between images; ``Heatmaps`` are matrices over one
        time axis, such as the read and write weights of a memory; ``Gallery`` is rows of images with captions, such as
        nearest pairs. The runtime knows none of this by algorithm::

            def pictures(self, params, episodes):
                episode = unstack(episodes)[0]
                with torch.no_grad(), vectorised(False):
                    reads, writes = self.weights(params, episode)  # each [slots, time]
                return {"memory": Heatmaps("one episode", "time", {"read": reads.cpu(), "write": writes.cpu()})}

        Args:
            params: the meta-parameters that the run is judged by.
            episodes: T stacked held-out tasks, at most 100; take the first for a picture of one task.

        Returns:
            The pictures by file name without its ending; none where there is nothing to see, as for inputs that are
            no images.
        """
        return {}

    # -- what the runtime calls -----------------------------------------------------------------------------------

    @property
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
        if isinstance(self._model, nn.Module):
            return self
        if not callable(self._model):
            raise ModelContractError(
                f"{type(self).__name__} was given a {type(self._model).__name__} as its model; expected an nn.Module, "
                "or a function TaskSpec -> nn.Module such as conv4()."
            )
        bound = copy.copy(self)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "model"))
            bound._model = _build(self._model, spec)
        attach(bound._model, bound)
        return bound

    def on(self, device: torch.device) -> Self:
        """A copy of this learner with a copy of its model on ``device``; this one's model stays where it is."""
        moved = copy.copy(self)
        moved._model = copy.deepcopy(self.model).to(device)
        return moved

    def forward(self, params: Params, x: torch.Tensor) -> torch.Tensor:
        """``model(x)`` with ``params`` in place of the model's own parameters; the algorithm's own are left aside."""
        model = self.model
        theta = {name: params[name] for name, _ in model.named_parameters() if name in params}
        with contextlib.nullcontext() if self.network == "sequence" else differentiable_twice(model):
            output: torch.Tensor = torch.func.functional_call(model, theta, (x,))
        return output

    def meta_gradient(self, params: Params, episodes: Episode) -> MetaGradient:
        """The sum over the tasks of a chunk of d meta_loss / d meta_params.

        Args:
            params: theta, by name.
            episodes: T stacked tasks, ``[T, ...]``.

        Returns:
            The summed gradient, T and per-task metrics ``[T]``.
        """
        self.model.train()
        theta = {name: p.detach().requires_grad_() for name, p in params.items()}
        if self.config.vectorise == "loop":
            total: Params = {name: torch.zeros_like(p) for name, p in theta.items()}
            rows = []
            for episode in unstack(episodes):
                with vectorised(False):
                    loss, metrics = self.meta_loss(theta, episode)
                self._accumulate(total, loss, theta)
                rows.append({"loss": loss.detach()} | {k: v.detach() for k, v in metrics.items()})
            columns = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        else:
            with vectorised(True):  # autograd must come back through the vectorised call with the exact norms
                losses, metrics = self.map_tasks(self.meta_loss, theta, episodes)
                total = {name: torch.zeros_like(p) for name, p in theta.items()}
                self._accumulate(total, losses.sum(), theta)
            columns = {"loss": losses.detach()} | {k: v.detach() for k, v in metrics.items()}
        return MetaGradient(total, tasks=len(episodes.query_x), metrics=columns)

    def evaluate(self, params: Params, episodes: Episode) -> Metrics:
        """Per-task metrics ``[T]`` of a chunk, with no graph kept.

        Classification: ``loss``, ``accuracy`` (all queries of a task in one batch; transductive where the model has
        batch statistics) and ``accuracy_non_transductive`` (each query alone with the support set). Regression:
        ``loss``, the mean squared error.
        """
        self.model.eval()
        with torch.no_grad():
            metrics: Metrics = self.map_tasks(self._evaluate_task, params, episodes)
        return metrics

    def query_logits_alone(self, params: Params, episode: Episode) -> torch.Tensor:
        """Like :meth:`query_logits`, each query predicted without the others: the non-transductive figure.

        Each query joins the support set in the forward pass (Nichol et al. 2018, section 6.1), so that batch statistics
        have something to average over and no test query sees another.
        """

        def alone(query: torch.Tensor) -> torch.Tensor:
            batch = torch.cat([episode.support_x, query[None]])
            return self.query_logits(params, replace(episode, query_x=batch))[-1]

        return self.map_queries(alone, episode.query_x, support=len(episode.support_x))

    def map_queries(
        self, function: Callable[[torch.Tensor], torch.Tensor], query_x: torch.Tensor, *, support: int
    ) -> torch.Tensor:
        """``function`` of each query apart, stacked; vectorised where the engine is.

        Args:
            function: of one query, ``[...]``.
            query_x: ``[M, ...]``.
            support: examples that ``function`` passes through the model beside the query.
        """
        if self.config.vectorise == "loop":
            return torch.stack([function(query) for query in query_x])
        # A query alone is a forward pass of the whole support set: some at a time, or memory would be a multiple of
        # what training needs.
        mapped: torch.Tensor = vmap(function, randomness="different", chunk_size=max(1, 256 // support))(query_x)
        return mapped

    def map_tasks(self, function: Callable[[Params, Episode], Any], params: Params, episodes: Episode) -> Any:
        """``function(params, episode)`` of each of T stacked tasks; vectorised, or in a loop, as the engine is.

        Args:
            function: returns a tensor, or tuples and dictionaries of tensors.
            params: shared by all tasks.
            episodes: T stacked tasks.

        Returns:
            What ``function`` returns, each tensor with a leading axis T.
        """
        if self.config.vectorise == "loop":
            with vectorised(False):
                return _stack([function(params, episode) for episode in unstack(episodes)])
        ways = episodes.counted().ways

        def one(*parts: torch.Tensor) -> Any:
            return function(params, Episode(*parts, ways=ways))

        with vectorised(True):
            return vmap(one, randomness="different")(*episodes)

    def _evaluate_task(self, params: Params, episode: Episode) -> Metrics:
        prediction = self.query_logits(params, episode)
        metrics = {"loss": prediction_loss(prediction, episode.query_y)}
        metrics |= prediction_metrics(prediction, episode.query_y)
        if "accuracy" in metrics:
            alone = self.query_logits_alone(params, episode)
            metrics["accuracy_non_transductive"] = prediction_metrics(alone, episode.query_y)["accuracy"]
        return metrics

    @staticmethod
    def _accumulate(total: Params, loss: torch.Tensor, theta: Params) -> None:
        parts = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        for name, part in zip(theta, parts, strict=True):
            if part is not None:
                total[name] += part

    # -- what users call ------------------------------------------------------------------------------------------

    def train(self, tasks: Any, **settings: Any) -> Any:
        """Meta-train on a task distribution; the model then holds the meta-learned parameters.

        Args:
            tasks: a :class:`distmeta.TaskDistribution`.
            settings: those of :class:`distmeta.Outer`, for example ``iterations=2000``; ``seed``, ``name``, and others
                by dotted name, ``**{"runtime.workers": 2}``. Also ``run_dir`` and ``place``, as for
                :func:`distmeta.meta_train`.

        Returns:
            The :class:`distmeta.RunResult`.
        """
        return _TRAINER[0](self, tasks, **settings)

    def adapt(self, support_x: torch.Tensor, support_y: torch.Tensor) -> FastModel:
        """Learn one new task from its support set, from the parameters that the model holds now.

        Args:
            support_x: ``[N*K, ...]`` inputs.
            support_y: ``[N*K]`` int64 class positions, or ``[N*K, D]`` floats.

        Raises:
            LearnerContractError: these are no examples with their labels.
        """
        require_examples(support_x, support_y)
        return FastModel(self.for_evaluation(), self.meta_params, support_x, support_y)

    @property
    def meta_params(self) -> Params:
        """The meta-parameters that the model, and the algorithm where it has its own, hold now."""
        return self._with_own({**self.init_meta_params(rng(0, "init")), **trainable(self.model)})

    def starting_params(self, rng: np.random.Generator) -> Params:
        """The meta-parameters that a training starts from: the first ones, or what an earlier training has learned."""
        return self._with_own(self.init_meta_params(rng))

    def _with_own(self, params: Params) -> Params:
        """``params`` with what was learned of the algorithm's own, where the model is now; settings may drop some."""
        learned = {n: p for n, p in self._own.items() if n in params and params[n].shape == p.shape}
        return params | {name: p.to(params[name]) for name, p in learned.items()}

    def load(self, params: Params) -> None:
        """Take over meta-parameters: the model's into the model, the algorithm's own beside it.

        Args:
            params: by name, as :meth:`init_meta_params` names them.
        """
        model = dict(self.model.named_parameters())
        with torch.no_grad():
            for name in params.keys() & model.keys():
                model[name].copy_(params[name])
        self._own = {name: p.detach().clone() for name, p in params.items() if name not in model}


class FastModel:
    """A model adapted to one task.

    Example:
        >>> import distmeta
        >>> fast = distmeta.MAML(nn.Linear(2, 3)).adapt(torch.rand(3, 2), torch.arange(3))
        >>> fast.predict(torch.rand(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, learner: MetaLearner, params: Params, support_x: torch.Tensor, support_y: torch.Tensor) -> None:
        # One task: a plain loop takes any model, so nothing needs to be probed here.
        self._learner = learner.with_config(vectorise="loop")
        self._params, self._support_x, self._support_y = params, support_x, support_y

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, N]`` (or values ``[B, D]``) for inputs ``[B, ...]``, all in one batch; no graph is kept."""
        self._learner.model.eval()
        with torch.no_grad(), vectorised(False):
            episode = Episode(self._support_x, self._support_y, x, self._support_y[:0]).counted()
            return self._learner.query_logits(self._params, episode)

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Mean loss on labelled examples: cross-entropy in nats for int64 labels, mean squared error for floats."""
        require_examples(x, y)
        return float(prediction_loss(self.predict(x), y))

    def accuracy(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Share of ``x`` whose most likely class is ``y``, 0 to 1."""
        return float(prediction_metrics(self.predict(x), y)["accuracy"])


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

    _meta_learner: MetaLearner | None = None
    _fast_model: FastModel | None = None

    def attach(self, learner: MetaLearner) -> None:
        """Called by the learner that takes this model."""
        self._meta_learner, self._fast_model = learner, None

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> FastModel:
        """Learn one task from labelled examples ``x`` and ``y``; :meth:`evaluate` and :meth:`predict` then use it."""
        if self._meta_learner is None:
            raise LearnerContractError(
                "adapt() was called on a model that no meta-learner holds. Make one first: MAML(model)."
            )
        self._fast_model = self._meta_learner.adapt(x, y)
        return self._fast_model

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Predictions of the adapted model, see :meth:`FastModel.predict`."""
        return self._adapted().predict(x)

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Loss of the adapted model, see :meth:`FastModel.evaluate`."""
        return self._adapted().evaluate(x, y)

    def _adapted(self) -> FastModel:
        if self._fast_model is None:
            raise LearnerContractError("The model has not been adapted yet. Call adapt(x, y) first.")
        return self._fast_model


def attach(model: object, learner: MetaLearner) -> None:
    """Let a :class:`MetaModule` know its learner; other modules need not."""
    if isinstance(model, MetaModule):
        model.attach(learner)


def _require_kind(learner: MetaLearner, spec: TaskSpec) -> None:
    """Raise if sequence tasks are given to a learner that adapts to a support set, or the other way round."""
    name = type(learner).__name__
    if spec.kind == "sequence" and learner.network in ("classifier", "encoder"):
        raise LearnerContractError(
            f"{name} learns from a support set; the tasks are sequences that hold their labels in their inputs. Use "
            "MANN or NTM, or give tasks such as FewShot."
        )
    if spec.kind != "sequence" and learner.network == "sequence":
        raise LearnerContractError(
            f"{name} learns from sequences; the tasks are {spec.kind} with a support set of {spec.support}. Give "
            "sequence tasks such as LabelSequences or CopyTask, or use MAML or ProtoNet."
        )


def _build(factory: ModelFactory, spec: TaskSpec) -> nn.Module:
    name = getattr(factory, "__qualname__", type(factory).__name__)
    try:
        model: object = factory(spec)
    except DistmetaError:
        raise
    except Exception as error:
        raise ModelContractError(
            f"The model factory {name} fails on the tasks' spec: {type(error).__name__}: {error}. A factory takes one "
            f"argument, the TaskSpec (here {spec}), and returns an nn.Module; to use a module class, give an instance: "
            f"{name}(...)."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelContractError(
            f"The model factory {name} returned {type(model).__name__}; expected a torch.nn.Module. Return the module."
        )
    return model


def require_examples(x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise where ``y`` cannot be the labels of ``x``: a wrong type would be a wrong loss, silently.

    Raises:
        LearnerContractError: names what was seen and the fix.
    """
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise LearnerContractError(
            f"Examples are a {type(x).__name__} and a {type(y).__name__}; expected tensors. Use torch.from_numpy(...)."
        )
    if y.dtype != torch.int64 and not (y.is_floating_point() and y.dim() > 1):
        raise LearnerContractError(
            f"Labels are {str(y.dtype).removeprefix('torch.')} of shape {list(y.shape)}; expected int64 class "
            "positions [n], or floats [n, D] for regression. Use y.long(), or y[:, None] for one number per input."
        )
    if len(x) != len(y):
        raise LearnerContractError(f"There are {len(x)} inputs and {len(y)} labels; expected as many.")


def unstack(episodes: Episode) -> list[Episode]:
    """The T tasks of a stacked episode."""
    counted = episodes.counted()
    return [counted.map(lambda part, i=i: part[i]) for i in range(len(episodes.query_x))]  # type: ignore[misc]


def _stack(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, dict):
        return {key: _stack([result[key] for result in results]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack([result[i] for result in results]) for i in range(len(first)))
    return torch.stack(results)


# The public interface (a higher floor) puts its training function here: floors import only downwards.
_TRAINER: list[Callable[..., Any]] = []
