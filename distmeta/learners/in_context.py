"""In-context learners: the network reads the support set with the queries, and nothing is adapted.

One learner for prior-data fitted networks (Müller, Hollmann, Pineda Arango, Grabocka, Hutter 2022, algorithm 1) and
conditional neural processes (Garnelo et al. 2018, equations 1 to 4). Both minimise the expected negative log-likelihood
of the queries given the support set, over tasks T drawn from a prior::

    L(theta) = E_T sum_q -log p_theta(y_q | x_q, {(x_s, y_s)})

A network that reaches the minimum is the posterior predictive distribution of the prior (Müller et al., insight 1). The
model is a *set model*: it takes the tasks of a chunk stacked, ``(support_x [T, S, ...], support_y [T, S], query_x [T,
Q, ...])``, and returns ``[T, Q, outputs]``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.attention_seen import AttentionSeen
from distmeta.learners.base import MetaLearner
from distmeta.learners.context_pictures import attention_of, drawn_from_pixels, spread_over
from distmeta.learners.engine import Predict
from distmeta.learners.over_tasks import unstack
from distmeta.learners.pictures import Picture
from distmeta.learners.predictive import Bars, Gaussian, Predictive
from distmeta.learners.support_scale import SupportScale
from distmeta.types import Episode, Metrics, Params, TaskSpec

_IMPOSSIBLE = -1e9
"""Logit of a class that the support set lacks: its probability is 0, and a difference of two is no NaN."""


_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The fused ones too, which the families that differentiate twice cannot take."""


