"""How far the probabilities of predictions can be trusted: numbers per task, and sums that are pooled over all tasks.

Classification (Guo, Pleiss, Sun, Weinberger 2017, section 2): negative log-likelihood, area under the ROC curve, and
per task the sums behind the expected calibration error, which is no mean of per-task values. Regression: how often an
interval of the predictive distribution holds the target.
"""

from __future__ import annotations

import torch

from distmeta.types import Metrics

BINS = 15
"""Bins of equal width for the confidence, 0 to 1."""

LEVELS = 20
"""Levels of central intervals, 1/20 to 1."""

_COVERED = (0.5, 0.9, 0.95)


def of_classes(logits: torch.Tensor, target: torch.Tensor, support: torch.Tensor) -> tuple[Metrics, torch.Tensor]:
    """Likelihood, ROC AUC and confidences of classified queries.

    A query is not scored where its label is negative, or where the support set, if there is one, lacks its class.

    Args:
        logits: ``[T, Q, N]``; log-probabilities up to a constant per query.
        target: ``[T, Q]`` int64.
        support: labels ``[T, S]`` of the support sets; S may be 0.

    Returns:
        ``nll`` and ``roc_auc``, each ``[T]``: the mean negative log-likelihood in nats, and :func:`roc_auc`. Then
        ``[T, 3, BINS]`` float64: per bin of the confidence (the highest probability) the number of queries, the sum of
        their confidences, and how many are right.

    Example:
        >>> logits = torch.tensor([[[0.8, 0.2], [0.4, 0.6]]]).log()
        >>> metrics, sums = of_classes(logits, torch.tensor([[0, 0]]), torch.tensor([[0, 1]]))
        >>> round(metrics["nll"].item(), 4), metrics["roc_auc"].item(), sums.sum(-1).tolist()
        (0.5697, nan, [[2.0, 1.4000000357627869, 1.0]])
    """
    scored = target >= 0
    if support.shape[1]:
        scored &= (target[:, :, None] == support[:, None]).any(-1)
    label = target.clamp(0, logits.shape[-1] - 1)
    log_p = logits.double().log_softmax(-1)
    chosen = -log_p.gather(-1, label[..., None])[..., 0]
    count = scored.sum(1)
    nll = chosen.masked_fill(~scored, 0).sum(1) / count.clamp_min(1)
    metrics = {"nll": nll, "roc_auc": roc_auc(log_p.exp(), target, scored)}
    # Single precision has 24 binary digits: sums of fewer than 2^20 of them are exact in double precision, so that they
    # have the same bits in any order and in chunks of any size.
    confidence = log_p.amax(-1).exp().float().double()
    bin_of = (confidence * BINS).long().clamp(0, BINS - 1)
    right = (logits.argmax(-1) == target) & scored
    terms = torch.stack([scored.double(), confidence.masked_fill(~scored, 0), right.double()], 1)
    sums = torch.zeros(len(logits), 3, BINS, dtype=torch.float64, device=logits.device)
    sums.scatter_add_(2, bin_of[:, None].expand_as(terms), terms)
    return {name: value.to(logits.dtype) for name, value in metrics.items()}, sums


def of_intervals(probability: torch.Tensor) -> tuple[Metrics, torch.Tensor]:
    """How often central intervals of the predictive distribution hold the target.

    Args:
        probability: ``[T, Q, D]``, the cumulative probability at each target.

    Returns:
        ``coverage_50``, ``coverage_90`` and ``coverage_95``, each ``[T]``: the share of targets in the interval of that
        probability. Then ``[T, 1, LEVELS]`` float64: the number of targets in the k-th smallest interval, those in
        smaller ones not counted.

    Example:
        >>> metrics, counts = of_intervals(torch.tensor([[[0.5], [0.3], [0.99]]]))
        >>> [round(value.item(), 2) for value in metrics.values()], counts.sum().item()
        ([0.67, 0.67, 0.67], 3.0)
    """
    level = 2 * (probability.double() - 0.5).abs().flatten(1)
    metrics = {f"coverage_{100 * p:.0f}": (level <= p).double().mean(1).to(probability.dtype) for p in _COVERED}
    place = ((level * LEVELS).ceil().long() - 1).clamp(0, LEVELS - 1)
    counts = torch.zeros(len(level), 1, LEVELS, dtype=torch.float64, device=level.device)
    counts.scatter_add_(2, place[:, None], torch.ones_like(level)[:, None])
    return metrics, counts


def roc_auc(probability: torch.Tensor, target: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Area under the ROC curve of each task, one class against the others, the mean over classes.

    By ranks, ties sharing theirs (Mann and Whitney 1947): the share of pairs of a query of the class and one of another
    in which the first has the higher probability of the class. Of two classes it is that of class 1.

    Args:
        probability: ``[T, Q, N]``.
        target: ``[T, Q]`` int64.
        scored: ``[T, Q]``, which queries count.

    Returns:
        ``[T]`` float64. A class without queries, or with all of them, is left out; NaN where no class is left.

    Example:
        >>> p = torch.tensor([0.1, 0.4, 0.35, 0.8])
        >>> roc_auc(torch.stack([1 - p, p], -1)[None], torch.tensor([[0, 0, 1, 1]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([0.7500], dtype=torch.float64)
    """
    # A probability per class and query, [T, N, Q]; one that is not scored is beyond all others.
    own = probability.mT.masked_fill(~scored[:, None], torch.inf).contiguous()
    ordered = own.sort(-1).values
    below = torch.searchsorted(ordered, own)
    up_to = torch.searchsorted(ordered, own, right=True)
    rank = (below + up_to + 1).double() / 2
    classes = torch.arange(own.shape[1], device=own.device)
    positive = (target[:, None] == classes[:, None]) & scored[:, None]
    yes = positive.sum(-1).double()
    no = scored.sum(-1, keepdim=True) - yes
    area = ((rank * positive).sum(-1) - yes * (yes + 1) / 2) / (yes * no)
    return area.nanmean(-1)
