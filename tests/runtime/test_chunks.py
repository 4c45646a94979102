"""The sum of a meta-batch has the same bits whatever order its chunks come in."""

import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from distmeta.runtime import chunks
from distmeta.runtime.chunks import Share, TreeSum
from distmeta.types import Chunk, ChunkResult


def vectors(leaves, seed=0):
    """Numbers of many magnitudes, so that another order of additions gives other bits."""
    random = np.random.default_rng(seed)
    shape = (leaves, 7)
    return (random.normal(size=shape) * 10.0 ** random.integers(-6, 7, size=shape)).astype(np.float32)


def recursive_sum(parts):
    """The same tree from its top: the left half is the largest power of two below the number of leaves."""
    if len(parts) == 1:
        return parts[0]
    half = 1 << (len(parts) - 1).bit_length() - 1
    return recursive_sum(parts[:half]) + recursive_sum(parts[half:])


def bits(vector):
    assert vector.dtype == np.float32
    return vector.tobytes()


@st.composite
def arrivals(draw):
    """A number of leaves, and their ids in any order, some of them twice or more."""
    leaves = draw(st.integers(1, 70))
    order = draw(st.permutations(range(leaves)))
    again = draw(st.lists(st.tuples(st.integers(0, leaves - 1), st.integers(0, leaves)), max_size=8))
    for leaf, place in again:
        order.insert(place, leaf)
    return leaves, order


@given(arrivals(), st.integers(0, 3))
def test_any_arrival_order_has_the_bits_of_the_tree(arrival, seed):
    leaves, order = arrival
    parts, tree = vectors(leaves, seed), TreeSum(leaves)
    for count, leaf in enumerate(order, start=1):
        tree.add(leaf, parts[leaf])
        assert tree.complete == (set(order[:count]) == set(range(leaves)))
    assert bits(tree.total) == bits(recursive_sum(parts))


def test_the_data_of_these_tests_can_tell_orders_apart():
    parts = vectors(16)
    one_after_the_other = parts[0]
    for part in parts[1:]:
        one_after_the_other = one_after_the_other + part
    assert bits(one_after_the_other) != bits(recursive_sum(parts))


@given(st.integers(1, 300))
def test_in_order_no_more_than_one_vector_per_level_waits(leaves):
    tree, most = TreeSum(leaves), 0
    for leaf in range(leaves):
        tree.add(leaf, np.zeros(1, np.float32))
        most = max(most, len(tree._waiting))
    assert most <= math.ceil(math.log2(leaves)) + 1
    assert len(tree._waiting) == 1


def test_a_leaf_is_not_changed_by_being_added():
    parts = vectors(5)
    before = parts.copy()
    parts.setflags(write=False)  # as a worker's gradient arrives from shared memory
    tree = TreeSum(5)
    for leaf in range(5):
        tree.add(leaf, parts[leaf])
    assert np.array_equal(parts, before)
    assert tree.total.flags.writeable


def test_a_duplicate_with_other_numbers_changes_nothing():
    tree = TreeSum(2)
    for leaf, value in ((0, 1.0), (0, 99.0), (1, 2.0), (1, 99.0)):
        tree.add(leaf, np.full(1, value, np.float32))
    assert tree.total.tolist() == [3.0]


@pytest.mark.parametrize("leaf", [-1, 3])
def test_a_leaf_of_another_tree_is_an_error(leaf):
    with pytest.raises(IndexError, match=f"leaves {leaf} to {leaf} are no node of a tree with 3 leaves"):
        TreeSum(3).add(leaf, np.zeros(1, np.float32))


@st.composite
def cuts(draw):
    """A number of chunks, and a way to cut them into shares."""
    count = draw(st.integers(1, 70))
    inner = draw(st.sets(st.integers(1, count), max_size=12))
    return count, sorted({0, count} | {at for at in inner if at < count})


@given(cuts(), st.integers(0, 3))
def test_any_shares_have_the_bits_of_the_tree(cut, seed):
    count, edges = cut
    parts, values, tree = chunks.split(count, 1, split="meta_train", step=0), vectors(count, seed), TreeSum(count)
    order = np.random.default_rng(seed).permutation(len(edges) - 1)
    for i in (*order, order[0]):  # one comes twice
        share = Share(parts[edges[i] : edges[i + 1]], count)
        assert [leaf for first, stop in share.nodes for leaf in range(first, stop)] == [c.id for c in share.chunks]
        assert len(share.nodes) <= 2 * math.ceil(math.log2(count + 1))
        for first, stop in share.nodes:
            own = TreeSum(stop - first)
            for leaf in range(first, stop):
                own.add(leaf - first, values[leaf])
            tree.add_node(first, stop, own.total)
    assert bits(tree.total) == bits(recursive_sum(values))


