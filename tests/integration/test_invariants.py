"""Section 7 of the design: equal bits for any worker count, backend, loss of a process, or interruption."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import distmeta
import helpers
from distmeta import MAML, Evaluation, Experiment, FewShot, LocalBackend, Outer, Place, Runtime
from distmeta.errors import CheckpointMismatch, FailureBudgetExceeded, RuntimeFailure, WorkerLost
from distmeta.run.directory import RunDirectory
from distmeta.runtime.backend import SERVER
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.tracking.metrics_file import read_metrics
from distmeta.types import TaskRef

STEPS = 6


class Rows(list):
    """A log in memory."""

    def metrics(self, step, values):
        self.append({"step": step, **values})

    def truncate(self, step):
        self[:] = [row for row in self if row["step"] <= step]


def sines(**outer) -> Experiment:
    """Chunks of 3, 3, 3 and 1 tasks: uneven, and more than one worker can hold."""
    return helpers.sines().replace(
        outer=Outer(**{"iterations": STEPS, "meta_batch_size": 10, **outer}),
        runtime=Runtime(chunk_size=3, checkpoint_every=2),
        evaluation=Evaluation(every=4, validation_tasks=7, test_tasks=7),
    )


class Run:
    """One run without the files that only people look at."""

    def __init__(self, experiment, folder, backend=None, watch=lambda event: None, rows=None):
        self.store = CheckpointStore(folder, keep=experiment.runtime.keep_checkpoints)
        self.rows = Rows() if rows is None else rows
        driver = Driver(experiment, self.store, watch)
        self.rows.truncate(driver.first_step)
        self.infos = driver.start(backend or LocalBackend())
        try:
            self.end = driver.train(self.rows)
        finally:
            driver.close()
        self.last = self.store.load()
        self.sha = self.last.params_sha256
        self.test = self.end.test


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Run:
    """What nothing happened to."""
    return Run(sines(), tmp_path_factory.mktemp("straight"))


def assert_same(run: Run, straight: Run) -> None:
    assert run.sha == straight.sha
    assert run.end.best.params_sha256 == straight.end.best.params_sha256
    for name, values in straight.test.metrics.items():
        np.testing.assert_array_equal(run.test.metrics[name], values)
    assert [row["step"] for row in run.rows] == [row["step"] for row in straight.rows]
    for row, expected in zip(run.rows, straight.rows, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith("runtime/")} == {
            k: v for k, v in expected.items() if not k.startswith("runtime/")
        }


# -- on Ray: one cluster for all -------------------------------------------------------------------------------------


@pytest.fixture
def ray_backend(cluster):
    from distmeta.runtime.ray_backend import RayBackend

    class Spied(RayBackend):
        """Remembers the actors by name, so that a test can end their processes."""

        def __init__(self):
            super().__init__()
            self.actors = {}

        def spawn(self, kind, name, *args, **kwargs):
            self.actors[name] = super().spawn(kind, name, *args, **kwargs)
            return self.actors[name]

        def pid(self, worker):
            return self.fetch(self.call(self.actors[worker], "info")).pid

    return Spied()


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_ray_workers_gives_the_bits_of_one_process(workers, straight, ray_backend, tmp_path):
    run = Run(sines().with_overrides({"runtime.workers": workers}), tmp_path, ray_backend)
    assert len({info.pid for info in run.infos}) == workers
    assert_same(run, straight)


@pytest.mark.parametrize(("workers", "idle"), [(4, None), (5, "1 of 5 workers"), (7, "3 of 7 workers")])
def test_workers_that_have_nothing_to_train_are_said(workers, idle, tmp_path):
    said = []
    Run(sines(iterations=1).with_overrides({"runtime.workers": workers}), tmp_path, watch=said.append)
    told = [event.text for event in said if "A step has 4 chunks" in event.text]
    assert [f"{idle} have work in evaluation only" in text for text in told] == ([True] if idle else [])


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_local_workers_gives_the_same_bits(workers, straight, tmp_path):
    assert_same(Run(sines().with_overrides({"runtime.workers": workers}), tmp_path), straight)


def test_killed_workers_change_nothing(cluster, ray_backend, tmp_path):
    """One is killed in the middle of a chunk, its replacement between two steps."""
    (tmp_path / "slow_job.py").write_text(SLOW_JOB)
    job = distmeta.load_job(tmp_path / "slow_job.py")
    cluster.cloudpickle.register_pickle_by_value(job.module)

    pids = {}

    def watch(event):
        if event.text.startswith("2 workers on ray"):  # a worker that computes would answer only after its chunks
            pids.update({name: ray_backend.pid(name) for name in ("worker-0", "worker-1")})
        if event.kind == "step" and event.step == 1:
            threading.Timer(0.1, os.kill, (pids["worker-1"], signal.SIGKILL)).start()
        if event.kind == "step" and event.step == 3:
            os.kill(pids["worker-0"], signal.SIGKILL)

    run = Run(job.experiment.with_overrides({"runtime.workers": 2}), tmp_path / "run", ray_backend, watch)
    assert_same(run, Run(job.experiment, tmp_path / "straight"))
    assert [row["runtime/worker_losses"] for row in run.rows] == [0, 1, 1, 2]


def test_a_killed_parameter_server_changes_nothing(straight, ray_backend, tmp_path):
    killed, said = [], []

    def watch(event):
        said.append(event.text)
        if event.kind == "step" and event.step in (3, 5) and event.step not in killed:
            killed.append(event.step)
            ray_backend.kill(ray_backend.actors[SERVER])

    assert_same(Run(sines().with_overrides({"runtime.workers": 1}), tmp_path, ray_backend, watch), straight)
    assert killed == [3, 5]
    assert any("Doing steps 2 to 3 again" in text for text in said)


SLOW_JOB = """
import time
import distmeta

