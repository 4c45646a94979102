"""Datasets from a folder of images."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distmeta.data.manifest import Manifest
from distmeta.data.picture_workers import Read, read_pictures
from distmeta.data.pictures import Pixels, Recipe
from distmeta.data.remarks import Identical, Tally, record
from distmeta.data.sources.image_layout import FolderClass, find_classes, no_classes_left
from distmeta.data.writer import ClassImages, Progress, write_dataset
from distmeta.errors import DataError, SplitLeak
from distmeta.types import Split


def build_image_folder(
    root: Path | str,
    out: Path | str,
    *,
    split: str | Path | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    ink: bool = False,
    min_images: int = 1,
    skip_corrupt: bool = False,
    allow_duplicates: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a folder of images as a dataset.

    Layouts: ``ROOT/split/class/*.png`` with split folders ``meta_train``, ``meta_validation``, ``meta_test`` (or
    ``train``, ``val``, ``validation``, ``test``); ``ROOT/class/*`` together with ``split``; both also nested,
    ``group/class`` to any depth; or ``ROOT/train.csv`` (``val.csv``, ``test.csv``) with the columns ``filename`` and
    ``label`` beside ``ROOT/images``. Formats: PNG, JPEG, WebP, BMP, TIFF, GIF (the first picture) and PPM, with 8 or 16
    bits.

    Images are read in the order of their names, rotated by their EXIF orientation, and put on white where they are
    transparent. Files that are no pictures, classes that are too small and pictures that were skipped are counted and
    named in the provenance under ``"left out"``, pictures with equal pixels under ``"identical"``; hidden files are
    passed over. :func:`~distmeta.data.remarks.remarks` puts these into lines.

    Args:
        root: the folder of images.
        out: folder for the dataset.
        split: for folders without splits only: percentages of classes such as ``"64/16/20"``, divided at random with a
            fixed seed, or a JSON file ``{"meta_train": [class, ...], ...}``.
        size: height and width in pixels; the shorter side is scaled to it (Lanczos) and the longer one cropped around
            the centre. By default all images must have one size.
        channels: 1 (grey) or 3 (RGB); by default that of the first image, and all others must agree.
        ink: whether these are drawings on a plain background, light or dark. They become bright ink on 0, and are
            padded instead of cropped; a run trained on them does the same to what it is given.
        min_images: classes with fewer images are left out.
        skip_corrupt: leave out pictures that cannot be read, instead of refusing the folder with all their names.
        allow_duplicates: write the dataset although pictures of two splits are identical.
        workers: processes that read, at most; by default one per CPU. The dataset does not depend on it.
        progress: called with (images read, images in total).

    Returns:
        The manifest. Images are ``[channels, H, W]`` uint8.

    Raises:
        DataError: no classes, no split, an image that cannot be read or that differs in size or colour; and the errors
            of :func:`~distmeta.data.writer.write_dataset`.
        SplitLeak: a class, or the pixels of a picture, are in two splits.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for split, name, colour in [("train", "cat", "grey"), ("test", "dog", "brown")]:
        ...         (Path(folder) / "photos" / split / name).mkdir(parents=True)
        ...         Image.new("RGB", (40, 30), colour).save(Path(folder) / "photos" / split / name / "1.png")
        ...     manifest = build_image_folder(f"{folder}/photos", f"{folder}/out", size=16)
        >>> manifest.name, manifest.input_shape, list(manifest.splits)
        ('photos', (3, 16, 16), ['meta_train', 'meta_test'])
    """
    root = Path(root)
    if min_images < 1:
        raise DataError(f"min_images is {min_images}; expected at least 1.")
    recipe = Recipe(None if size is None else (size, size), channels, ink)
    layout = find_classes(root, split, min_images)
    paths = [path for found in layout.classes for path in found.paths]
    provenance: dict[str, Any] = {
        "source": "image folder",
        "split": layout.divided,
        "size": size,
        "channels": channels,
        "scaled": "whole, padded" if ink else "shorter side, cropped around the centre",
        "ink": ink,
    }
    reading = _Reading(root, read_pictures(paths, recipe, workers), len(paths), progress, skip_corrupt)
    identical = Identical()

    def classes() -> Iterator[ClassImages]:
        left: dict[Split, int] = {found.split: 0 for found in layout.classes}
        for found in layout.classes:
            images, names = reading.next_class(found)
            if reading.refuses:  # what is wrong with the others is still looked for; nothing is kept of them
                for name, pixels in zip(names, images, strict=True):
                    identical.add(found.split, found.name, name, pixels)
                continue
            if len(images) < min_images:
                layout.small.add(f"{found.name} ({len(images)})")
                continue
            for name, pixels in zip(names, images, strict=True):
                identical.add(found.split, found.name, name, pixels)
            left[found.split] += 1
            yield ClassImages(found.split, found.name, np.stack(images))
        if reading.refuses:
            raise DataError(reading.refusal(identical, allow_duplicates))
        for name, count in left.items():
            if not count:
                raise no_classes_left(name, min_images, layout.small)
        identical.check(allowed=allow_duplicates)
        kinds = {**layout.strangers, "corrupt": reading.corrupt, f"fewer than {min_images} images": layout.small}
        # Written last, with what was found on the way.
        provenance.update({"left out": record(kinds), "identical": identical.record()})

    try:
        return write_dataset(out, classes(), name=root.absolute().name, provenance=provenance, licence="not stated")
    finally:
        reading.close()


