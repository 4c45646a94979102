"""The arithmetic of repetitions: medians, quartiles, and how sure the ratio of two medians is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from distmeta.seeding import rng
from distmeta.types import FloatArray

Better = Literal["higher", "lower"]

FEWEST = 3
"""Repetitions on both sides without which no difference counts as clear."""

_RESAMPLES = 2000


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, interpolated linearly.

    Args:
        values: one or more repetitions.

    Example:
        >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
        (2.0, 3.0, 4.0)
    """
    low, middle, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    return float(low), float(middle), float(high)


def median(values: Sequence[float]) -> float:
    """The median; of an even number of values the mean of the middle two."""
    return quartiles(values)[1]


def ratio_of_medians(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of two medians with its 95 % interval, by the percentile bootstrap from a fixed seed.

    Args:
        top: repetitions, all above 0.
        bottom: repetitions, all above 0, apart from those of ``top``.

    Returns:
        The ratio, and the lower and upper end of its interval.

    Example:
        >>> ratio, low, high = ratio_of_medians([2.0, 2.1, 1.9, 2.0], [1.0, 1.0, 1.1, 0.9])
        >>> ratio, low < 2 < high
        (2.0, True)
    """
    ratios = _resampled(top, "top") / _resampled(bottom, "bottom")
    low, high = np.percentile(ratios, [2.5, 97.5])
    return median(top) / median(bottom), float(low), float(high)


def paired_ratio(top: Sequence[float], bottom: Sequence[float]) -> tuple[float, float, float]:
    """The median of the ratios of repetitions that were measured in the same rounds, with its 95 % interval.

    What slows a whole round down cancels, which it does not in :func:`ratio_of_medians`.

    Args:
        top: repetitions, one for each round.
        bottom: repetitions of the same rounds.

    Returns:
        The ratio, and the lower and upper end of its interval by the percentile bootstrap over rounds.

    Example:
        >>> paired_ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0])
        (2.0, 2.0, 2.0)
    """
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    low, high = np.percentile(_resampled(ratios, "rounds"), [2.5, 97.5])
    return median(ratios), float(low), float(high)


def interval_text(low: str, high: str, rounds: int) -> str:
    """The interval of a paired ratio for people, or why there is none.

    Args:
        low: its lower end.
        high: its upper end.
        rounds: whose ratios they are.

    Example:
        >>> interval_text("1.2", "1.3", 8), interval_text("1.2", "1.2", 1)
        ('95 % interval 1.2 to 1.3, from the ratios within rounds', 'too few repetitions for an interval: 1')
    """
    if rounds < FEWEST:
        return f"too few repetitions for an interval: {rounds}"
    return f"95 % interval {low} to {high}, from the ratios within rounds"


def _resampled(values: Sequence[float], side: str) -> FloatArray:
    """Medians ``[resamples]`` of as many values, drawn with replacement."""
    array = np.asarray(values, np.float64)
    drawn = rng(0, "bootstrap", side).integers(len(array), size=(_RESAMPLES, len(array)))
    return np.asarray(np.median(array[drawn], axis=1))
