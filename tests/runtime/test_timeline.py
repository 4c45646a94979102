"""The time line of some steps: well-formed, every process on it, every span inside its parent, and no bit changed."""

import json

import pytest

from distmeta import Evaluation, Outer, Place, Runtime
from distmeta.run.training import meta_train
from distmeta.runtime.timeline import Step, Timeline, Work
from distmeta.types import Chunk, Span
from helpers import sines


def run(folder, place=None, **options):
    experiment = sines().replace(
        outer=Outer(iterations=9, meta_batch_size=10),
        runtime=Runtime(chunk_size=3, workers=2),
        evaluation=Evaluation(every=0, test_tasks=2),
    )
    return meta_train(experiment, run_dir=folder, place=place, **options)


def lines_of(trace):
    """Complete events by the name of their process."""
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    found = {name: [] for name in names.values()}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[names[event["pid"]]].append(event)
    return found


def require_nested(events):
    """Within a line two spans are one inside the other, or apart."""
    open_ = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        start, end = event["ts"], event["ts"] + event["dur"]
        assert start >= 0
        assert event["dur"] >= 0
        while open_ and open_[-1] <= start + 0.01:
            open_.pop()
        assert not open_ or end <= open_[-1] + 0.01, event
        open_.append(end)


def require_whole(path, steps):
    found = lines_of(json.loads(path.read_text()))
    assert set(found) == {"driver", "parameter-server", "worker-0", "worker-1"}
    for events in found.values():
        require_nested(events)
        whole = [e for e in events if e["name"].startswith("step ")]
        assert [e["name"] for e in whole] == [f"step {n}" for n in steps]
    assert {e["name"] for e in found["driver"]} >= {"lease", "wait", "apply"}
    assert {e["name"] for e in found["parameter-server"]} >= {"reduce", "apply"}
    workers = [e["name"] for name in ("worker-0", "worker-1") for e in found[name]]
    assert set(workers) >= {"sample", "compute", "flatten", "transfer"}
    for name in [f"chunk {n}" for n in range(4)] + ["sample", "compute", "flatten"]:
        assert workers.count(name) == len(steps) * (1 if name.startswith("chunk") else 4)
    for name in ("worker-0", "worker-1"):  # a worker's line has no hole: what it did not do is named
        events = found[name]
        whole = sum(e["dur"] for e in events if e["name"].startswith("step "))
        parts = ("sample", "compute", "flatten", "wait", "transfer", "reduce", "apply")
        assert sum(e["dur"] for e in events if e["name"] in parts) == pytest.approx(whole, rel=1e-3, abs=1.0)


def test_a_profile_holds_all_processes_and_changes_no_bits(tmp_path):
    plain, profiled = run(tmp_path / "plain"), run(tmp_path / "profiled", profile=3)
    assert profiled.params_sha256 == plain.params_sha256
    assert plain.profile is None
    assert profiled.profile == tmp_path / "profiled" / "profile.json"
    assert len(profiled.spent) == 5
    require_whole(profiled.profile, [6, 7, 8])


def test_a_profile_of_workers_on_ray(cluster, tmp_path):
    profiled = run(tmp_path / "ray", Place(backend="ray"), profile=2)
    assert profiled.params_sha256 == run(tmp_path / "local").params_sha256
    require_whole(profiled.profile, [6, 7])


@pytest.mark.parametrize(
    ("steps", "first", "last", "expected"),
    [(3, 0, 100, [6, 7, 8]), (3, 40, 100, [46, 47, 48]), (3, 0, 5, [3, 4, 5]), (9, 0, 2, [1, 2])],
)
def test_the_warm_up_is_left_out_where_the_run_is_long_enough(steps, first, last, expected):
    timeline = Timeline(steps)
    timeline.begin(first, last)
    assert [version for version in range(first + 1, last + 1) if timeline.wants(version)] == expected


def test_a_step_that_is_done_again_is_there_once_and_clocks_that_disagree_are_cut():
    timeline = Timeline(5)
    work = [Work("worker-0", Chunk(0, "meta_train", 0, 0, 3), [Span("sample", 9.0, 11.0), Span("compute", 11.0, 14.0)])]
    for version in (1, 2, 1):
        timeline.add(
            Step(version, 10.0, 13.0, ["worker-0"], work, [Span("apply", 12.5, 13.5)], [Span("wait", 9.9, 13)])
        )
    assert [step.version for step in timeline.steps] == [1]
    found = lines_of(json.loads(timeline.to_json()))
    for events in found.values():
        require_nested(events)
    assert [e["dur"] for e in found["worker-0"] if e["name"] in ("sample", "compute")] == [1e6, 2e6]