@given(st.integers(1, 200), st.integers(1, 64))
def test_shares_are_even_and_cover_every_chunk(count, wanted):
    parts = chunks.split(count, 1, split="meta_train", step=0)
    found = chunks.shares(parts, wanted)
    assert [chunk for share in found for chunk in share.chunks] == list(parts)
    assert len(found) == min(count, wanted)
    sizes = [len(share.chunks) for share in found]
    assert max(sizes) - min(sizes) <= 1
    assert [(share.id, share.stop, share.size) for share in found] == [
        (share.chunks[0].id, share.chunks[0].id + n, n) for share, n in zip(found, sizes, strict=True)
    ]


@pytest.mark.parametrize(("first", "stop"), [(1, 3), (0, 3), (3, 5), (2, 2), (4, 8), (0, 8)])
def test_leaves_that_are_no_node_are_refused(first, stop):
    with pytest.raises(IndexError, match="are no node of a tree with 7 leaves"):
        TreeSum(7).add_node(first, stop, np.zeros(1, np.float32))


def test_a_node_of_which_a_part_came_alone_is_refused():
    tree = TreeSum(7)
    tree.add(5, np.zeros(1, np.float32))
    with pytest.raises(IndexError, match=r"leaves \[5\] have come without the others"):
        tree.add_node(4, 7, np.zeros(1, np.float32))


def test_a_sum_with_missing_leaves_names_them():
    tree = TreeSum(4)
    tree.add(2, np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=r"chunks \[0, 1, 3\] are missing"):
        _ = tree.total


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 10**6))
def test_split_covers_every_task_once(tasks, size, step):
    parts = chunks.split(tasks, size, split="meta_validation", step=step)
    assert [part.id for part in parts] == list(range(len(parts)))
    assert [ref.index for part in parts for ref in part.refs] == list(range(tasks))
    assert {part.size for part in parts[:-1]} <= {size}
    assert 1 <= parts[-1].size <= size
    assert {(part.split, part.step) for part in parts} == {("meta_validation", step)}


def test_a_chunk_is_small_and_survives_the_way():
    chunk = Chunk(10**4, "meta_validation", 10**6, 10**5, 10**5 + 8)
    assert len(pickle.dumps(chunk)) < 100
    assert pickle.loads(pickle.dumps(chunk)) == chunk


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_numbers_of_all_tasks_do_not_depend_on_the_chunks(size):
    """A number that some task lacks is left out, whichever chunk that task is in."""
    values, lacking = np.arange(6.0), 4
    results = []
    for chunk in chunks.split(6, size, split="meta_test", step=0):
        part = values[chunk.start : chunk.stop]
        own = {"loss": part} | ({} if chunk.start <= lacking < chunk.stop else {"accuracy_instance_10": part})
        results.append(ChunkResult(chunk, 0, "worker-0", own, 0.0))
    found = chunks.metrics(results)
    assert found.keys() == {"loss"}
    assert found["loss"].tolist() == values.tolist()


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_the_calibration_of_all_tasks_has_the_same_bits_whatever_the_chunks(size):
    random = np.random.default_rng(0)
    sums = random.random((9, 3, 15), np.float32).astype(np.float64)
    lacking = np.where(np.arange(9) < 5, np.nan, 0.75)

    def report(size, calibrated=9):
        parts = [
            ChunkResult(
                c, 0, "w", {"roc_auc": lacking[c.start : c.stop], "control_roc_auc": np.full(c.size, np.nan)}, 0.0,
                sums[c.start : c.stop] if c.stop <= calibrated else None,
            )
            for c in chunks.split(9, size, split="meta_test", step=0)
        ]  # fmt: skip
        return chunks.report(parts, "meta_test", 0)

    found, whole = report(size), report(9)
    assert found.calibration == whole.calibration
    assert found.names == ["roc_auc", "ece"]  # a number that no task has is left out
    assert found.mean("roc_auc") == 0.75
    assert report(size, calibrated=8).calibration is None
