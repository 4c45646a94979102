"""The benchmarks that compute in this process."""

from __future__ import annotations

import pytest
import torch

import distmeta
from distmeta.bench import cases
from distmeta.bench.inner_loop import InnerLoop
from distmeta.bench.picture import plot
from distmeta.bench.sampling import Sampling
from distmeta.errors import ConfigError, DataError
from helpers import sines

TINY = {"limit_size": 32, "threads": (1,)}


@pytest.fixture
def small():
    return cases.random_images().with_overrides({"tasks.size": 8, "tasks.ways": 2})


def test_every_variant_has_its_share_of_the_limit(small, tmp_path):
    settings = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    told = []
    record = InnerLoop(small, chunks=(1, 2), steps=(0, 2), **TINY).run(0.5, told.append)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == settings
    assert [row.at for row in record.rows] == [
        {"steps": steps, "threads": 1, "chunk": chunk} for steps in (0, 2) for chunk in (1, 2)
    ]
    assert "counting operations, 2 inner steps" in told
    (limit,) = record.limits
    work = {row.at["steps"]: row.figures["mflop_per_task"] for row in record.rows}
    assert 0 < work[0] < work[2]
    for row in record.rows:
        ratios = sorted(a / b for a, b in zip(row.repetitions, limit.repetitions, strict=True))
        assert ratios[0] <= row.figures["limit_share"] * 1e3 / work[row.at["steps"]] * (1 + 1e-9)
        assert row.figures["limit_share"] * 1e3 / work[row.at["steps"]] <= ratios[-1] * (1 + 1e-9)
    assert "learner.inner_steps" not in record.case
    assert record.case["parameters"] == sum(p.numel() for p in cases.ready(small).model.parameters())
    assert plot(record, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_steps_of_a_job_are_part_of_its_case(tmp_path):
    record = InnerLoop(sines({"learner.inner_steps": 3}), chunks=(2,), **TINY).run(0.1)
    assert record.case["learner.inner_steps"] == 3
    assert record.rows[0].at == {"threads": 1, "chunk": 2}
    plot(record, tmp_path / "a.png")


def test_a_learner_without_inner_steps():
    experiment = cases.random_images("ProtoNet").with_overrides({"tasks.size": 8})
    record = InnerLoop(experiment, chunks=(2,), **TINY).run(0.1)
    assert record.rows[0].median > 0
    with pytest.raises(ConfigError, match="--steps: ProtoNet has no inner steps"):
        InnerLoop(experiment, steps=(1,))


def test_what_the_machine_lacks_is_refused(small, monkeypatch):
    with pytest.raises(ConfigError, match=r"--threads 999: this process may use \d+ cores"):
        InnerLoop(small, threads=(1, 999))
    monkeypatch.setattr("distmeta.bench.inner_loop.cpus", lambda: 1)
    with pytest.raises(ConfigError, match="--threads 2: this process may use 1 core;"):
        InnerLoop(small, threads=(2,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: torch finds no CUDA device"):
        InnerLoop(small, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(small):
    record = InnerLoop(small, chunks=(2,), steps=(1,), threads=(1,), device="cuda").run(2)
    assert record.machine["gpu"]
    assert record.case["device"] == "cuda"


def test_sampling_counts_episodes(monkeypatch, tmp_path):
    drawn = []

    class Tasks(distmeta.Sinusoids):
        def episodes(self, refs, seed):
            drawn.append([(ref.split, ref.step, ref.index) for ref in refs])
            return super().episodes(refs, seed)

    benchmark = Sampling(sines(tasks=Tasks()), batches=(2, 4))
    del drawn[:]
    record = benchmark.run(0.2)
    assert [row.at for row in record.rows] == [{"batch": 2}, {"batch": 4}]
    assert {len(refs) for refs in drawn} == {2, 4}
    steps = [refs[0][1] for refs in drawn]
    assert len(set(steps)) == len(steps)  # never the same tasks twice
    assert set(record.case) >= {"tasks.kind", "tasks.fingerprint"}
    plot(record, tmp_path / "a.png")


def test_sampling_of_absent_data_is_refused(tmp_path):
    with pytest.raises(DataError):
        Sampling(cases.glyphs().with_overrides({"tasks.data": str(tmp_path / "nothing")}))
