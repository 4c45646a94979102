"""Accuracy by occurrence: how well a class is recognised when it occurs for the k-th time in its sequence.

Santoro et al. (2016, table 1) call the k-th occurrence of a class its k-th instance, hence ``accuracy_instance_k``.
"""

from __future__ import annotations

import torch

INSTANCES = (1, 2, 3, 4, 5, 10)
"""The k of the paper's tables, and of the metrics."""


def occurrence(targets: torch.Tensor) -> torch.Tensor:
    """Count, for each step of a sequence, how often its class has occurred so far, this step included.

    Args:
        targets: ``[T, L]`` class positions, or ``[T, L, S]`` symbols that name a class together; negative where
            nothing is scored.

    Returns:
        ``[T, L]`` int64: k at the k-th occurrence of a class, 0 where nothing is scored.

    Example:
        >>> occurrence(torch.tensor([[2, 0, 2, 2, 0, -1]])).tolist()
        [[1, 1, 2, 3, 2, 0]]
    """
    codes = targets.flatten(2) if targets.dim() > 2 else targets[:, :, None]
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    return same.tril().sum(-1) * (codes >= 0).all(-1)


def accuracies(right: torch.Tensor, targets: torch.Tensor, prefix: str = "") -> dict[str, torch.Tensor]:
    """Accuracy over all scored steps and by occurrence, per task.

    Args:
        right: ``[T, L]`` bool, true where a step is classified correctly.
        targets: as for :func:`occurrence`.
        prefix: put in front of each name.

    Returns:
        ``accuracy`` and ``accuracy_instance_1, 2, 3, 4, 5, 10``, each ``[T]``; a k that some task lacks is left out.

    Example:
        >>> found = accuracies(torch.tensor([[False, True, True, False]]), torch.tensor([[0, 1, 0, 1]]))
        >>> {name: value.tolist() for name, value in found.items()}
        {'accuracy': [0.5], 'accuracy_instance_1': [0.5], 'accuracy_instance_2': [0.5]}
    """
    seen = occurrence(targets)
    # All of them at once: they are a part of every training step.
    steps = torch.cat([(seen > 0)[None], seen == torch.tensor(INSTANCES, device=seen.device)[:, None, None]])
    counts = steps.sum(-1)
    shares = (right & steps).sum(-1) / counts.to(torch.get_default_dtype())
    names = ("accuracy", *(f"accuracy_instance_{k}" for k in INSTANCES))
    in_all = (counts > 0).all(-1).tolist()
    return {prefix + name: share for name, share, found in zip(names, shares, in_all, strict=True) if found}
