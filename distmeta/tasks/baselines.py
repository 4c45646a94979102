"""What needs no meta-training, on stacked tasks: is it worth it here?

For inputs of any shape, the nearest support example; for vectors, such as the features of a frozen encoder, also the
two heads that people put on them: the nearest class mean and a logistic probe. All see the very tasks that the learner
is evaluated on, so that differences can be paired.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distmeta.types import Episode, Metrics

HEADS = ("baseline_mean_accuracy", "baseline_probe_accuracy")
"""The baselines of vectors."""

PROBE_STEPS = 200


def classification(episodes: Episode) -> Metrics:
    """Accuracies ``[T]`` of the baselines of classification.

    Returns:
        ``baseline_accuracy`` of the nearest support example by Euclidean distance. Where inputs are vectors, also
        ``baseline_mean_accuracy`` of the nearest class mean, and ``baseline_probe_accuracy`` of :func:`probe_logits`.
    """
    support_x, support_y, query_x, query_y = episodes
    distance = torch.cdist(query_x.flatten(2), support_x.flatten(2))
    nearest = support_y.gather(1, distance.argmin(-1))
    found = {"baseline_accuracy": _accuracy(nearest, query_y)}
    if support_x.dim() == 3:
        labels = F.one_hot(support_y).double()
        x, query = support_x.double(), query_x.double()
        means = labels.mT @ x / labels.sum(1)[..., None].clamp_min(1)
        away = torch.cdist(query, means).masked_fill(labels.sum(1)[:, None] == 0, torch.inf)
        found["baseline_mean_accuracy"] = _accuracy(away.argmin(-1), query_y)
        found["baseline_probe_accuracy"] = _accuracy(probe_logits(x, labels, query).argmax(-1), query_y)
    return found


def regression(episodes: Episode) -> Metrics:
    """``baseline_loss [T]``, the mean squared error of predicting the mean of the support targets."""
    guess = episodes.support_y.mean(1, keepdim=True)
    return {"baseline_loss": (guess - episodes.query_y).square().flatten(1).mean(1)}


def probe_logits(x: torch.Tensor, labels: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Logistic regression of each task on its support set: the probe that a frozen encoder is used with.

    It minimises ``sum_i CE(W^T x_i, y_i) + |W|^2 / 2``, scikit-learn's ``LogisticRegression()`` with a constant feature
    1 in place of its free intercept. By the representer theorem the rows of W are combinations of the examples: the
    problem is solved in their S dimensions, whatever D is. In the eigenbasis of the Gram matrix the curvature is at
    most ``s_j / 2 + 1`` along axis j (Böhning 1992) and at least 1; accelerated gradient steps use both.

    Args:
        x: ``[T, S, D]`` float64.
        labels: ``[T, S, N]`` one-hot.
        query: ``[T, Q, D]``.

    Returns:
        ``[T, Q, N]``.
    """
    gram = x @ x.mT + 1
    size, axes = torch.linalg.eigh(gram)
    root = size.clamp_min(0).sqrt()  # [T, S]; rounding makes tiny negative ones
    z = axes * root[:, None]  # [T, S, S], the support set in the basis of its own span
    step = (1 / (size.clamp_min(0) / 2 + 1))[..., None]
    narrow = step.amin(1, keepdim=True).sqrt()  # 1 / sqrt(condition number)
    momentum = (1 - narrow) / (1 + narrow)
    w = ahead = torch.zeros(*z.shape[:1], z.shape[2], labels.shape[2], dtype=z.dtype, device=z.device)
    for _ in range(PROBE_STEPS):
        gradient = z.mT @ ((z @ ahead).softmax(-1) - labels) + ahead
        before, w = w, ahead - step * gradient
        ahead = w + momentum * (w - before)
    # A query's coordinates in that basis; along an axis without extent there are none, and w is 0.
    inverse = torch.where(root > 1e-10 * root.amax(-1, keepdim=True), 1 / root, 0)
    logits: torch.Tensor = (query @ x.mT + 1) @ axes @ (inverse[..., None] * w)
    return logits


def _accuracy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (prediction == target).float().mean(1)
