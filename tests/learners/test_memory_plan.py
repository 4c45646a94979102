"""The memory of a chunk is predicted before any worker starts, and gradient="auto" is chosen by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distmeta
from distmeta.errors import CheckpointMismatch, ConfigError
from distmeta.learners.maml import MAML
from distmeta.learners.memory_plan import HEAP_FACTOR, _Live, largest_chunk, peak_bytes, planned
from distmeta.learners.protonet import ProtoNet
from distmeta.runtime import driver, sizing
from distmeta.runtime.backend import LocalBackend
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.seeding import rng
from distmeta.types import Episode

MIB = 2**20


def tasks():
    x = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(5).expand(2, 5)
    return Episode(x, y, x.flip(1), y)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 5))


def learner(kind=MAML, **options):
    made = kind(network(), vectorise="vmap", **options)
    return made, made.init_meta_params(rng(0, "init"))


def test_tensors_count_while_they_live_and_views_and_what_was_there_before_do_not():
    before = torch.ones(1000)
    with _Live(1.0) as live:
        once = before + 1
        seen = [once.view(10, 100).t(), before[:5]]
        del once
        seen.clear()
        assert live.peak == 4000 * HEAP_FACTOR
        a, b = before * 2, before * 3  # the first is gone: two at a time
    assert live.peak == 8000 * HEAP_FACTOR
    assert a is not b


def test_a_tensor_with_pages_of_its_own_counts_as_it_is_in_the_chunk():
    with _Live(16.0) as live:
        torch.ones(2 * MIB, dtype=torch.uint8)
    assert live.peak == 2 * MIB


def test_unrolled_grows_with_the_steps_and_mixed_by_its_fast_parameters_alone():
    peaks = {}
    for gradient in ("unroll", "mixed"):
        for steps in (1, 10):
            made, params = learner(inner_steps=steps, gradient=gradient)
            peaks[gradient, steps] = peak_bytes(made, params, tasks(), 8)
    assert peaks["unroll", 10] > 4 * peaks["unroll", 1]
    assert peaks["mixed", 10] < 0.7 * peaks["unroll", 10]
    fast = sum(p.nbytes for p in params.values()) * 8 * HEAP_FACTOR
    assert peaks["mixed", 10] - peaks["mixed", 1] == pytest.approx(9 * fast, rel=0.25)


@pytest.mark.parametrize("gradient", ["unroll", "mixed"])
def test_few_tasks_and_steps_tell_what_all_of_them_take(gradient):
    """Extrapolated to 7 steps, and counted in 7."""
    made, params = learner(inner_steps=7, gradient=gradient)
    with _Live(1.0) as live:
        made.meta_gradient(params, tasks())
    assert peak_bytes(made, params, tasks(), 2) == pytest.approx(live.peak, rel=0.15)


def test_a_loop_over_tasks_needs_the_memory_of_one():
    made, params = learner(inner_steps=2)
    loop = made.with_config(vectorise="loop")
    assert peak_bytes(loop, params, tasks(), 64) == peak_bytes(loop, params, tasks(), 2)


def test_random_numbers_stay_where_they_were():
    made = MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout()), inner_steps=3, vectorise="vmap")
    before = torch.get_rng_state()
    peak_bytes(made, made.init_meta_params(rng(0, "init")), tasks(), 4)
    assert torch.equal(torch.get_rng_state(), before)


class ForwardMode(MAML):
    """Adapts by a forward derivative, in which torch crashes (a segmentation fault) while operations are counted."""

    def fast_params(self, params, episode):
        _, along = torch.func.jvp(torch.func.grad(self.support_loss(episode)), (params,), (params,))
        return {name: p - 0.1 * along[name] for name, p in params.items()}


@pytest.mark.parametrize(
    ("memory", "options", "chosen"),
    [
        (1000 * MIB, {}, "unroll"),
        (12 * MIB, {}, "mixed"),
        (12 * MIB, {"first_order": True}, "unroll"),
        (12 * MIB, {"inner_steps": 0}, "unroll"),
        (12 * MIB, {"kind": ForwardMode}, "unroll"),
    ],
)
def test_auto_is_unroll_where_half_of_the_memory_is_enough_or_nothing_can_be_walked_back(memory, options, chosen):
    made, params = learner(**{"inner_steps": 20, "gradient": "auto"} | options)
    found, line = planned(made, params, tasks(), tasks=8, memory=memory)
    assert found.config.gradient == chosen
    assert f"learner.gradient={'auto' if 'may end' not in line else chosen}" in line
    if chosen == "mixed":
        assert line.startswith("learner.gradient=auto is mixed: a chunk of 8 tasks (runtime.chunk_size=8) is predicted")
        assert "more than 50% of 12.0 MiB per worker" in line
    if "kind" in options:
        assert "could not be predicted (RuntimeError: Memory cannot be counted in torch's forward mode" in line


@pytest.mark.parametrize(("gradient", "fix"), [("unroll", "learner.gradient=mixed, or a"), ("mixed", "a")])
def test_a_chunk_that_will_not_fit_is_told_before_any_worker_starts(gradient, fix):
    made, params = learner(inner_steps=5, gradient=gradient)
    need = peak_bytes(made, params, tasks(), 8)
    found, line = planned(made, params, tasks(), tasks=8, memory=MIB // 2)
    assert found is made
    assert f"predicted to need {need / MIB:.1f} MiB, and a worker has 512 KiB." in line
    assert line.endswith(f"Set {fix} smaller runtime.chunk_size.")
    assert planned(made, params, tasks(), tasks=8, memory=1000 * MIB) == (made, None)


def test_auto_is_unroll_where_fast_parameters_need_more_than_graphs():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 5))
    made = MAML(wide, inner_steps=10, gradient="auto", vectorise="vmap")
    found, line = planned(made, made.init_meta_params(rng(0, "init")), tasks(), tasks=8, memory=8 * MIB)
    assert found.config.gradient == "unroll"
    assert line.startswith("learner.gradient=auto is unroll: a chunk of 8 tasks (runtime.chunk_size=8) is predicted to")


def test_learners_without_such_a_gradient_are_left_alone():
    made = ProtoNet(nn.Flatten(), vectorise="vmap")
    assert planned(made, {}, tasks(), tasks=8, memory=1) == (made, None)


class NoLog:
    def metrics(self, step, values):
        pass

    def truncate(self, step):
        pass


def run_to_the_end(job, folder):
    """The driver, its last checkpoint, and the messages of a run in this process."""
    store, events = CheckpointStore(folder, keep=2), []
    run = driver.Driver(job, store, events.append)
    run.start(LocalBackend())
    try:
        run.train(NoLog())
    finally:
        run.close()
    return run, store.load(), [event.text for event in events]


def trained(folder, iterations, gradient="auto"):
    job = distmeta.Experiment(
        learner=MAML(distmeta.mlp((16,)), inner_lr=0.01, inner_steps=3, gradient=gradient),
        tasks=distmeta.Sinusoids(),
        outer=distmeta.Outer(iterations=iterations, meta_batch_size=4),
        runtime=distmeta.Runtime(chunk_size=2),
        evaluation=distmeta.Evaluation(every=0, validation_tasks=2, test_tasks=2),
    )
    run, last, told = run_to_the_end(job, folder)
    assert run.learner.config.gradient == last.record["gradient"]
    return last.record["gradient"], last.params_sha256, [text for text in told if "learner.gradient" in text]


def test_a_run_goes_on_with_the_gradient_that_it_began_with_on_a_machine_of_other_memory(tmp_path, monkeypatch):
    assert trained(tmp_path / "roomy", 2)[0] == "unroll"
    with monkeypatch.context() as small:
        small.setattr(sizing, "bytes_per_worker", lambda _: 1000)
        gradient, _, told = trained(tmp_path / "small", 2)
        assert gradient == "mixed"
        assert len(told) == 1
        assert told[0].startswith(
            "This run may end for want of memory: with learner.gradient=mixed, a chunk of 2 tasks"
        )
        elsewhere = trained(tmp_path / "roomy", 4)
    assert elsewhere[:2] == trained(tmp_path / "straight", 4, "unroll")[:2]
    resumed = trained(tmp_path / "small", 4)
    assert resumed == ("mixed", trained(tmp_path / "mixed", 4, "mixed")[1], [])


def test_the_largest_chunk_is_halved_until_half_of_the_memory_is_enough():
    made, params = learner(inner_steps=5)
    need = {size: peak_bytes(made, params, tasks(), size) for size in (1, 3, 5, 10)}
    for size, memory in [(10, 2 * need[10]), (5, 2 * need[10] - 2), (3, 2 * need[3]), (1, 1)]:
        found, why = largest_chunk(made, params, tasks(), most=10, memory=memory)
        assert found == size
        assert why.startswith("predicted to need ")
        assert why.endswith(" per worker")


def test_where_no_memory_can_be_predicted_chunks_are_those_of_the_default():
    made, params = learner(kind=ForwardMode)
    for most, size in [(100, 8), (5, 5)]:
        found, why = largest_chunk(made, params, tasks(), most=most, memory=10**12)
        assert found == size == min(most, distmeta.Runtime().chunk_size)
        assert why.startswith("of memory that cannot be predicted: RuntimeError: Memory cannot be counted")


def chunked(folder, iterations, chunk_size, workers, *, gradient="unroll"):
    job = distmeta.Experiment(
        learner=MAML(distmeta.mlp((16,)), inner_lr=0.01, inner_steps=3, gradient=gradient),
        tasks=distmeta.Sinusoids(),
        outer=distmeta.Outer(iterations=iterations, meta_batch_size=10),
        runtime=distmeta.Runtime(chunk_size=chunk_size, workers=workers),
        evaluation=distmeta.Evaluation(every=0, validation_tasks=2, test_tasks=2),
    )
    run, last, told = run_to_the_end(job, folder)
    found = last.record["identity"]["runtime"]["chunk_size"]
    assert run.experiment.runtime.chunk_size == found
    return found, last.params_sha256, [text for text in told if "runtime.chunk_size=auto" in text]


def test_chunks_left_to_the_run_are_chosen_once_and_kept(tmp_path, monkeypatch):
    size, _, told = chunked(tmp_path / "a", 2, "auto", 2)
    assert size == 5
    assert len(told) == 1
    assert told[0].startswith("runtime.chunk_size=auto is 5, for 10 tasks per step on 2 workers (a chunk is predicted")
    assert told[0].endswith("per worker). The run keeps it, and has the bits of runtime.chunk_size=5.")
    straight = chunked(tmp_path / "b", 4, 5, 2)[1]
    # Other workers and another machine, whose memory has room for one task at a time.
    with monkeypatch.context() as small:
        small.setattr(sizing, "bytes_per_worker", lambda _: 1000)
        assert chunked(tmp_path / "a", 4, "auto", 3) == (5, straight, [])
        assert chunked(tmp_path / "c", 1, "auto", 1, gradient="auto")[0] == 1
    with pytest.raises(CheckpointMismatch, match=r"runtime\.chunk_size=5 and now has 2"):
        chunked(tmp_path / "a", 5, 2, 2)


def test_chunks_left_open_have_no_number_where_nothing_runs():
    with pytest.raises(ConfigError, match=r"runtime\.chunk_size=auto is chosen when a run begins"):
        _ = distmeta.Runtime(chunk_size="auto").tasks_per_call


@pytest.mark.parametrize("size", [0, -1, 2.5, "foo", float("nan"), None])
def test_a_chunk_is_a_number_of_tasks(size):
    with pytest.raises(ConfigError, match=r"'chunk_size' is .*: expected a whole number from 1, or auto\. Change it"):
        distmeta.Runtime(chunk_size=size)


def test_in_this_process_there_is_one_worker(tmp_path):
    job = distmeta.Experiment(
        learner=MAML(distmeta.mlp((16,)), inner_lr=0.01),
        tasks=distmeta.Sinusoids(),
        outer=distmeta.Outer(iterations=1, meta_batch_size=10),
        runtime=distmeta.Runtime(chunk_size="auto"),
        evaluation=distmeta.Evaluation(every=0, validation_tasks=2, test_tasks=2),
    )
    told = []
    place = distmeta.Place(tracking=False, watch=lambda event: told.append(event.text))
    run = distmeta.meta_train(job, run_dir=tmp_path / "run", place=place)
    assert any(text.startswith("runtime.chunk_size=auto is 10, for 10 tasks per step on 1 worker (a") for text in told)
    assert distmeta.inspect_run(run.run_dir)["experiment"]["runtime"]["chunk_size"] == 10
