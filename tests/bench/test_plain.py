"""Learners beside plain code: both compute the same gradient, or nothing is timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmeta.bench import plain, plain_steps
from distmeta.bench.picture import plot
from distmeta.bench.plain import Plain, works
from distmeta.errors import ConfigError


def test_every_plain_gradient_is_that_of_the_learner(tmp_path, monkeypatch):
    """The tolerance is that of the benchmark, in float64; batches are small, for their time."""
    found = {name: [replace(some[-1], size=2, chunk=2)] for name, some in works(16).items()}
    assert len(found) == 7
    monkeypatch.setattr(plain, "works", lambda size: found)
    monkeypatch.setattr(plain, "_REPETITION_S", 0)
    record = Plain(size=16).run(0.1)
    assert [row.at["learner"] for row in record.rows] == list(found)
    for row in record.rows:
        assert row.figures["at_least"] <= row.median <= row.figures["at_most"]
    assert record.title.endswith("the plainest PyTorch code, 1 thread")
    plot(record, tmp_path / "a.png")


def test_what_computes_something_else_is_not_timed(monkeypatch):
    def forgets_the_sum(model, episodes):
        plain_steps.mann(model, episodes.map(lambda part: part[:1]))

    wrong = [replace(works()["MANN"][0], plain=forgets_the_sum)]
    monkeypatch.setattr(plain, "works", lambda size: {"MANN": wrong})
    with pytest.raises(ConfigError, match=r"nothing to measure: MANN, 16 sequences of 50, is not timed: its gradient"):
        Plain().run(0.1)
