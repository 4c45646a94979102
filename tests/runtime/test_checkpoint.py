"""A checkpoint is whole or it is not there."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest

from distmeta import Outer
from distmeta.errors import CheckpointError, CheckpointNotFound
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime import checkpoint as module
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.parameter_server import ParameterServer

LAYOUT = ParamLayout(("features.weight", "features.bias", "scale"), ((2, 3), (2,), ()), "float32")
RECORD = {"identity": {"seed": 3}, "fingerprint": "ab", "engine": "vmap", "kernel": "AVX2", "best": None}


def make(step=100, seed=0, *, best=None, layout=LAYOUT):
    random = np.random.default_rng((seed, step))
    vector = random.normal(size=layout.size).astype(layout.dtype)
    optimizer = {
        "step": np.array(step, np.float32),  # Adam's counter has no dimension
        "exp_avg": random.normal(size=layout.size).astype(layout.dtype),
        "exp_avg_sq": random.random(size=layout.size).astype(layout.dtype),
    }
    return Checkpoint(step, vector, layout, optimizer, {**RECORD, "best": best and {"step": best, "score": 0.5}})


def assert_same(a, b):
    assert (a.step, a.layout, a.record, a.params_sha256) == (b.step, b.layout, b.record, b.params_sha256)
    assert a.vector.dtype == b.vector.dtype
    assert np.array_equal(a.vector, b.vector)
    assert set(a.optimizer) == set(b.optimizer)
    for name, array in a.optimizer.items():
        assert (array.dtype, array.shape) == (b.optimizer[name].dtype, b.optimizer[name].shape)
        assert np.array_equal(array, b.optimizer[name])


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_bitwise(store, dtype):
    saved = make(layout=ParamLayout(LAYOUT.names, LAYOUT.shapes, dtype))
    path = store.save(saved)
    assert path == store.path(100)
    assert sorted(p.name for p in path.iterdir()) == ["optimizer.safetensors", "params.safetensors", "state.json"]
    assert_same(store.load(), saved)
    assert_same(store.load(100), saved)


def test_extreme_numbers_survive(store):
    vector = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38, 1, 2, 3], np.float32)
    store.save(Checkpoint(1, vector, LAYOUT, {}, RECORD))
    assert store.load().vector.tobytes() == vector.tobytes()


def test_a_servers_own_state_round_trips(store):
    server = ParameterServer(Outer(), np.zeros(LAYOUT.size, np.float32))
    server.accumulate(0, 0, 1, 1, np.ones(LAYOUT.size, np.float32))
    server.apply(0)
    version, vector, optimizer = server.state()
    assert optimizer["step"].shape == ()
    saved = Checkpoint(version, vector, LAYOUT, optimizer, RECORD)
    store.save(saved)
    assert_same(store.load(), saved)


def test_the_order_of_the_parameters_is_kept(store):
    """safetensors sorts names; the vector's order is the model's."""
    layout = ParamLayout(("z", "a", "m"), ((2,), (2,), (2,)), "float32")
    store.save(Checkpoint(0, np.arange(6, dtype=np.float32), layout, {}, RECORD))
    assert store.load().layout.names == ("z", "a", "m")
    assert store.load().vector.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_digest_is_of_names_shapes_and_numbers_in_canonical_order():
    def digest(names, shapes, vector, dtype="float32"):
        layout = ParamLayout(names, shapes, dtype)
        return Checkpoint(0, np.array(vector, dtype), layout, {}, RECORD).params_sha256

    base = digest(("a", "b"), ((2,), (1,)), [1, 2, 3])
    assert len(base) == 64
    assert digest(("b", "a"), ((1,), (2,)), [3, 1, 2]) == base
    others = [
        digest(("b", "a"), ((2,), (1,)), [1, 2, 3]),
        digest(("a", "c"), ((2,), (1,)), [1, 2, 3]),
        digest(("a", "b"), ((1, 2), (1,)), [1, 2, 3]),
        digest(("a", "b"), ((2,), (1,)), [1, 2, 4]),
        digest(("a", "b"), ((2,), (1,)), [1, 2, 3], "float64"),
    ]
    assert len({base, *others}) == 6


def test_last_and_best_are_kept(store):
    for step, best in ((0, None), (100, 100), (200, 100), (300, 100), (400, 100)):
        store.save(make(step, best=best))
    assert store.steps() == [100, 300, 400]
    store.save(make(500, best=400))
    assert store.steps() == [100, 400, 500]  # who goes on from 400 still finds its best
    store.save(make(600, best=400))
    assert store.steps() == [400, 500, 600]
    assert_same(store.load(400), make(400, best=100))


def test_the_same_step_again_changes_nothing(store):
    path = store.save(make(seed=0))
    before = (path / "params.safetensors").read_bytes()
    assert store.save(make(seed=1)) == path
    assert (path / "params.safetensors").read_bytes() == before


class Killed(BaseException):
    """kill -9, as far as the files can tell: nothing is cleaned up."""


@pytest.mark.parametrize("at", range(7))
def test_a_crash_at_any_moment_leaves_the_last_one_whole(store, monkeypatch, at):
    """The process dies at the ``at``-th touch of the disk; a new one, with the same process id, goes on."""
    store.save(make(100))
    touches = iter(range(100))

    def dying(function):
        def call(*args, **kwargs):
            if next(touches) == at:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("save_file", "sync"):
            patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Killed):
            store.save(make(200))
    again = CheckpointStore(store._directory)
    shown = at == 6  # the last touch comes after the rename
    assert again.steps() == ([100, 200] if shown else [100])
    assert_same(again.load(), make(200 if shown else 100))
    assert_same(again.load(100), make(100))
    again.save(make(200))
    assert_same(again.load(), make(200))
    assert sorted(p.name for p in store._directory.iterdir()) == ["step-00000100", "step-00000200"]


def test_a_full_disk_is_told_and_leaves_nothing_behind(store, monkeypatch):
    store.save(make(100))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync", full)
        with pytest.raises(CheckpointError, match=r"step 200 .*No space left on device.*Free the disk"):
            store.save(make(200))
    assert [p.name for p in store._directory.iterdir()] == ["step-00000100"]


def test_a_disk_that_refuses_to_hold_the_arrays_is_told(store):
    """Not our own write but the one inside safetensors fails, with an error of its own kind."""
    store.save(make(100))
    large = ParamLayout(("w",), ((100_000,),), "float32")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(CheckpointError, match="Could not write the checkpoint of step 200"):
            store.save(make(200, layout=large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in store._directory.iterdir()] == ["step-00000100"]


def test_nothing_there(store, tmp_path):
    assert store.steps() == []
    with pytest.raises(CheckpointNotFound, match="has no checkpoint; it has none"):
        store.load()
    store.save(make(100))
    with pytest.raises(CheckpointNotFound, match=r"has no checkpoint of step 7; it has the steps \[100\]"):
        store.load(7)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def rewrite(**changes):
    def damage(path):
        state = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in {**state, **changes}.items() if value is not None}))

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("params.safetensors", truncate),
        ("params.safetensors", lambda path: path.write_bytes(b"")),
        ("params.safetensors", lambda path: path.unlink()),
        ("optimizer.safetensors", truncate),
        ("state.json", truncate),
        ("state.json", lambda path: path.write_text("[1]")),
        ("state.json", lambda path: path.unlink()),
        ("state.json", rewrite(names=["features.weight", "other"])),
        ("state.json", rewrite(names=[])),
        ("state.json", rewrite(names=None)),
        ("state.json", rewrite(step=None)),
    ],
)
def test_a_damaged_checkpoint_is_named(store, name, damage):
    path = store.save(make(100))
    damage(path / name)
    with pytest.raises(CheckpointError, match=r"step-00000100 is damaged: .* Delete this folder"):
        store.load()


@pytest.mark.parametrize("damage", [rewrite(format=2), rewrite(format=None)])
def test_another_format_is_not_read(store, damage):
    damage(store.save(make(100)) / "state.json")
    with pytest.raises(CheckpointError, match="of another format; expected 1"):
        store.load()


def test_other_things_in_the_folder_are_passed_over(store):
    path = store.save(make(100))
    shutil.copytree(path, path.with_name("step-00000200.bak"))
    (path.parent / "step-notes.txt").write_text("")
    assert store.steps() == [100]
    assert_same(store.load(), make(100))
