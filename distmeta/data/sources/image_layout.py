"""Find the classes in a folder of images, whatever its layout; no picture is opened.

==================================  ====================================================================================
layout                              classes
==================================  ====================================================================================
``ROOT/split/class/*.png``          by folder; splits ``train``, ``val``, ``test``, or ``meta_train`` and so on
``ROOT/class/*.png``                by folder, divided over the splits by percentages or by lists
``ROOT/[split/]group/class/*.png``  nested to any depth: a class is a folder that holds pictures, named ``group/class``
``ROOT/train.csv, images/``         columns ``filename`` and ``label``, one file per split (mini-ImageNet)
==================================  ====================================================================================
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distmeta.data.manifest import check_disjoint
from distmeta.data.pictures import SUFFIXES
from distmeta.data.remarks import Tally
from distmeta.data.splits import advised_percentages, split_by_lists, split_by_percent
from distmeta.data.writer import check_class_name
from distmeta.errors import DataError
from distmeta.types import SPLITS, Split

SPLIT_FOLDERS: dict[str, Split] = {
    "meta_train": "meta_train",
    "meta_validation": "meta_validation",
    "meta_test": "meta_test",
    "train": "meta_train",
    "training": "meta_train",
    "val": "meta_validation",
    "valid": "meta_validation",
    "validation": "meta_validation",
    "test": "meta_test",
    "testing": "meta_test",
}
"""Name of a split folder, or of a CSV without its suffix, to its split; in lower case."""

EXPECTED = "ROOT/split/class/*.png, ROOT/class/*.png, or ROOT/train.csv with ROOT/images"

_UNSEEN = {"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx"}
"""Files and folders of operating systems, in lower case."""

_FORBIDDEN = "a path inside the folder of pictures"


class FolderClass(NamedTuple):
    """A class that was found.

    Args:
        split: where it belongs.
        name: unique, ``group/class`` where it is nested.
        paths: its files, sorted by name.
    """

    split: Split
    name: str
    paths: list[str]


@dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Args:
        classes: by split, then by name or in the order of the lists.
        divided: where the splits come from, for the provenance.
        strangers: files that are no pictures, and pictures that no CSV lists, by kind.
        small: classes with too few files.
    """

    classes: list[FolderClass]
    divided: str
    strangers: dict[str, Tally]
    small: Tally