class Slow(distmeta.Sinusoids):
    def draw(self, split, random):
        time.sleep(0.05 if split == "meta_train" else 0)
        return super().draw(split, random)

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=Slow(shots=4, queries=4),
    outer=distmeta.Outer(iterations=4, meta_batch_size=10),
    runtime=distmeta.Runtime(chunk_size=3, checkpoint_every=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=2),
)
"""

OWN_JOB = """
import torch
import distmeta
from neighbour import ROUGHNESS

class Net(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.body, self.head = torch.nn.Linear(*spec.input_shape, 6), torch.nn.Linear(6, spec.outputs)

    def forward(self, x):
        import late_neighbour
        return self.head(torch.tanh(self.body(x))) * late_neighbour.SCALE

class Rough(distmeta.Sinusoids):
    class Config(distmeta.Sinusoids.Config):
        roughness: float = ROUGHNESS

    def draw(self, split, random):
        episode = super().draw(split, random)
        return distmeta.Episode(*(part + self.config.roughness for part in episode))

experiment = distmeta.Experiment(
    learner=distmeta.MAML(Net, inner_lr=0.01),
    tasks=Rough(shots=4, queries=4),
    outer=distmeta.Outer(iterations=3, meta_batch_size=10),
    runtime=distmeta.Runtime(chunk_size=3, workers=2),
    evaluation=distmeta.Evaluation(every=2, validation_tasks=4, test_tasks=4),
)
"""


def test_classes_of_a_job_file_and_its_neighbours_reach_the_workers(cluster, tmp_path):
    (tmp_path / "neighbour.py").write_text("ROUGHNESS = 0.25\n")
    (tmp_path / "late_neighbour.py").write_text("SCALE = 0.5\n")
    (tmp_path / "own_job.py").write_text(OWN_JOB)
    job = distmeta.load_job(tmp_path / "own_job.py")
    on_ray = distmeta.meta_train(job, run_dir=tmp_path / "ray", place=Place("ray"))
    here = distmeta.meta_train(job, run_dir=tmp_path / "here")
    assert on_ray.params_sha256 == here.params_sha256
    assert (tmp_path / "ray" / "job.py").read_text() == OWN_JOB
    # The kept job file finds the neighbours of the original one.
    evaluated = distmeta.evaluate(tmp_path / "ray", distmeta.EvaluationRequest(tasks=4))
    np.testing.assert_array_equal(evaluated.report.metrics["loss"], here.test.metrics["loss"])


def test_images_give_the_same_bits_on_ray(cluster, digits_dir, tmp_path):
    experiment = Experiment(
        learner=MAML(distmeta.conv4(width=4), inner_lr=0.1),
        tasks=FewShot(data=str(digits_dir), ways=3, shots=1, queries=2),
        outer=Outer(iterations=3, meta_batch_size=5),
        runtime=Runtime(chunk_size=2),
        evaluation=Evaluation(every=0, test_tasks=5),
    )
    straight = Run(experiment, tmp_path / "straight")
    from distmeta.runtime.ray_backend import RayBackend

    assert_same(Run(experiment.with_overrides({"runtime.workers": 2}), tmp_path / "ray", RayBackend()), straight)


# -- injected faults, in one process ---------------------------------------------------------------------------------


class Faults:
    """A fault at given calls, counted over all actors of a run or over one method."""

    def __init__(self, kind, at, actor="worker", method=None):
        self.kind, self.at, self.actor, self.method = kind, set(at), actor, method
        self.calls = 0

    def __call__(self, actor, method, number):
        if not actor.startswith(self.actor) or (self.method and method != self.method):
            return None
        self.calls += 1
        return self.kind if self.calls - 1 in self.at else None


WORKER_CALLS = 2 + 4 * STEPS + 2 * 3 + 3  # two infos; the chunks of the steps, of two validations and of the test


@pytest.mark.parametrize("at", range(2, WORKER_CALLS))
def test_a_worker_lost_at_any_call_changes_nothing(at, straight, tmp_path):
    faults = Faults("lost", {at})
    run = Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, LocalBackend(faults))
    assert_same(run, straight)
    assert faults.calls > WORKER_CALLS  # something was computed again


@pytest.mark.parametrize("at", range(2))
def test_a_worker_lost_while_it_starts_is_replaced(at, straight, tmp_path):
    assert_same(
        Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, LocalBackend(Faults("lost", {at}))), straight
    )


@pytest.mark.parametrize("at", range(1, 4 * STEPS + STEPS + 3))
def test_a_server_lost_at_any_call_changes_nothing(at, straight, tmp_path):
    run = Run(
        sines().with_overrides({"runtime.workers": 2}), tmp_path, LocalBackend(Faults("lost", {at}, actor=SERVER))
    )
    assert_same(run, straight)


class Ahead(LocalBackend):
    """Sends the next step's chunks early, as a cluster does, and loses gradients between worker and server."""

    overlaps = True

    def __init__(self, fault=None, lost=()):
        super().__init__(fault)
        self.lost, self.delivered, self.methods = set(lost), 0, []

    def call(self, actor, method, *args, parts=1):
        self.methods.append(method)
        if method == "accumulate":
            self.delivered += 1
            if self.delivered in self.lost:
                return super().call(self.spawn(Gone, "worker-9", None), "gone")
        return super().call(actor, method, *args, parts=parts)


class Gone:
    def gone(self):
        raise WorkerLost("The gradient went with worker-9.")


def test_the_next_steps_chunks_are_sent_before_the_step_is_known_here_except_before_a_validation(straight, tmp_path):
    backend = Ahead()
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)
    applied = [n for n, method in enumerate(backend.methods) if method == "apply"]
    # After the steps 4 and 6, which are validated, the server's state is asked for first.
    assert [backend.methods[n + 1] for n in applied] == ["train"] * 3 + ["evaluate", "train"] + ["evaluate"]


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("lost", [{1}, {4}, {6, 7}, {5, 6, 7, 8, 9}, {24}])
def test_gradients_lost_on_the_way_to_the_server_are_computed_again(lost, overlaps, straight, tmp_path):
    backend = Ahead(lost=lost)
    backend.overlaps = overlaps
    run = Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend)
    assert_same(run, straight)
    assert run.rows[-1 - 1]["runtime/worker_losses"] >= 1
    assert backend.delivered >= 4 * STEPS + len(lost)


