"""A checkpoint is whole, or its damage is found and the one before is used."""

import errno
import json
import os
import re
import resource
import shutil
from contextlib import suppress

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distmeta import Outer
from distmeta.errors import CheckpointDamaged, CheckpointError, CheckpointNotFound
from distmeta.files import is_damage, write_digests
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime import checkpoint as module
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.chunks import Share
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.types import Chunk

LAYOUT = ParamLayout(("features.weight", "features.bias", "scale"), ((2, 3), (2,), ()), "float32")
RECORD = {"identity": {"seed": 3}, "fingerprint": "ab", "engine": "vmap", "kernel": "AVX2", "best": None}


FILES = ["params.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


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
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert_same(store.load(), saved)
    assert_same(store.load(100), saved)


def test_extreme_numbers_survive(store):
    vector = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38, 1, 2, 3], np.float32)
    store.save(Checkpoint(1, vector, LAYOUT, {}, RECORD))
    assert store.load().vector.tobytes() == vector.tobytes()


def test_a_servers_own_state_round_trips(store):
    server = ParameterServer(Outer(), np.zeros(LAYOUT.size, np.float32))
    server.accumulate(0, Share((Chunk(0, "meta_train", 0, 0, 1),), 1), np.ones((1, LAYOUT.size), np.float32))
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


def dies_at(monkeypatch, at):
    """Every change on the disk raises from the ``at``-th on; returns the count of changes that were tried."""
    tried = []

    def dying(function):
        def call(*args, **kwargs):
            tried.append(function)
            if len(tried) > at:
                raise Killed
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(module, "save_file", dying(module.save_file))
    monkeypatch.setattr(module.os, "fsync", dying(os.fsync))
    monkeypatch.setattr(module.shutil, "rmtree", dying(shutil.rmtree))
    for name in ("rename", "replace", "mkdir", "write_text"):
        monkeypatch.setattr(module.Path, name, dying(getattr(module.Path, name)))
    return tried


@pytest.mark.parametrize("before", [None, "whole", "damaged"])
def test_a_crash_at_any_moment_leaves_a_whole_one(tmp_path, monkeypatch, before):
    """The process dies at every change of the disk in turn; a new one, with the same process id, goes on.

    ``before`` is what was there of the step that is saved.
    """
    for at in range(100):
        store = CheckpointStore(tmp_path / str(at))
        for step in (80, 90, 100):
            store.save(make(step))
        if before is not None:
            store.save(make(110))
        if before == "damaged":
            truncate(store.path(110) / "params.safetensors")
        with monkeypatch.context() as patch:
            tried = dies_at(patch, at)
            try:
                CheckpointStore(store._directory).save(make(110))
            except Killed:
                pass
            else:
                break
        again = CheckpointStore(store._directory)
        newest = again.newest()
        assert newest.checkpoint.step in (100, 110)
        assert_same(newest.checkpoint, make(newest.checkpoint.step))
        again.save(make(110))
        again.save(make(120))
        assert_same(again.newest().checkpoint, make(120))
        assert sorted(p.name for p in store._directory.iterdir()) == ["step-00000110", "step-00000120"]
    assert len(tried) == at
    assert at > (12 if before != "whole" else -1)


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


def test_a_discarded_one_that_cannot_be_removed_yet_ends_no_run(store, monkeypatch):
    """As on NFS, where a file that a reader holds open stays as .nfsXXXX; saving failed before, every time."""

    def busy(*args, **kwargs):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def others():
        return [p.name for p in store._directory.iterdir() if not p.name.startswith("step-")]

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        for step in (100, 110, 120, 130):
            store.save(make(step))
        truncate(store.path(130) / "state.json")
        store.save(make(130))
    assert store.steps() == [120, 130]
    assert store.damage() == {}
    assert sorted(name.rpartition("-")[0] for name in others()) == [f".discarded-{step}" for step in (100, 110, 130)]
    for name in (".discarded", ".partial"):  # as earlier versions named them
        (store._directory / name).mkdir()
    store.save(make(140))
    assert others() == []


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
        path.write_text(json.dumps({key: value for key, value in {**state, **changes}.items() if value is not ...}))

    return damage


def append(path):
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, append, os.remove, rewrite(step=7), lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_named(store, name, damage):
    path = store.save(make(100))
    if damage.__name__ == "damage" and name.endswith("safetensors"):
        pytest.skip("no JSON")
    damage(path / name)
    with pytest.raises(CheckpointDamaged, match=rf"step-00000100 is damaged: {name} .*\. Restore it from a copy, or"):
        store.load()
    assert store.damage()[100].startswith(name)


