"""A dataset of classes on disk: write it once, then gather images from memory-mapped Arrow shards.

::

    DIR/manifest.json            written last: the commit point
    DIR/meta_train/00000.arrow   rows sorted by class, uncompressed
    DIR/meta_validation/...
    DIR/meta_test/...

An interrupted build leaves no manifest, so it leaves no dataset; building again into the same folder starts afresh. No
image is read from a shard before every byte of that shard was compared with the sha256 in the manifest, once in a
process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.data.manifest import (
    Manifest,
    ShardEntry,
    SplitEntry,
    check_split,
    read_manifest,
)
from distmeta.data.shard_file import Images, Shard, ShardHeader, open_shard
from distmeta.data.writer import IntArray
from distmeta.errors import DataError, ShardCorrupt, SplitLeak
from distmeta.files import sha256_of
from distmeta.types import Split

FIX = "Copy the file again from its source, or build the dataset again."


class ShardDataset:
    """A dataset on disk, opened for reading. Make one with :meth:`open`.

    Opening reads the manifest and the file sizes only; a split is checked byte by byte and mapped on first use.
    It pickles as its path: the other process opens it again and checks that it is the same dataset.

    Attributes:
        directory: absolute path.
        manifest: what ``manifest.json`` says.

    Example:
        >>> import tempfile
        >>> from distmeta.data import from_arrays, verify
        >>> with tempfile.TemporaryDirectory() as out:
        ...     x = np.arange(50 * 64, dtype=np.float32).reshape(50, 1, 8, 8)
        ...     manifest = from_arrays(x, np.repeat(np.arange(5), 10), out, splits="60/20/20")
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
        """The classes of one split, checked and mapped on first use (about 2 s per GB, once in a process).

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
        self._views = [open_whole(dataset, split, shard).x for shard in entry.shards]
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
        self._require_present(classes, rows)
        found = self._empty(rows.size)
        self._take(classes, rows, found)
        return found

    def gather_parts(self, classes: IntArray, rows: IntArray, most_bytes: int) -> Iterator[tuple[slice, Images]]:
        """Copy images out of the mapped files, a part at a time.

        Args:
            classes: ``[n]``, as for :meth:`gather`.
            rows: ``[n]``.
            most_bytes: of a part; it has one image at least.

        Yields:
            Which of the n images, in order, and what :meth:`gather` returns for them; the next part overwrites it.

        Raises:
            DataError: a position does not exist; before the first part.
        """
        self._require_present(classes, rows)
        each = max(1, most_bytes // max(1, math.prod(self.dataset.input_shape) * self.dataset.dtype.itemsize))
        memory = self._empty(min(each, rows.size))
        for start in range(0, rows.size, each):
            part = slice(start, start + each)
            found = memory[: rows[part].size]
            self._take(classes[part], rows[part], found)
            yield part, found

    def _empty(self, count: int) -> Images:
        return np.empty((count, *self.dataset.input_shape), self.dataset.dtype)

    def _take(self, classes: IntArray, rows: IntArray, out: Images) -> None:
        index = self._start[classes] + rows
        if len(self._views) == 1:
            # The positions are checked; with mode="raise", numpy would write into memory of its own first.
            self._views[0].take(index, axis=0, out=out, mode="clip")
            return
        home = self._shard[classes]
        for shard in np.unique(home):
            at = np.flatnonzero(home == shard)
            out[at] = self._views[shard].take(index[at], axis=0)

    def _require_present(self, classes: IntArray, rows: IntArray) -> None:
        if (
            classes.shape != rows.shape
            or classes.ndim != 1
            or (classes.size and (classes.min() < 0 or classes.max() >= len(self.names)))
            or (rows.size and (rows.min() < 0 or (rows >= self.counts[classes]).any()))
        ):
            raise self._out_of_range(classes, rows)

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


FileState = tuple[str, int, int, int]
"""Path, size, and the times of the last change of content and of the file's entry, in ns."""


def state_of(path: Path) -> FileState:
    """Size and times of a file, which show without reading whether it was changed."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_whole(dataset: ShardDataset, split: Split, shard: ShardEntry, *, again: bool = False) -> Shard:
    """Map a shard after its bytes were compared with the manifest's sha256.

    Args:
        dataset: the dataset.
        split: the split that lists the shard.
        shard: its entry in the manifest.
        again: read the bytes also where this process has read them and the file was not changed since.

    Raises:
        ShardCorrupt: the file cannot be read, or is not what the manifest has.
        SplitLeak: it is a shard of another split.
    """
    path = dataset.directory / shard.path
    try:
        state = state_of(path)
        if again or _WHOLE.get(state) != shard.sha256:
            found = sha256_of(path)
            if found != shard.sha256:
                # Its own metadata may still be readable and tell more than a hash does: a shard of another split.
                _open_checked(dataset, split, shard)
                seen, expected = f"{found[:12]}...", f"{shard.sha256[:12]}..."
                raise ShardCorrupt(f"{path} was altered: its sha256 is {seen}, the manifest says {expected}. {FIX}")
            _WHOLE[state] = found
    except OSError as error:
        raise ShardCorrupt(f"{path} cannot be read: {error.strerror}. Fix its permissions. {FIX}") from None
    return _open_checked(dataset, split, shard)


_WHOLE: dict[FileState, str] = {}
"""sha256 of the shards that this process has read and found whole."""


def _check_size(path: Path, shard: ShardEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardCorrupt(f"{path} is in the manifest but cannot be found: {error.strerror}. {FIX}") from None
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "altered"
        raise ShardCorrupt(f"{path} is {kind}: it has {size} bytes, the manifest says {shard.bytes}. {FIX}")


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
            f"another build. {FIX}"
        )
    return opened


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
