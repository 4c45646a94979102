"""Images of many tasks at once: which, by random keys, and where they stay, as floats, in little more memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.data.dataset import ClassSplit
from distmeta.data.shard_file import into_floats
from distmeta.data.writer import IntArray
from distmeta.tasks.augment import Augmentation, augment
from distmeta.types import Episode

_FEW = 100  # keys
_MOST_KEYS = 2**16  # at a time
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


def gathered_halves(
    data: ClassSplit,
    drawn: tuple[IntArray, IntArray, IntArray],
    shots: int,
    augmentation: Augmentation,
    randoms: Sequence[np.random.Generator],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Support images and query images of T tasks.

    Args:
        data: the split.
        drawn: class, position and quarter turns of each image, ``[T, N, K + Q]``.
        shots: K.
        augmentation: random change of each image.
        randoms: of the tasks, for the changes.

    Returns:
        ``[T * N * K, *input_shape]`` and ``[T * N * Q, *input_shape]``.
    """
    halves = slice(None, shots), slice(shots, None)
    support = drawn[0][:, :, :shots].size
    if augmentation == "none":
        order = [np.concatenate([part[:, :, half].ravel() for half in halves]) for part in drawn]
        images = gathered(data, *order)
        return images[:support], images[support:]
    (tasks, ways, examples), one = drawn[0].shape, data.dataset.input_shape
    found = torch.empty((drawn[0].size, *one), dtype=torch.float32)
    parts = found[:support].view(tasks, -1, *one), found[support:].view(tasks, -1, *one)
    for i, random in enumerate(randoms):  # which has the changes of all images of its task, in the order of classes
        changed = augment(gathered(data, *(part[i].ravel() for part in drawn)), augmentation, random)
        for part, half in zip(parts, halves, strict=True):
            part[i] = changed.view(ways, examples, *one)[:, half].flatten(0, 1)
    return found[:support], found[support:]


def draw_rows(counts: IntArray, examples: int, randoms: Sequence[np.random.Generator]) -> IntArray:
    """Positions ``[T, N, examples]`` of examples within their classes, which have ``counts [T, N]`` of them.

    Every example of a class has a random key; those with the smallest are taken, in the order of their keys. The keys
    of a task are as many for each class as its largest class has examples.
    """
    (tasks, ways), widths = counts.shape, counts.max(axis=1)
    widest = max(int(widths.max()), examples)
    rows = np.empty((tasks, ways, examples), np.int64)
    together = max(1, _MOST_KEYS // (ways * widest))
    for start in range(0, tasks, together):
        now = slice(start, start + together)
        keys = np.empty((len(counts[now]), ways, widest))
        for random, into, width in zip(randoms[now], keys, widths[now].tolist(), strict=True):
            if width == widest:
                random.random(out=into)
            else:
                into[:, :width] = random.random((ways, width))
        keys[np.arange(widest) >= counts[now, :, None]] = np.inf
        rows[now] = smallest(keys, examples)
    return rows


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


def class_by_class(images: torch.Tensor, shots: int) -> Episode:
    """Make a task of images ``[N, K + Q, ...]``: the first K of each class are its support examples."""
    ways, examples = images.shape[:2]
    labels = torch.arange(ways)
    return Episode(
        images[:, :shots].flatten(0, 1),
        labels.repeat_interleave(shots),
        images[:, shots:].flatten(0, 1),
        labels.repeat_interleave(examples - shots),
        ways=ways,
        outputs=ways,
    )