def flips(content, seed, places=200):
    """The content with one bit changed, at random places."""
    random = np.random.default_rng(seed)
    for at, bit in zip(random.integers(0, len(content), places), random.integers(0, 8, places), strict=True):
        yield content[:at] + bytes([content[at] ^ 1 << int(bit)]) + content[at + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(store, name):
    store.save(make(80))
    path = store.save(make(100)) / name
    content = path.read_bytes()
    for changed in flips(content, seed=0):
        path.write_bytes(changed)
        newest = store.newest()
        assert_same(newest.checkpoint, make(80))
        assert list(newest.damaged) == [100]
        assert newest.damaged[100].startswith(name)
    path.write_bytes(content)
    assert_same(store.newest().checkpoint, make(100))
    assert store.newest().notice() == ""


def test_the_newest_whole_one_is_found_and_what_was_passed_over_is_named(tmp_path):
    store = CheckpointStore(tmp_path, keep=4)
    for step in (70, 80, 90, 100):
        store.save(make(step))
    truncate(store.path(100) / "params.safetensors")
    size = (store.path(100) / "params.safetensors").stat().st_size
    newest = store.newest()
    assert_same(newest.checkpoint, make(90))
    damage = f"params.safetensors has {size} bytes, expected {size + 5}"
    assert newest.notice() == f"Checkpoint step-00000100 ({damage}) is damaged; going on from step 90."
    (store.path(90) / "state.json").unlink()
    newest = store.newest()
    assert_same(newest.checkpoint, make(80))
    assert newest.notice("evaluating") == (
        f"Checkpoints step-00000100 ({damage}), step-00000090 (state.json cannot be read: No such file or directory) "
        "are damaged; evaluating step 80."
    )
    assert sorted(store.damage()) == [90, 100]
    for step in (80, 70):
        truncate(store.path(step) / "manifest.json")
    with pytest.raises(
        CheckpointDamaged, match=r"Every checkpoint .*100: params.*90: state.*80: manifest.*70: manifest"
    ):
        store.newest()


def test_a_damaged_one_is_replaced_by_the_same_step_a_whole_one_is_not(store):
    store.save(make(80))
    path = store.save(make(100)) / "params.safetensors"
    content = path.read_bytes()
    path.write_bytes(next(flips(content, seed=3)))
    CheckpointStore(store._directory).save(make(100))
    assert path.read_bytes() == content
    assert store.damage() == {}
    assert store.steps() == [80, 100]


@pytest.mark.parametrize("stray", ["file", "empty folder", "link"])
def test_what_only_has_the_name_of_a_checkpoint_is_damage_and_is_replaced(store, stray):
    store.save(make(80))
    path = store.path(100)
    if stray == "file":
        path.write_text("")
    elif stray == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    newest = store.newest()
    assert (newest.checkpoint.step, list(newest.damaged)) == (80, [100])
    store.save(make(100))
    assert_same(store.newest().checkpoint, make(100))
    assert sorted(p.name for p in store._directory.iterdir()) == ["step-00000080", "step-00000100"]


def test_whole_ones_are_never_removed_in_favour_of_damaged_ones(store):
    for step in (80, 90, 100):
        store.save(make(step, best=80))
    assert store.steps() == [80, 90, 100]
    truncate(store.path(100) / "params.safetensors")
    truncate(store.path(90) / "params.safetensors")
    store.save(make(95, best=80))
    assert store.steps() == [80, 95, 100]  # the damaged 90 is removed: a newer one is whole
    assert store.newest().checkpoint.step == 95
    store.save(make(100, best=80))
    store.save(make(110, best=80))
    assert store.steps() == [80, 100, 110]
    assert store.damage() == {}


def test_the_best_one_is_loaded_or_its_damage_is_named_with_what_to_do(store):
    assert store.best(make(100)).step == 100
    for step in (80, 90, 100):
        store.save(make(step, best=80))
    last = store.newest().checkpoint
    assert_same(store.best(last), make(80, best=80))
    truncate(store.path(80) / "params.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"step-00000080 is damaged: params.*all later ones: `distmeta resume`"):
        store.best(last)
    store.save(make(110, best=80))
    assert 80 in store.steps()  # the error stays one about damage
    shutil.rmtree(store.path(80))
    with pytest.raises(CheckpointNotFound, match="of step 80"):
        store.best(last)


def test_bytes_are_read_again_for_pruning_only_where_files_changed(store, monkeypatch):
    read = []
    real = module.damage_in
    monkeypatch.setattr(module, "damage_in", lambda folder: read.append(folder.name) or real(folder))
    for step in (80, 90, 100):
        store.save(make(step))
    assert read == []
    CheckpointStore(store._directory).save(make(110))
    assert read == ["step-00000090", "step-00000100"]


def failing(monkeypatch, code, folder="step-00000100", name="params.safetensors"):
    """Opening one file fails."""
    real = module.Path.open

    def refuse(path, *args, **kwargs):
        if path.name == name and path.parent.name == folder:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(module.Path, "open", refuse)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["params.safetensors", "manifest.json"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_a_file_that_cannot_be_read_now_is_no_damage_and_is_kept(store, monkeypatch, code, name, version):
    """It was passed over, and the next save removed it."""
    if version == 1 and name == "manifest.json":
        pytest.skip("format 1 has none")
    for step in (80, 90, 100):
        save = old if version == 1 else CheckpointStore.save
        save(store, make(step))
    with monkeypatch.context() as patch:
        failing(patch, code, name=name)
        for read in (store.load, store.newest, store.damage):
            with pytest.raises(
                CheckpointError, match=rf"step-00000100 cannot be read: .*{os.strerror(code)}.*; expected .*Fix their"
            ) as error:
                read()
            assert type(error.value) is CheckpointError
        again = CheckpointStore(store._directory)
        with pytest.raises(CheckpointError, match="step-00000100 cannot be read"):
            again.save(make(100))
        for step in (110, 120, 130):
            again.save(make(step))
    assert store.steps() == [100, 120, 130]
    assert_same(store.load(100), make(100))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
def test_a_file_that_the_disk_lost_is_damage(store, monkeypatch, code):
    store.save(make(80))
    store.save(make(100))
    failing(monkeypatch, code)
    newest = store.newest()
    assert newest.checkpoint.step == 80
    assert newest.damaged == {100: f"params.safetensors cannot be read: {os.strerror(code)}"}


def test_without_file_descriptors_nothing_is_damaged(store):
    """safetensors names any file that it cannot open absent."""
    path = old(store, make(100)) / "params.safetensors"
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
        with suppress(OSError):
            while True:
                held.append(open(os.devnull, "rb"))  # noqa: SIM115
        for _ in range(2):  # none is left, then one, which is not enough for safetensors
            with pytest.raises(OSError, match=r"Too many|No such file") as error:
                module._load(path)
            assert not is_damage(error.value)
            held.pop().close()
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert_same(store.load(), make(100))


def test_a_checkpoint_of_a_newer_version_is_kept(store):
    for step in (80, 90):
        store.save(make(step))
    rewrite(format=3)(store.path(80) / "state.json")
    sign(store.path(80))
    again = CheckpointStore(store._directory)
    for step in (100, 110):
        again.save(make(step))
    assert store.steps() == [80, 100, 110]


def meanwhile(monkeypatch, store, step, change):
    """The checkpoint is changed just before its digests are checked."""
    real, folder = module.damage_in, store.path(step)

    def slow(at):
        if at == folder and folder.exists():
            change()
        return real(at)

    monkeypatch.setattr(module, "damage_in", slow)


def test_one_that_a_run_removes_while_it_is_read_is_not_damaged(store, monkeypatch):
    for step in (90, 100):
        store.save(make(step))
    writer = CheckpointStore(store._directory)
    meanwhile(monkeypatch, store, 100, lambda: [writer.save(make(step)) for step in (110, 120)])
    newest = store.newest()
    assert_same(newest.checkpoint, make(120))
    assert newest.notice() == ""


def test_the_damage_of_all_passes_over_what_a_run_removes(store, monkeypatch):
    for step in (90, 100):
        store.save(make(step))
    truncate(store.path(100) / "state.json")
    meanwhile(monkeypatch, store, 90, lambda: shutil.rmtree(store.path(90)))
    assert list(store.damage()) == [100]


@pytest.mark.parametrize("read", ["load", "newest"])
def test_one_that_is_gone_when_it_is_read_is_not_found(store, monkeypatch, read):
    store.save(make(100))
    meanwhile(monkeypatch, store, 100, lambda: shutil.rmtree(store.path(100)))
    with pytest.raises(CheckpointNotFound, match=r"was removed while it was read.*Try again|it has none"):
        getattr(store, read)()


def test_a_copy_under_the_name_of_another_step_is_damage(store):
    """Step 10 was read as step 20, and named so."""
    shutil.copytree(store.save(make(10)), store.path(20))
    newest = store.newest()
    assert_same(newest.checkpoint, make(10))
    assert newest.damaged == {20: "state.json has step 10, expected 20"}


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be listed: Not a directory.*Fix its permissions"):
        CheckpointStore(tmp_path / "checkpoints").steps()


def sign(path):
    """Make the digests fit again."""
    write_digests(path, [name for name in FILES if name != "manifest.json"])


def test_another_format_is_not_read_nor_passed_over(store):
    store.save(make(80))
    path = store.save(make(100))
    rewrite(format=3)(path / "state.json")
    sign(path)
    for read in (store.load, store.newest, store.damage):
        with pytest.raises(
            CheckpointError, match=r"is of format 3; expected 2\. Use the distmeta that wrote it"
        ) as error:
            read()
        assert not isinstance(error.value, CheckpointDamaged)


# -- format 1, without digests -----------------------------------------------------------------------------------------


def old(store, checkpoint):
    """Save as earlier versions did."""
    path = store.save(checkpoint)
    (path / "manifest.json").unlink()
    rewrite(format=1)(path / "state.json")
    return path


def test_format_1_is_read_and_kept(store):
    old(store, make(80))
    assert_same(store.load(), make(80))
    path = old(store, make(100))
    assert store.save(make(100)) == path
    assert sorted(p.name for p in path.iterdir()) == sorted(set(FILES) - {"manifest.json"})
    store.save(make(110))
    assert store.steps() == [100, 110]
    assert store.damage() == {}


def rewrite_arrays(change):
    def damage(path):
        arrays = load_file(path)
        save_file({name: change(array) for name, array in arrays.items()}, path)

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "what"),
    [
        ("params.safetensors", truncate, "SafetensorError"),
        ("params.safetensors", lambda path: path.write_bytes(b""), "SafetensorError"),
        ("params.safetensors", os.remove, "FileNotFoundError"),
        ("params.safetensors", rewrite_arrays(lambda a: np.full_like(a, np.nan)), "numbers that are not finite"),
        ("optimizer.safetensors", truncate, "SafetensorError"),
        ("optimizer.safetensors", rewrite_arrays(lambda a: np.full_like(a, np.inf)), "numbers that are not finite"),
        ("optimizer.safetensors", rewrite_arrays(lambda a: a.reshape(-1)[:1]), r"has shape \[1\]"),
        ("state.json", truncate, "JSONDecodeError"),
        ("state.json", lambda path: path.write_text("[1]"), "TypeError"),
        ("state.json", lambda path: path.write_text("[" * 100_000), "RecursionError"),
        ("state.json", os.remove, "FileNotFoundError"),
        ("state.json", rewrite(names=["features.weight", "other"]), "KeyError: 'other'"),
        ("state.json", rewrite(names=["features.weight"]), "other names"),
        ("state.json", rewrite(names=[]), "IndexError"),
        ("state.json", rewrite(names=...), "KeyError: 'names'"),
        ("state.json", rewrite(step=...), "KeyError: 'step'"),
        ("state.json", rewrite(step=1e999), "OverflowError"),
        ("state.json", rewrite(step=99), "has step 99, expected 100"),
        ("state.json", rewrite(best=7), "no identity or best"),
        ("state.json", rewrite(identity=7), "no identity or best"),
        ("state.json", rewrite(format=2), "manifest.json is absent"),
        ("state.json", rewrite(format=...), "manifest.json is absent"),
    ],
)
def test_damage_of_format_1_is_found_as_far_as_it_can_be(store, name, damage, what):
    old(store, make(80))
    damage(old(store, make(100)) / name)
    newest = store.newest()
    assert_same(newest.checkpoint, make(80))
    assert re.search(what, newest.damaged[100])


@pytest.mark.parametrize("name", FILES[:3])
def test_a_flipped_bit_in_format_1_gives_a_named_error_or_a_checkpoint(store, name):
    """Never another exception; without digests, a changed number that is finite is not seen."""
    path = old(store, make(100)) / name
    content, found = path.read_bytes(), 0
    for changed in flips(content, seed=1):
        path.write_bytes(changed)
        try:
            store.load()
        except CheckpointDamaged:
            found += 1
    assert found > 20


def test_other_things_in_the_folder_are_passed_over(store):
    path = store.save(make(100))
    shutil.copytree(path, path.with_name("step-00000200.bak"))
    (path.parent / "step-notes.txt").write_text("")
    (path.parent / "step-000000000100").mkdir()  # the name that is made for a step has eight digits
    (path.parent / "step-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661").mkdir()
    assert store.steps() == [100]
    assert_same(store.load(), make(100))