class _Reading:
    """Takes the pictures of one class after the other, and requires the size and the channels of the first one."""

    def __init__(
        self,
        root: Path,
        reads: Generator[Read, None, None],
        total: int,
        progress: Progress | None,
        skip_corrupt: bool,
    ) -> None:
        self.corrupt = Tally()
        self._root = root
        self._reads = reads
        self._done, self._total = 0, total
        self._progress = progress
        self._skip = skip_corrupt
        self._error = ""
        self._first: tuple[str, tuple[int, ...]] | None = None

    def next_class(self, found: FolderClass) -> tuple[list[Pixels], list[str]]:
        """Read all pictures of a class, and the names of those that could be read."""
        images, names = [], []
        for path in found.paths:
            read = next(self._reads)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
            name = Path(path).relative_to(self._root).as_posix()
            if read.pixels is None:
                self.corrupt.add(name)
                self._error = self._error or read.error
                continue
            self._check(path, read.pixels)
            images.append(read.pixels)
            names.append(name)
        return images, names

    @property
    def refuses(self) -> bool:
        """Whether the folder is refused, for a picture that cannot be read."""
        return bool(self.corrupt.count) and not self._skip

    def refusal(self, identical: Identical, allow_duplicates: bool) -> str:
        """Name all faults of the pictures at once, so that nobody builds twice to find the next."""
        count = self.corrupt.count
        first = f"{count:,} pictures cannot be read: {self.corrupt.text()}. The first: " if count > 1 else ""
        text = f"{first}{self._error} Or leave such pictures out: --skip-corrupt (skip_corrupt=True)."
        try:
            identical.check(allowed=allow_duplicates)
        except SplitLeak as leak:
            text += f" Besides, {leak.message}"
        return text

    def close(self) -> None:
        """End the reading processes, if the reading was not finished."""
        self._reads.close()

    def _check(self, path: str, pixels: Pixels) -> None:
        channels, height, width = pixels.shape
        self._first = self._first or (path, pixels.shape)
        like, (like_channels, like_height, like_width) = self._first
        if (height, width) != (like_height, like_width):
            raise DataError(
                f"{path} is {width}x{height}, but {like} is {like_width}x{like_height}; expected one size. "
                f"Give --size to scale and crop all images, for example --size 84."
            )
        if channels != like_channels:
            kinds = {1: "grey", 3: "colour"}
            raise DataError(
                f"{path} is {kinds[channels]}, but {like} is {kinds[like_channels]}; expected one kind. "
                f"Give --channels 1 or --channels 3 to convert all images."
            )
