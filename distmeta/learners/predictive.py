"""Predictive distributions of regression targets, from the raw outputs of a network.

Two heads: a normal distribution for each target (Garnelo et al. 2018, equation 3), and bars (Müller et al. 2022,
section 4): a histogram whose outermost bars are half-normal distributions, so that every number has a density.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
import torch.nn.functional as F


class Predictive(ABC):
    """A distribution for each target ``[..., D]``, independent of each other."""

    @property
    @abstractmethod
    def mean(self) -> torch.Tensor:
        """Means ``[..., D]``."""

    @property
    @abstractmethod
    def scale(self) -> torch.Tensor:
        """Standard deviations ``[..., D]``."""

    @abstractmethod
    def log_prob(self, y: torch.Tensor) -> torch.Tensor:
        """Log-densities ``[..., D]`` of ``y [..., D]``, in nats."""

    @abstractmethod
    def cdf(self, y: torch.Tensor) -> torch.Tensor:
        """Probabilities ``[..., D]`` of a target of at most ``y [..., D]``."""

    @abstractmethod
    def quantile(self, p: float) -> torch.Tensor:
        """Values ``[..., D]`` that a target stays below with probability ``p``, 0 to 1, both excluded."""

    @abstractmethod
    def moved(self, shift: torch.Tensor, spread: torch.Tensor) -> Self:
        """The distribution of ``shift + spread * y``, for positive ``spread``."""

    @abstractmethod
    def row(self, place: int | slice) -> Self:
        """The part at ``place`` of the first axis."""

    @abstractmethod
    def joined(self, others: Sequence[Self]) -> Self:
        """These distributions and ``others``, one after the other along the first axis."""


@dataclass(frozen=True)
class Gaussian(Predictive):
    """Normal distributions.

    Args:
        location: means ``[..., D]``.
        deviation: standard deviations ``[..., D]``.

    Example:
        >>> normal = Gaussian(torch.zeros(1), torch.ones(1))
        >>> round(normal.quantile(0.975).item(), 2), round(normal.log_prob(torch.zeros(1)).item(), 4)
        (1.96, -0.9189)
    """

    location: torch.Tensor
    deviation: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Means."""
        return self.location

    @property
    def scale(self) -> torch.Tensor:
        """Standard deviations."""
        return self.deviation

    @classmethod
    def of(cls, outputs: torch.Tensor, least: float) -> Gaussian:
        """From raw outputs ``[..., 2D]``: D means, then D numbers whose softplus plus ``least`` is the scale."""
        mean, raw = outputs.chunk(2, -1)
        return cls(mean, least + F.softplus(raw))

    def log_prob(self, y: torch.Tensor) -> torch.Tensor:
        """Log-densities."""
        z = (y - self.mean) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def cdf(self, y: torch.Tensor) -> torch.Tensor:
        """Cumulative probabilities."""
        probability: torch.Tensor = torch.special.ndtr((y - self.mean) / self.scale)
        return probability

    def quantile(self, p: float) -> torch.Tensor:
        """Quantiles."""
        return self.mean + self.scale * _normal_quantile(p)

    def moved(self, shift: torch.Tensor, spread: torch.Tensor) -> Gaussian:
        """Shifted and scaled."""
        return Gaussian(shift + spread * self.mean, spread * self.scale)

    def row(self, place: int | slice) -> Gaussian:
        """One part."""
        return Gaussian(self.mean[place], self.scale[place])

    def joined(self, others: Sequence[Gaussian]) -> Gaussian:
        """With others behind."""
        parts = [self, *others]
        return Gaussian(torch.cat([one.mean for one in parts]), torch.cat([one.scale for one in parts]))


