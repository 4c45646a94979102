"""Peak memory of a chunk, measured in a process of its own, beside what was predicted for it."""

from __future__ import annotations

import sys

import pytest

from distmeta.bench import cases
from distmeta.bench.benchmark import Budget
from distmeta.bench.memory import Memory


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can begin anew on Linux alone")
@pytest.mark.parametrize(("gradient", "steps"), [("unroll", 4), ("mixed", 6)])
def test_the_prediction_is_within_a_quarter_of_what_is_seen(gradient, steps):
    what = cases.random_images().with_overrides({"learner.gradient": gradient, "runtime.chunk_size": 6})
    (row,) = Memory(what, steps=[steps]).rows(Budget(0.1), lambda text: None)
    assert row.at == {"steps": steps}
    assert row.figures["predicted_over_seen"] == pytest.approx(row.figures["predicted"] / row.median)
    assert 0.75 < row.figures["predicted_over_seen"] < 1.25
