"""``distmeta bench``: every command from its line to its table, file and picture, at sizes that take a moment."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from distmeta.bench import Record, Row
from distmeta.bench.statistics import median
from helpers import SINES, run_command


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run one command line of ``distmeta bench`` in a folder with ``job.py``."""
    (tmp_path / "job.py").write_text(SINES)
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_command("bench", *words)


QUICK = ("--seconds", 0.3)
TINY = ("--set", "tasks.size=8", "--set", "tasks.ways=2")
INNER = ("inner-loop", *TINY, "--chunks", "1,2", "--steps", 1, "--threads", 1)


def test_inner_loop_writes_shows_and_compares(run, tmp_path):
    done = run(*INNER, *QUICK, "--out", "a.json", "--png", "a.png")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "meta-gradients of MAML, random-images, on cpu, tasks.size=8, tasks.ways=2"
    assert lines[1].split()[:4] == ["steps", "threads", "chunk", "tasks/s"]
    assert lines[2].split()[:3] == ["1", "1", "1"]
    assert any(line.startswith("matmul   ") and line.endswith(" with 1 thread") for line in lines)
    assert "kept in  a.json" in lines
    assert "picture  a.png" in lines
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    record = Record.read(tmp_path / "a.json")
    assert record.case["tasks.size"] == 8

    again = run(*INNER, *QUICK, "--json", "--against", "a.json", "--tolerance", 1000)
    assert again.code == 0, again.err
    assert again.json["case"] == dict(record.case)
    assert [change["verdict"] for change in again.json["changes"]] == ["no clear difference"] * 2
    assert [change["then"] for change in again.json["changes"]] == [row.median for row in record.rows]

    again = run(*INNER, *QUICK, "--against", "a.json", "--tolerance", 1000)
    assert again.out.count("no clear difference (") == 2

    other = run(*INNER, *QUICK, "--set", "tasks.shots=2", "--against", "a.json")
    assert other.code == 1
    assert "--against a.json is of another case: it has tasks.shots=1 and now 2" in other.err
    other = run("sampling", "job.py", *QUICK, "--against", "a.json")
    assert other.code == 1
    assert "is of `distmeta bench inner-loop`; expected one of `bench sampling`" in other.err


@pytest.mark.parametrize(("factor", "word", "code"), [(1e-3, "faster", 0), (1e3, "slower", 1)])
def test_what_is_clearly_slower_has_exit_code_1(run, tmp_path, factor, word, code):
    """CI reads the code. The earlier record is this one times a factor; its machine is another one."""
    assert run("inner-loop", "job.py", "--chunks", 2, "--threads", 1, *QUICK, "--out", "a.json").code == 0
    found = Record.read(tmp_path / "a.json").to_dict()
    values = [median(found["rows"][0]["repetitions"]) * factor] * 3
    found["rows"][0]["repetitions"], found["machine"]["cpu"] = values, "a faster one"
    Record.from_dict(found).write(tmp_path / "then.json")
    done = run(
        "inner-loop",
        "job.py",
        "--chunks",
        2,
        "--threads",
        1,
        "--seconds",
        2,
        "--against",
        "then.json",
        "--out",
        "b.json",
    )
    assert done.code == code
    row = next(line for line in done.out.splitlines() if line.endswith(word))
    assert row.split()[:2] == ["1", "2"]
    assert "note: another machine or torch: cpu a faster one then" in done.err
    assert (tmp_path / "b.json").is_file()  # what was measured is kept, whatever comes out of it


def test_sampling(run):
    found = run(
        *("sampling", "job.py", "--batches", "2,3", *QUICK, "--set", "tasks.shots=4", "--json", "--png", "a.png")
    ).json
    assert found["title"].endswith(", tasks.shots=4")
    assert (found["kind"], found["unit"]) == ("sampling", "us")
    assert [row["at"] for row in found["rows"]] == [{"batch": 2}, {"batch": 3}]


def test_memory(run, tmp_path):
    done = run("memory", *TINY, "--steps", "1,2", *QUICK, "--json", "--png", "a.png")
    assert done.code == 0, done.err
    assert [row["at"] for row in done.json["rows"]] == [{"steps": 1}, {"steps": 2}]
    assert done.json["title"].endswith(", random-images, tasks.size=8, tasks.ways=2")
    assert all(row["median"] > 0 for row in done.json["rows"])
    assert (tmp_path / "a.png").is_file()


def test_plain(run, tmp_path):
    done = run("plain", "--learners", "MANN", *QUICK, "--out", "a.json", "--png", "a.png")
    assert done.code == 0, done.err
    (row,) = Record.read(tmp_path / "a.json").rows
    assert row.at == {"learner": "MANN", "batch": "16 sequences of 50"}
    assert row.median * row.figures["ms"] == pytest.approx(row.figures["plain_ms"], rel=0.5)
    assert (tmp_path / "a.png").is_file()


