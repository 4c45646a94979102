"""Rows and classes that are where they must not be, and those that only look like it."""

import numpy as np
import torch

import distmeta
from distmeta.auditing.sharing import digest, has_row, shared_classes, shared_rows
from distmeta.types import Episode, TaskRef, TaskSpec

TRAIN, TEST = TaskRef("meta_train", 0, 0), TaskRef("meta_test", 0, 0)


class Rows(distmeta.TaskDistribution):
    fingerprint = "0" * 64

    def __init__(self, kind="classification", names=None):
        super().__init__()
        self.names = names
        self.kind = kind

    @property
    def spec(self):
        return TaskSpec((4,), 2, self.kind, 2, 2)

    def draw(self, split, random):
        raise NotImplementedError

    def class_names(self, ref, seed):
        return self.names and self.names[ref.split]


def episode(seed, **changes):
    x, y = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 4))).float(), torch.arange(2)
    return Episode(**{"support_x": x[:2], "support_y": y, "query_x": x[2:], "query_y": y, **changes})


def test_nothing_is_shared_by_rows_of_their_own():
    found = shared_rows(Rows(), {TRAIN: episode(0), TEST: episode(1)})
    assert found == {"compared": 8, "repeated": 0, "halves": [], "splits": []}


def test_rows_of_another_split_and_of_the_other_half():
    found = shared_rows(Rows(), {TRAIN: episode(0), TEST: episode(1, query_x=episode(0).query_x)})
    (split,) = found["splits"]
    assert (split["count"], split["refs"]) == (2, ["meta_train/0/0", "meta_test/0/0"])
    assert split["row"] == digest(episode(0).query_x[0].numpy())
    found = shared_rows(Rows(), {TRAIN: episode(0, query_x=episode(0).support_x)})
    (half,) = found["halves"]
    assert (half["count"], half["refs"][0]) == (2, "meta_train/0/0")


def test_padding_short_rows_and_sequences_do_not_count():
    padded = torch.tensor([0, -1])
    same = torch.zeros(2, 4)
    found = shared_rows(Rows(), {TRAIN: episode(0, support_x=same, support_y=padded, query_x=same, query_y=1 + padded)})
    assert found["compared"] == 3
    constant = {ref: episode(0, query_x=torch.ones(2, 4)) for ref in (TRAIN,)}
    assert shared_rows(Rows(), constant)["repeated"] == 1
    grid = torch.linspace(0, 1, 2)[:, None]
    short = {ref: episode(i, query_x=grid, support_x=-grid) for i, ref in enumerate((TRAIN, TEST))}
    assert shared_rows(Rows(), short)["splits"] == []
    assert shared_rows(Rows("sequence"), {TRAIN: episode(0), TEST: episode(0)})["compared"] == 0


def test_a_regression_may_ask_at_the_same_points():
    targets = torch.randn(2, 1), torch.randn(2, 1)
    same = episode(0).support_x
    asked = episode(0, query_x=same, support_y=targets[0], query_y=targets[1])
    assert shared_rows(Rows("regression"), {TRAIN: asked})["halves"] == []
    told = episode(0, query_x=same, support_y=targets[0], query_y=targets[0])
    assert shared_rows(Rows("regression"), {TRAIN: told})["halves"][0]["count"] == 2


def test_classes_by_name():
    names = {"meta_train": ("a", "b"), "meta_test": ("b", "c")}
    found = shared_classes(Rows(names=names), [TRAIN, TEST], 0)
    assert found["compared"] == 3
    assert found["splits"] == [{"count": 1, "refs": ["meta_train/0/0", "meta_test/0/0"], "name": "b"}]
    assert shared_classes(Rows(), [TRAIN, TEST], 0) == {"compared": 0, "splits": []}


def test_a_row_is_found_in_arrays_of_any_shape():
    images = np.random.default_rng(0).random((2, 3, 4, 5))
    row = digest(images[1, 2])
    assert has_row(images, row, 6)
    assert has_row(torch.from_numpy(images), row, 6)
    assert has_row(images[1, 2], row, 6)
    assert has_row([images[1, 2], 3], row, 6)
    assert not has_row(images, row, 5)  # that is the data, not a draw
    assert not has_row(images + 1, row, 6)
    assert not has_row("text", row, 6)
    assert not has_row(np.zeros(0), row, 6)
