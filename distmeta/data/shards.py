"""A dataset of classes on disk: write it once, then gather images from memory-mapped Arrow shards.

::

    DIR/manifest.json            written last: the commit point
    DIR/meta_train/00000.arrow   rows sorted by class, uncompressed
    DIR/meta_validation/...
    DIR/meta_test/...

An interrupted build leaves no manifest, so it leaves no dataset; building again into the same folder starts afresh.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distmeta.config import canonical_json
from distmeta.data.manifest import (
    FILE_NAME,
    ClassEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    check_split,
    fingerprint_of,
    read_manifest,
    refuse_twice,
    write_manifest,
)
from distmeta.data.shard_file import Images, Shard, ShardHeader, open_shard, pixel_bytes, sha256_of, write_shard
from distmeta.errors import DataError, ManifestError, ShardCorrupt, SplitLeak
from distmeta.files import sync
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
        if (directory / FILE_NAME).exists():
            raise DataError(
                f"{directory} already holds a dataset and nothing was written. Give another folder with --out, "
                f"or delete this one first."
            )
        _remove_leftovers(directory)
        build = _Build(directory, shard_bytes)
    except OSError as error:
        raise _cannot_write(directory, error) from None
    for done, images in enumerate(classes, start=1):
        build.add(images)
        if progress is not None:
            progress(done, total)
    return build.commit(name, licence, provenance or {})


class ShardDataset:
    """A dataset on disk, opened for reading. Make one with :meth:`open`.

    Opening reads the manifest and the file sizes only; a split is mapped when it is first asked for. It pickles as its
    path: the other process opens it again and checks that it is the same dataset.

    Attributes:
        directory: absolute path.
        manifest: what ``manifest.json`` says.

    Example:
        >>> import tempfile
        >>> from distmeta.data import from_arrays
        >>> with tempfile.TemporaryDirectory() as out:
        ...     x, y = np.zeros((50, 1, 8, 8), np.uint8), np.repeat(np.arange(5), 10)
        ...     manifest = from_arrays(x, y, out, splits="60/20/20")
        ...     dataset = ShardDataset.open(out)
        ...     dataset.input_shape, dataset.split("meta_train"), verify(out).images["meta_test"]
        ((1, 8, 8), ClassSplit('meta_train', classes=3, images=30), 10)
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._splits: dict[Split, ClassSplit] = {}

    @staticmethod
    def open(directory: Path | str) -> ShardDataset:
        """Open the dataset in ``directory``.

        Raises:
            ManifestError: no finished dataset is there, or its manifest is damaged or of another version.
            ShardCorrupt: a shard is absent or has another size than the manifest says.
            SplitLeak: a class is in two splits.
        """
        path = Path(directory).absolute()
        manifest = read_manifest(path)
        for entry in manifest.splits.values():
            for shard in entry.shards:
                _check_size(path / shard.path, shard)
        return ShardDataset(path, manifest)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Identity of the content, 64 hex digits."""
        return self.manifest.fingerprint

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, for example ``(1, 28, 28)``."""
        return self.manifest.input_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one number as stored, uint8 or float32."""
        return np.dtype(self.manifest.dtype)

    def split(self, split: Split) -> ClassSplit:
        """The classes of one split, mapped on first use.

        Raises:
            DataError: there is no such split, or it has no classes.
            SplitLeak: a shard says that it belongs to another split.
            ShardCorrupt: a shard is not what the manifest says.
        """
        if check_split(split) not in self._splits:
            entry = self.manifest.splits.get(split)
            if entry is None:
                have = ", ".join(f"{len(e.classes)} in {s}" for s, e in self.manifest.splits.items())
                raise DataError(
                    f"dataset {self.name!r} in {self.directory} has no classes in {split} (it has {have}). "
                    f"Use another split, or build the dataset with classes in {split}."
                )
            self._splits[split] = ClassSplit(self, split, entry)
        return self._splits[split]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.directory), self.fingerprint)

    def __repr__(self) -> str:
        return f"ShardDataset({str(self.directory)!r}, fingerprint={self.fingerprint[:12]!r})"


class ClassSplit:
    """The classes of one split, numbered from 0. Get one from :meth:`ShardDataset.split`.

    Attributes:
        dataset: the dataset it belongs to.
        split: its name.
        names: class names, in order.
        counts: ``[classes]`` int64, images per class.
    """

    def __init__(self, dataset: ShardDataset, split: Split, entry: SplitEntry) -> None:
        self.dataset = dataset
        self.split = split
        self.names = tuple(c.name for c in entry.classes)
        self.counts = np.array([c.rows for c in entry.classes], np.int64)
        self._views = [_open_checked(dataset, split, shard).x for shard in entry.shards]
        self._shard = np.repeat(np.arange(len(entry.shards)), [len(shard.classes) for shard in entry.shards])
        self._start = np.concatenate([_offsets(shard)[:-1] for shard in entry.shards])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @cached_property
    def groups(self) -> dict[str, IntArray]:
        """Positions of the classes by group, such as an alphabet: what their name has before its last ``/``."""
        homes = np.array([name.rpartition("/")[0] for name in self.names])
        return {str(home): np.flatnonzero(homes == home) for home in np.unique(homes)}

    def gather(self, classes: IntArray, rows: IntArray) -> Images:
        """Copy images out of the mapped files.

        Args:
            classes: ``[n]`` class positions, 0 to ``self.classes - 1``.
            rows: ``[n]`` image positions within each class, 0 to ``self.counts[class] - 1``.

        Returns:
            ``[n, *input_shape]`` in the stored dtype, writable.

        Raises:
            DataError: a position does not exist.
        """
        if (
            classes.shape != rows.shape
            or classes.ndim != 1
            or (classes.size and (classes.min() < 0 or classes.max() >= len(self.names)))
            or (rows.size and (rows.min() < 0 or (rows >= self.counts[classes]).any()))
        ):
            raise self._out_of_range(classes, rows)
        index = self._start[classes] + rows
        if len(self._views) == 1:
            picked: Images = self._views[0].take(index, axis=0)
            return picked
        out = np.empty((index.size, *self.dataset.input_shape), self.dataset.dtype)
        home = self._shard[classes]
        for shard in np.unique(home):
            at = np.flatnonzero(home == shard)
            out[at] = self._views[shard].take(index[at], axis=0)
        return out

    def _out_of_range(self, classes: IntArray, rows: IntArray) -> DataError:
        where = f"{self.split} of dataset {self.dataset.name!r}"
        if classes.shape != rows.shape or classes.ndim != 1:
            return DataError(f"gather from {where}: classes {classes.shape} and rows {rows.shape}; expected [n], [n].")
        wrong = classes[(classes < 0) | (classes >= self.classes)]
        if wrong.size:
            return DataError(f"{where} has classes 0 to {self.classes - 1}; class {wrong[0]} was asked for.")
        i = np.flatnonzero((rows < 0) | (rows >= self.counts[classes]))[0]
        return DataError(
            f"class {self.names[classes[i]]!r} in {where} has {self.counts[classes[i]]} images; image {rows[i]} was "
            f"asked for. Lower shots + queries, or leave small classes out."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_split, (str(self.dataset.directory), self.dataset.fingerprint, self.split)

    def __repr__(self) -> str:
        return f"ClassSplit({self.split!r}, classes={self.classes}, images={self.counts.sum()})"


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` counted.

    Args:
        fingerprint: recomputed from the pixels.
        classes: number of classes in each split.
        images: number of images in each split.
        shards: files read.
        bytes: their total size.
    """

    fingerprint: str
    classes: dict[Split, int]
    images: dict[Split, int]
    shards: int
    bytes: int