def test_overhead_scaling_peers_and_startup_on_ray(run, cluster, tmp_path):
    chunks = ("--set", "outer.meta_batch_size=4", "--set", "runtime.chunk_size=2")
    done = run("overhead", "job.py", *chunks, "--seconds", 1, "--json", "--png", "a.png")
    assert done.code == 0, done.err
    local, ray = done.json["rows"]
    assert (local["at"], ray["at"]) == ({"backend": "local"}, {"backend": "ray"})
    assert ray["figures"]["added_ms"] == pytest.approx(ray["median"] - local["median"])
    assert done.json["notes"][0].startswith("Ray adds ")
    assert done.json["title"].endswith(", one worker, 1 thread, outer.meta_batch_size=4, runtime.chunk_size=2")

    done = run("scaling", "job.py", *chunks, "--workers", 2, "--seconds", 1, "--out", "b.json", "--png", "b.png")
    assert done.code == 0, done.err
    assert "4 tasks in 2 chunks, outer.meta_batch_size=4, runtime.chunk_size=2" in done.out.splitlines()[0]
    one, two = Record.read(tmp_path / "b.json").rows
    assert [row.at["workers"] for row in (one, two)] == [1, 2]
    assert one.figures["efficiency"] == 1
    ratios = sorted(b / a / 2 for a, b in zip(one.repetitions, two.repetitions, strict=True))
    assert ratios[0] <= two.figures["efficiency"] <= ratios[-1]
    assert "100.0%" in done.out

    tiny = ("--set", "tasks.size=8", "--set", "tasks.ways=2", "--set", "outer.meta_batch_size=2")
    one = ("--cases", "omniglot-1", "--peers", "vmap", "--threads", 1)
    done = run("peers", *one, *tiny, "--seconds", 1, "--out", "d.json", "--png", "d.png")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith("1 thread, tasks.size=8, tasks.ways=2, outer.meta_batch_size=2")
    systems = [row.at["system"] for row in Record.read(tmp_path / "d.json").rows]
    assert systems == ["vmap", "distmeta, 1 thread", "distmeta train, 1 worker"]
    assert "omniglot-1: distmeta train, 1 worker is " in done.out

    address = cluster.get_runtime_context().gcs_address
    done = run("startup", "--address", address, *QUICK, "--json", "--png", "c.png")
    assert done.code == 0, done.err
    assert [row["at"]["until"] for row in done.json["rows"]] == [
        *("distmeta --help", "import distmeta", "first step, local", "first step, ray")
    ]
    assert done.json["case"] == {"cluster": "given"}
    assert cluster.is_initialized()  # a cluster that was there stays
    assert all((tmp_path / f"{name}.png").is_file() for name in "abcd")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inner-loop", "job.py", "--learner", "MAML"), "--learner MAML and job.py: a job has its own learner"),
        (("inner-loop", "--learner", "MaML"), "Did you mean 'MAML'?"),
        (("inner-loop", "--chunks", "1,x"), "--chunks '1,x': expected whole numbers of at least 1"),
        (("inner-loop", "--threads", "0"), "--threads '0': expected whole numbers of at least 1"),
        (("inner-loop", "--learner", "ProtoNet", "--steps", "1"), "--steps: ProtoNet has no inner steps"),
        (("inner-loop", "--set", "tasks.way=3"), "Did you mean 'tasks.ways'?"),
        (("peers", "--cases", "omniglot"), "there is no case 'omniglot'; expected a size and a number of inner steps"),
        (
            ("peers", "--peers", "highr"),
            "there is no peer 'highr'; expected some of learn2learn, higher, torchopt, vmap.",
        ),
        (("peers", "--threads", "999"), "--threads 999: this process may use"),
        (("peers", "--set", "tasks.way=3"), "Did you mean 'tasks.ways'?"),
        (("plain", "--learners", "MAML"), "there is no plain code for 'MAML'; expected some of Reptile, ProtoNet"),
        (("plain", "--threads", "999"), "--threads 999: this process may use"),
        (("sampling", "absent.py"), "There is no job file absent.py"),
        (("memory", "--out", "nowhere/a.json"), "--out nowhere/a.json: there is no folder nowhere"),
        (("memory", "--png", "nowhere/a.png"), "--png nowhere/a.png: there is no folder nowhere"),
        (("memory", "--against", "absent.json"), "absent.json cannot be read"),
        (("memory", "--against", "job.py"), "job.py is not JSON"),
        (("scaling", "job.py", "--workers", "3"), "--workers 3: a step has 1 chunk "),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(run, words, message):
    done = run(*words)
    assert done.code == 1
    assert message in " ".join(done.err.split())
    assert not done.out


def test_a_record_has_words_for_what_is_better():
    """The table and the machine-readable verdict of a smaller peak: memory is no speed."""
    from distmeta.bench import compare

    then, now = (
        Record("memory", "", {}, "MiB", "lower", (Row({"steps": 1}, (size,) * 3),), machine={})
        for size in (200.0, 100.0)
    )
    (change,) = compare(now, then)
    assert json.loads(json.dumps(change.to_dict())) == {
        **{"at": {"steps": 1}, "then": 200.0, "now": 100.0, "ratio": 2.0, "interval": [2.0, 2.0]},
        **{"verdict": "better", "word": "smaller", "why": ""},
    }


def test_the_added_share_has_a_clear_label(capsys, monkeypatch):
    from distmeta.cli import bench, console

    monkeypatch.setitem(vars(console), "out", Console(width=200))
    rows = Row({"backend": "local"}, (2.0,)), Row({"backend": "ray"}, (3.0,), {"added_ms": 1.0, "lost_share": 0.5})
    machine = {"cpu": "one", "cores": 1, "torch": "2", "distmeta": "1", "load_average": None}
    bench._show(Record("overhead", "", {}, "ms/step", "lower", rows, machine=machine), bench.BenchOptions())
    out = capsys.readouterr().out
    assert "added, share of local" in out
    assert "50.0%" in out
    assert "lost" not in out
    assert "one, 1 core, torch 2" in out


@pytest.mark.parametrize(
    "name", ["inner-loop", "peers", "plain", "sampling", "overhead", "scaling", "startup", "memory"]
)
def test_the_help_of_seconds_tells_what_they_are_for(run, name):
    text = " ".join(run(name, "--help").out.split())
    assert "Seconds for the repetitions; starting and warming up" in text
