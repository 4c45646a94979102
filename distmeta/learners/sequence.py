"""The sequence family: a recurrent model reads a whole task as one sequence, and learns it on the way.

Nothing is adapted by gradients inside a task: what the model has learned of it lies in its memory. The tasks of a chunk
are one batch for the recurrent model, which is faster than to vectorise one task's mathematics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, final

import torch
from torch import nn

from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import vectorised
from distmeta.learners.predictive import Predictive
from distmeta.types import Episode, Metrics, Params


class SequenceLearner(MetaLearner):
    """An algorithm whose model maps ``[B, L, ...]`` sequences to ``[B, L, outputs]``; a subclass writes their loss.

    ``vectorise="loop"`` runs the tasks of a chunk one by one, anything else as one batch.

    Example:
        >>> class SquaredError(SequenceLearner):
        ...     def sequence_loss(self, prediction, targets):
        ...         return (prediction - targets).square().mean((1, 2)), {}
        >>> learner = SquaredError(nn.Linear(3, 2))
        >>> episode = Episode.sequence(torch.rand(7, 3), torch.zeros(7, 2)).map(lambda part: part[None])
        >>> list(learner.evaluate(learner.meta_params, episode))
        ['loss']
    """

    model_kind = "sequence"

    @abstractmethod
    def sequence_loss(self, prediction: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Losses ``[T]`` of T tasks, and metrics of each, ``[T]``.

        Args:
            prediction: ``[T, L, outputs]`` from the model.
            targets: ``[T, L, ...]``; negative ones are not scored.
        """

    @final
    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """The model's output at each step of one task, ``[L, outputs]``."""
        return self.forward(params, episode.query_x[None])[0]

    @final
    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """:meth:`sequence_loss` of one task."""
        losses, metrics = self.sequence_loss(self.query_logits(params, episode)[None], episode.query_y[None])
        return losses[0], {name: values[0] for name, values in metrics.items()}

    @final
    def chunk_losses(self, params: Params, episodes: Episode) -> Generator[tuple[torch.Tensor, Metrics]]:
        """:meth:`sequence_loss` of the whole chunk as one batch; backpropagation goes through the whole sequences."""
        for prediction, y in self._parts(params, episodes):
            with vectorised(False):
                yield self.sequence_loss(prediction, y)

    @final
    def chunk_predictions(
        self, params: Params, episodes: Episode
    ) -> Generator[tuple[Metrics, torch.Tensor | Predictive | None]]:
        """Metrics, and the logits ``[tasks, L, N]`` of steps whose targets are classes."""
        for prediction, y in self._parts(params, episodes):
            with vectorised(False):
                losses, metrics = self.sequence_loss(prediction, y)
            classes = y.dim() == 2 and not y.is_floating_point()
            yield {"loss": losses} | metrics, prediction if classes else None

    def _parts(self, params: Params, episodes: Episode) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs ``[tasks, L, outputs]`` and targets of tasks that are computed together."""
        size = 1 if self.loops else len(episodes.query_x)
        for x, y in zip(torch.split(episodes.query_x, size), torch.split(episodes.query_y, size), strict=True):
            with vectorised(False):
                prediction = self.forward(params, x)
            yield prediction, y

    def traced(self, params: Params, episode: Episode) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The model's output at each step of one task, and where its memory was written and read.

        Args:
            params: the meta-parameters.
            episode: one task, not stacked.

        Returns:
            The output ``[L, outputs]``; ``write weights`` and ``read weights`` ``[L, S]``, averaged over heads; no
            weights where the model has no memory (no method ``trace``).
        """
        x = episode.query_x[None]
        with torch.no_grad():
            if not hasattr(self.model, "trace"):
                return self.forward(params, x)[0], {}
            named = {f"network.{name}": p for name, p in params.items()}
            output, read, written = torch.func.functional_call(_Traced(self.model), named, (x,))
        return output[0], {"write weights": written[0].mean(1), "read weights": read[0].mean(1)}


class _Traced(nn.Module):
    """A memory network whose forward is its ``trace``: ``functional_call`` replaces parameters for a forward only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> Any:
        return self.network.trace(x)
