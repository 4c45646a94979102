"""A play in this process: what it draws, what it notes, and that it leaves no trace."""

import os
import sys
import time

import pytest

from broken_tasks import DRAWN, line, write
from distmeta import FunctionTasks
from distmeta.auditing.play import Play, play
from distmeta.types import TaskRef

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(code, **settings):
        path, _ = write(tmp_path, "played", code)
        return Play(str(path), **{"tasks": 3, "user": (str(path),), **settings})

    return make


CLEAN = line("shift = random.normal()")


@pytest.mark.parametrize("plan", ["chunks", "alone", "pairs", "backwards", "twice"])
def test_every_plan_draws_the_same_refs(plan, job):
    expected = [f"meta_train/{step}/{i}" for step in range(3) for i in range(3)]
    expected += [f"meta_{split}/0/{i}" for split in ("validation", "test") for i in range(3)]
    first, done = play(job(CLEAN)), play(job(CLEAN, plan=plan))
    assert sorted(done["digests"]) == sorted(expected)
    assert done["digests"] == first["digests"]
    assert done["again"] == (first["digests"] if plan == "twice" else {})
    assert done["error"] is None


def test_the_class_is_as_it_was(job):
    methods = dict(vars(FunctionTasks))
    before = time.time, os.environ.__class__
    play(job(CLEAN, varied=("clock", "rank")))
    assert dict(vars(FunctionTasks)) == methods
    assert (time.time, os.environ.__class__) == before


def test_facts_and_reads(job):
    done = play(job(DRAWN["global"][2], trace=("meta_train/0/0",), sharing=True))
    assert done["distribution"] == "tasks"
    assert done["definition"][1] > 1
    assert done["continuous"]
    assert done["limited"] == []
    assert [(what, phase) for what, *_, phase in done["reads"]][-1] == ("numpy's global generator", "draw")
    assert done["rows"]["halves"] == []
    assert done["classes"]["compared"] == 0
    assert {event[0] for event in done["events"]} == {"load", "draw"}


def test_a_distribution_is_kept_and_sent(job, tmp_path):
    kept = tmp_path / "kept"
    first = play(job(CLEAN, keep=str(kept)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = os.getcwd()
    assert play(job(CLEAN, sent=str(kept), folder=str(elsewhere)))["digests"] == first["digests"]
    assert os.getcwd() == here


def test_a_row_and_a_class_are_looked_for(job, tmp_path):
    named = job(DRAWN["classes"][2], sharing=True)
    (shared,) = play(named)["classes"]["splits"]
    looking = {"look_for": f"class {shared['name']}", "trace": (shared["refs"][1],)}
    _, number = play(job(DRAWN["classes"][2], **looking))["found"]
    assert (tmp_path / "played.py").read_text().splitlines()[number - 1].endswith("# HERE")
    half = play(job(DRAWN["halves"][2], sharing=True))["rows"]["halves"][0]
    looking = {"look_for": half["row"], "trace": (half["refs"][0],), "most_rows": 21}
    _, number = play(job(DRAWN["halves"][2], **looking))["found"]
    assert (tmp_path / "played.py").read_text().splitlines()[number - 1].endswith("# HERE")


def test_an_error_has_the_users_line(job, tmp_path):
    code = "class Fails(Sinusoids):\n    def draw(self, split, random):\n        return 1 / 0\ntasks = Fails()\n"
    error = play(job(code))["error"]
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert (tmp_path / "played.py").read_text().splitlines()[error["place"][1] - 1] == "        return 1 / 0"


def test_what_cannot_be_pickled_is_an_error(job, tmp_path):
    code = "import threading\ntasks = Sinusoids()\ntasks.lock = threading.Lock()\n"
    assert "cannot be sent to a worker" in play(job(code, keep=str(tmp_path / "kept")))["error"]["message"]


def test_refs_as_text():
    from distmeta.auditing.play import _ref, key

    ref = TaskRef("meta_train", 3, 7)
    assert _ref(key(ref)) == ref
