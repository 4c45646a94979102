"""The failure policy: pure functions from what happened to a decision, which the pool carries out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from distmeta.errors import DistmetaError, RuntimeFailure, ServerLost, WorkerLost, WorkerTimeout


class Decision(Enum):
    """The next action of the pool."""

    REPLACE = "start a new worker and lease the lost chunks again"
    RETRY = "lease the chunk again, elsewhere if there is another worker"
    FAIL = "end the run with this error"
    GIVE_UP = "end the run: too many losses"


def decide(
    error: BaseException, *, attempts: int, losses: Sequence[float], now: float, max_losses: int, window: float
) -> Decision:
    """Decide on one failure.

    Args:
        error: what a call raised.
        attempts: how often this chunk has failed with an error of its own, this time included.
        losses: times (seconds) of worker losses so far, this one included.
        now: the time.
        max_losses: losses that may happen within ``window``.
        window: seconds.

    Example:
        >>> decide(WorkerLost("gone"), attempts=0, losses=[10.0], now=10.0, max_losses=3, window=60.0)
        <Decision.REPLACE: 'start a new worker and lease the lost chunks again'>
    """
    if isinstance(error, WorkerLost | WorkerTimeout):
        recent = sum(now - t <= window for t in losses)
        return Decision.GIVE_UP if recent > max_losses else Decision.REPLACE
    if isinstance(error, ServerLost):
        return Decision.FAIL  # the driver recovers from it: it starts again from the last checkpoint
    if isinstance(error, DistmetaError) and not isinstance(error, RuntimeFailure):
        return Decision.FAIL  # the same everywhere: data, contract or mathematics
    # An unknown error may come from the node (memory, disk): one more attempt elsewhere decides.
    return Decision.RETRY if attempts < 2 else Decision.FAIL


def should_speculate(age: float, *, median: float | None, floor: float) -> bool:
    """Return whether a lease of ``age`` seconds is slow enough for an idle worker to duplicate it.

    Args:
        age: seconds since it was leased.
        median: of the chunks seen so far, seconds; ``None`` before the first.
        floor: never before so many seconds.
    """
    return median is not None and age > max(floor, 3.0 * median)