@pytest.mark.parametrize("at", [2, 5, 9, 14, 20, 27, 31])
def test_a_worker_lost_while_steps_overlap_changes_nothing(at, straight, tmp_path):
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, Ahead(Faults("lost", {at}))), straight)


@pytest.mark.parametrize("at", [1, 4, 5, 6, 9, 12, 18, 25, 31])
def test_a_server_lost_while_steps_overlap_changes_nothing(at, straight, tmp_path):
    backend = Ahead(Faults("lost", {at}, actor=SERVER))
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)


class Costly(Ahead):
    """Calls cost as on a cluster: after the first steps, a worker gets all of its chunks in one."""

    overhead = 1.0

    def __init__(self, fault=None, lost=()):
        super().__init__(fault)
        self.lost, self.shares, self.held = set(lost), [], []

    def call(self, actor, method, *args, parts=1):
        if method == "train":
            self.shares.append(len(args[0].chunks))
        if method == "apply":
            step, shares, *sums = args
            self.held.append(len(sums))
            if sums and len(self.held) in self.lost:
                sums[-1] = super().call(self.spawn(Gone, "worker-9", None), "gone")
            args = (step, shares, *sums)
        return super().call(actor, method, *args, parts=parts)


@pytest.mark.parametrize(("workers", "shares"), [(1, [4]), (2, [2, 2]), (3, [2, 1, 1]), (4, [1] * 4), (6, [1] * 4)])
def test_chunks_that_share_a_call_have_the_same_bits(workers, shares, straight, tmp_path):
    backend = Costly()
    assert_same(Run(sines().with_overrides({"runtime.workers": workers}), tmp_path, backend), straight)
    # The time of a chunk is unknown in the first step, and in the second, which is sent before the first is reported.
    assert backend.shares == [1] * 8 + shares * (STEPS - 2)
    assert backend.held == [4, 4] + [len(shares)] * (STEPS - 2)
    assert "accumulate" not in backend.methods