@dataclass(frozen=True)
class Bars(Predictive):
    """Histograms over bars that are equally likely under the standard normal distribution.

    The outermost bars are half-normal distributions, with the mean that the standard normal has beyond their border.

    Args:
        log_weights: log-probabilities of the bars ``[..., D, B]``.
        shift: of the values, ``[..., D]`` or a scalar.
        spread: of the values, positive, ``[..., D]`` or a scalar.

    Example:
        >>> even = Bars.of(torch.zeros(1, 100), 100)
        >>> round(even.mean.item(), 3), round(even.scale.item(), 2), round(even.cdf(torch.zeros(1, 1)).item(), 3)
        (0.0, 1.0, 0.5)
    """

    log_weights: torch.Tensor
    shift: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, outputs: torch.Tensor, bins: int) -> Bars:
        """From raw outputs ``[..., D * B]``: the logits of B bars for each of D targets."""
        one = outputs.new_ones(())
        return cls(outputs.reshape(*outputs.shape[:-1], -1, bins).log_softmax(-1), one * 0, one)

    @property
    def mean(self) -> torch.Tensor:
        """Means."""
        return self.shift + self.spread * self._moment(1)

    @property
    def scale(self) -> torch.Tensor:
        """Standard deviations."""
        return self.spread * (self._moment(2) - self._moment(1).square()).clamp_min(0).sqrt()

    def log_prob(self, y: torch.Tensor) -> torch.Tensor:
        """Log-densities."""
        z = (y - self.shift) / self.spread
        borders, tail = self._borders(), _tail(self._bins)
        bar = torch.bucketize(z.detach().contiguous(), borders)
        chosen = self.log_weights.gather(-1, bar[..., None])[..., 0]
        beyond = (borders[0] - z).clamp_min(0) + (z - borders[-1]).clamp_min(0)
        half_normal = 0.5 * math.log(2 / math.pi) - math.log(tail) - 0.5 * (beyond / tail).square()
        width = torch.cat([borders.new_ones(1), borders.diff(), borders.new_ones(1)])[bar]
        inside = (bar > 0) & (bar < self._bins - 1)
        return chosen + torch.where(inside, -width.log(), half_normal) - self.spread.log()

    def cdf(self, y: torch.Tensor) -> torch.Tensor:
        """Cumulative probabilities."""
        z = ((y - self.shift) / self.spread).contiguous()
        borders, tail, weights = self._borders(), _tail(self._bins), self.log_weights.exp()
        bar = torch.bucketize(z, borders)
        below = (weights.cumsum(-1) - weights).gather(-1, bar[..., None])[..., 0]
        left = torch.cat([borders[:1], borders])[bar]
        width = torch.cat([borders.new_ones(1), borders.diff(), borders.new_ones(1)])[bar]
        inside = ((z - left) / width).clamp(0, 1)
        low, high = torch.erfc((borders[0] - z) / (tail * math.sqrt(2))), torch.erf((z - borders[-1]) / (tail * 2**0.5))
        part = torch.where(bar == 0, low, torch.where(bar == self._bins - 1, high, inside))
        return below + part * weights.gather(-1, bar[..., None])[..., 0]

    def quantile(self, p: float) -> torch.Tensor:
        """Quantiles."""
        borders, tail, weights = self._borders(), _tail(self._bins), self.log_weights.exp()
        total = weights.cumsum(-1)
        bar = (total < p).sum(-1).clamp_max(self._bins - 1)
        own = weights.gather(-1, bar[..., None])[..., 0].clamp_min(1e-30)
        part = ((p - (total.gather(-1, bar[..., None])[..., 0] - own)) / own).clamp(1e-7, 1 - 1e-7)
        left = torch.cat([borders[:1], borders])[bar]
        width = torch.cat([borders.new_ones(1), borders.diff(), borders.new_ones(1)])[bar]
        low = borders[0] - tail * math.sqrt(2) * torch.erfinv(1 - part)
        high = borders[-1] + tail * math.sqrt(2) * torch.erfinv(part)
        z = torch.where(bar == 0, low, torch.where(bar == self._bins - 1, high, left + part * width))
        return self.shift + self.spread * z

    def moved(self, shift: torch.Tensor, spread: torch.Tensor) -> Bars:
        """Shifted and scaled."""
        return replace(self, shift=shift + spread * self.shift, spread=spread * self.spread)

    def row(self, place: int | slice) -> Bars:
        """One part."""
        like = self.log_weights[..., 0]
        shift, spread = self.shift.expand_as(like), self.spread.expand_as(like)
        return Bars(self.log_weights[place], shift[place], spread[place])

    def joined(self, others: Sequence[Bars]) -> Bars:
        """With others behind."""
        parts = [one.row(slice(None)) for one in (self, *others)]
        values = (torch.cat([getattr(one, name) for one in parts]) for name in ("log_weights", "shift", "spread"))
        return Bars(*values)

    @property
    def _bins(self) -> int:
        return self.log_weights.shape[-1]

    def _borders(self) -> torch.Tensor:
        return self.log_weights.new_tensor(_borders(self._bins))

    def _moment(self, power: int) -> torch.Tensor:
        b, tail = self._borders(), _tail(self._bins)
        reach = tail * math.sqrt(2 / math.pi)  # mean of a half-normal
        low, high = b[:-1], b[1:]
        if power == 1:
            inner, ends = (low + high) / 2, (b[:1] - reach, b[-1:] + reach)
        else:
            inner = (low.square() + low * high + high.square()) / 3
            ends = tuple(e.square() + 2 * e.abs() * reach + tail**2 for e in (b[:1], b[-1:]))  # type: ignore[assignment]
        return (self.log_weights.exp() * torch.cat([ends[0], inner, ends[1]])).sum(-1)


@lru_cache
def _borders(bins: int) -> tuple[float, ...]:
    return tuple(_normal_quantile(k / bins) for k in range(1, bins))


@lru_cache
def _tail(bins: int) -> float:
    """Scale of the half-normal whose mean is that of the standard normal distribution beyond the last border."""
    border = _normal_quantile(1 - 1 / bins)
    density = math.exp(-0.5 * border**2) / math.sqrt(2 * math.pi)
    return (density * bins - border) * math.sqrt(math.pi / 2)


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
