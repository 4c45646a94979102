"""The plainest correct PyTorch code for the gradient of each learner: what a user would write without distmeta.

Tasks come one after the other where the algorithm has a support set, as one batch where the network takes one. Each
function adds the gradient, summed over tasks, to ``.grad`` of the model's parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from distmeta.types import Episode

Backward = Callable[[nn.Module, Episode], None]

MARGIN, TEMPERATURE = 3.0, 0.1
REPTILE_RATE, REPTILE_STEPS, REPTILE_BATCH = 1e-3, 5, 10


def by_task(loss: Callable[[nn.Module, Episode], torch.Tensor], model: nn.Module, episodes: Episode) -> None:
    """Differentiate the loss of one task after the other."""
    for parts in zip(*episodes, strict=True):
        loss(model, Episode(*parts)).backward()  # type: ignore[no-untyped-call]


def _features(model: nn.Module, e: Episode) -> tuple[torch.Tensor, torch.Tensor]:
    features = model(torch.cat([e.support_x, e.query_x]))
    return features[: len(e.support_x)], features[len(e.support_x) :]


def protonet(model: nn.Module, e: Episode) -> torch.Tensor:
    """Distances to class means."""
    support, query = _features(model, e)
    means = torch.stack([support[e.support_y == k].mean(0) for k in range(int(e.support_y.max()) + 1)])
    return F.cross_entropy(-(query[:, None] - means).square().sum(-1), e.query_y)


def matching(model: nn.Module, e: Episode) -> torch.Tensor:
    """Attention by cosines."""
    support, query = _features(model, e)
    cosine = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).T
    attention = (cosine / TEMPERATURE).softmax(-1)
    labels = F.one_hot(e.support_y).to(attention)
    return F.nll_loss((attention @ labels).log(), e.query_y)


def siamese(model: nn.Module, e: Episode) -> torch.Tensor:
    """The contrastive loss of all pairs of queries with support examples, both kinds weighing the same."""
    support, query = _features(model, e)
    distance = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
    same = e.query_y[:, None] == e.support_y
    return (distance[same].square().mean() + F.relu(MARGIN - distance[~same]).square().mean()) / 2


def reptile(model: nn.Module, episodes: Episode) -> None:
    """Adam on mini-batches in which the classes take turns, from a copy of the model for each task."""
    theta = list(model.parameters())
    for parts in zip(*episodes, strict=True):
        e = Episode(*parts)
        ways = int(e.support_y.max()) + 1
        order = torch.arange(len(e.support_y)).view(ways, -1).T.flatten()  # the support set comes class by class
        fast = copy.deepcopy(model)
        optimizer = torch.optim.Adam(fast.parameters(), lr=REPTILE_RATE, betas=(0.0, 0.999))
        for step in range(REPTILE_STEPS):
            rows = order[[(step * REPTILE_BATCH + i) % len(order) for i in range(REPTILE_BATCH)]]
            optimizer.zero_grad()
            F.cross_entropy(fast(e.support_x[rows]), e.support_y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            F.cross_entropy(fast(e.query_x), e.query_y)  # reported in training
            for p, phi in zip(theta, fast.parameters(), strict=True):
                p.grad = p - phi if p.grad is None else p.grad + p - phi


def mann(model: nn.Module, episodes: Episode) -> None:
    """Cross-entropy of the labels of all sequences."""
    x, y = episodes.query_x, episodes.query_y
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
    loss.backward()  # type: ignore[no-untyped-call]


def ntm(model: nn.Module, episodes: Episode) -> None:
    """Cross-entropy of the bits that are scored."""
    x, y = episodes.query_x, episodes.query_y
    scored = y >= 0
    loss = F.binary_cross_entropy_with_logits(model(x)[scored], y[scored], reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]


def in_context(model: nn.Module, episodes: Episode) -> None:
    """Cross-entropy of the queries given their support sets, columns standardised by support rows."""
    e = episodes
    mean, deviation = e.support_x.mean(1, keepdim=True), e.support_x.std(1, keepdim=True, correction=0)
    logits = model((e.support_x - mean) / deviation, e.support_y, (e.query_x - mean) / deviation)
    loss = F.cross_entropy(logits.flatten(0, 1), e.query_y.flatten(), reduction="sum") / e.query_y.shape[1]
    loss.backward()  # type: ignore[no-untyped-call]


PROTONET: Backward = partial(by_task, protonet)
MATCHING: Backward = partial(by_task, matching)
SIAMESE: Backward = partial(by_task, siamese)