def verify(directory: Path | str) -> VerifyReport:
    """Read every byte of a dataset and check it against its manifest.

    Checked: file sizes and sha256, Arrow validity, schema, split, class ids, names and offsets, labels, non-finite
    numbers, disjoint splits, unique ids, and the fingerprint from the pixels.

    Raises:
        ManifestError: the manifest is absent, damaged, or does not fit the pixels.
        ShardCorrupt: a shard is damaged.
        SplitLeak: a shard or a class is in the wrong split.
        DataError: an image is not finite.
    """
    dataset = ShardDataset.open(directory)
    splits = dataset.manifest.splits
    ids = [c.id for entry in splits.values() for c in entry.classes]
    if len(set(ids)) != len(ids):
        raise ManifestError(f"{dataset.directory / FILE_NAME}: class ids repeat. Build the dataset again.")
    for split, entry in splits.items():
        content = hashlib.sha256()
        for shard in entry.shards:
            content.update(pixel_bytes(_verify_shard(dataset, split, shard)))
        if content.hexdigest() != entry.content_sha256:
            raise ManifestError(
                f"{dataset.directory / FILE_NAME}: the pixels of {split} do not give the content_sha256 it states: "
                f"the manifest belongs to another build. Build the dataset again."
            )
    return VerifyReport(
        fingerprint=fingerprint_of(dataset.manifest.dtype, dataset.input_shape, splits),
        classes={split: len(entry.classes) for split, entry in splits.items()},
        images={split: sum(c.rows for c in entry.classes) for split, entry in splits.items()},
        shards=sum(len(entry.shards) for entry in splits.values()),
        bytes=sum(shard.bytes for entry in splits.values() for shard in entry.shards),
    )


