"""Randomness is a pure function of its name."""

import copy
import hashlib
import itertools
import pickle
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from distmeta.seeding import rng, rngs, torch_seed

PATH = ("ab" * 32, "meta_train", 12, 3)
parts = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 10**9)), max_size=4)


def stream(seed, *path):
    return rng(seed, *path).integers(2**63, size=4).tolist()


@given(st.integers(0, 2**32), parts)
def test_equal_names_give_equal_streams(seed, path):
    assert stream(seed, *path) == stream(seed, *path)
    assert 0 <= torch_seed(seed, *path) < 2**63
    assert torch_seed(seed, *path) == torch_seed(seed, *path)


@given(st.integers(0, 2**32), parts)
def test_the_streams_are_numpys_for_the_hash_of_the_name(seed, path):
    """The plain construction, which asks the system for random bytes first: same state, same numbers of every kind."""
    key = int.from_bytes(hashlib.blake2b(repr((seed, *path)).encode(), digest_size=16).digest(), "little")
    plain, own = np.random.Generator(np.random.Philox(key=key)), rng(seed, *path)
    for _ in range(2):
        assert repr(own.bit_generator.state) == repr(plain.bit_generator.state)
        for draw in (
            lambda g: g.random(3),
            lambda g: g.integers(100, size=3),
            lambda g: g.choice(4000, size=5, replace=False),
            lambda g: g.standard_normal(3, dtype=np.float32),
            lambda g: g.permutation(7),
        ):
            assert np.array_equal(draw(own), draw(plain))
    assert torch_seed(seed, *path) == key % 2**63


@given(st.integers(0, 2**32), parts, st.lists(st.integers(0, 10**6), max_size=4))
def test_many_at_once_are_those_of_each_name(seed, path, ends):
    found = rngs(seed, *path, ends=map(np.int64, ends))
    expected = [rng(seed, *path, end) for end in ends]
    assert [g.random(5).tolist() for g in found] == [g.random(5).tolist() for g in expected]


def test_a_generator_can_be_pickled_and_copied():
    one = rng(7, "a")
    one.random()
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert other.random(4).tolist() == copy.deepcopy(one).random(4).tolist()


def test_a_generator_does_not_spawn():
    """Its children had keys from the system's random bytes: other numbers in every process."""
    with pytest.raises(TypeError, match="spawn"):
        rng(7, "a").spawn(1)


@given(st.tuples(st.integers(0, 99), parts), st.tuples(st.integers(0, 99), parts))
def test_other_names_give_other_streams(one, other):
    equal = (one[0], *one[1]) == (other[0], *other[1])
    assert (stream(one[0], *one[1]) == stream(other[0], *other[1])) is equal
    assert (torch_seed(one[0], *one[1]) == torch_seed(other[0], *other[1])) is equal


@pytest.mark.parametrize(
    "path",
    [
        ("cd" * 32, "meta_train", 12, 3),
        (PATH[0], "meta_test", 12, 3),
        (PATH[0], "meta_train", 13, 3),
        (PATH[0], "meta_train", 12, 4),
        (PATH[0], "meta_train", 3, 12),
        (PATH[0], "meta_train", "12", 3),
        (PATH[0], "meta_train", 123),
        (PATH[0], "meta_train12", 3),
    ],
)
def test_each_part_of_a_tasks_name_counts(path):
    assert stream(7, *path) != stream(7, *PATH)
    assert stream(8, *PATH) != stream(7, *PATH)


def test_neighbours_are_not_correlated():
    draws = np.stack([rng(0, "f", "meta_train", step, index).normal(size=2000) for step, index in np.ndindex(3, 3)])
    correlations = np.corrcoef(draws)[np.triu_indices(9, 1)]
    assert np.abs(correlations).max() < 0.12  # five standard deviations of independent draws
    assert abs(draws.mean()) < 0.04


def test_an_integer_is_an_integer_whatever_its_type():
    """numpy's integers print differently in numpy 1 and 2; a stream must not depend on that."""
    assert stream(np.int64(7), "meta_train", np.int64(12), np.uint8(3)) == stream(7, "meta_train", 12, 3)
    assert torch_seed(7, np.int32(1)) == torch_seed(7, 1)
    assert stream(7, np.str_("a")) == stream(7, "a")


def test_no_state_is_kept_or_touched():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    one = rng(7, "a")
    one.random(100)
    assert rng(7, "a").random() != one.random()
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_another_process_draws_the_same():
    """Hash randomisation must not reach the streams; and these very numbers are the format: they may never change."""
    program = f"from distmeta.seeding import rng; print(rng(7, *{PATH!r}).integers(2**63, size=4).tolist())"
    found = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h}
        ).stdout.strip()
        for h in ("1", "2")
    }
    assert found == {str(stream(7, *PATH))}
    assert stream(7, *PATH)[0] == 5648347839998113339


def test_chained_draws_of_one_generator_differ():
    generator = rng(1, "x")
    draws = [generator.integers(2**63) for _ in range(50)]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
