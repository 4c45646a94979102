"""Peak memory of a chunk, measured in a process of its own, beside what was predicted for it."""

from __future__ import annotations

import sys

import pytest

from distmeta.bench import cases
from distmeta.bench.benchmark import Budget
from distmeta.bench.memory import Memory


def test_the_title_has_the_size_of_the_chunk():
    for size, words in ((1, "one chunk of 1 task of MAML"), (2, "one chunk of 2 tasks of MAML")):
        assert words in Memory(cases.random_images().with_overrides({"runtime.chunk_size": size})).title


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can begin anew on Linux alone")
@pytest.mark.parametrize("gradient", ["unroll", "mixed"])
def test_the_prediction_is_within_a_quarter_of_what_is_seen(gradient):
    what = cases.random_images().with_overrides({"learner.gradient": gradient})
    for last in (False, True):  # twice, where the system has taken pages away meanwhile
        (row,) = Memory(what, steps=[5]).rows(Budget(0.1), lambda text: None)
        assert row.at == {"steps": 5}
        found = row.figures["predicted_over_seen"]
        assert found == pytest.approx(row.figures["predicted"] / row.median)
        if last or 0.75 < found < 1.25:
            break
    assert 0.75 < found < 1.25
