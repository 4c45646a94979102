"""Pictures of learning in context: what queries attend to, and what is drawn from some pixels of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from distmeta.learners.pictures import Attention, Gallery, Heatmaps, Picture
from distmeta.learners.predictive import Predictive
from distmeta.types import Episode

_PIXELS = (10, 50, 200)


def spread_over(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Places of at most ``count`` labelled rows, as even over the classes as there are examples.

    Example:
        >>> spread_over(torch.tensor([0, 0, 0, 1, 1, -1]), 3).tolist()
        [0, 3, 1]
    """
    places = torch.nonzero(labels >= 0).flatten().tolist()
    turn: dict[int, int] = {}
    ranked = []
    for place in places:
        label = int(labels[place])
        turn[label] = turn.get(label, -1) + 1
        ranked.append((turn[label], label, place))
    return torch.tensor([place for *_, place in sorted(ranked)[:count]], dtype=torch.long)


def attention_of(episode: Episode, queries: torch.Tensor, weights: torch.Tensor | None) -> dict[str, Picture]:
    """``attention``: of some queries of a classification over its support set; nothing without weights.

    Args:
        episode: one task.
        queries: places of the queries.
        weights: ``[queries, S]``.
    """
    if weights is None:
        return {}
    order = torch.argsort(episode.support_y, stable=True)
    order = order[episode.support_y[order] >= 0]
    weights = weights[:, order].cpu()
    title, labels = "one meta-test task: attention of queries over the support set", episode.query_y[queries].cpu()
    if episode.support_x.dim() == 4 and len(order) <= 25:
        right = labels[:, None] == episode.support_y[order].cpu()[None]
        images = (episode.query_x[queries].cpu(), episode.support_x[order].cpu())
        return {"attention": Attention(title, *images, weights, right)}
    ticks = torch.nn.functional.one_hot(episode.support_y[order].cpu()).T.float()
    panels = {
        f"query of class {int(label)}": (row / row.max().clamp_min(1e-12))[None]
        for label, row in zip(labels, weights, strict=True)
    }
    return {"attention": Heatmaps(title, "support row", {"class of the row": ticks, **panels})}


def drawn_from_pixels(episode: Episode, given: Callable[[Episode], Predictive]) -> dict[str, Picture]:
    """``drawing``: an image from 10, 50 and 200 of its pixels; nothing where inputs are no positions of an image.

    Args:
        episode: one task, of positions ``[., 2]`` and values ``[., C]``.
        given: the distributions of the queries of a task.
    """
    x, y = (torch.cat(parts) for parts in ((episode.support_x, episode.query_x), (episode.support_y, episode.query_y)))
    if x.dim() != 2 or x.shape[1] != 2 or y.shape[1] not in (1, 3):
        return {}
    (rows, row), (columns, column) = (torch.unique(x[:, axis], return_inverse=True) for axis in (0, 1))
    height, width = len(rows), len(columns)
    if height * width > 4 * len(x):  # not a grid
        return {}
    place = row * width + column

    def image(values: torch.Tensor, where: torch.Tensor, ground: float = 0.0) -> torch.Tensor:
        empty = values.new_full((height * width, values.shape[1]), ground)
        empty[where] = values
        return empty.T.reshape(-1, height, width)

    truth, lines, captions = image(y, place), [], []
    everywhere = torch.cartesian_prod(rows, columns).to(x)
    for count in (n for n in _PIXELS if n < len(x)):
        task = replace(episode, support_x=x[:count], support_y=y[:count], query_x=everywhere)
        found = given(task)
        all_places = torch.arange(height * width, device=x.device)
        seen, mean = image(y[:count], place[:count]), image(found.mean, all_places)
        lines.append(torch.stack([seen, mean, image(found.scale, all_places), truth]))
        error = float((mean - truth).square().mean().sqrt())
        captions.append([f"{count} pixels", f"error {error:.2f}", f"mean {float(found.scale.mean()):.2f}", ""])
    if not lines:
        return {}
    columns_of = ("given", "mean", "spread", "image")
    title = "an image of meta-test, drawn from some of its pixels"
    return {"drawing": Gallery(title, torch.stack(lines).cpu(), captions, [True] * len(lines), columns_of)}
