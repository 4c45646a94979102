"""The first line after which a variable differs is the one that is named."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta.auditing.tracing import Tracer, UserCode, divergence, print_of

LOADED = """
import numpy as np

def helper(extra):
    return len(extra)

class Owner:
    def __init__(self, extra):
        self.order = list(extra)  # ATTRIBUTE
        self.other = 1

TABLE = [str(e) for e in EXTRA]  # GLOBAL
owner = Owner(EXTRA)

def plain():
    x = 1
    y = x + len(EXTRA)  # PLAIN
    return y

def called():
    return 3 * helper(EXTRA)  # CALLED

def branch():
    if len(EXTRA) > 1:  # BRANCH
        x = 1
    else:
        x = 2
    return 0

def returned():
    x = 1
    return x * len(EXTRA)  # RETURNED

def table():
    x = TABLE[0]
    return x

def attribute():
    x = owner.order[0]
    return x

def drawn():
    x = 1
    np.random.normal()  # DRAWN
    return x
"""


@pytest.fixture
def traced(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(LOADED)

    def run(function, extra):
        tracer = Tracer(UserCode((str(file),)))
        namespace = {"EXTRA": extra}
        with tracer.on("load"):
            exec(compile(LOADED, str(file), "exec"), namespace)
        with tracer.on("draw"):
            namespace[function]()
        return tracer

    return run


def line_of(mark):
    return next(n for n, source in enumerate(LOADED.splitlines(), 1) if source.endswith(f"# {mark}"))


@pytest.mark.parametrize(
    ("function", "mark", "uses"),
    [("table", "GLOBAL", "x = TABLE[0]"), ("attribute", "ATTRIBUTE", "x = owner.order[0]")],
)
def test_a_line_of_loading_and_the_one_that_uses_what_it_made(function, mark, uses, traced):
    one, other = traced(function, ["a"]), traced(function, ["b"])
    # The namespace itself differs; what matters is what the draw mentions.
    (_, number), (_, used) = divergence(one.events, other.events)
    assert number == line_of(mark)
    assert LOADED.splitlines()[used - 1].strip() == uses


@pytest.mark.parametrize("mark", ["PLAIN", "BRANCH", "RETURNED", "CALLED"])
def test_the_line_of_the_draw_that_makes_the_difference(mark, traced):
    function = mark.lower()
    before = sys.gettrace()
    one, other = ([e for e in traced(function, extra).events if e.phase == "draw"] for extra in (["a"], ["b", "c"]))
    place, used = divergence(one, other)
    assert (place[1], used) == (line_of(mark), None)
    assert sys.gettrace() is before


def test_equal_runs_have_no_such_line(traced):
    assert divergence(traced("called", ["a"]).events, traced("called", ["a"]).events) is None


def test_a_draw_from_a_global_generator_is_noted_with_its_line(traced):
    reads = traced("drawn", ["a"]).reads
    ((what, (_, number)),) = reads
    assert (what, number, reads[what, _place(reads)]) == ("numpy's global generator", line_of("DRAWN"), "draw")


def _place(reads):
    return next(iter(reads))[1]


@dataclass
class Pair:
    a: int
    b: np.ndarray


def test_digests_are_of_values():
    values = [
        None, True, 1, 1.0, "a", b"a", (1,), [1], {"a": 1}, {1}, Path("a"), np.arange(3), np.arange(3.0),
        torch.arange(4), np.array(["a", None], dtype=object), np.float32(3), Pair(1, np.zeros(2)),
        np.random.default_rng(3), object(),
    ]  # fmt: skip
    assert len({print_of(value) for value in values}) == len(values)
    assert print_of({"b", "a", "c"}) == print_of({"c", "b", "a"})  # a set has no order
    assert print_of({"b": 1, "a": 1}) != print_of({"a": 1, "b": 1})  # a dictionary has
    assert print_of(object()) == print_of(object())  # no addresses
    assert print_of([[[[1]]]]) == print_of([[[[2]]]])  # as deep as it goes
    assert print_of(torch.eye(2).to_sparse()) == print_of(torch.eye(2).to_sparse())
    random = np.random.default_rng(3)
    random.random()
    assert print_of(random) != print_of(np.random.default_rng(3))


def test_whose_code_it_is(tmp_path):
    user = UserCode((str(tmp_path / "job.py"), f"{tmp_path}/"))

    def frame_of(file):
        namespace = {"sys": sys}
        exec(compile("frame = sys._getframe()", str(file), "exec"), namespace)
        return namespace["frame"]

    assert user.file(frame_of(tmp_path / "beside.py")) == str(tmp_path / "beside.py")
    assert user.file(frame_of("<dynamic-code>")) == str(tmp_path / "job.py")  # a function that was sent
    assert user.file(frame_of(tmp_path / "venv/lib/site-packages/x.py")) is None
    assert user.file(frame_of("<string>")) is None
    assert user.file(frame_of(np.__file__)) is None
    assert UserCode().place(None) is None