@pytest.mark.parametrize("lost", [{1}, {3}, {3, 6}, {2, 3, 4, 5, 6, 7}])
def test_gradients_lost_on_the_way_to_the_step_are_sent_or_computed_again(lost, straight, tmp_path):
    backend = Costly(lost=lost)
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)
    assert "accumulate" in backend.methods


@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("actor", ["worker-0", SERVER])
def test_a_loss_while_chunks_share_calls_changes_nothing(actor, at, straight, tmp_path):
    backend = Costly(Faults("lost", {at}, actor=actor))
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)


def test_large_gradients_go_to_the_server_as_they_come(monkeypatch, straight, tmp_path):
    monkeypatch.setattr("distmeta.runtime.driver._SMALL", 1)
    backend = Costly()
    assert_same(Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)
    assert backend.methods.count("accumulate") == 8 + 2 * (STEPS - 2)
    assert set(backend.held) == {0}


@pytest.mark.parametrize("calls", [(2,), (3, 9), (5, 6, 20), (2, 7, 12, 17, 22, 27)])
def test_calls_that_never_answer_are_duplicated_or_time_out(calls, straight, tmp_path):
    settings = {"runtime.workers": 2, "runtime.speculate_after": 0.02, "runtime.chunk_timeout": 0.3}
    run = Run(sines().with_overrides(settings), tmp_path, LocalBackend(Faults("hang", calls)))
    assert_same(run, straight)


def test_hanging_workers_do_not_wear_the_pool_out(straight, tmp_path):
    """A duplicate finishes the batch, the call that hangs outlives it: more such calls than there are leases."""
    settings = {"runtime.workers": 3, "runtime.speculate_after": 0.02, "runtime.chunk_timeout": 0.5}
    backend = LocalBackend(Faults("hang", {4, 9, 14, 19, 24, 29, 34}))
    run = Run(sines().with_overrides(settings), tmp_path, backend)
    assert_same(run, straight)
    assert run.rows[-2]["runtime/duplicate_leases"] >= 1  # the last row is the validation's


