"""Datasets from a folder of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import Manifest, check_disjoint
from distmeta.data.pictures import colours, fitted, open_picture
from distmeta.data.splits import split_by_lists, split_by_percent
from distmeta.data.writer import ClassImages, Progress, write_dataset
from distmeta.errors import DataError
from distmeta.types import SPLITS, Split

SPLIT_FOLDERS: dict[str, Split] = {
    "meta_train": "meta_train",
    "meta_validation": "meta_validation",
    "meta_test": "meta_test",
    "train": "meta_train",
    "val": "meta_validation",
    "validation": "meta_validation",
    "test": "meta_test",
}
"""Name of a split folder to its split."""

SUFFIXES = {".png", ".jpg", ".jpeg"}


def build_image_folder(
    root: Path | str,
    out: Path | str,
    *,
    split: str | Path | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a folder of images as a dataset.

    ``ROOT/split/class/*.png|jpg|jpeg`` with split folders ``meta_train``, ``meta_validation``, ``meta_test`` (or
    ``train``, ``val``, ``validation``, ``test``), or ``ROOT/class/*`` together with ``split``. Hidden files are
    skipped. Images are read in the order of their names, rotated by their EXIF orientation, and put on white where they
    are transparent.

    Args:
        root: the folder of images.
        out: folder for the dataset.
        split: for ``ROOT/class/*`` only: percentages of classes such as ``"64/16/20"``, divided at random with a fixed
            seed, or a JSON file ``{"meta_train": [class, ...], ...}``.
        size: height and width in pixels; the shorter side is scaled to it (Lanczos) and the longer one cropped around
            the centre. By default all images must have one size.
        channels: 1 (grey) or 3 (RGB); by default that of the first image, and all others must agree.
        progress: called with (classes done, classes in total).

    Returns:
        The manifest. Images are ``[channels, H, W]`` uint8.

    Raises:
        DataError: no classes, no split, an image that cannot be read or that differs in size or colour; and the errors
            of :func:`~distmeta.data.writer.write_dataset`.
        SplitLeak: a class is in two splits.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for split, name in [("train", "cat"), ("test", "dog")]:
        ...         (Path(folder) / "photos" / split / name).mkdir(parents=True)
        ...         Image.new("RGB", (40, 30)).save(Path(folder) / "photos" / split / name / "1.png")
        ...     manifest = build_image_folder(f"{folder}/photos", f"{folder}/out", size=16)
        >>> manifest.name, manifest.input_shape, list(manifest.splits)
        ('photos', (3, 16, 16), ['meta_train', 'meta_test'])
    """
    root = Path(root)
    if size is not None and size < 1:
        raise DataError(f"size {size} is not an image size; expected a number of pixels, for example --size 84.")
    if channels not in (None, 1, 3):
        raise DataError(f"channels {channels} is not a number of channels; expected 1 (grey) or 3 (RGB).")
    folders = _find_classes(root, split)
    check_disjoint({name: [folder.name for folder in members] for name, members in folders.items()}, root)
    total = sum(len(members) for members in folders.values())
    reader = _Reader(size, channels)

    def classes() -> Iterator[ClassImages]:
        for name, members in folders.items():
            for folder in members:
                yield ClassImages(name, folder.name, np.stack([reader.read(path) for path in _images(folder)]))

    return write_dataset(
        out,
        classes(),
        name=root.absolute().name,
        provenance={
            "source": "image folder",
            "split": "folders" if split is None else Path(split).name if Path(split).is_file() else str(split),
            "size": size,
            "channels": channels,
        },
        licence="not stated",
        progress=progress,
        total=total,
    )


class _Reader:
    """Read images as ``[C, H, W]`` and require the size and the channels of the first one."""

    def __init__(self, size: int | None, channels: int | None) -> None:
        self.size = size
        self.channels = channels
        self.first: tuple[Path, tuple[int, ...], int] | None = None

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        image = open_picture(path)
        found = colours(image)
        pixels = fitted(image, self.channels or found, None if self.size is None else (self.size, self.size))
        shape = (pixels.shape[2], pixels.shape[1])
        if self.first is None:
            self.first = path, shape, found
        like, like_shape, like_colours = self.first
        if shape != like_shape:
            raise DataError(
                f"{path} is {shape[0]}x{shape[1]}, but {like} is {like_shape[0]}x{like_shape[1]}; expected one size. "
                f"Give --size to scale and crop all images, for example --size 84."
            )
        if self.channels is None and found != like_colours:
            kinds = {1: "grey", 3: "colour"}
            raise DataError(
                f"{path} is {kinds[found]}, but {like} is {kinds[like_colours]}; expected one kind. "
                f"Give --channels 1 or --channels 3 to convert all images."
            )
        return pixels


def _find_classes(root: Path, split: str | Path | None) -> dict[Split, list[Path]]:
    """Map each split to its class folders, sorted by name."""
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder. Give the folder of images with --from ROOT.")
    folders = _subfolders(root)
    holding = [folder for folder in folders if folder.name in SPLIT_FOLDERS]
    if holding:
        others = [folder.name for folder in folders if folder.name not in SPLIT_FOLDERS]
        if others or split is not None:
            seen = f"also {others[0]!r}" if others else f"the split {str(split)!r} was given too"
            raise DataError(
                f"{root} has split folders ({', '.join(f.name for f in holding)}), but {seen}. Use either "
                f"ROOT/split/class with split folders only, or ROOT/class with --split."
            )
        found: dict[Split, list[Path]] = {}
        for folder in holding:
            found.setdefault(SPLIT_FOLDERS[folder.name], []).extend(_subfolders(folder))
        found = {name: sorted(found[name], key=lambda f: f.name) for name in SPLITS if found.get(name)}
    else:
        found = {"meta_train": folders} if folders else {}
    if not found:
        raise DataError(
            f"{root} holds no class folders; expected ROOT/split/class/*.png or ROOT/class/*.png (also jpg, jpeg)."
        )
    if holding:
        return found
    if split is None:
        raise DataError(
            f"{root} has {len(folders)} class folders and no split folders. Say how to divide the classes: "
            f"--split 64/16/20, or --split FILE.json with {{'meta_train': [...], 'meta_test': [...]}}."
        )
    names = [folder.name for folder in folders]
    path = Path(split)
    if path.is_file():
        divided = split_by_lists(names, _read_lists(path), path)
    elif path.suffix == ".json":
        raise DataError(f"the split file {path} does not exist. Correct the path, or give percentages: 64/16/20.")
    else:
        divided = split_by_percent(names, str(split), seed=0)
    return {name: [root / member for member in members] for name, members in divided.items()}


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise _cannot_read(folder, error) from None


def _images(folder: Path) -> list[Path]:
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise _cannot_read(folder, error) from None
    if not paths:
        raise DataError(f"class folder {folder} holds no png, jpg or jpeg images. Remove it, or put images there.")
    return paths


def _cannot_read(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder} cannot be read: {error}. Fix its permissions, or leave the folder out.")


def _read_lists(path: Path) -> dict[str, list[str]]:
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
