"""The default losses and metrics of predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distmeta.types import Metrics


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