def test_too_many_losses_end_the_run_and_say_how_to_go_on(tmp_path):
    experiment = sines().with_overrides({"runtime.max_losses": 2})
    backend = LocalBackend(Faults("lost", range(1, 1000), method="train"))
    with pytest.raises(
        FailureBudgetExceeded, match=r"3 workers were lost.*distmeta resume.*fewer --workers.*a new run"
    ):
        Run(experiment, tmp_path, backend)


# -- two points: training goes on from one, the other is used ---------------------------------------------------------

SCHEDULE_FREE = pytest.param(
    {"optimizer": "schedulefree", "lr": 1e-2, "warmup": 2},
    marks=pytest.mark.skipif(
        importlib.util.find_spec("schedulefree") is None, reason="needs the extra distmeta[schedulefree]"
    ),
)
AVERAGED = [{"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True, "average": 0.8}, SCHEDULE_FREE]


@pytest.fixture(scope="module", params=AVERAGED, ids=lambda outer: outer["optimizer"])
def averaged(request, tmp_path_factory):
    """Settings that form an average, and a run that nothing happened to."""
    outer = request.param
    return outer, Run(sines(**outer), tmp_path_factory.mktemp("averaged"))


def test_the_average_is_validated_tested_and_named(averaged, tmp_path):
    outer, run = averaged
    kept = run.store.load(4)
    assert not np.allclose(kept.learned, kept.vector, rtol=1e-3)
    driver = Driver(sines(**outer), CheckpointStore(tmp_path))
    driver.start(LocalBackend())
    found = driver.evaluate(kept, "meta_validation", 7, 0)
    tested = driver.evaluate(run.end.best, "meta_test", 7, 0)
    driver.close()
    row = next(row for row in run.rows if row["step"] == 4 and "validation/loss" in row)
    assert found.mean("loss") == row["validation/loss"]
    np.testing.assert_array_equal(tested.metrics["loss"], run.test.metrics["loss"])
    assert run.sha == run.last.layout.sha256(run.last.learned) != run.last.layout.sha256(run.last.vector)


@pytest.mark.parametrize("workers", [2, 5])
def test_averages_do_not_depend_on_the_number_of_workers(workers, averaged, tmp_path):
    outer, straight = averaged
    assert_same(Run(sines(**outer).with_overrides({"runtime.workers": workers}), tmp_path), straight)


@pytest.mark.parametrize("at", range(1, 4 * STEPS + STEPS + 2 + 5, 3))
def test_a_server_lost_at_any_call_changes_no_average(at, averaged, tmp_path):
    outer, straight = averaged
    backend = LocalBackend(Faults("lost", {at}, actor=SERVER))
    assert_same(Run(sines(**outer).with_overrides({"runtime.workers": 2}), tmp_path, backend), straight)


@pytest.mark.parametrize("at", range(2, 70, 9))
def test_an_interrupt_at_any_call_then_resume_changes_no_average(at, averaged, tmp_path):
    outer, straight = averaged
    calls, rows = itertools.count(), Rows()

    def interrupt(actor, method, number):
        if next(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(sines(**outer), tmp_path, LocalBackend(interrupt), rows=rows)
    assert_same(Run(sines(**outer), tmp_path, rows=rows), straight)


def test_averages_half_here_and_the_rest_on_ray_where_the_server_is_killed(averaged, ray_backend, tmp_path):
    outer, straight = averaged
    Run(sines(**outer, iterations=3), tmp_path)
    killed = []

    def watch(event):
        if event.kind == "step" and event.step == 5 and not killed:
            killed.append(event.step)
            ray_backend.kill(ray_backend.actors[SERVER])

    run = Run(sines(**outer).with_overrides({"runtime.workers": 2}), tmp_path, ray_backend, watch)
    assert (run.sha, killed) == (straight.sha, [5])
    for name, values in straight.last.optimizer.items():
        np.testing.assert_array_equal(run.last.optimizer[name], values)


# -- resuming --------------------------------------------------------------------------------------------------------

OPTIMIZERS = [
    {"optimizer": "adam", "lr": 1e-2},
    {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9},
    {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
    {"optimizer": "rmsprop", "lr": 1e-3, "momentum": 0.9, "clip_value": 1.0},
    {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "nesterov": True},
    {"optimizer": "adam", "lr": 1e-2, "warmup": 2, "average": 0.9},
    SCHEDULE_FREE,
]


def test_a_chunk_that_kills_every_worker_is_blamed_by_its_task(tmp_path):
    def deadly(actor, method, number):
        return "lost" if method == "train" else None

    with pytest.raises(RuntimeFailure, match=r"4 workers in turn were lost.*fewer --workers.*a new run") as caught:
        Run(sines().with_overrides({"runtime.max_losses": 100}), tmp_path, LocalBackend(deadly))
    assert caught.value.task_ref == TaskRef("meta_train", 0, 0)


class Small(LocalBackend):
    """A machine with the memory for some workers only: of more, those that compute fail."""

    def __init__(self, room):
        super().__init__()
        self.room, self.actors = room, []

    def spawn(self, kind, name, *args, **kwargs):
        self.actors.append(super().spawn(kind, name, *args, **kwargs))
        return self.actors[-1]

    def call(self, actor, method, *args, parts=1):
        refs = super().call(actor, method, *args, parts=parts)
        if method == "train" and sum(a.alive for a in self.actors if a.name != SERVER) > self.room:
            for ref in refs:
                ref.error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return refs


@pytest.mark.parametrize(("workers", "room"), [(2, 1), (5, 3), (5, 1)])
def test_workers_whose_memory_is_too_little_together_become_fewer(workers, room, straight, tmp_path):
    said = []
    run = Run(sines().with_overrides({"runtime.workers": workers}), tmp_path, Small(room), watch=said.append)
    assert_same(run, straight)
    told = [event.text for event in said if "had too little memory" in event.text]
    assert len(told) == workers - room
    assert told[-1].endswith("Going on with one worker, for the same bits.") == (room == 1)
    assert run.rows[-2]["runtime/worker_losses"] >= workers - room


def test_tasks_for_which_one_worker_has_too_little_memory_end_the_run(tmp_path):
    said = []
    match = r"2 workers in turn were lost with tasks . to . of meta_train, step 0.*smaller runtime\.chunk_size.*mixed"
    with pytest.raises(RuntimeFailure, match=match) as caught:
        Run(sines().with_overrides({"runtime.workers": 3}), tmp_path, Small(0), watch=said.append)
    assert caught.value.task_ref.step == 0
    assert sum("had too little memory" in event.text for event in said) == 2


class Sick(LocalBackend):
    """A backend whose first worker cannot compute, as on a machine with a full disk."""

    def call(self, actor, method, *args, parts=1):
        refs = super().call(actor, method, *args, parts=parts)
        if actor.name == "worker-0" and method == "train":
            for ref in refs:
                ref.error = RuntimeFailure("No space left on device.")
        return refs


def test_a_sick_worker_s_chunks_are_computed_elsewhere(straight, tmp_path):
    assert_same(Run(sines().with_overrides({"runtime.workers": 3}), tmp_path, Sick()), straight)


@pytest.mark.parametrize("outer", OPTIMIZERS, ids=lambda outer: "-".join(map(str, outer)))
def test_half_and_then_the_rest_is_the_whole(outer, tmp_path):
    whole = Run(sines(**outer, iterations=6), tmp_path / "whole")
    Run(sines(**outer, iterations=3), tmp_path / "halves")
    rest = Run(sines(**outer, iterations=6).with_overrides({"runtime.workers": 3}), tmp_path / "halves")
    assert rest.sha == whole.sha
    assert [row["step"] for row in rest.rows if "train/loss" in row] == [4, 5, 6]
    for name, values in whole.last.optimizer.items():
        np.testing.assert_array_equal(rest.last.optimizer[name], values)


@pytest.mark.parametrize("at", range(2, 68, 3))
def test_an_interrupt_at_any_call_then_resume(at, straight, tmp_path):
    """Ctrl-C: no row is missing or twice afterwards, no meta-validation is left out."""
    calls, rows = itertools.count(), Rows()

    def interrupt(actor, method, number):
        if next(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(sines(), tmp_path, LocalBackend(interrupt), rows=rows)
    assert_same(Run(sines(), tmp_path, rows=rows), straight)


@pytest.mark.parametrize("kind", ["step", "validation"])
def test_an_interrupt_while_something_is_shown_then_resume(kind, straight, tmp_path):
    rows = Rows()

    def watch(event):
        if (event.kind, event.step) == (kind, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(sines(), tmp_path, watch=watch, rows=rows)
    assert_same(Run(sines(), tmp_path, rows=rows), straight)


def test_an_interrupt_writes_a_checkpoint(tmp_path):
    def interrupt(actor, method, number):
        if (actor, method, number) == ("worker-0", "train", 1 + 4 * 3 + 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(sines().with_overrides({"runtime.checkpoint_every": 100}), tmp_path, LocalBackend(interrupt))
    assert CheckpointStore(tmp_path).steps() == [0, 3]


def test_what_a_killed_process_left_half_written_is_no_obstacle(straight, tmp_path):
    """In a container the next process may well have the same id."""
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "params.safetensors").write_bytes(b"half")
    assert_same(Run(sines(), tmp_path), straight)
    assert not (tmp_path / ".partial").exists()


def test_half_here_and_the_rest_on_ray(straight, ray_backend, tmp_path):
    Run(sines(iterations=3), tmp_path)
    assert Run(sines().with_overrides({"runtime.workers": 2}), tmp_path, ray_backend).sha == straight.sha


def test_another_experiment_is_refused(tmp_path):
    Run(sines(), tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"outer\.lr=0\.001 and now has 0\.5.*old model and\s+settings"):
        Run(sines(lr=0.5), tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"chunk_size=3 and now has 2.*other than chunk_size and threads"):
        Run(sines().with_overrides({"runtime.chunk_size": 2}), tmp_path)


def test_other_frozen_weights_are_another_experiment(tmp_path):
    def half_frozen(seed):
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        model[0].requires_grad_(False)
        return sines(iterations=2).replace(learner=MAML(model, inner_lr=0.01))

    first = Run(half_frozen(0), tmp_path)
    assert Run(half_frozen(0), tmp_path).sha == first.sha
    with pytest.raises(CheckpointMismatch, match=r"frozen="):
        Run(half_frozen(1), tmp_path)


def test_checkpoints_are_pruned_but_the_best_and_the_last_stay(tmp_path):
    experiment = sines(iterations=12, lr=1.0).with_overrides({"evaluation.every": 2, "runtime.keep_checkpoints": 2})
    run = Run(experiment, tmp_path)
    assert run.end.best.step == 2  # such a learning rate makes it worse
    assert run.store.steps() == [2, 10, 12]


def test_early_stopping(tmp_path):
    experiment = sines(iterations=50, lr=1.0).with_overrides({"evaluation.every": 2, "evaluation.patience": 2})
    run = Run(experiment, tmp_path)
    assert run.end.stopped_early
    assert (run.end.best.step, run.end.step, run.store.steps()[-1]) == (2, 6, 6)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    experiment = sines(iterations=50, lr=1.0).with_overrides({"evaluation.every": 2, "evaluation.patience": 2})
    first = Run(experiment, tmp_path)
    again = Run(experiment, tmp_path, rows=first.rows)
    assert (again.end.step, again.end.stopped_early, again.sha) == (first.end.step, True, first.sha)


# -- kill -9 ---------------------------------------------------------------------------------------------------------

KILLED_JOB = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=distmeta.Sinusoids(shots=4, queries=4),
    outer=distmeta.Outer(iterations=6, meta_batch_size=10, **OUTER),
    runtime=distmeta.Runtime(chunk_size=3, checkpoint_every=2),
    evaluation=distmeta.Evaluation(every=4, validation_tasks=7, test_tasks=7),
)
"""

# Python reports what it does to files to its audit hooks; each child is killed at one such moment of its own run.
KILLER = """
import os, signal, sys
from pathlib import Path
import distmeta.run.finishing
from distmeta import load_job, meta_train

# Pictures take most of the time of so short a run.
distmeta.run.finishing.run_curves.plot_curves = lambda rows, path, title: path
distmeta.run.finishing.learner_pictures.draw = lambda picture, path: path

job, out, moments = sys.argv[1], sys.argv[2], [int(m) for m in sys.argv[3:]]

def run(moment):
    folder, seen = f"{out}/{moment}", 0

    def hook(event, arguments):
        nonlocal seen
        changes = event in ("os.mkdir", "os.rename", "shutil.rmtree") or (
            event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"
        )
        if changes and str(arguments[0]).startswith(folder) and Path(folder, "run.json").exists():
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    meta_train(load_job(job), run_dir=folder)
    print("events", seen, flush=True)
    os._exit(0)

# Once before forking: what torch loads at its first gradient is then loaded for all.
meta_train(load_job(job), run_dir=f"{out}/straight")
for moment in moments:
    child = os.fork()
    if not child:
        run(moment)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("outer", [{"optimizer": "adam"}, *AVERAGED], ids=lambda outer: outer["optimizer"])
def test_kill_9_of_the_driver_at_many_moments_then_resume(outer, tmp_path, monkeypatch):
    monkeypatch.setattr("distmeta.run.finishing.run_curves.plot_curves", lambda rows, path, title: path)
    monkeypatch.setattr("distmeta.run.finishing.learner_pictures.draw", lambda picture, path: path)
    job, moments = tmp_path / "job.py", (1, 3, 6, 9, 13, 17, 22, 27, 33, 10_000)
    job.write_text(KILLED_JOB.replace("OUTER", repr(outer)))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(job), str(tmp_path / "runs"), *map(str, moments)],
        capture_output=True,
        text=True,
        check=True,
    )
    # All but the last child were killed, and what a run does to files goes on past the last moment chosen.
    assert done.stdout.startswith("events"), done.stderr
    assert done.stdout.count("\n") == 1
    assert int(done.stdout.split()[1]) > moments[-2]
    straight = tmp_path / "runs" / str(moments[-1])
    facts = distmeta.inspect_run(straight)
    assert facts["status"] == "finished"
    for moment in moments[:-1]:
        folder = tmp_path / "runs" / str(moment)
        assert distmeta.inspect_run(folder)["status"] in ("interrupted", "created", "finished")
        result = distmeta.meta_train(RunDirectory.open(folder).job(), run_dir=folder, resume=True)
        resumed = distmeta.inspect_run(folder)
        assert (resumed["status"], resumed["step"]) == ("finished", 6)
        assert result.params_sha256 == resumed["params_sha256"] == facts["params_sha256"]
        assert resumed["best"] == facts["best"]
        assert resumed["test"] == facts["test"]
        rows = read_metrics(folder)
        assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
        assert [row["step"] for row in rows if "validation/loss" in row] == [4, 6]


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_tasks_do_not_depend_on_the_model_or_the_run(tmp_path):
    """Two models are judged on the same tasks: what no learning achieves on them is equal."""
    first = Run(sines(), tmp_path / "first")
    second = Run(sines(lr=0.1).with_overrides({"seed": 5, "learner.inner_lr": 0.02}), tmp_path / "second")
    np.testing.assert_array_equal(first.test.metrics["baseline_loss"], second.test.metrics["baseline_loss"])
    assert first.sha != second.sha


def test_the_digest_is_over_the_parameters_in_canonical_order(straight):
    flat = np.ascontiguousarray(straight.last.vector)
    assert straight.last.layout.sha256(flat) == straight.sha
    changed = flat.copy()
    changed[0] = np.nextafter(changed[0], np.inf, dtype=changed.dtype)
    assert straight.last.layout.sha256(changed) != straight.sha
    assert len(straight.sha) == hashlib.sha256().digest_size * 2
