"""Columns of a task shifted and scaled by its support set alone: a query has no part in it, or it would be a leak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from distmeta.learners.predictive import Predictive
from distmeta.types import Episode

_FURTHEST = 100.0
"""Standard deviations; a query beyond is as far out as that."""

P = TypeVar("P", bound=Predictive)


@dataclass(frozen=True)
class SupportScale:
    """Mean and standard deviation of each column over the support rows; ``None`` where nothing is scaled.

    Args:
        x: of the inputs, each ``[T, 1, F]``; the standard deviation of a constant column is infinite, so that the
            column becomes 0.
        y: of regression targets, each ``[T, 1, D]``; 1 in place of the standard deviation of constant targets.

    Example:
        >>> x, y = torch.tensor([[[1.0, 7.0], [3.0, 7.0]]]), torch.zeros(1, 2, dtype=torch.long)
        >>> SupportScale.of(Episode(x, y, x, y), "inputs").inputs(torch.tensor([[[5.0, 9.0]]])).tolist()
        [[[3.0, 0.0]]]
    """

    x: tuple[torch.Tensor, torch.Tensor] | None = None
    y: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, episodes: Episode, what: Literal["none", "inputs", "both"]) -> SupportScale:
        """The scale of T stacked tasks; rows of the label -1 are padding and have no part in it."""
        if what == "none":
            return cls()
        x, y = episodes.support_x, episodes.support_y
        rows = torch.ones_like(y[..., 0]) if y.is_floating_point() else (y >= 0).to(x)
        mean, deviation, constant = _moments(x, rows)
        inputs = mean, deviation.masked_fill(constant, torch.inf)
        if what == "inputs" or not y.is_floating_point():
            return cls(inputs)
        mean, deviation, constant = _moments(y, rows)
        return cls(inputs, (mean, deviation.masked_fill(constant, 1.0)))

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs ``[T, M, F]`` as the model sees them."""
        return x if self.x is None else ((x - self.x[0]) / self.x[1]).clamp(-_FURTHEST, _FURTHEST)

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Targets ``[T, S, D]`` as the model sees them; labels as they are."""
        return y if self.y is None else (y - self.y[0]) / self.y[1]

    def back(self, distribution: P) -> P:
        """A distribution of targets ``[T, M, D]`` that the model sees, in their own units."""
        return distribution if self.y is None else distribution.moved(*self.y)


def _moments(values: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, standard deviation, and whether a column is constant, each ``[T, 1, F]``, over the rows that count."""
    weight = rows[..., None]
    count = weight.sum(1, keepdim=True).clamp_min(1)
    mean = (values * weight).sum(1, keepdim=True) / count
    deviation = (((values - mean) * weight).square().sum(1, keepdim=True) / count).sqrt()
    low = values.masked_fill(weight == 0, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(weight == 0, -torch.inf).amax(1, keepdim=True)
    return mean, deviation, low >= high
