"""The parts of a step add up to it, whatever overlaps; clocks of other machines are moved only as far as they must."""

import itertools
import json

import numpy as np
import pytest

from distmeta import Evaluation, Experiment, LocalBackend, Outer, Runtime
from distmeta.run.directory import RunDirectory
from distmeta.run.inspecting import inspect_run
from distmeta.run.training import meta_train
from distmeta.runtime import driver as driver_module
from distmeta.runtime import step_report, step_time
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.step_time import PARTS, STEP, Clocks, breakdown, metric, summary
from distmeta.types import Span
from helpers import sines


def steps_of(**outer) -> Experiment:
    return sines().replace(
        outer=Outer(**{"iterations": 3, "meta_batch_size": 10, **outer}),
        runtime=Runtime(chunk_size=5),
        evaluation=Evaluation(every=0, test_tasks=2),
    )


def test_whatever_overlaps_the_parts_of_all_workers_are_the_step():
    random = np.random.default_rng(0)
    for workers in (1, 2, 5):
        spans = [
            Span(name, start, start + length)
            for name, start, length in zip(
                itertools.cycle(("sample", "compute", "flatten")),
                random.uniform(-1, 9, workers),
                random.uniform(0, 3, workers),
                strict=False,
            )
        ]
        server = [Span("reduce", 2.0, 4.5), Span("apply", 8.0, 12.0)]
        found = breakdown(0.0, 10.0, workers, spans, server)
        assert sum(found.values()) == pytest.approx(10.0)
        inside = sum(min(s.end, 10.0) - max(s.start, 0.0) for s in spans)
        assert found["sample"] + found["compute"] == pytest.approx(inside / workers)


def test_idle_workers_wait_for_others_before_they_wait_for_the_server():
    found = breakdown(0.0, 4.0, 2, [Span("sample", 0, 1), Span("compute", 1, 3)], [Span("reduce", 2, 3.5)])
    assert found == {"sample": 0.5, "compute": 1.0, "transfer": 0.5, "reduce": 0.5, "apply": 0.0, "wait": 1.5}


def test_a_clock_that_causality_allows_is_left_alone_and_one_that_it_does_not_is_moved():
    clocks = Clocks()
    clocks.observe("near", sent=1.0, began=1.1, ended=1.9, received=2.0)
    clocks.observe("far", sent=1.0, began=51.2, ended=51.8, received=2.0)
    clocks.observe("far", sent=3.0, began=53.1, ended=53.9, received=4.0)
    span = Span("compute", 51.2, 51.8)
    assert clocks.aligned("near", [span]) == clocks.aligned("unknown", [span]) == [span]
    assert clocks.aligned("far", [span]) == [Span("compute", 1.2, 1.8)]


def test_with_a_clock_that_ticks_at_every_look_each_part_of_a_step_is_known(monkeypatch, tmp_path):
    ticks = itertools.count()
    for module in (step_time, step_report, driver_module):
        monkeypatch.setattr(module, "now", lambda: float(next(ticks)))

    class Rows(list):
        def metrics(self, step, values):
            self.append(values)

    rows, driver = Rows(), Driver(steps_of(), CheckpointStore(tmp_path))
    with_two = LocalBackend()
    driver.start(with_two)
    try:
        driver.train(rows)
    finally:
        driver.close()
        with_two.close()
    for row in rows[:3]:  # two chunks, each: sample 1, compute 1 and flatten 1 tick; reduce 1 tick each, apply 1
        found = {part: row[metric(part)] for part in PARTS}
        assert (found["sample"], found["compute"], found["reduce"], found["apply"]) == (2.0, 4.0, 2.0, 1.0)
        assert found["wait"] == 0.0  # one worker has nobody to wait for
        assert sum(found.values()) == row[STEP]
        assert row["runtime/tasks_per_second"] == 10 / row[STEP]


def test_inspect_shows_the_parts_and_metrics_of_older_runs_stay_readable(tmp_path):
    found = meta_train(steps_of(), run_dir=tmp_path / "run")
    lines = inspect_run(found.run_dir)["time"]
    assert [line.split()[0] for line in lines] == ["sample", "compute", "transfer", "reduce", "wait"]
    assert sum(float(line.split(" ms ")[1].split(" %")[0]) for line in lines) == pytest.approx(100, abs=0.5)
    path = found.run_dir / "metrics.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()]  # as it was before: no parts, no checksums
    old = [{k: v for k, v in row.items() if not k.endswith("_seconds") and k != "crc32"} for row in old]
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    assert inspect_run(found.run_dir)["time"] == []
    assert len(RunDirectory.open(found.run_dir).metrics()) == len(old)
    new = {STEP: 0.1, **dict.fromkeys(map(metric, PARTS), 0.01)}
    assert summary([*old, new]) == summary([new])
