"""Datasets from numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest
from distmeta.data.splits import split_by_lists, split_by_percent
from distmeta.data.writer import ClassImages, write_dataset
from distmeta.errors import DataError
from distmeta.types import Split


def from_arrays(
    x: npt.NDArray[Any],
    y: npt.NDArray[np.integer],
    out: Path | str,
    *,
    splits: str | Mapping[Split, Sequence[int]] = "64/16/20",
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    name: str = "arrays",
    licence: str = "not stated",
    seed: int = 0,
) -> Manifest:
    """Write images and their labels as a dataset, classes divided over the splits.

    Args:
        x: ``[n, ...]`` uint8 (0..255) or float32; images are ``[n, C, H, W]``.
        y: ``[n]`` integer labels, any values.
        out: folder for the dataset.
        splits: percentages of *classes* for meta_train/meta_validation/meta_test, or the labels of each split.
        class_names: class name of each label; the label's digits by default.
        name: name of the dataset.
        licence: licence of the images, in words.
        seed: seed of the division by percentages.

    Returns:
        The manifest as written; the images of a class keep their order in ``x``.

    Raises:
        DataError: shapes or types do not fit, a label has no name, a class is in no split; and the errors of
            :func:`~distmeta.data.writer.write_dataset`.
        SplitLeak: a class is in two splits.

    Example:
        >>> import tempfile
        >>> x = np.zeros((100, 1, 8, 8), np.uint8)
        >>> y = np.repeat(np.arange(10), 10)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     manifest = from_arrays(x, y, out, splits="60/20/20")
        >>> {split: len(entry.classes) for split, entry in manifest.splits.items()}
        {'meta_train': 6, 'meta_validation': 2, 'meta_test': 2}
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or len(x) != len(y):
        raise DataError(
            f"x is {x.dtype} {list(x.shape)} and y is {y.dtype} {list(y.shape)}; expected x [n, ...] and integer "
            f"labels y [n]. For one-hot labels give y.argmax(1)."
        )
    if not len(y):
        raise DataError("x and y are empty; expected at least one image.")
    # One stable sort finds the rows of every class in order; a mask per class would cost n times the classes.
    order = np.argsort(y, kind="stable")
    labels, starts = np.unique(y[order], return_index=True)
    rows = dict(zip(labels.tolist(), np.split(order, starts[1:]), strict=True))
    names = {label: _name(label, class_names) for label in rows}
    label_of = {class_name: label for label, class_name in names.items()}
    if len(label_of) != len(names):
        raise DataError("class_names gives two labels the same name; expected one name per label. Rename one of them.")
    if isinstance(splits, str):
        divided = split_by_percent(list(label_of), splits, seed)
    else:
        lists: dict[str, list[str]] = {
            split: [names.get(label, str(label)) for label in members] for split, members in splits.items()
        }
        divided = split_by_lists(list(label_of), lists, "splits")
    return write_dataset(
        out,
        (ClassImages(split, member, x[rows[label_of[member]]]) for split, m in divided.items() for member in m),
        name=name,
        provenance={"source": "numpy arrays", "splits": splits if isinstance(splits, str) else "given", "seed": seed},
        licence=licence,
    )


def _name(label: int, class_names: Sequence[str] | Mapping[int, str] | None) -> str:
    if class_names is None:
        return str(label)
    known = range(len(class_names)) if not isinstance(class_names, Mapping) else class_names
    if label not in known:
        raise DataError(f"label {label} has no name: class_names has {len(class_names)} entries. Add a name for it.")
    return str(class_names[label])
