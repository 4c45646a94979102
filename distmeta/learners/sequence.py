"""What memory-based learners share: a recurrent model reads a whole task as one sequence, and learns it on the way.

Nothing is adapted by gradients inside a task: what the model knows of it lies in its memory. The tasks of a chunk are
one batch for the recurrent model, which is faster than to vectorise one task's mathematics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from distmeta.errors import LearnerContractError
from distmeta.learners.base import FastModel, MetaLearner
from distmeta.learners.functional import vectorised
from distmeta.types import Episode, MetaGradient, Metrics, Params


class SequenceLearner(MetaLearner):
    """An algorithm whose model maps ``[B, L, ...]`` sequences to ``[B, L, outputs]``; a subclass says how to judge it.

    ``vectorise="loop"`` runs the tasks of a chunk one by one, anything else as one batch.
    """

    network = "sequence"

    @abstractmethod
    def judge(self, prediction: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Losses ``[T]`` of T tasks, and what is worth recording of each, ``[T]``.

        Args:
            prediction: ``[T, L, outputs]`` from the model.
            targets: ``[T, L, ...]``; negative ones are not scored.
        """

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """What the model says at each step of one task, ``[L, outputs]``."""
        return self.forward(params, episode.query_x[None])[0]

    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """See the parent."""
        losses, metrics = self.judge(self.query_logits(params, episode)[None], episode.query_y[None])
        return losses[0], {name: values[0] for name, values in metrics.items()}

    def meta_gradient(self, params: Params, episodes: Episode) -> MetaGradient:
        """See the parent; backpropagation through time over the whole sequences."""
        self.model.train()
        theta = {name: p.detach().requires_grad_() for name, p in params.items()}
        total = {name: torch.zeros_like(p) for name, p in theta.items()}
        judged = []
        for losses, metrics in self._judged(theta, episodes):
            self._accumulate(total, losses.sum(), theta)
            judged.append({"loss": losses.detach()} | {name: values.detach() for name, values in metrics.items()})
        return MetaGradient(total, tasks=len(episodes.query_x), metrics=_join(judged))

    def evaluate(self, params: Params, episodes: Episode) -> Metrics:
        """``loss`` and the algorithm's own metrics per task, ``[T]``."""
        self.model.eval()
        with torch.no_grad():
            return _join([{"loss": losses} | metrics for losses, metrics in self._judged(params, episodes)])

    def adapt(self, support_x: torch.Tensor, support_y: torch.Tensor) -> FastModel:
        """Not for sequences.

        Raises:
            LearnerContractError: always.
        """
        raise LearnerContractError(
            f"{type(self).__name__} learns a task from one sequence that holds the labels too; expected no separate "
            "support set. Call model(sequences) with [B, L, ...] inputs, or learner.evaluate(params, episodes)."
        )

    def traced(self, params: Params, episode: Episode) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the model said at each step of one task, and where its memory was written and read.

        Args:
            params: the meta-parameters.
            episode: one task, not stacked.

        Returns:
            The output ``[L, outputs]``; ``write weights`` and ``read weights`` ``[L, S]``, of several heads the mean;
            nothing where the model has no memory (no method ``trace``).
        """
        x = episode.query_x[None]
        with torch.no_grad():
            if not hasattr(self.model, "trace"):
                return self.forward(params, x)[0], {}
            named = {f"network.{name}": p for name, p in params.items()}
            output, read, written = torch.func.functional_call(_Traced(self.model), named, (x,))
        return output[0], {"write weights": written[0].mean(1), "read weights": read[0].mean(1)}

    def _judged(self, params: Params, episodes: Episode) -> Iterator[tuple[torch.Tensor, Metrics]]:
        size = 1 if self.config.vectorise == "loop" else len(episodes.query_x)
        for x, y in zip(torch.split(episodes.query_x, size), torch.split(episodes.query_y, size), strict=True):
            with vectorised(False):
                yield self.judge(self.forward(params, x), y)


def _join(parts: list[Metrics]) -> Metrics:
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in common}


class _Traced(nn.Module):
    """A memory network whose forward is its ``trace``: ``functional_call`` replaces parameters for a forward only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> Any:
        return self.network.trace(x)