def find_classes(root: Path, split: str | Path | None, min_images: int) -> Layout:
    """Find the classes in ``root``, in one of the layouts above.

    Args:
        root: the folder.
        split: percentages of the classes, or a JSON file of lists; for folders without splits only.
        min_images: classes with fewer files are left out.

    Raises:
        DataError: no classes, no split, or a layout that can be read in two ways.
        SplitLeak: a class is in two splits.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder. Give the folder of images with --from ROOT.")
    names = [entry.name for entry in _entries(root) if entry.is_dir()]
    folders = [name for name in names if name.lower() in SPLIT_FOLDERS]
    lists = {} if folders else {e.name: e.path for e in _entries(root) if _csv_split(e.name) and e.is_file()}
    if (folders or lists) and split is not None:
        raise DataError(
            f"{root} has {'split folders' if folders else 'split files'} ({', '.join(folders or lists)}), but the "
            f"split {str(split)!r} was given too. Use either {EXPECTED}, or ROOT/class with --split."
        )
    scan = _Scan(root)
    if lists:
        found = _listed(root, lists, scan)
        divided = "CSV"
    elif folders:
        found = _in_split_folders(root, folders, scan)
        divided = "folders"
    else:
        found = {"meta_train": scan.classes(root)}
        divided = Path(split).name if split is not None and Path(split).is_file() else str(split)
    found = {name: found[name] for name in SPLITS if found.get(name)}
    if not any(paths for classes in found.values() for _, paths in classes):
        left = f" It has {scan.strangers.count:,} other files: {scan.strangers.text()}." if scan.strangers.count else ""
        raise DataError(
            f"{root} holds no class folders with pictures; expected {EXPECTED} (pictures: "
            f"{', '.join(sorted(suffix[1:] for suffix in SUFFIXES))}).{left}"
        )
    check_disjoint({name: [member for member, _ in classes] for name, classes in found.items()}, root)
    if not (folders or lists):
        found = _divide(root, dict(found["meta_train"]), split, min_images)
    kept, small = [], Tally()
    for name, classes in found.items():
        large = [FolderClass(name, member, paths) for member, paths in classes if len(paths) >= min_images]
        for member, paths in classes:
            check_class_name(member)
            if len(paths) < min_images:
                small.add(f"{member} ({len(paths)})")
        if not large:
            raise no_classes_left(name, min_images, small)
        kept += large
    return Layout(kept, divided, {"not pictures": scan.strangers, "in no CSV": scan.unlisted}, small)


def no_classes_left(split: Split, min_images: int, small: Tally) -> DataError:
    """The error for a split whose classes all have too few pictures."""
    return DataError(
        f"{split} has no class with at least {min_images} pictures left; left out: {small.text()}. Lower --min-images, "
        "or add pictures."
    )


_Classes = list[tuple[str, list[str]]]
"""Names and files."""


class _Scan:
    """Walks folders, and counts the files that are no pictures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.strangers = Tally()
        self.unlisted = Tally()

    def classes(self, top: Path) -> _Classes:
        """Classes below ``top``, by name; those without pictures too."""
        found = self._walk(top, (os.path.realpath(top),))
        if any(folder == os.fspath(top) and paths for folder, paths in found):
            raise DataError(
                f"{top} holds pictures, but no class folders; expected {EXPECTED}. Put the pictures of each class into "
                "a folder of its own."
            )
        named = [(Path(folder).relative_to(top).as_posix(), paths) for folder, paths in found if folder != str(top)]
        return sorted(named)

    def files(self, top: Path) -> Iterator[str]:
        """All files below ``top`` that are not hidden."""
        for entry in _entries(top):
            if entry.is_dir():
                yield from self.files(Path(entry.path))
            else:
                yield entry.path

    def stranger(self, path: str) -> None:
        """Count a file that is no picture."""
        self.strangers.add(Path(path).relative_to(self.root).as_posix())

    def _walk(self, folder: Path, above: tuple[str, ...]) -> list[tuple[str, list[str]]]:
        """Folders below that hold pictures, or nothing at all."""
        pictures, below, subfolders = [], [], 0
        for entry in _entries(folder):
            if entry.is_dir():
                subfolders += 1
                target = os.path.realpath(entry.path)
                if target in above:
                    raise DataError(f"{entry.path} is a link to a folder above it. Remove the link.")
                below += self._walk(Path(entry.path), (*above, target))
            elif is_picture(entry.name) and (entry.is_file() or entry.is_symlink()):
                pictures.append(entry.path)
            else:
                self.stranger(entry.path)
        holding = [inner for inner, paths in below if paths]
        if pictures and holding:
            raise DataError(
                f"{folder} holds pictures ({os.path.basename(pictures[0])}) and a folder with pictures "
                f"({os.path.relpath(holding[0], folder)}); expected one or the other: a class is a folder of pictures. "
                "Move the pictures into a folder of their own, or the inner folder out."
            )
        if pictures or not subfolders:
            return [(os.fspath(folder), pictures)]
        return below


