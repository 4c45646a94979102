"""Interpreters answer in order, survive a fork that dies, and name why they died themselves."""

import os

import pytest

from broken_tasks import line, write
from distmeta.auditing import interpreter
from distmeta.auditing.interpreter import Interpreters
from distmeta.auditing.play import Play
from distmeta.errors import RuntimeFailure

NOISY = """
print("not an answer", flush=True)

class Noisy(Sinusoids):
    def draw(self, split, random):
        if os.environ.get("RANK"):
            os._exit(7)
        print("neither is this")
        return super().draw(split, random)

tasks = Noisy()
"""


def test_answers_come_in_order_and_a_dead_fork_is_one(tmp_path):
    path, _ = write(tmp_path, "noisy", NOISY)
    good, dies = Play(str(path), tasks=2), Play(str(path), tasks=2, varied=("rank",))
    with Interpreters() as both:
        answers = both.play([("second", good), ("first", dies), ("first", good), ("second", dies)])
        assert [len(answer["digests"]) for answer in answers] == [10, 0, 10, 0]
        assert answers[0]["digests"] == answers[2]["digests"]
        assert answers[1]["error"] == {"message": "the process died with 7", "place": None}
        both._processes["first"].kill()
        with pytest.raises(RuntimeFailure, match="died with code -9"):
            both.play([("first", good)] * 2)


def test_without_fork_there_is_no_audit(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(RuntimeFailure, match="which this platform cannot"):
        Interpreters()


def test_what_the_interpreters_import_is_there_once():
    interpreter._import_package()
    assert line("shift = 1")
