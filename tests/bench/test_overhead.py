"""Training loops that take turns; on Ray they do in tests/cli/test_bench.py."""

from __future__ import annotations

import threading

import pytest

from distmeta.bench.overhead import Overhead, Scaling
from distmeta.bench.stepping import SteppedRun
from distmeta.errors import ConfigError, NonFiniteGradientError
from distmeta.runtime.backend import LocalBackend
from helpers import sines


@pytest.fixture
def backend():
    local = LocalBackend()
    yield local
    local.close()


def threads():
    return [one for one in threading.enumerate() if one.name == "distmeta-bench"]


def test_a_loop_stands_still_between_its_steps(backend, tmp_path):
    applied = []
    backend._fault = lambda actor, method, call: applied.append(method) if method == "apply" else None
    with SteppedRun(sines(), backend, tmp_path / "a") as run:
        assert len(applied) == 1  # the first step, which is part of the start
        assert run.advance(3) > 0
        assert len(applied) == 4
        with SteppedRun(sines({"seed": 1}), backend, tmp_path / "b") as other:
            other.advance(2)
            run.advance(1)
        assert len(applied) == 4 + 3 + 1
    assert not threads()


def test_what_ends_a_loop_is_raised_where_it_is_advanced(backend, tmp_path):
    diverging = sines({"outer.lr": 1e30, "outer.optimizer": "sgd"})
    with pytest.raises(NonFiniteGradientError), SteppedRun(diverging, backend, tmp_path) as run:
        run.advance(50)
    assert not threads()
    with pytest.raises(ConfigError), SteppedRun(sines({"runtime.gpus_per_worker": 1}), backend, tmp_path / "b"):
        pass
    assert not threads()


def test_scaling_needs_a_chunk_for_every_worker():
    with pytest.raises(ConfigError, match=r"--workers 4: a step has 2 chunks .* --set runtime.chunk_size=1"):
        Scaling(sines({"outer.meta_batch_size": 4, "runtime.chunk_size": 2}), workers=(1, 4))
    with pytest.raises(ConfigError, match="a step has 1 chunk "):
        Scaling(sines({"outer.meta_batch_size": 1}), workers=(4,))


def test_one_is_singular(monkeypatch):
    """In titles and notes."""
    one = sines({"outer.meta_batch_size": 1, "runtime.chunk_size": 1, "runtime.threads": 1})
    assert Scaling(one).title.endswith("on Ray: 1 task in 1 chunk")
    assert Overhead(one).title.endswith(": 1 task in 1 chunk, one worker, 1 thread")
    monkeypatch.setattr("distmeta.bench.overhead.cpus", lambda: 1)
    two = sines({"outer.meta_batch_size": 2, "runtime.chunk_size": 1})
    assert Scaling(two, workers=(2,)).notes()[-1] == "This machine has 1 core for 2 workers, which take turns."


def test_workers_double_up_to_the_cores(monkeypatch):
    monkeypatch.setattr("distmeta.bench.overhead.cpus", lambda: 6)
    sixteen = sines({"outer.meta_batch_size": 16, "runtime.chunk_size": 1, "runtime.threads": 2})
    scaling = Scaling(sixteen)
    assert scaling._workers == [1, 2, 4, 6]
    assert scaling.case["runtime.threads"] == 1
    assert Scaling(sixteen.with_overrides({"runtime.chunk_size": 4}))._workers == [1, 2, 4]
    told = " ".join(scaling.notes())
    assert "16 chunks of equal cost on 6 workers take 3 rounds: at most 89% efficient." in told
    assert "take turns" not in told
