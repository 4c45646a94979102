"""Datasets from numpy arrays, and the division of labelled data into classes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest
from distmeta.data.remarks import Identical
from distmeta.data.splits import split_by_lists, split_by_percent
from distmeta.data.writer import ClassImages, write_dataset
from distmeta.errors import DataError
from distmeta.types import Split

Splits = str | Mapping[Split, Sequence[Any]]
"""Percentages, or the labels of each split."""

ClassNames = Sequence[str] | Mapping[Any, str] | None
"""Class name of each label, by place (labels 0, 1, ...) or by label."""

IntArray = npt.NDArray[np.int64]


def from_arrays(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any] | Sequence[Hashable],
    out: Path | str,
    *,
    splits: Splits = "64/16/20",
    class_names: ClassNames = None,
    allow_duplicates: bool = False,
    name: str = "arrays",
    licence: str = "not stated",
    seed: int = 0,
) -> Manifest:
    """Write images and their labels as a dataset, classes divided over the splits.

    Images with equal numbers are counted and named in the provenance under ``"identical"``.

    Args:
        x: ``[n, ...]`` uint8 (0..255) or float32; images are ``[n, C, H, W]``.
        y: ``[n]`` labels: integers, strings, or anything hashable but floats.
        out: folder for the dataset.
        splits: percentages of *classes* for meta_train/meta_validation/meta_test, or the labels of each split.
        class_names: class name of each label; the label as text by default.
        allow_duplicates: write the dataset although images of two splits are identical. Rows of numbers (``[n, D]``)
            are counted and never refused: few values give equal rows.
        name: name of the dataset.
        licence: licence of the images, in words.
        seed: seed of the division by percentages.

    Returns:
        The manifest as written; the images of a class keep their order in ``x``.

    Raises:
        DataError: shapes or types do not fit, a label has no name, a class is in no split; and the errors of
            :func:`~distmeta.data.writer.write_dataset`.
        SplitLeak: a class, or an image, is in two splits.

    Example:
        >>> import tempfile
        >>> x = np.arange(100 * 64, dtype=np.float32).reshape(100, 1, 8, 8)
        >>> y = np.repeat(np.arange(10), 10)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     manifest = from_arrays(x, y, out, splits="60/20/20")
        >>> {split: len(entry.classes) for split, entry in manifest.splits.items()}
        {'meta_train': 6, 'meta_validation': 2, 'meta_test': 2}
    """
    x, labels = np.asarray(x), _labels(y)
    if labels is None or x.ndim < 1 or len(x) != len(labels):
        try:
            found = np.asarray(y)
            seen = f"{found.dtype} {list(found.shape)}"
        except ValueError:  # ragged
            seen = f"a {type(y).__name__}"
        raise DataError(
            f"x is {x.dtype} {list(x.shape)} and y is {seen}; expected x [n, ...] and labels y [n], integers or "
            "strings. For one-hot labels give y.argmax(1)."
        )
    if not labels:
        raise DataError("x and y are empty; expected at least one image.")
    if x.dtype == np.uint8 and x.ndim >= 3:
        refuse_bits(int(x.max(initial=0)), "x is")
    rows = rows_of(labels)
    divided = divide(rows, splits, class_names, seed)
    provenance: dict[str, Any] = {
        "source": "numpy arrays",
        "splits": splits if isinstance(splits, str) else "given",
        "seed": seed,
    }
    classes = taken(x, rows, divided, allow_duplicates or x.ndim < 3, provenance)
    return write_dataset(out, classes, name=name, provenance=provenance, licence=licence)


def refuse_bits(highest: int, what: str) -> None:
    """Refuse pictures of 0 and 1 as bytes: a network would see 0 and 0.004.

    Raises:
        DataError: the highest number is 1.
    """
    if highest == 1:
        raise DataError(
            f"{what} integers of 0 and 1; expected 0 to 255, which networks see as 0 to 1. Give 255 times them, or "
            "floats."
        )


def rows_of(labels: Sequence[Hashable]) -> dict[Hashable, IntArray]:
    """Map each label to its rows, in order.

    Example:
        >>> {label: rows.tolist() for label, rows in rows_of(["b", "a", "b"]).items()}
        {'b': [0, 2], 'a': [1]}
    """
    code_of: dict[Hashable, int] = {}
    codes = np.fromiter((code_of.setdefault(label, len(code_of)) for label in labels), np.int64, len(labels))
    # One stable sort finds the rows of every class in order; a mask per class would cost n times the classes.
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return dict(zip(code_of, np.split(order, starts), strict=True))


def divide(
    labels: Iterable[Hashable], splits: Splits, class_names: ClassNames, seed: int
) -> list[tuple[Split, str, Hashable]]:
    """Divide classes over the splits.

    Args:
        labels: each once.
        splits: percentages, or the labels of each split.
        class_names: class name of each label; the label as text by default.
        seed: seed of the division by percentages.

    Returns:
        Split, class name and label of each class, in the order to write.

    Raises:
        DataError: a label has no name or shares one, or a class is in no split.
        SplitLeak: a class is in two splits.
    """
    names = {label: _name(label, class_names) for label in labels}
    label_of = {class_name: label for label, class_name in names.items()}
    if len(label_of) != len(names):
        twice = next(name for label, name in names.items() if label_of[name] != label)
        raise DataError(
            f"Two labels have the same name, {twice!r}; expected one name per label. Rename one in class_names."
        )
    if isinstance(splits, str):
        divided = split_by_percent(list(label_of), splits, seed)
    else:
        lists: dict[str, list[str]] = {
            split: [names.get(label, str(label)) for label in members] for split, members in splits.items()
        }
        divided = split_by_lists(list(label_of), lists, "splits")
    return [(split, member, label_of[member]) for split, members in divided.items() for member in members]


def taken(
    x: npt.NDArray[Any],
    rows: Mapping[Hashable, IntArray],
    divided: Sequence[tuple[Split, str, Hashable]],
    allow_duplicates: bool,
    provenance: dict[str, Any],
) -> Iterator[ClassImages]:
    """Take the images of each class out of ``x``; at the end, identical ones are refused or noted in ``provenance``."""
    identical = Identical()
    for split, member, label in divided:
        images = x[rows[label]]
        for row, image in zip(rows[label], images, strict=True):
            identical.add(split, member, f"row {row}", image)
        yield ClassImages(split, member, images)
    identical.check(allowed=allow_duplicates)
    provenance["identical"] = identical.record()


def plain_label(label: Any) -> Hashable:
    """Take a number of numpy or torch as one of Python.

    Raises:
        TypeError: it is a float or cannot be hashed, and so is no label.

    Example:
        >>> plain_label(np.int64(3))
        3
    """
    if hasattr(label, "item") and getattr(label, "ndim", 1) == 0:
        label = label.item()
    if isinstance(label, float) or not isinstance(label, Hashable):
        raise TypeError(f"label {label!r:.60} is a {type(label).__name__}")
    hash(label)  # a tuple of lists has __hash__
    return label


def _labels(y: Any) -> list[Hashable] | None:
    """Labels as a list; ``None`` if they are no labels."""
    array = y if isinstance(y, np.ndarray) else None
    if array is None and hasattr(y, "__array__"):
        array = np.asarray(y)
    if array is not None and (array.ndim != 1 or array.dtype.kind not in "biuUO"):
        return None
    try:
        return [plain_label(label) for label in (y if array is None else array.tolist())]
    except TypeError:
        return None


def _name(label: Hashable, class_names: ClassNames) -> str:
    if class_names is None:
        return str(label)
    if isinstance(class_names, Mapping):
        named = label in class_names
    else:
        named = isinstance(label, int) and 0 <= label < len(class_names)
    if not named:
        raise DataError(f"label {label!r} has no name: class_names has {len(class_names)} entries. Add a name for it.")
    names: Any = class_names
    return str(names[label])
