"""Task distributions made from a function."""

import pickle

import numpy as np
import pytest
import torch

from distmeta import Episode, FunctionTasks, TaskSpec, task_distribution
from distmeta.errors import TaskContractError
from distmeta.types import TaskRef


@task_distribution
def lines(random, split):
    slope, x = random.normal(), random.uniform(-1, 1, size=(20, 1))
    return x[:8], slope * x[:8], x[8:], slope * x[8:]


def rings(random, split):
    """Three classes, by distance from the origin."""
    y = np.repeat(np.arange(3), 4)
    angle = random.uniform(0, 2 * np.pi, 12)
    x = (y + random.uniform(0.2, 0.8, 12))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return x[::2], y[::2], x[1::2], y[1::2]


def test_function_tasks_read_their_spec_off_a_task():
    assert FunctionTasks(rings).spec == TaskSpec((2,), 3, "classification", 6, 6)
    assert lines.spec == TaskSpec((1,), 1, "regression", 8, 12)


def test_a_function_may_return_an_episode_or_lists():
    def tensors(random, split):
        x = torch.tensor([[random.normal()], [random.normal()]])
        return Episode(x, x, x, x)

    def lists(random, split):
        return [[random.normal()]] * 2, [0, 1], [[random.normal()]], [1]

    assert FunctionTasks(tensors).spec.kind == "regression"
    assert FunctionTasks(lists).episode(TaskRef("meta_train", 0, 0), 0).query_y.tolist() == [1]


def test_the_fingerprint_follows_source_and_version():
    one = FunctionTasks(rings)
    assert one.fingerprint == FunctionTasks(rings).fingerprint
    others = {lines.fingerprint, FunctionTasks(rings, version="2").fingerprint}
    assert len({one.fingerprint, *others}) == 3
    typed: dict = {}
    exec("def typed_at_a_prompt(random, split): ...", typed)
    assert len(FunctionTasks(typed["typed_at_a_prompt"]).fingerprint) == 64


def test_function_tasks_cross_a_process():
    tasks = FunctionTasks(np.random.Generator.normal)  # any importable function pickles by name
    assert pickle.loads(pickle.dumps(tasks)).fingerprint == tasks.fingerprint


def test_a_functions_fingerprint_does_not_change_with_its_file(tmp_path, monkeypatch):
    """The file may be edited while the run goes on, and is not there at all on another node."""
    import importlib
    import linecache

    path = tmp_path / "drawn_here.py"
    text = "def draw(random, split):\n    x = random.normal(size=(4, 1))\n    return x, x, x, x\n"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    tasks = FunctionTasks(importlib.import_module("drawn_here").draw)
    before, sent = tasks.fingerprint, pickle.dumps(tasks)
    path.write_text(text.replace("4", "5"))
    linecache.checkcache()
    assert tasks.fingerprint == pickle.loads(sent).fingerprint == before
    path.unlink()
    linecache.checkcache()
    assert pickle.loads(sent).fingerprint == before


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType; expected (support_x, support_y, query_x, query_y)"),
        ((X, Y), "returned tuple; expected (support_x"),
        ([X, Y, X, Y], "returned list; expected (support_x"),
        ((X, Y[:3], X, Y), "returned 4 support inputs and 3 support targets"),
        ((X, Y, X[:1], Y), "returned 1 query inputs and 4 query targets"),
        ((X, Y.astype(float), X, Y.astype(float)), "float targets of shape [4]; expected [n, D]"),
        ((X + np.nan, Y, X, Y), "support_x of a task from FunctionTasks has NaN or infinite values"),
        ((X, Y, X + np.inf, Y), "query_x of a task from FunctionTasks has NaN or infinite values"),
        ((X, X * np.nan, X, X), "support_y of a task from FunctionTasks has NaN or infinite values"),
        ((X, Y, X, Y + 1), "query_y of a task from FunctionTasks has labels from 1 to 2; expected 0 to 1"),
        ((X, Y - 1, X, Y - 1), "labels from -1 to 0"),
    ],
)
def test_functions_that_return_something_else(result, message):
    with pytest.raises(TaskContractError) as caught:
        FunctionTasks(lambda random, split: result).check()
    assert message in str(caught.value)
