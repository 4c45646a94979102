"""Decisions are pure functions: a table says what follows from what."""

import pytest

from distmeta.errors import (
    ClusterTooSmall,
    ConfigError,
    DataError,
    ModelContractError,
    NonFiniteGradientError,
    RuntimeFailure,
    ServerLost,
    SplitLeak,
    WorkerLost,
    WorkerTimeout,
)
from distmeta.runtime.failure_policy import Decision, decide, should_speculate


@pytest.mark.parametrize(
    ("error", "attempts", "losses", "decision"),
    [
        (WorkerLost("x"), 0, [100.0], Decision.REPLACE),
        (WorkerTimeout("x"), 0, [100.0], Decision.REPLACE),
        (WorkerLost("x"), 9, [100.0], Decision.REPLACE),  # a chunk is not to blame for its worker
        (WorkerLost("x"), 0, [98.0, 99.0, 100.0], Decision.REPLACE),
        (WorkerLost("x"), 0, [97.0, 98.0, 99.0, 100.0], Decision.GIVE_UP),
        (WorkerTimeout("x"), 0, [97.0, 98.0, 99.0, 100.0], Decision.GIVE_UP),
        (WorkerLost("x"), 0, [1.0, 2.0, 3.0, 99.0, 100.0], Decision.REPLACE),  # old losses are forgiven
        (WorkerLost("x"), 0, [90.0, 98.0, 99.0, 100.0], Decision.GIVE_UP),  # the window's edge counts
        (WorkerLost("x"), 0, [89.9, 98.0, 99.0, 100.0], Decision.REPLACE),
        (ServerLost("x"), 0, [], Decision.FAIL),
        (DataError("x"), 1, [], Decision.FAIL),
        (SplitLeak("x"), 1, [], Decision.FAIL),
        (ConfigError("x"), 1, [], Decision.FAIL),
        (ModelContractError("x"), 1, [], Decision.FAIL),
        (NonFiniteGradientError("x"), 1, [], Decision.FAIL),
        (MemoryError("x"), 1, [], Decision.RETRY),
        (OSError("x"), 1, [], Decision.RETRY),
        (OSError("x"), 2, [], Decision.FAIL),
        (ClusterTooSmall("x"), 1, [], Decision.RETRY),
        (RuntimeFailure("x"), 2, [], Decision.FAIL),
    ],
)
def test_decide(error, attempts, losses, decision):
    assert decide(error, attempts=attempts, losses=losses, now=100.0, max_losses=3, window=10.0) is decision


def test_no_losses_at_all_may_be_asked_for():
    assert decide(WorkerLost("x"), attempts=0, losses=[5.0], now=5.0, max_losses=0, window=1.0) is Decision.GIVE_UP


@pytest.mark.parametrize(
    ("age", "median", "floor", "answer"),
    [
        (1000.0, None, 1.0, False),  # nothing to compare with yet
        (29.0, 10.0, 1.0, False),
        (30.0, 10.0, 1.0, False),
        (31.0, 10.0, 1.0, True),
        (31.0, 10.0, 60.0, False),
        (61.0, 10.0, 60.0, True),
        (0.5, 0.01, 1.0, False),
    ],
)
def test_should_speculate(age, median, floor, answer):
    assert should_speculate(age, median=median, floor=floor) is answer
