"""Calibration of a whole evaluation: predictions of all tasks pooled, by confidence or by interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distmeta.seeding import rng
from distmeta.types import FloatArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Calibration:
    """What was predicted, beside what came to pass, in bins of equal width; of all queries of all tasks.

    Classification: bins of the confidence (the highest probability of a query); ``expected`` is the mean confidence in
    a bin, ``observed`` the share that is right. Regression: central intervals of the predictive distribution, the
    smallest first; ``expected`` is their probability, ``observed`` the share of targets inside.

    Intervals are 1.96 standard errors over resamples of the tasks (Efron 1979): tasks are drawn independently, the
    queries of one are not.

    Args:
        kind: ``"confidence"`` or ``"intervals"``.
        count: predictions in each bin.
        expected: in each bin, 0 where it is empty.
        observed: in each bin, 0 where it is empty.
        half_width: of the 95 % interval of ``observed``.
        error: the expected calibration error: the mean of ``|observed - expected|``, weighted by ``count`` for
            confidences (Guo et al. 2017, equation 3), equal for intervals.
        error_ci95: half width of its 95 % interval; infinite for one task.
    """

    kind: Literal["confidence", "intervals"]
    count: tuple[int, ...]
    expected: tuple[float, ...]
    observed: tuple[float, ...]
    half_width: tuple[float, ...]
    error: float
    error_ci95: float

    @classmethod
    def of(cls, sums: FloatArray) -> Calibration:
        """Pool the sums of tasks, of :func:`distmeta.uncertainty.of_classes` or ``of_intervals``.

        Args:
            sums: ``[tasks, 3, bins]`` for confidences, ``[tasks, 1, levels]`` for intervals.

        Example:
            Four predictions in one bin, sure by .9 and right in three of four:

            >>> found = Calibration.of(np.array([[[2.0], [1.8], [2.0]], [[2.0], [1.8], [1.0]]]))
            >>> found.count, round(found.error, 3), found.observed
            ((4,), 0.15, (0.75,))
        """
        tasks, rows, _ = sums.shape
        drawn = rng(0, "calibration", tasks).multinomial(tasks, np.full(tasks, 1 / tasks), RESAMPLES)
        pooled = sums.astype(np.float64).sum(0)
        again = (drawn.astype(np.float64) @ sums.reshape(tasks, -1)).reshape(RESAMPLES, *pooled.shape)
        shares = _confidence if rows == 3 else _intervals
        expected, observed, error = shares(pooled)
        _, resampled, errors = shares(again)
        half, ci95 = 1.96 * resampled.std(0, ddof=1), 1.96 * float(errors.std(ddof=1))
        return cls(
            kind="confidence" if rows == 3 else "intervals",
            count=tuple(int(n) for n in pooled[0]),
            expected=tuple(expected.tolist()),
            observed=tuple(observed.tolist()),
            half_width=tuple(half.tolist()),
            error=float(error),
            error_ci95=ci95 if tasks > 1 else math.inf,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`; keys that it does not have are ignored.

        Raises:
            KeyError: the values are none.
        """
        count, expected, observed, half = (
            tuple(values[name]) for name in ("count", "expected", "observed", "half_width")
        )
        return cls(values["kind"], count, expected, observed, half, values["error"], values["error_ci95"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without loss."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


_Shares = tuple[FloatArray, FloatArray, FloatArray]


def _confidence(sums: FloatArray) -> _Shares:
    """Mean confidence and share of right answers ``[..., bins]``, and the calibration error ``[...]``."""
    count, confidence, right = np.moveaxis(sums, -2, 0)
    some = np.maximum(count, 1)
    error = np.abs(right - confidence).sum(-1) / np.maximum(count.sum(-1), 1)
    return confidence / some, right / some, error


def _intervals(sums: FloatArray) -> _Shares:
    """Level and coverage ``[..., levels]``, and their mean distance ``[...]``."""
    count = sums[..., 0, :]
    inside = count.cumsum(-1) / np.maximum(count.sum(-1, keepdims=True), 1)
    level = np.broadcast_to(np.arange(1, count.shape[-1] + 1) / count.shape[-1], inside.shape)
    return level, inside, np.abs(inside - level).mean(-1)
