"""Write a dataset of classes as Arrow shards: everything or nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distmeta.config import canonical_json
from distmeta.data.manifest import (
    ClassEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    check_split,
    fingerprint_of,
    refuse_twice,
    write_manifest,
)
from distmeta.data.shard_file import Images, ShardHeader, pixel_bytes, write_shard
from distmeta.errors import DataError
from distmeta.files import MANIFEST, sha256_of, sync
from distmeta.types import SPLITS, Split

SHARD_BYTES = 256 * 2**20
"""Pixels per shard, at most; a class is never divided, so one class may exceed it."""


Progress = Callable[[int, int | None], None]
"""Called with (classes done, classes in total or None)."""


IntArray = npt.NDArray[np.integer]


class ClassImages(NamedTuple):
    """One class to write.

    Args:
        split: where it belongs.
        name: unique across all splits.
        x: ``[n, ...]`` uint8 (0..255) or float32; images are ``[n, C, H, W]``.
    """

    split: Split
    name: str
    x: Images


def write_dataset(
    out: Path | str,
    classes: Iterable[ClassImages],
    *,
    name: str,
    provenance: dict[str, Any] | None,
    licence: str,
    progress: Progress | None = None,
    total: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Write a dataset; classes are taken one by one, so they need not fit in memory together.

    Args:
        out: folder, made if absent. Leftovers of an interrupted build in it are replaced.
        classes: in the order they are to have; all of one dtype and one shape per image.
        name: of the dataset.
        provenance: where the images come from; anything that JSON can say.
        licence: of the images, in words.
        progress: called after each class.
        total: number of classes, for ``progress``.
        shard_bytes: pixels per shard, at most.

    Returns:
        The manifest as written. A second build of the same classes has the same fingerprint.

    Raises:
        DataError: ``out`` already holds a dataset (nothing is overwritten), a class is empty, not finite or unlike the
            others, there are no classes, or the disk refuses.
        SplitLeak: a class name is in two splits.

    Example:
        >>> import tempfile
        >>> from distmeta.data import ShardDataset
        >>> images = np.arange(2 * 20 * 4, dtype=np.uint8).reshape(2, 20, 1, 2, 2)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     manifest = write_dataset(
        ...         out,
        ...         [ClassImages("meta_train", "a", images[0]), ClassImages("meta_test", "b", images[1])],
        ...         name="tiny", provenance=None, licence="CC0",
        ...     )
        ...     ShardDataset.open(out).split("meta_train").gather(np.array([0, 0]), np.array([3, 5])).shape
        (2, 1, 2, 2)
    """
    directory = Path(out)
    _check_json(provenance)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        require_free(directory)
        _remove_leftovers(directory)
        build = _Build(directory, shard_bytes)
    except OSError as error:
        raise _cannot_write(directory, error) from None
    for done, images in enumerate(classes, start=1):
        build.add(images)
        if progress is not None:
            progress(done, total)
    return build.commit(name, licence, provenance or {})


def require_free(directory: Path) -> None:
    """Raise if a folder holds a dataset already: nothing is overwritten.

    Raises:
        DataError: it does.
    """
    if (directory / MANIFEST).exists():
        raise DataError(
            f"{directory} already holds a dataset and nothing was written. Give another folder with --out, "
            f"or delete this one first."
        )


class _Pending:
    """The shard of one split that is being filled, and the shards before it."""

    def __init__(self) -> None:
        self.content = hashlib.sha256()
        self.shards: list[ShardEntry] = []
        self.classes: list[ClassEntry] = []
        self.images: list[Images] = []
        self.bytes = 0


