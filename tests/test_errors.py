"""Errors cross processes whole, and the tree in the docstring is the tree."""

import inspect
import json
import pickle
import re
import traceback

import pytest

from distmeta import errors
from distmeta.errors import DistmetaError, RuntimeFailure, WorkerLost
from distmeta.types import TaskRef

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DistmetaError)]
REF = TaskRef("meta_train", 12, 3)


@pytest.mark.parametrize("ref", [None, REF])
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling(kind, ref):
    error = kind("seen, expected, fix", task_ref=ref)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.task_ref, str(again)) == ("seen, expected, fix", ref, str(error))
    assert again.args == error.args


def test_the_task_to_reproduce_is_in_the_text():
    assert str(DistmetaError("It broke.")) == "It broke."
    text = str(DistmetaError("It broke.", task_ref=REF))
    assert text == "It broke. [reproduce with TaskRef(split='meta_train', step=12, index=3)]"
    assert eval(text.split("reproduce with ")[1].rstrip("]"), {"TaskRef": TaskRef}) == REF


def drawn_tree():
    """``(name, parent)`` of every line of the drawing in the module's docstring."""
    above, found = [], {}
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ((?:│   |    )*)(├── |└── |)(\w+)(?:\s{2,}.*)?", line)
        if match:
            depth = len(match[1]) // 4 + bool(match[2])
            del above[depth:]
            found[match[3]] = above[-1] if above else None
            above.append(match[3])
    return found


def test_the_drawn_tree_is_the_tree():
    real = {kind.__name__: kind.__base__.__name__ for kind in KINDS}
    assert drawn_tree() == {**real, "DistmetaError": None}
    assert len(KINDS) >= 19


def test_every_error_has_a_sentence_of_its_own():
    sentences = [kind.__doc__.splitlines()[0] for kind in KINDS]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.endswith(".") for sentence in sentences)


def test_an_error_prints_under_its_public_name():
    try:
        raise WorkerLost("worker-3 died.", task_ref=REF)
    except RuntimeFailure as error:
        last = traceback.format_exception_only(error)[-1]
    assert last.startswith("distmeta.errors.WorkerLost: worker-3 died. [reproduce with TaskRef(")


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_library_survives_pickling(kind):
    raw = "\x1b[31mfirst\x1b[0m\nsecond"
    again = pickle.loads(pickle.dumps(kind("short", task_ref=REF, raw=raw)))
    assert (again.raw, again.task_ref, again.message) == (raw, REF, "short")


def test_a_note_is_a_line_of_the_message_once_also_after_pickling():
    error = RuntimeFailure("It broke.", task_ref=REF, raw="log")
    assert error.with_note("Full text: a.txt") is error
    error.with_note("Full text: a.txt")
    again = pickle.loads(pickle.dumps(error))
    assert again.message == error.message == "It broke.\nFull text: a.txt"
    assert again.args == error.args == (error.message,)
    assert (again.raw, again.task_ref) == ("log", REF)


LOG = "[2026-01-31 12:00:00,123 E 12 34] (raylet) main.cc:12: Check failed. Node is gone."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{LOG}\n{LOG}\nThe actor died. Its node is gone.", "The actor died"),
        (f"(raylet, ip=10.0.0.1) {LOG}\nThe actor died.", "The actor died"),
        (f"\n\x1b[36mThe actor died\x1b[0m:\n{LOG}", "The actor died"),
        ("Version 2.60 of a.b.c failed. Sorry.", "Version 2.60 of a.b.c failed"),
        ("*** SIGABRT received\n@ 0x7f main\n  it aborted", "it aborted"),
        (LOG, LOG.removesuffix(" Node is gone.").rstrip(".")),
        ("", "no message"),
        ("x" * 500, "x" * 157 + "..."),
    ],
)
def test_the_first_sentence_of_a_library(text, sentence):
    assert errors.first_sentence(text) == sentence


def test_a_foreign_error_is_short_and_keeps_the_text():
    try:
        raise OSError(f"{LOG}\n" * 40)
    except OSError as cause:
        error = errors.foreign(WorkerLost, "worker-3 died", cause, "Start another.")
    assert isinstance(error, WorkerLost)
    assert error.message.startswith("worker-3 died: ")
    assert error.message.endswith(". Start another.")
    assert len(error.message) < 250
    assert error.raw.count(LOG) == 40
    assert "Traceback" in error.raw
    assert errors.foreign(WorkerLost, "worker-3 died", TimeoutError(), "Wait.").message == (
        "worker-3 died: TimeoutError. Wait."
    )


def test_the_user_s_line_is_found_in_an_error_and_in_its_text():
    try:
        json.loads("{")  # the last frames are the standard library's
    except ValueError as error:
        line = errors.line_of(error)
        text = "".join(traceback.format_exception(error))
    assert line.startswith(f"{__file__}, line ")
    assert errors.line_of(text) == line
    assert errors.line_of("") == errors.line_of(ValueError()) == "no line known"
    ours = inspect.getfile(DistmetaError)
    text = f'File "/home/me/job.py", line 7, in model\nFile "{ours}", line 1, in f\nFile "/site-packages/a.py", line 2'
    assert errors.line_of(text) == "/home/me/job.py, line 7"
