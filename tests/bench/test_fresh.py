"""What is measured in fresh processes: start-up and memory."""

from __future__ import annotations

import pytest

from distmeta.bench import cases, first_step, fresh, memory
from distmeta.bench.memory import Memory
from distmeta.bench.picture import plot
from distmeta.bench.startup import Startup
from distmeta.errors import ConfigError, RuntimeFailure
from helpers import SINES, sines


def test_time_ends_with_the_line_or_with_the_process():
    program = "import time; {}; time.sleep(0.3)"
    ready, text = fresh.run(["-c", program.format(f"print('{fresh.READY}', flush=True)")])
    whole, _ = fresh.run(["-c", program.format("pass")])
    assert fresh.READY in text
    assert whole > 0.3
    assert ready > 0


def test_a_process_that_fails_is_an_error_with_its_output():
    with pytest.raises(RuntimeFailure, match=r"`python -c import nothing_of_that_name` ended with code 1") as caught:
        fresh.run(["-c", "import nothing_of_that_name"])
    assert "Traceback" in caught.value.raw


def test_a_first_step_shows_that_it_is_done(capsys):
    first_step.main("local")
    assert fresh.READY in capsys.readouterr().out.splitlines()


def test_startup_measures_processes(monkeypatch, tmp_path):
    programs = []
    monkeypatch.setattr(fresh, "run", lambda program: programs.append(tuple(program)) or (0.5, ""))
    benchmark = Startup()
    assert benchmark.case == {"cluster": "its own"}
    record = benchmark.run(0.01)
    assert [row.at["until"] for row in record.rows] == [
        *("distmeta --help", "import distmeta", "first step, local", "first step, ray")
    ]
    assert ("-m", "distmeta", "--help") in programs
    assert ("-m", "distmeta.bench.first_step", "ray") in programs
    plot(record, tmp_path / "a.png")


def test_memory_grows_with_what_is_computed():
    """In this process, which has computed before: what was resident then does not count, nor does an earlier peak."""
    wide = cases.random_images().with_overrides({"tasks.size": 28, "runtime.chunk_size": 8})
    bound = wide.replace(learner=cases.ready(wide))
    few, many = (memory.measure(bound, {"learner.inner_steps": steps}) for steps in (1, 4))
    assert 1 < few < many


def test_memory_of_a_job_in_fresh_processes(tmp_path):
    import distmeta

    (tmp_path / "job.py").write_text(SINES)
    job = distmeta.load_job(tmp_path / "job.py", {"runtime.chunk_size": 4})
    record = Memory(job, steps=(1, 2)).run(0.1)
    assert [row.at for row in record.rows] == [{"steps": 1}, {"steps": 2}]
    assert record.rows[0].figures["times_the_first"] == 1
    assert record.case["runtime.chunk_size"] == 4
    plot(record, tmp_path / "a.png")


def test_memory_without_inner_steps(tmp_path):
    proto = cases.random_images("ProtoNet").with_overrides({"tasks.size": 8})
    with pytest.raises(ConfigError, match="--steps: ProtoNet has no inner steps"):
        Memory(proto, steps=(1,))
    record = Memory(proto).run(0.1)
    assert record.rows[0].at == {"chunk": 8}
    plot(record, tmp_path / "a.png")
    assert Memory(sines())._steps == (1, 5, 10)
