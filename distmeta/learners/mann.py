"""Meta-learning with memory-augmented neural networks (Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016).

A sequence is a task. At step t the network reads an image and the label of the image before, ``(x_t, y_{t-1})``, and
predicts the label of ``x_t`` (equation 1)::

    theta* = argmin_theta E_D[ sum_t -log p(y_t | x_t, D_{1:t-1}; theta) ]

Labels are shuffled from task to task, so the weights cannot hold them: what is learned is to bind an image to a label
in memory and to find it again. See :func:`distmeta.mann` for the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distmeta.errors import LearnerContractError
from distmeta.learners.over_tasks import unstack
from distmeta.learners.pictures import Heatmaps, Picture
from distmeta.learners.sequence import SequenceLearner
from distmeta.occurrences import accuracies
from distmeta.types import Episode, Metrics, Params


class MANN(SequenceLearner):
    """Learn to classify a sequence of images while its labels come one step late.

    Args:
        model: a sequence model, ``[B, L, inputs]`` to logits ``[B, L, outputs]``: :func:`distmeta.mann`, or an LSTM to
            compare it with.

    Example:
        >>> from torch import nn
        >>> from distmeta.types import Episode
        >>> learner = MANN(nn.Linear(6, 3))
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> targets = torch.tensor([[0, 1, 2, 1, 2, 0]])
        >>> sorted(learner.evaluate(theta, Episode.sequence(torch.rand(6, 6), targets[0]).map(lambda t: t[None])))
        ['accuracy', 'accuracy_instance_1', 'accuracy_instance_2', 'loss', 'nll', 'roc_auc']
    """

    def sequence_loss(self, prediction: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Cross-entropy in nats, summed over the S symbols of a label and averaged over the steps; and accuracies.

        A label of S symbols counts as right when all of them are.

        Args:
            prediction: ``[T, L, S * V]`` logits, V for each symbol.
            targets: ``[T, L]`` (S = 1) or ``[T, L, S]`` int64; negative ones are not scored.

        Returns:
            ``[T]`` losses; ``accuracy`` and ``accuracy_instance_k`` (the k-th time that a class is seen), each ``[T]``.
        """
        if targets.is_floating_point():
            raise LearnerContractError(
                "MANN classifies each step; the targets are bits (floating point), expected integer labels. Use NTM."
            )
        symbols = targets if targets.dim() == 3 else targets[:, :, None]
        logits = prediction.reshape(*symbols.shape, -1)
        losses = F.cross_entropy(logits.flatten(0, 2), symbols.clamp_min(0).flatten(), reduction="none")
        scored = (symbols >= 0).to(losses)
        steps = scored.amax(-1).sum(1).clamp_min(1)
        right = (logits.argmax(-1) == symbols).all(-1)
        return (losses.view_as(scored) * scored).sum((1, 2)) / steps, accuracies(right, targets)

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``memory``: the first task's labels, the predicted probabilities, and the read and write weights."""
        self.model.eval()
        episode = unstack(episodes)[0]
        output, weights = self.traced(params, episode)
        symbols = episode.query_y[:, None] if episode.query_y.dim() == 1 else episode.query_y
        predicted = output.reshape(*symbols.shape, -1).softmax(-1)
        right = F.one_hot(symbols.clamp_min(0), predicted.shape[-1]) * (symbols >= 0)[..., None]
        panels = {"label": right.flatten(1), "predicted": predicted.flatten(1), **weights}
        arrays = {name: part.T.float().cpu().numpy() for name, part in panels.items()}
        return {"memory": Heatmaps("one task over time", "time step", arrays)}
