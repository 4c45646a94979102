"""The default losses and metrics of predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distmeta.types import Episode, Metrics


def of_task(prediction: torch.Tensor, episode: Episode) -> torch.Tensor:
    """The columns of ``prediction`` that stand for classes of the task: a model may have outputs for more.

    Example:
        >>> episode = Episode(torch.rand(4, 1), torch.arange(2), torch.rand(3, 1), torch.arange(2), outputs=2)
        >>> of_task(torch.rand(3, 5), episode).shape
        torch.Size([3, 2])
    """
    n = episode.outputs
    return prediction if n is None or prediction.shape[-1] <= n else prediction[..., :n]


def prediction_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy for integer targets, mean squared error for float targets; a scalar."""
    if target.is_floating_point():
        return F.mse_loss(prediction, target)
    return F.cross_entropy(prediction, target)


def prediction_metrics(prediction: torch.Tensor, target: torch.Tensor) -> Metrics:
    """``accuracy`` for integer targets, nothing for float targets."""
    if target.is_floating_point():
        return {}
    return {"accuracy": (prediction.argmax(-1) == target).to(prediction.dtype).mean()}
