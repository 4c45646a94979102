"""Datasets by name, and a cache that several processes share."""

import threading

import pytest

from distmeta.data import DATASETS, ShardDataset, resolve
from distmeta.data.cache import build_once, cache_dir
from distmeta.errors import DataError, ManifestError

from .conftest import build


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_itself(dataset_dir):
    assert resolve(dataset_dir) == dataset_dir
    assert resolve(str(dataset_dir)) == dataset_dir


def test_glyphs_are_built_once(glyphs_dir, cache):
    ShardDataset.open(glyphs_dir)
    cache.mkdir()
    (cache / glyphs_dir.name).symlink_to(glyphs_dir)
    before = sorted(cache.iterdir())
    assert resolve("glyphs") == cache / "glyphs-28-20-v1"
    assert sorted(cache.iterdir()) == before


def test_omniglot_says_how_to_build_it(cache):
    with pytest.raises(ManifestError, match=r"distmeta data build omniglot --out DIR, then give --data DIR"):
        resolve("omniglot")
    build(cache / "omniglot")
    assert resolve("omniglot") == cache / "omniglot"


def test_a_folder_called_like_a_dataset(tmp_path, monkeypatch):
    """After ``data build omniglot --out omniglot`` people give ``--data omniglot``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omniglot").mkdir()
    with pytest.raises(ManifestError):
        resolve("omniglot")
    build(tmp_path / "omniglot")
    assert ShardDataset.open(resolve("omniglot")).name == "tiny"


@pytest.mark.parametrize(("data", "message"), [("glyph", "Did you mean 'glyphs'"), ("/no/where", "no folder")])
def test_unknown(data, message):
    with pytest.raises(DataError, match=message) as caught:
        resolve(data)
    assert all(name in str(caught.value) for name in DATASETS)


def test_cache_dir(cache, monkeypatch):
    assert cache_dir() == cache
    monkeypatch.delenv("DISTMETA_CACHE")
    assert cache_dir().parts[-2:] == (".cache", "distmeta")


def test_the_slower_of_two_builds_is_discarded(cache):
    """Another process finishes the same dataset while this one is still building it."""
    target = cache / "tiny"

    def slow(out):
        build(out)
        build_once(target, lambda other: build(other, licence="the first"))

    assert build_once(target, slow) == target
    assert ShardDataset.open(target).manifest.licence == "the first"
    assert [path.name for path in cache.iterdir()] == ["tiny"]


def test_many_at_once(cache):
    start = threading.Barrier(6)
    found = []

    def one():
        start.wait()
        found.append(ShardDataset.open(build_once(cache / "tiny", build)).fingerprint)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert [path.name for path in cache.iterdir()] == ["tiny"]


def test_a_failed_build_leaves_nothing_and_can_be_repeated(cache):
    def failing(out):
        (out / "meta_train").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(cache / "tiny", failing)
    assert list(cache.iterdir()) == []
    build_once(cache / "tiny", build)


def test_a_folder_without_a_dataset_in_the_way_is_named(cache):
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "notes").write_text("")
    with pytest.raises(DataError, match=r"tiny.*in the way"):
        build_once(cache / "tiny", build)
