"""What needs no meta-training, on stacked tasks: is it worth it here?

For inputs of any shape, the nearest support example; for vectors, such as the features of a frozen encoder, also the
two heads that people put on them: the nearest class mean and a logistic probe. All see the very tasks that the learner
is evaluated on, so that differences can be paired.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distmeta.types import Episode, Metrics

_NEWTON_STEPS, _CONJUGATE_STEPS = 12, 30


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


def of_padded(episodes: Episode) -> Metrics:
    """:func:`classification` of tasks filled up with rows of the label -1, one after the other without them."""
    found = [classification(unpadded(episodes, i)) for i in range(len(episodes.query_x))]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def unpadded(episodes: Episode, index: int) -> Episode:
    """One of T stacked tasks, still stacked ``[1, ...]``, without the rows of the label -1.

    Example:
        >>> x, y = torch.rand(1, 3, 2), torch.tensor([[0, 1, -1]])
        >>> unpadded(Episode(x, y, x, y), 0).support_x.shape
        torch.Size([1, 2, 2])
    """
    support_x, support_y, query_x, query_y = (part[index] for part in episodes)
    rows, queries = support_y >= 0, query_y >= 0
    parts = support_x[rows], support_y[rows], query_x[queries], query_y[queries]
    return Episode(*(part[None] for part in parts), ways=episodes.ways, outputs=episodes.outputs)


def probe_logits(x: torch.Tensor, labels: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Logistic regression of each task on its support set: the probe that a frozen encoder is used with.

    It minimises ``sum_i CE(W^T x_i, y_i) + |W|^2 / 2``, scikit-learn's ``LogisticRegression()`` with a constant feature
    1 in place of its free intercept. By the representer theorem the columns of W are combinations of the examples, so
    the problem has S dimensions, whatever D is. Newton's steps, their systems solved by conjugate gradients, take
    inputs of any scale.

    Args:
        x: ``[T, S, D]`` float64.
        labels: ``[T, S, N]`` one-hot.
        query: ``[T, Q, D]``.

    Returns:
        ``[T, Q, N]``.
    """
    size, axes = torch.linalg.eigh(x @ x.mT + 1)
    root = size.clamp_min(0).sqrt()  # rounding makes tiny negative ones
    z = axes * root[:, None]  # [T, S, S], the support set in the basis of its own span
    w = torch.zeros(len(z), z.shape[2], labels.shape[2], dtype=z.dtype, device=z.device)
    sizes = 0.5 ** torch.arange(8, dtype=z.dtype, device=z.device)
    for _ in range(_NEWTON_STEPS):
        p = (z @ w).softmax(-1)
        step = _newton_step(z, p, z.mT @ (p - labels) + w, size)
        tried = w[None] - sizes[:, None, None, None] * step
        best = _objective(z, labels, tried).argmin(0)
        w = tried[best, torch.arange(len(w), device=w.device)]
    # A query's coordinates in that basis; along an axis without extent there are none, and w is 0.
    inverse = torch.where(root > 1e-10 * root.amax(-1, keepdim=True), 1 / root, 0)
    logits: torch.Tensor = (query @ x.mT + 1) @ axes @ (inverse[..., None] * w)
    return logits


def _objective(z: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    losses: torch.Tensor = -(labels * (z @ w).log_softmax(-1)).sum((-2, -1)) + w.square().sum((-2, -1)) / 2
    return losses


def _newton_step(z: torch.Tensor, p: torch.Tensor, gradient: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Solve ``H d = gradient`` of every task, with ``H d = Z^T (diag(p) - p p^T) Z d + d``."""
    curvature = 1 / (size / 4 + 1)[..., None]  # roughly, for a preconditioner
    d = torch.zeros_like(gradient)
    left = gradient
    conditioned = curvature * left
    direction, before = conditioned, _dot(left, conditioned)
    for _ in range(_CONJUGATE_STEPS):
        u = z @ direction
        applied = z.mT @ (p * (u - (p * u).sum(-1, keepdim=True))) + direction
        rate = _ratio(before, _dot(direction, applied))
        d, left = d + rate * direction, left - rate * applied
        conditioned = curvature * left
        now = _dot(left, conditioned)
        direction, before = conditioned + _ratio(now, before) * direction, now
    return d


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a / b``, 0 where a system is solved and both are 0."""
    return torch.where(b > 0, a / b, 0)


def _accuracy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (prediction == target).float().mean(1)
