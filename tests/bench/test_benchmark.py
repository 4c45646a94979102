"""Turns, budgets and cases."""

from __future__ import annotations

import time

import pytest
import torch

import distmeta
from distmeta.bench import Benchmark, Row, cases, machine
from distmeta.bench.benchmark import Budget
from distmeta.errors import ConfigError
from distmeta.runtime.backend import LocalBackend
from helpers import sines


class Counted(Benchmark):
    kind, unit, better = "counted", "s", "lower"
    title, case = "made up", {"a": 1}

    def __init__(self, repetitions):
        super().__init__()
        self.repetitions = repetitions

    def rows(self, budget, tell):
        tell("counting")
        return [Row({"which": "one"}, (1.0,) * self.repetitions)]


def test_variants_take_turns():
    order = []

    def variant(name):
        def run():
            order.append(name)
            time.sleep(0.001)
            return float(len(order))

        return run

    found = Budget(0.2).interleave([variant(name) for name in "abc"])
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) > 5
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # no variant always follows the same one
    assert {len(values) for values in found} == {len(rounds)}
    assert sorted(x for values in found for x in values) == list(range(1, len(order) + 1))


def test_a_round_that_does_not_fit_is_not_begun():
    began = time.monotonic()
    (found,) = Budget(0.3).interleave([lambda: time.sleep(0.2) or 1.0])
    assert len(found) == 1
    assert time.monotonic() - began < 0.39
    assert Budget(0).interleave([lambda: 2.0]) == [(2.0,)]


def test_half_of_the_budget_is_for_measuring():
    budget = Budget(0.4)
    time.sleep(0.45)  # as long as a cluster may take to start
    (found,) = budget.interleave([lambda: time.sleep(0.01) or 1.0])
    assert len(found) > 3


def test_a_record_has_the_machine_and_cautions(monkeypatch):
    monkeypatch.setattr(machine, "load", lambda: 0.1)
    told = []
    record = Counted(3).run(5, told.append)
    assert told == ["measuring: made up", "counting"]
    assert (record.kind, record.unit, record.notes) == ("counted", "s", ())
    assert record.machine["torch"] == torch.__version__
    assert record.machine["cores"] >= 1
    assert record.machine["distmeta"] == distmeta.__version__
    assert {"cpu", "instructions", "torch_threads", "load_average", "load_average_after", "time"} <= set(record.machine)
    monkeypatch.setattr(machine, "load", lambda: 99.0)
    few, busy = Counted(1).run(5).notes
    assert few.startswith("Only 1 repetition fitted into 5 s")
    assert busy.startswith("The load average was 99")


def test_the_title_has_the_overrides_that_count():
    told, benchmark = [], Counted(3)
    benchmark.fixed = ("runtime.workers",)
    overrides = {"learner.gradient": "mixed", "runtime.workers": 2, "tasks.data": f"/{'a' * 50}/omniglot"}
    record = benchmark.run(5, told.append, overrides)
    assert record.title == f"made up, learner.gradient=mixed, tasks.data=...{'a' * 20}/omniglot"
    assert told[0] == f"measuring: {record.title}"
    assert Counted(3).run(5).title == "made up"


def test_random_images_are_tasks_like_others():
    tasks = cases.RandomImages(ways=3, shots=2, queries=4, size=8, channels=3)
    tasks.check()
    first, again = (tasks.take(1)[0].episode for _ in range(2))
    assert first.support_x.shape == (6, 3, 8, 8)
    assert first.query_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(first.query_x, again.query_x)


def test_the_built_in_case_takes_settings_and_learners():
    experiment = cases.random_images("Reptile").with_overrides({"tasks.size": 14, "learner.inner_steps": 2})
    assert type(experiment.learner).__name__ == "Reptile"
    assert cases.ready(experiment.with_overrides({"tasks.ways": 3})).config.vectorise == "vmap-2"
    assert cases.has_inner_steps(experiment)
    assert not cases.has_inner_steps(cases.random_images("ProtoNet"))
    with pytest.raises(ConfigError, match=r"--learner MAMl does not exist; expected one of .*Did you mean 'MAML'\?"):
        cases.random_images("MAMl")
    with pytest.raises(ConfigError, match="--learner NTM takes no images but a sequence model"):
        cases.random_images("NTM")


def test_a_case_is_the_settings_that_matter():
    case = cases.case_of(sines(), "learner", "tasks", parameters=25, varied=("learner.inner_steps",))
    assert (case["learner.kind"], case["learner.inner_lr"], case["parameters"]) == ("MAML", 0.01, 25)
    assert len(case["tasks.fingerprint"]) == 64
    assert not any(key.startswith(("outer", "runtime")) or key == "learner.inner_steps" for key in case)


def test_the_limit_is_a_rate():
    threads = torch.get_num_threads()
    local = LocalBackend()
    try:
        assert 0.001 < machine.MatmulLimit(1, torch.device("cpu"), size=128)() < 1e5
    finally:
        local.close()
    assert torch.get_num_threads() == threads
