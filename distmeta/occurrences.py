"""Accuracy by instance: how well a class is known when it is seen for the k-th time (Santoro et al. 2016, table 1)."""

from __future__ import annotations

import torch

INSTANCES = (1, 2, 3, 4, 5, 10)
"""The k of the paper's tables."""


def instance(targets: torch.Tensor) -> torch.Tensor:
    """For each step of a sequence: the k of "this class is seen for the k-th time"; 0 where nothing is scored.

    Args:
        targets: ``[T, L]`` class positions, or ``[T, L, S]`` symbols that name a class together; negative: not scored.

    Returns:
        ``[T, L]`` int64.

    Example:
        >>> instance(torch.tensor([[2, 0, 2, 2, 0, -1]])).tolist()
        [[1, 1, 2, 3, 2, 0]]
    """
    codes = targets.flatten(2) if targets.dim() > 2 else targets[:, :, None]
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    return same.tril().sum(-1) * (codes >= 0).all(-1)


def accuracies(right: torch.Tensor, targets: torch.Tensor, prefix: str = "") -> dict[str, torch.Tensor]:
    """Accuracy over all scored steps and by instance, per task.

    Args:
        right: ``[T, L]`` bool: which steps were classified rightly.
        targets: as of :func:`instance`.
        prefix: of the names.

    Returns:
        ``accuracy`` and ``accuracy_instance_1, 2, 3, 4, 5, 10``, each ``[T]``; without a k that any task lacks.

    Example:
        >>> found = accuracies(torch.tensor([[False, True, True, False]]), torch.tensor([[0, 1, 0, 1]]))
        >>> {name: value.tolist() for name, value in found.items()}
        {'accuracy': [0.5], 'accuracy_instance_1': [0.5], 'accuracy_instance_2': [0.5]}
    """
    seen = instance(targets)
    where = {"accuracy": seen > 0} | {f"accuracy_instance_{k}": seen == k for k in INSTANCES}
    return {
        prefix + name: (right & steps).sum(1) / steps.sum(1).to(torch.get_default_dtype())
        for name, steps in where.items()
        if bool(steps.any(1).all())
    }
