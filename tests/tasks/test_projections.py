"""Projected images: a list of training tasks of a given length, and new ones at test."""

import shutil

import pytest
import torch

from distmeta import Projections
from distmeta.errors import DataError, TaskContractError
from distmeta.types import TaskRef


def drawn(tasks, index, split="meta_train", seed=0):
    return tasks.episode(TaskRef(split, 0, index), seed)


@pytest.fixture(scope="module")
def few(glyphs_dir):
    return Projections(str(glyphs_dir), tasks=3, size=16)


def test_a_task_comes_back_with_other_examples(few):
    """Three tasks among 40 refs: the distances between class means repeat from ref to ref of one task."""
    found = [drawn(few, index) for index in range(40)]
    assert found[0].support_x.shape == (25, 16)
    assert found[0].support_y.tolist() == [label for label in range(5) for _ in range(5)]
    means = torch.stack([e.support_x.reshape(5, 5, 16).mean(1).flatten() for e in found])
    near = torch.cdist(means, means) < 0.6 * torch.cdist(means, means).max()
    groups = {tuple(row.tolist()) for row in near}
    assert len(groups) == 3
    assert not any(torch.equal(a.support_x, b.support_x) for i, a in enumerate(found) for b in found[:i])


def test_test_tasks_are_of_no_list_and_a_ref_is_a_task(few):
    a, b = drawn(few, 0, "meta_test"), drawn(few, 0, "meta_test")
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    more = few.with_config(tasks=1000)
    assert torch.equal(drawn(more, 0, "meta_test").query_x, a.query_x)


def test_more_than_the_data_hold_is_refused(few):
    with pytest.raises(TaskContractError, match=r"Lower tasks.ways"):
        few.with_config(shots=1000).check_split("meta_test")


def test_damage_to_the_data_is_found_before_training(glyphs_dir, tmp_path):
    """A flipped byte was not: the bytes were never read against their digests."""
    copy = tmp_path / "glyphs"
    shutil.copytree(glyphs_dir, copy)
    shard = next((copy / "meta_train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    with pytest.raises(DataError):
        Projections(str(copy), size=16).check()