class _Build:
    """A dataset that is being written: checks each class, fills shards, and commits."""

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.directory = directory
        self.shard_bytes = shard_bytes
        self.home: dict[str, Split] = {}
        self.pending: dict[Split, _Pending] = {}
        self.like: tuple[str, np.dtype[Any], tuple[int, ...]] | None = None

    def add(self, images: ClassImages) -> None:
        split, name, x = check_split(images.split), images.name, np.ascontiguousarray(images.x)
        if name in self.home:
            refuse_twice(name, self.home[name], split, "the classes to write")
        self._check(name, x)
        pending = self.pending.setdefault(split, _Pending())
        if pending.images and pending.bytes + x.nbytes > self.shard_bytes:
            self._flush(split, pending)
        pending.classes.append(ClassEntry(id=len(self.home), name=name, rows=len(x)))
        pending.images.append(x)
        pending.bytes += x.nbytes
        pending.content.update(pixel_bytes(x))
        self.home[name] = split

    def commit(self, name: str, licence: str, provenance: dict[str, Any]) -> Manifest:
        if self.like is None:
            raise DataError(f"there are no classes to write to {self.directory}; expected at least one.")
        splits = {}
        for split in SPLITS:
            if split in self.pending:
                pending = self.pending[split]
                self._flush(split, pending)
                splits[split] = SplitEntry(content_sha256=pending.content.hexdigest(), shards=tuple(pending.shards))
        _, dtype, shape = self.like
        manifest = Manifest.model_validate(
            {
                "name": name,
                "licence": licence,
                "provenance": provenance,
                "dtype": str(dtype),
                "input_shape": shape,
                "fingerprint": fingerprint_of(str(dtype), shape, splits),
                "splits": splits,
            }
        )
        try:
            sync(self.directory)
            write_manifest(self.directory, manifest)
        except OSError as error:
            raise _cannot_write(self.directory, error) from None
        return manifest

    def _check(self, name: str, x: Images) -> None:
        # Names become JSON and UTF-8; a file name that is not valid UTF-8 arrives here with unprintable surrogates.
        if not name or not name.isprintable():
            raise DataError(f"class name {name!r} is empty or has unprintable characters. Rename the class.")
        if x.ndim < 2 or 0 in x.shape:
            raise DataError(
                f"class {name!r} has shape {list(x.shape)}; expected [n, ...] with n at least 1, for example "
                f"[20, 1, 28, 28]. Leave empty classes out."
            )
        if x.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"class {name!r} is {x.dtype}; expected uint8 or float32. "
                f"Convert it, for example with x.astype(np.float32)."
            )
        if self.like is None:
            self.like = name, x.dtype, x.shape[1:]
        first, dtype, shape = self.like
        if x.dtype != dtype or x.shape[1:] != shape:
            raise DataError(
                f"class {name!r} has images {x.dtype} {list(x.shape[1:])}, but class {first!r} has {dtype} "
                f"{list(shape)}; expected one dtype and one shape. Convert or resize them before."
            )
        if x.dtype == np.float32 and not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])
            raise DataError(
                f"class {name!r} has NaN or infinite numbers (first in image {row}); expected finite ones. "
                f"Repair or leave out that image."
            )

    def _flush(self, split: Split, pending: _Pending) -> None:
        """Write the pending classes of ``split`` as its next shard."""
        relative = f"{split}/{len(pending.shards):05d}.arrow"
        path = self.directory / relative
        counts = [c.rows for c in pending.classes]
        header = ShardHeader(
            split=split,
            ids=tuple(c.id for c in pending.classes),
            names=tuple(c.name for c in pending.classes),
            offsets=(0, *(int(end) for end in np.cumsum(counts))),
        )
        try:
            path.parent.mkdir(exist_ok=True)
            write_shard(path, header, np.concatenate(pending.images))
            sync(path.parent)
            entry = ShardEntry(
                path=relative, bytes=path.stat().st_size, sha256=sha256_of(path), classes=tuple(pending.classes)
            )
        except OSError as error:
            raise _cannot_write(self.directory, error) from None
        pending.shards.append(entry)
        pending.classes, pending.images, pending.bytes = [], [], 0


def _remove_leftovers(directory: Path) -> None:
    """Remove what an interrupted build wrote, and nothing else: files named as this module names them."""
    for split in SPLITS:
        for path in (directory / split).glob("*.arrow"):
            if re.fullmatch(r"\d{5}\.arrow", path.name):
                path.unlink()
    for partial in directory.glob(f".{MANIFEST}.*"):
        partial.unlink(missing_ok=True)


def _cannot_write(directory: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the dataset to {directory}: {error}. Give a folder that can be written, with enough space."
    )


def _check_json(provenance: dict[str, Any] | None) -> None:
    try:
        canonical_json(provenance)
    except (TypeError, ValueError) as error:
        raise DataError(f"provenance is not JSON: {error}. Use strings, numbers, lists and dictionaries.") from None