class InContext(MetaLearner):
    """Predict queries from the support set in one forward pass of a set model.

    Classification: cross-entropy; a class that the support set lacks has probability 0, and a query of such a class, or
    of the label -1, is not scored. Regression: the negative log-likelihood of a normal distribution for each target, or
    of bars. Every query of a step has the same weight.

    ``adapt`` reads the support set once where the model can: with a pair of methods ``encode_support(support_x,
    support_y)``, a dictionary of tensors each with a leading axis T, and ``decode_queries(encoded, query_x)``, which
    together are its ``forward``. A prediction then costs its query alone.

    Args:
        model: a set model, or a factory such as :func:`distmeta.table_transformer`, :func:`distmeta.cnp` or
            :func:`distmeta.image_context`. No query may have an influence on another.
        standardise: shift and scale each column by mean and standard deviation of the support set: of the ``"inputs"``,
            or of ``"both"`` inputs and targets of a regression. A column that is constant in the support set becomes 0,
            in the queries too.
        bins: B, bars of the histogram of a regression target instead of a normal distribution. The model then has
            ``D * B`` outputs instead of ``2 * D``. Bars are for targets near mean 0 and scale 1: standardise both.
        min_scale: the least standard deviation of the normal distribution, in units of the targets that the model sees.

    Example:
        >>> import distmeta
        >>> class Nearest(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.sharpness = nn.Parameter(torch.ones(()))
        ...     def forward(self, support_x, support_y, query_x):
        ...         weights = (-self.sharpness * torch.cdist(query_x, support_x)).softmax(-1)
        ...         return (weights @ F.one_hot(support_y, 2).float()).log()
        >>> fast = InContext(Nearest()).adapt(torch.tensor([[0.0], [1.0]]), ["low", "high"])
        >>> fast.predict(torch.tensor([[0.2], [3.0]])).tolist()
        ['low', 'high']
    """

    model_kind = "set"
    joins_support = True  # the model passes the support set beside the queries of its own accord

    class Config(MetaLearner.Config):
        """The settings of :class:`InContext`."""

        standardise: Literal["none", "inputs", "both"] = "none"
        bins: int | None = Field(default=None, ge=3)
        min_scale: PositiveFloat = 0.01

    config: Config
    _most_classes: int | None = None  # that the model was built for, once it is known

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """Logits ``[Q, N]``, those of classes that the support set lacks far below; in regression the means ``[Q, D]``.

        Args:
            params: theta, by name.
            episode: one task.
        """
        task = _stacked(episode)
        return self._answers(task, self._outputs(params, task))[0]

    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """The negative log-likelihood of one task, per query in nats."""
        task = _stacked(episode)
        losses, metrics = self._losses(task, self._outputs(params, task))
        return losses[0], {name: values[0] for name, values in metrics.items()}

    @final
    def spec_for_model(self, spec: TaskSpec) -> TaskSpec:
        """With the number of outputs that the head needs."""
        if spec.kind != "regression":
            return spec
        d = spec.outputs
        return replace(spec, outputs=d * (self.config.bins or 2), target_size=d)

    @final
    def bound_to(self, spec: TaskSpec) -> None:
        """Check the settings against the tasks.

        Raises:
            LearnerContractError: a setting has no effect on such tasks.
        """
        c = self.config
        self._most_classes = spec.outputs if spec.kind == "classification" else None
        if spec.kind == "classification" and (c.bins or c.standardise == "both"):
            what = f"bins={c.bins}" if c.bins else "standardise='both'"
            raise LearnerContractError(
                f"{what} is for targets of a regression; the tasks are {spec.kind}. Leave learner.bins out, and use "
                "learner.standardise=inputs."
            )
        if c.standardise != "none" and len(spec.input_shape) != 1:
            raise LearnerContractError(
                f"standardise='{c.standardise}' is for columns of a table; the inputs have shape "
                f"{list(spec.input_shape)}. Use learner.standardise=none."
            )

    @final
    def chunk_losses(self, params: Params, episodes: Episode) -> Generator[tuple[torch.Tensor, Metrics]]:
        """All tasks at once: the model stacks them itself. One after the other where the engine is a loop."""
        for part in self._parts(episodes):
            yield self._losses(part, self._outputs(params, part))

    @final
    def chunk_predictions(
        self, params: Params, episodes: Episode
    ) -> Generator[tuple[Metrics, torch.Tensor | Predictive | None]]:
        """Metrics, and the logits or distributions that they are computed from: no query influences another."""
        for part in self._parts(episodes):
            outputs = self._outputs(params, part)
            losses, metrics = self._losses(part, outputs)
            if part.query_y.is_floating_point():
                yield {"loss": losses} | metrics, self._distribution(part, outputs)
            else:
                same = {"accuracy_non_transductive": metrics["accuracy"]}
                yield {"loss": losses} | metrics | same, self._answers(part, outputs)

    @final
    def learned(self, params: Params, episode: Episode) -> Params:
        """The encoded support set, where the model can encode it apart."""
        return {name: value[0] for name, value in self.chunk_learned(params, _stacked(episode)).items()}

    @final
    def chunk_learned(self, params: Params, episodes: Episode) -> Params:
        """The encoded support sets of T tasks."""
        self._require_labels(episodes)
        if not self._encodes:
            return {}
        scale = SupportScale.of(episodes, self.config.standardise)
        inputs = scale.inputs(episodes.support_x), scale.targets(episodes.support_y)
        encoded: object = self._call("encode_support", params, *inputs)
        if not isinstance(encoded, dict) or not all(isinstance(value, torch.Tensor) for value in encoded.values()):
            raise ModelContractError(
                f"encode_support returned {type(encoded).__name__}; expected a dictionary of tensors, each with a "
                "leading axis of tasks. Return one."
            )
        return encoded

    @final
    def chunk_answers(self, params: Params, episodes: Episode, learned: Params | None = None) -> torch.Tensor:
        """All tasks at once; ``learned`` from their support sets before (:meth:`chunk_learned`), or now."""
        return self._answers(episodes, self._read(params, learned or {}, episodes))

    @final
    def chunk_predictive(self, params: Params, learned: Params, episodes: Episode) -> Predictive:
        """The distributions of the targets ``[T, Q, D]`` of all tasks at once."""
        return self._distribution(episodes, self._read(params, learned, episodes))

    @final
    def using(self, params: Params, learned: Params, episode: Episode) -> Predict:
        """Logits or means of a batch of queries."""
        return partial(self._predictions, params, learned, episode)

    @final
    def predictive(self, params: Params, learned: Params, episode: Episode) -> Callable[[torch.Tensor], Predictive]:
        """Distributions of the targets of a batch of queries."""
        return partial(self._distributions, params, learned, episode)

    @final
    def explained(self, params: Params, episode: Episode, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """``support_weights``: the attention over the support set, the mean over layers and heads of the model.

        Nothing where the model attends to the support set in another way than by torch's fused attention.
        """
        support, count = len(episode.support_x), max(len(x), 2)
        count += count == support
        # A number of queries that no other attention of the model has: one token of a row, or the support rows.
        asked = torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
        with AttentionSeen(len(asked), support) as seen:
            self._outputs(params, _stacked(replace(episode, query_x=asked)))
        return {} if seen.weights is None else {"support_weights": seen.weights[: len(x)]}

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """The attention of queries over the support set; what is drawn of an image from more and more pixels."""
        episode = unstack(episodes)[0]
        with torch.no_grad():
            if episode.support_y.is_floating_point():
                return drawn_from_pixels(episode, partial(self._given, params))
            queries = spread_over(episode.query_y, 10)
            found = self.explained(params, episode, episode.query_x[queries])
        return attention_of(episode, queries, found.get("support_weights"))

    # -- the forward pass

    def _given(self, params: Params, episode: Episode) -> Predictive:
        """The distributions ``[Q, D]`` of the queries of a task."""
        return self.predictive(params, self.learned(params, episode), episode)(episode.query_x)

    def _predictions(self, params: Params, learned: Params, episode: Episode, x: torch.Tensor) -> torch.Tensor:
        task, encoded = _stacked(replace(episode, query_x=x)), {name: part[None] for name, part in learned.items()}
        return self._answers(task, self._read(params, encoded, task))[0]

    def _distributions(self, params: Params, learned: Params, episode: Episode, x: torch.Tensor) -> Predictive:
        task, encoded = _stacked(replace(episode, query_x=x)), {name: part[None] for name, part in learned.items()}
        return self.chunk_predictive(params, encoded, task).row(0)

    def _read(self, params: Params, learned: Params, episodes: Episode) -> torch.Tensor:
        """Raw outputs ``[T, Q, outputs]``; the support sets are read where nothing was learned from them before."""
        if not learned:
            return self._outputs(params, episodes)
        scale = SupportScale.of(episodes, self.config.standardise)
        output: torch.Tensor = self._call("decode_queries", params, dict(learned), scale.inputs(episodes.query_x))
        return output

    def _outputs(self, params: Params, episodes: Episode) -> torch.Tensor:
        """Raw outputs ``[T, Q, outputs]`` of the model."""
        self._require_labels(episodes)
        scale = SupportScale.of(episodes, self.config.standardise)
        inputs = scale.inputs(episodes.support_x), scale.targets(episodes.support_y), scale.inputs(episodes.query_x)
        with sdpa_kernel(_KERNELS):
            output = self.forward(params, *inputs)
        if output.dim() != 3 or output.shape[:2] != episodes.query_x.shape[:2]:
            raise ModelContractError(
                f"The set model returned {list(output.shape)} for {episodes.query_x.shape[0]} tasks of "
                f"{episodes.query_x.shape[1]} queries; expected {[*episodes.query_x.shape[:2]]} and the number of "
                "outputs. Return a row for every query of every task: [T, Q, outputs]."
            )
        return output

    def _require_labels(self, episodes: Episode) -> None:
        most, y = self._most_classes, episodes.support_y
        if most is not None and not y.is_floating_point() and y.numel() and int(y.max()) >= most:
            raise LearnerContractError(
                f"The support set has the class position {int(y.max())}, but the set model has {most} outputs; "
                f"expected at most {most} classes. Leave classes out, or meta-train on tasks of more classes."
            )

    @property
    def _encodes(self) -> bool:
        return all(callable(getattr(self.model, name, None)) for name in ("encode_support", "decode_queries"))

    def _call(self, method: str, params: Params, *inputs: Any) -> Any:
        """A method of the model with ``params`` in place of its own parameters."""
        theta = {f"model.{name}": params[name] for name, _ in self.model.named_parameters() if name in params}
        with sdpa_kernel(_KERNELS):
            return torch.func.functional_call(_Method(self.model, method), theta, inputs)

    # -- what the outputs mean

    def _parts(self, episodes: Episode) -> Iterator[Episode]:
        """The tasks that go through the model together."""
        if not self.loops:
            yield episodes
            return
        for i in range(len(episodes.query_x)):
            yield episodes.map(lambda part, i=i: part[i : i + 1])  # type: ignore[misc]

    def _losses(self, episodes: Episode, outputs: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Losses ``[T]`` and metrics ``[T]``, from raw ``outputs``.

        What is differentiated is divided by the number of query rows, scored or not, which all tasks of a step share:
        the sum weighs every scored query alike. What is reported as ``loss`` is the mean over a task's scored queries.
        """
        y = episodes.query_y
        if y.is_floating_point():
            distribution = self._distribution(episodes, outputs)
            per_task = distribution.log_prob(y).sum(-1).mean(-1)
            error = (distribution.mean.detach() - y).square().flatten(1).mean(1)
            return -per_task, {"log_likelihood": per_task.detach(), "mse": error}
        logits = self._answers(episodes, outputs)
        scored = (y >= 0) & _present(episodes, logits.shape[-1]).gather(1, y.clamp_min(0))
        target = torch.where(scored, y, -1)
        nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-1).view_as(y)
        right = ((logits.argmax(-1) == y) & scored).sum(1).to(nll.dtype)
        count = scored.sum(1).clamp_min(1)
        return nll.mean(1), {"loss": nll.detach().sum(1) / count, "accuracy": right / count}

    def _answers(self, episodes: Episode, outputs: torch.Tensor) -> torch.Tensor:
        """Logits ``[T, Q, N]``, or means ``[T, Q, D]``, from raw ``outputs``."""
        if episodes.support_y.is_floating_point():
            return self._distribution(episodes, outputs).mean
        n = outputs.shape[-1] if episodes.outputs is None else min(episodes.outputs, outputs.shape[-1])
        here = _present(episodes, n)
        return torch.where(here[:, None], outputs[..., :n], outputs.new_full((), _IMPOSSIBLE))

    def _distribution(self, episodes: Episode, outputs: torch.Tensor) -> Predictive:
        """The distributions of targets ``[T, Q, D]``, in their own units."""
        d, bins = episodes.support_y.shape[-1], self.config.bins
        if outputs.shape[-1] != d * (bins or 2):
            raise ModelContractError(
                f"The set model returned {outputs.shape[-1]} numbers per query for targets of {d}; expected "
                f"{d * (bins or 2)}: {f'{bins} bars' if bins else 'a mean and a raw scale'} for each. Give the last "
                "layer as many outputs, or a factory that reads spec.outputs."
            )
        raw = Gaussian.of(outputs, self.config.min_scale) if bins is None else Bars.of(outputs, bins)
        return SupportScale.of(episodes, self.config.standardise).back(raw)


class _Method(nn.Module):
    """A module whose forward is one method of a model."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self._name = model, method

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.model, self._name)(*inputs)


def _stacked(episode: Episode) -> Episode:
    """One task as a chunk of one."""
    return episode.map(lambda part: part[None])


def _present(episodes: Episode, classes: int) -> torch.Tensor:
    """Whether the support set has an example of each class, ``[T, N]``."""
    y = episodes.support_y
    return (y[..., None] == torch.arange(classes, device=y.device)).any(1)