def is_picture(name: str) -> bool:
    """Whether a file's name has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List files and folders by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            seen = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _UNSEEN]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}. Fix its permissions, or leave the folder out.") from None
    return sorted(seen, key=lambda e: e.name)


def _in_split_folders(root: Path, folders: list[str], scan: _Scan) -> dict[Split, _Classes]:
    found: dict[Split, _Classes] = {}
    for entry in _entries(root):
        if entry.name in folders:
            found.setdefault(SPLIT_FOLDERS[entry.name.lower()], []).extend(scan.classes(Path(entry.path)))
        elif entry.is_dir():
            for path in scan.files(Path(entry.path)):
                if is_picture(path):
                    raise DataError(
                        f"{root} has split folders ({', '.join(folders)}), but also {entry.name!r} with pictures. Use "
                        "either ROOT/split/class with split folders only, or ROOT/class with --split."
                    )
                scan.stranger(path)
        elif is_picture(entry.name):
            raise DataError(
                f"{root} has split folders ({', '.join(folders)}), but also the picture {entry.name}. Move it into a "
                "class folder, or remove it."
            )
        else:
            scan.stranger(entry.path)
    return {name: sorted(classes) for name, classes in found.items()}


def _divide(
    root: Path, classes: dict[str, list[str]], split: str | Path | None, min_images: int
) -> dict[Split, _Classes]:
    """Divide classes over the splits; those that are too small come last, and do not count for percentages."""
    if split is None:
        raise DataError(
            f"{root} has {len(classes)} class folders and no split folders. Say how to divide the classes: "
            f"--split {advised_percentages(len(classes), 2) or '34/33/33'}, or --split FILE.json with "
            '{"meta_train": ["class", ...], "meta_test": ["class", ...]}.'
        )
    path = Path(split)
    if path.is_file():
        divided = split_by_lists(list(classes), _read_lists(path), path)
    elif path.suffix == ".json":
        raise DataError(f"the split file {path} does not exist. Correct the path, or give percentages: 64/16/20.")
    else:
        large = [name for name, paths in classes.items() if len(paths) >= min_images]
        divided = split_by_percent(large, str(split), seed=0)
        divided[next(iter(divided))] += sorted(set(classes) - set(large))
    return {name: [(member, classes[member]) for member in members] for name, members in divided.items()}


def _read_lists(path: Path) -> Mapping[str, list[str]]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the split file {path} is not JSON: {error}. Correct it.") from None
    if not isinstance(values, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in values.values()
    ):
        raise DataError(
            f"the split file {path} is not lists of class names; expected "
            f'{{"meta_train": ["class", ...], "meta_validation": [...], "meta_test": [...]}}.'
        )
    return values


def _csv_split(name: str) -> Split | None:
    stem, suffix = os.path.splitext(name)
    return SPLIT_FOLDERS.get(stem.lower()) if suffix.lower() == ".csv" else None


def _listed(root: Path, lists: dict[str, str], scan: _Scan) -> dict[Split, _Classes]:
    """Classes of CSV files, with pictures in ``root/images`` or beside the files."""
    base = root / "images" if os.path.isdir(root / "images") else root
    there = {path for path in scan.files(root) if path not in set(lists.values())}
    listed: set[str] = set()
    found: dict[Split, dict[str, list[str]]] = {}
    for name, path in lists.items():
        split = SPLIT_FOLDERS[os.path.splitext(name)[0].lower()]
        for line, filename, label in _rows(path):
            picture = PurePosixPath(filename)
            if picture.is_absolute() or ".." in picture.parts or not picture.name:
                raise DataError(f"{path}, line {line}: filename {filename!r} is not {_FORBIDDEN} {base}. Correct it.")
            file = os.path.join(base, *picture.parts)
            if file not in there and not os.path.isfile(file):
                raise DataError(f"{path}, line {line}: {file} does not exist. Add the picture, or remove the line.")
            listed.add(file)
            found.setdefault(split, {}).setdefault(label, []).append(file)
    for other in sorted(there - listed):
        if is_picture(other):
            scan.unlisted.add(Path(other).relative_to(root).as_posix())
        else:
            scan.stranger(other)
    return {split: [(name, sorted(paths)) for name, paths in sorted(c.items())] for split, c in found.items()}


def _rows(path: str) -> Iterator[tuple[int, str, str]]:
    """Line, filename and label of each row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
            if not {"filename", "label"} <= set(columns):
                seen = f"the columns {', '.join(columns)}" if columns else "no columns"
                raise DataError(f"{path} has {seen}; expected filename and label in its first line. Rename them.")
            for row in reader:
                filename, label = row[columns["filename"]], row[columns["label"]]
                if not filename or not label or not filename.strip() or not label.strip():
                    raise DataError(f"{path}, line {reader.line_num}: no filename or no label. Complete or remove it.")
                yield reader.line_num, filename.strip(), label.strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}. Expected UTF-8 text. Correct it.") from None
