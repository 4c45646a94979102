"""The records that travel are small, frozen and keep their shapes."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from distmeta import types
from distmeta.types import SPLITS, Chunk, ChunkResult, Episode, ParamVersion, TaskRef


@pytest.mark.parametrize("split", SPLITS)
def test_names_are_under_a_hundred_bytes(split):
    for record in (TaskRef(split, 10**6, 10**5), Chunk(10**4, split, 10**6, 10**5, 10**5 + 64)):
        data = pickle.dumps(record)
        assert len(data) < 100
        assert pickle.loads(data) == record


def test_every_record_is_frozen():
    records = [kind for kind in vars(types).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    assert {TaskRef, Chunk, Episode, ChunkResult} <= set(records)
    assert all(kind.__dataclass_params__.frozen for kind in records)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskRef("meta_train", 0, 0).step = 1


def test_task_refs_sort_by_split_step_and_index_and_are_keys():
    refs = [TaskRef("meta_train", 1, 0), TaskRef("meta_train", 0, 9), TaskRef("meta_test", 5, 5)]
    assert sorted(refs) == [refs[2], refs[1], refs[0]]
    assert len({*refs, TaskRef("meta_train", 1, 0)}) == 3


def test_a_chunk_names_its_tasks():
    chunk = Chunk(2, "meta_validation", 7, 8, 11)
    assert chunk.size == 3
    assert chunk.refs == tuple(TaskRef("meta_validation", 7, i) for i in (8, 9, 10))


def episode(offset=0):
    return Episode(
        torch.arange(6.0).reshape(3, 2) + offset,
        torch.arange(3),
        torch.arange(4.0).reshape(2, 2),
        torch.tensor([0, 1]),
    )


def test_episodes_stack_and_unpack_in_order():
    stacked = Episode.stack([episode(0), episode(100)])
    assert [tuple(part.shape) for part in stacked] == [(2, 3, 2), (2, 3), (2, 2, 2), (2, 2)]
    assert stacked.support_x[1].equal(episode(100).support_x)
    support_x, support_y, query_x, query_y = episode()
    assert (support_x.shape, support_y.dtype, query_x.shape, query_y.tolist()) == ((3, 2), torch.int64, (2, 2), [0, 1])


def test_only_floats_change_their_type():
    moved = episode().to(torch.device("cpu"), torch.float64)
    assert [part.dtype for part in moved] == [torch.float64, torch.int64, torch.float64, torch.int64]


def test_headers_pickle():
    header = ChunkResult(Chunk(0, "meta_train", 0, 0, 2), 3, "worker-0", {"loss": np.array([1.0, 2.0])}, 0.5)
    again = pickle.loads(pickle.dumps(header))
    assert (again.chunk, again.version, again.worker) == (header.chunk, 3, "worker-0")
    assert np.array_equal(again.metrics["loss"], [1.0, 2.0])
    assert pickle.loads(pickle.dumps(ParamVersion(1, 0.5, 0.1))) == ParamVersion(1, 0.5, 0.1)
