"""The predictive distribution of an ensemble: an equal mixture of those of its members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distmeta.learners.predictive import Predictive

_HALVINGS = 50


@dataclass(frozen=True)
class Mixture(Predictive):
    """An equal mixture of distributions of the same targets.

    Args:
        members: at least one, of targets ``[..., D]``.

    Example:
        >>> from distmeta.learners.predictive import Gaussian
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> both = Mixture([Gaussian(-3 * one, one), Gaussian(3 * one, one)])
        >>> both.mean.item(), round(both.scale.item() ** 2, 6), round(both.quantile(0.95).item(), 2)
        (0.0, 10.0, 4.28)
    """

    members: Sequence[Predictive]

    @property
    def mean(self) -> torch.Tensor:
        """Means."""
        return torch.stack([member.mean for member in self.members]).mean(0)

    @property
    def scale(self) -> torch.Tensor:
        """Standard deviations: the mean variance of the members, and the variance of their means."""
        means, scales = (torch.stack([getattr(one, part) for one in self.members]) for part in ("mean", "scale"))
        return (scales.square().mean(0) + means.var(0, correction=0)).sqrt()

    def log_prob(self, y: torch.Tensor) -> torch.Tensor:
        """Log-densities."""
        return torch.stack([member.log_prob(y) for member in self.members]).logsumexp(0) - math.log(len(self.members))

    def cdf(self, y: torch.Tensor) -> torch.Tensor:
        """Cumulative probabilities."""
        return torch.stack([member.cdf(y) for member in self.members]).mean(0)

    def quantile(self, p: float) -> torch.Tensor:
        """Quantiles; that of the mixture lies between those of its members."""
        each = torch.stack([member.quantile(p) for member in self.members])
        low, high = each.amin(0), each.amax(0)
        for _ in range(_HALVINGS):
            middle = low + (high - low) / 2
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low + (high - low) / 2

    def moved(self, shift: torch.Tensor, spread: torch.Tensor) -> Mixture:
        """Shifted and scaled."""
        return Mixture([member.moved(shift, spread) for member in self.members])

    def row(self, place: int | slice) -> Mixture:
        """One part."""
        return Mixture([member.row(place) for member in self.members])

    def joined(self, others: Sequence[Mixture]) -> Mixture:
        """With others of as many members behind."""
        behind = zip(*(other.members for other in others), strict=True)
        return Mixture([one.joined(after) for one, after in zip(self.members, behind, strict=True)]) if others else self


__all__ = ["Mixture"]
