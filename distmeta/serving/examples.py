"""Examples from disk for ``distmeta predict``: a folder per class, loose pictures, or a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distmeta.config import did_you_mean
from distmeta.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Endings of the files that are taken as pictures."""

_LABEL = "label"


@dataclass(frozen=True)
class Examples:
    """Examples with or without labels, not yet decoded.

    Args:
        names: one for each, for people: a file's path in its folder, or a row.
        inputs: paths of pictures, or numbers ``[n, D]``.
        labels: one for each; ``None`` where they are not known.
        columns: names of the D numbers; empty for pictures.
        ignored: names of columns that the support examples do not have.
    """

    names: tuple[str, ...]
    inputs: Sequence[Path] | npt.NDArray[np.float64]
    labels: tuple[str, ...] | None
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def pictures(self) -> bool:
        """Whether the inputs are pictures."""
        return not self.columns


def read_examples(
    source: Path | str, *, labelled: bool, like: Examples | None = None, target: str | None = None
) -> Examples:
    r"""Find examples; pictures are listed, not decoded.

    A folder holds a folder per class, or pictures without labels. A CSV file begins with a line of column names; the
    label is the column ``target``, else ``label``, else the last one, and all other columns are numbers.

    Args:
        source: a folder or a CSV file.
        labelled: whether every example must have a label.
        target: name of the column that holds the labels, where it is a CSV file.
        like: the labelled examples that these are to be compared with; its columns are taken by name.

    Raises:
        DataError: there are no examples, or none that can be read so.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "train.csv"
        ...     _ = path.write_text("height,weight,label\n1.5,50,ant\n2.5,80,bee\n")
        ...     examples = read_examples(path, labelled=True)
        >>> examples.labels, examples.columns, examples.inputs.tolist()
        (('ant', 'bee'), ('height', 'weight'), [[1.5, 50.0], [2.5, 80.0]])
    """
    path = Path(source)
    option = "--support" if labelled else "--query"
    if target is not None and path.suffix.lower() != ".csv":
        raise DataError(f"--target {target} is for a CSV file; {option} {path} is none. Leave --target out.")
    if os.path.isdir(path):
        found = _folder(path, labelled, option)
    elif os.path.isfile(path) and path.suffix.lower() == ".csv":
        found = _table(path, labelled, option, None if like is None or like.pictures else like.columns, target)
    elif os.path.isfile(path) and path.suffix.lower() in PICTURES and not labelled:
        found = Examples((path.name,), (path,), None)
    else:
        seen = "is neither a folder nor a CSV file" if os.path.exists(path) else "does not exist"
        raise DataError(
            f"{option} {path} {seen}; expected a folder with "
            f"{'a folder of pictures for each class' if labelled else 'pictures'}, or a CSV file."
        )
    if like is not None and like.pictures != found.pictures:
        kinds = {True: "pictures", False: "rows of numbers"}
        raise DataError(
            f"The support examples are {kinds[like.pictures]}, those of {path} are {kinds[found.pictures]}; expected "
            "the same kind. Give both as folders, or both as CSV files."
        )
    return found


def _folder(root: Path, labelled: bool, option: str) -> Examples:
    entries = _listed(root)
    folders = [entry for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if _is_picture(entry)]
    if folders and loose:
        raise DataError(
            f"{option} {root} has folders ({folders[0].name}) and pictures ({loose[0].name}); expected "
            f"{'folders' if labelled else 'either'}. Move the pictures into the folder of their class."
        )
    if labelled and not folders:
        raise DataError(
            f"{option} {root} has no class folders; expected {root}/CLASS/*.png with a folder for each class. The "
            "folder's name is the label."
        )
    if not folders:
        if not loose:
            raise _no_pictures(option, root)
        return Examples(tuple(path.name for path in loose), loose, None)
    inputs, labels = [], []
    for folder in folders:
        pictures = [entry for entry in _listed(folder) if _is_picture(entry)]
        if not pictures:
            raise _no_pictures(option, folder)
        inputs += pictures
        labels += [folder.name] * len(pictures)
    return Examples(tuple(str(path.relative_to(root)) for path in inputs), inputs, tuple(labels))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Fix its permissions.") from None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _no_pictures(option: str, folder: Path) -> DataError:
    endings = ", ".join(ending.removeprefix(".") for ending in PICTURES)
    return DataError(f"{option} {folder} holds no pictures ({endings}). Put some there, or leave the folder out.")


def _table(path: Path, labelled: bool, option: str, columns: tuple[str, ...] | None, target: str | None) -> Examples:
    rows = _rows(path)
    header = [name.strip() for name in rows[0]] if rows else []
    if len(rows) < 2:
        raise DataError(f"{option} {path} has no rows; expected a line of column names, then a line for each example.")
    if len(set(header)) != len(header) or "" in header:
        raise DataError(f"{path}, line 1 has no different names for all columns: {', '.join(header[:8])}. Name each.")
    if all(_number(name) is not None for name in header):
        raise DataError(
            f"{path}, line 1 is numbers; expected the names of the columns, such as x1,x2,{_LABEL}. Add that line."
        )
    if target is not None and labelled and target not in header:
        raise DataError(
            f"{path} has no column {target!r}.{did_you_mean(target, header)} Its columns are {', '.join(header[:8])}."
        )
    label = _label_column(header, labelled, columns, target)
    names = columns or tuple(name for name in header if name != label)
    missing = [name for name in names if name not in header]
    if missing or not names:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing[:5])}, which the support examples have; expected the same."
            if missing
            else f"{path} has the label's column alone; expected columns of numbers beside it."
        )
    places = [header.index(name) for name in names]
    values = np.empty((len(rows) - 1, len(names)))
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(f"{path}, line {line} has {len(row)} cells; expected {len(header)}, as line 1 has.")
        for column, place in enumerate(places):
            number = _number(row[place])
            if number is None:
                raise DataError(
                    f"{path}, line {line}, column {header[place]!r} is {row[place][:40]!r}; expected a finite number. "
                    "Fill in what is missing, write text as numbers, or leave the column out"
                    + ("." if target is not None or not labelled else "; a label's column is named by --target.")
                )
            values[line - 2, column] = number
    labels = None if label is None else tuple(row[header.index(label)].strip() for row in rows[1:])
    ignored = tuple(name for name in header if name not in {*names, label, target})
    return Examples(tuple(f"line {line}" for line in range(2, len(rows) + 1)), values, labels, names, ignored)


def _label_column(header: list[str], labelled: bool, columns: tuple[str, ...] | None, target: str | None) -> str | None:
    """The name of the column of labels: ``label``, else the last one; ``None`` where queries have none."""
    if target is not None:
        return target if target in header else None
    if _LABEL in header:
        return _LABEL
    if labelled:
        return header[-1]
    others = [name for name in header if name not in (columns or ())]
    return others[-1] if columns and others and others[-1] == header[-1] else None


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from None


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


__all__ = ["PICTURES", "Examples", "read_examples"]