def inspect(directory: Path | str) -> dict[str, Any]:
    """A JSON-ready summary of a dataset; no pixel is read.

    Returns:
        ``name, directory, fingerprint, input_shape, dtype, classes, images, bytes, splits, licence, provenance``, where
        ``splits`` has ``classes, images, images_per_class (least and most), shards, bytes`` for all three splits.

    Raises:
        ManifestError, ShardCorrupt, SplitLeak: as :meth:`ShardDataset.open`.
    """
    dataset = ShardDataset.open(directory)
    splits = {}
    for split in SPLITS:
        entry = dataset.manifest.splits.get(split)
        shards = entry.shards if entry else ()
        rows = [c.rows for shard in shards for c in shard.classes]
        splits[split] = {
            "classes": len(rows),
            "images": sum(rows),
            "images_per_class": [min(rows), max(rows)] if rows else [0, 0],
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
        }
    return {
        "name": dataset.name,
        "directory": str(dataset.directory),
        "fingerprint": dataset.fingerprint,
        "input_shape": list(dataset.input_shape),
        "dtype": str(dataset.dtype),
        **{key: sum(s[key] for s in splits.values()) for key in ("classes", "images", "bytes")},
        "splits": splits,
        "licence": dataset.manifest.licence,
        "provenance": dataset.manifest.provenance,
    }


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
    for partial in directory.glob(f".{FILE_NAME}.*"):
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


def _check_size(path: Path, shard: ShardEntry) -> None:
    fix = "Copy the file again from its source, or build the dataset again."
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardCorrupt(f"{path} is in the manifest but cannot be found: {error.strerror}. {fix}") from None
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "altered"
        raise ShardCorrupt(f"{path} is {kind}: it has {size} bytes, the manifest says {shard.bytes}. {fix}")


def _offsets(shard: ShardEntry) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(c.rows for c in shard.classes)], dtype=np.int64)


def _open_checked(dataset: ShardDataset, split: Split, shard: ShardEntry) -> Shard:
    """Map a shard and compare what it says about itself with what the manifest says about it."""
    path = dataset.directory / shard.path
    opened = open_shard(path, dataset.manifest.dtype, dataset.input_shape)
    header = opened.header
    if header.split != split:
        raise SplitLeak(
            f"{path} is a shard of {header.split}, but the manifest lists it under {split}: using it would leak "
            f"classes between splits. Put the right file there, or build the dataset again."
        )
    expected = ShardHeader(
        split, tuple(c.id for c in shard.classes), tuple(c.name for c in shard.classes), tuple(_offsets(shard).tolist())
    )
    if header != expected:
        raise ShardCorrupt(
            f"{path} holds {len(header.names)} classes from {header.names[:1]}, the manifest says "
            f"{len(expected.names)} from {expected.names[:1]}, or their ids or rows differ: the file belongs to "
            f"another build. Copy the file again from its source, or build the dataset again."
        )
    return opened


def _verify_shard(dataset: ShardDataset, split: Split, shard: ShardEntry) -> Images:
    """All checks of one shard; returns its images."""
    path = dataset.directory / shard.path
    fix = "Copy the file again from its source, or build the dataset again."
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ShardCorrupt(f"{path} cannot be read: {error.strerror}. Fix its permissions. {fix}") from None
    if found != shard.sha256:
        # Its own metadata may still be readable and tell more than a hash does: a shard of another split.
        _open_checked(dataset, split, shard)
        raise ShardCorrupt(
            f"{path} was altered: its sha256 is {found[:12]}..., the manifest says {shard.sha256[:12]}.... {fix}"
        )
    opened = _open_checked(dataset, split, shard)
    try:
        opened.batch.validate(full=True)
    except ValueError as error:
        raise ShardCorrupt(f"{path} is not valid Arrow data: {error}. {fix}") from None
    if not np.array_equal(opened.y, np.repeat(opened.header.ids, np.diff(opened.header.offsets))):
        raise ShardCorrupt(f"{path}: the labels in column y do not follow its class offsets. {fix}")
    if opened.x.dtype == np.float32 and not np.isfinite(opened.x).all():
        raise DataError(f"{path} holds NaN or infinite numbers; expected finite ones. Build the dataset again.")
    return opened.x


def _reopen(directory: str, fingerprint: str) -> ShardDataset:
    dataset = ShardDataset.open(directory)
    if dataset.fingerprint != fingerprint:
        raise DataError(
            f"{directory} holds another dataset here (fingerprint {dataset.fingerprint[:12]}...) than in the process "
            f"that sent it ({fingerprint[:12]}...). Put the same dataset at that path on every machine."
        )
    return dataset


def _reopen_split(directory: str, fingerprint: str, split: Split) -> ClassSplit:
    return _reopen(directory, fingerprint).split(split)
