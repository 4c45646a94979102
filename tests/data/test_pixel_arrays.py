"""Axes and ranges of arrays; what :class:`Preprocessing` makes of them is in ``test_preprocessing.py``."""

import numpy as np
import pytest
import torch

from distmeta.data.pixel_arrays import as_array, as_rows, channels_first, in_range
from distmeta.errors import DataError


class Table:
    """An object of another library that converts itself."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(2, requires_grad=True), [1, 1]),
        (torch.ones(2, dtype=torch.bfloat16), [1, 1]),
        (Table(), [0, 1, 2]),
        (np.float32(3), 3),
    ],
)
def test_arrays(value, expected):
    assert np.array_equal(as_array(value), expected)


def test_what_is_no_array():
    for value in ([1, 2], "a", None, {}, iter([])):
        assert as_array(value) is None
    for value in ([], [1, 2], [[1], "a"], [["a"]], [[1], [1, 2]]):
        assert as_rows(value) is None


@pytest.mark.parametrize(
    ("shape", "dataset", "expected"),
    [
        ((2, 28, 28), (1, 28, 28), (2, 1, 28, 28)),
        ((3, 30, 30), (1, 28, 28), (3, 1, 30, 30)),
        ((2, 28, 3), (1, 28, 3), (2, 1, 28, 3)),
        ((2, 30, 30), (3, 28, 28), (2, 1, 30, 30)),
        ((2, 3, 28, 3), (3, 28, 3), (2, 3, 28, 3)),
        ((2, 9, 9, 4), (3, 28, 28), (2, 4, 9, 9)),
        ((2, 4, 9, 9), (3, 28, 28), (2, 4, 9, 9)),
    ],
)
def test_axes(shape, dataset, expected):
    assert channels_first(np.zeros(shape), dataset, None).shape == expected


@pytest.mark.parametrize(
    ("shape", "dataset"),
    [
        ((3, 28, 28), (3, 28, 28)),
        ((28, 28, 3), (1, 28, 28)),
        ((2, 3, 9, 3), (3, 28, 28)),
        ((2, 5, 9, 9), (3, 28, 28)),
        ((9, 9), (1, 9, 9)),
        ((1, 1, 1, 9, 9), (1, 9, 9)),
        ((2, 1, 0, 9), (1, 9, 9)),
    ],
)
def test_axes_that_could_be_others(shape, dataset):
    with pytest.raises(DataError, match="shape"):
        channels_first(np.zeros(shape), dataset, None)


def test_floats_a_little_beyond_are_clipped():
    assert in_range(np.array([-1e-6, 0.5, 1 + 1e-6]), "x is").tolist() == [0, 0.5, 1]
    with pytest.raises(DataError, match=r"x is float64 from 0 to 1\.01"):
        in_range(np.array([0, 1.01]), "x is")
