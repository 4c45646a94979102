"""What is the table transformer's own: columns in any order and number, and what a cell may hold."""

import pytest
import torch
from torch.nn import functional as F

from distmeta import TaskSpec, table_transformer
from distmeta.models import table_transformer as module

SPEC = TaskSpec((4,), 3, "classification", 9, 5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return table_transformer(width=16, heads=2)(SPEC)


def tables(tasks=2, features=4):
    return torch.randn(tasks, 9, features), torch.randint(3, (tasks, 9)), torch.randn(tasks, 5, features)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_order_of_features_does_not_matter(model):
    support_x, support_y, query_x = tables()
    order = torch.tensor([2, 0, 3, 1])
    close(model(support_x[..., order], support_y, query_x[..., order]), model(support_x, support_y, query_x))
    assert (model(support_x[..., order], support_y, query_x) - model(support_x, support_y, query_x)).abs().max() > 1e-3


@pytest.mark.parametrize("features", [1, 30])
def test_any_number_of_features(model, features):
    found = model(*tables(features=features))
    assert found.shape == (2, 5, 3)
    assert found.isfinite().all()


def test_columns_of_zeros_are_as_if_they_were_not_there(model):
    """In all tasks of a chunk (they are dropped) and in one of them (they are masked)."""
    support_x, support_y, query_x = tables()
    expected = model(support_x, support_y, query_x)
    close(model(F.pad(support_x, (1, 2)), support_y, F.pad(query_x, (1, 2))), expected)
    support_x[0, :, 1] = query_x[0, :, 1] = 0
    used = [0, 2, 3]
    first = model(support_x[:1, :, used], support_y[:1], query_x[:1, :, used])
    close(model(support_x, support_y, query_x), torch.cat([first, expected[1:]]))


def test_a_column_is_judged_by_the_rows_that_are_no_padding(model):
    support_x, support_y, query_x = tables()
    support_y[0, 6:] = -1
    support_x[0, :6, 1] = 0
    used = [0, 2, 3]
    first = model(support_x[:1, :6, used], support_y[:1, :6], query_x[:1, :, used])
    close(model(support_x, support_y, query_x)[:1], first)


def test_a_table_without_a_single_feature_has_its_labels(model):
    support_x, support_y, query_x = tables()
    found = model(torch.zeros_like(support_x), support_y, query_x)
    assert found.isfinite().all()
    close(found, found[:, :1].expand_as(found))  # of no query is anything known
    assert (found[0] - found[1]).abs().max() > 1e-4  # but of each task its labels


def test_an_outlier_is_cut():
    torch.manual_seed(0)
    model = table_transformer(width=16, heads=2, clip=5.0)(SPEC)
    support_x, support_y, query_x = tables()
    found = [model(support_x.index_fill(1, torch.tensor(0), far), support_y, query_x) for far in (5.0, 7.0, 1e6)]
    close(found[1], found[0])
    close(found[2], found[0])


def test_more_layers_and_one(model):
    """The last layer computes the target's column alone: as one layer, and against the whole of it."""
    for layers in (1, 2):
        assert table_transformer(width=16, heads=2, layers=layers)(SPEC)(*tables()).shape == (2, 5, 3)
    support_x, support_y, _ = tables()
    layer = model.layers[-1].features
    tokens = torch.randn(2, 9, 5, 16)
    close(layer(tokens, None, target_only=True), layer(tokens, None, target_only=False)[:, :, :1])
    assert model.encode_support(support_x, support_y)["keys_2"].shape == (2, 9, 1, 16)
    assert model.encode_support(support_x, support_y)["keys_1"].shape == (2, 9, 5, 16)


def test_tables_of_many_rows_are_attended_over_in_parts(model, monkeypatch):
    """CUDA's kernels refuse a batch of 65,536 sequences, which the rows of one table may be."""
    support_x, support_y, query_x = tables()
    support_x[0, :, 1] = 0  # with a mask
    expected = model(support_x, support_y, query_x)
    monkeypatch.setattr(module, "_MOST_SEQUENCES", 4)
    close(model(support_x, support_y, query_x), expected)
