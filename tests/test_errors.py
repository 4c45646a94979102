"""Errors cross processes whole, and the tree in the docstring is the tree."""

import inspect
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
