"""Images of many tasks at once: which, by random keys, and where they stay, as floats, in little more memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.data.dataset import ClassSplit
from distmeta.data.shard_file import into_floats
from distmeta.data.writer import IntArray

_FEW = 100
_MOST_BYTES = 2**19  # of stored images at a time


def gathered(data: ClassSplit, classes: IntArray, rows: IntArray, quarter_turns: IntArray) -> torch.Tensor:
    """Images of a split as the floats that networks take.

    Args:
        data: the split.
        classes: ``[n]`` their classes, by position.
        rows: ``[n]`` their positions within the classes.
        quarter_turns: ``[n]`` by how many times 90 degrees each is turned, 0 to 3.

    Returns:
        ``[n, *input_shape]`` float32; bytes are scaled to 0..1. Beyond it, 512 KiB are held.

    Raises:
        DataError: a position does not exist.
    """
    images = torch.empty((rows.size, *data.dataset.input_shape), dtype=torch.float32)
    turned = bool(quarter_turns.any())
    for part, stored in data.gather_parts(classes, rows, _MOST_BYTES):
        if turned:
            for turn in (1, 2, 3):
                which = np.flatnonzero(quarter_turns[part] == turn)
                if which.size:
                    stored[which] = np.rot90(stored[which], turn, axes=(-2, -1))
        into_floats(stored, images[part])
    return images


def smallest(keys: npt.NDArray[Any], count: int) -> IntArray:
    """Positions of the ``count`` smallest keys of each row, smallest first; of equal ones the first comes first.

    Args:
        keys: ``[..., n]`` without NaN.
        count: at most n.

    Returns:
        ``[..., count]``, the same as a stable sort's first ones.

    Example:
        >>> smallest(np.array([[0.5, 0.25, 0.75, 0.25]]), 3)
        array([[1, 3, 0]])
    """
    if keys.shape[-1] > max(_FEW, 4 * count):  # a partition is then several times cheaper than sorting all
        last = np.partition(keys, count - 1, axis=-1)[..., count - 1 : count]
        taken = keys <= last
        if int(taken.sum()) == keys[..., 0].size * count:  # otherwise there are keys equal to the last
            found = np.nonzero(taken)[-1].reshape(*keys.shape[:-1], count)
            order = np.take_along_axis(keys, found, -1).argsort(-1, kind="stable")
            return np.take_along_axis(found, order, -1)
    sorted_: IntArray = keys.argsort(-1, kind="stable")[..., :count]
    return sorted_
