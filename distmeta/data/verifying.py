"""Check every byte of a dataset against its manifest; list what it holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from distmeta.data.dataset import FIX, FileState, ShardDataset, open_whole, state_of
from distmeta.data.manifest import ShardEntry, fingerprint_of
from distmeta.data.shard_file import Images, pixel_bytes
from distmeta.errors import DataError, ManifestError, ShardCorrupt
from distmeta.files import MANIFEST
from distmeta.types import SPLITS, Split


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
    return _verify(ShardDataset.open(directory), again=True)


def verify_once(directory: Path | str) -> VerifyReport:
    """:func:`verify`, without reading again what this process has verified and what has not changed since.

    For runs and evaluations, which are checked each time they begin: a sweep over five settings reads the data once.
    Sizes and times of the manifest and of every shard tell whether something was changed.

    Raises:
        DataError: as :func:`verify`.
    """
    dataset = ShardDataset.open(directory)
    names = [shard.path for entry in dataset.manifest.splits.values() for shard in entry.shards]
    try:
        states = tuple(state_of(dataset.directory / name) for name in (MANIFEST, *names))
    except OSError as error:
        raise DataError(f"{dataset.directory} was changed while it was read: {error}. {FIX}") from None
    return _verify_unchanged(str(dataset.directory), states)


@lru_cache(maxsize=64)
def _verify_unchanged(directory: str, states: tuple[FileState, ...]) -> VerifyReport:
    return _verify(ShardDataset.open(directory), again=False)


def _verify(dataset: ShardDataset, *, again: bool) -> VerifyReport:
    """All checks; ``again``: see :func:`distmeta.data.dataset.open_whole`."""
    splits = dataset.manifest.splits
    ids = [c.id for entry in splits.values() for c in entry.classes]
    if len(set(ids)) != len(ids):
        raise ManifestError(f"{dataset.directory / MANIFEST}: class ids repeat. Build the dataset again.")
    for split, entry in splits.items():
        content = hashlib.sha256()
        for shard in entry.shards:
            content.update(pixel_bytes(_verify_shard(dataset, split, shard, again)))
        if content.hexdigest() != entry.content_sha256:
            raise ManifestError(
                f"{dataset.directory / MANIFEST}: the pixels of {split} do not give the content_sha256 it states: "
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


def _verify_shard(dataset: ShardDataset, split: Split, shard: ShardEntry, again: bool) -> Images:
    """All checks of one shard; returns its images."""
    path = dataset.directory / shard.path
    opened = open_whole(dataset, split, shard, again=again)
    try:
        opened.batch.validate(full=True)
    except ValueError as error:
        raise ShardCorrupt(f"{path} is not valid Arrow data: {error}. {FIX}") from None
    if not np.array_equal(opened.y, np.repeat(opened.header.ids, np.diff(opened.header.offsets))):
        raise ShardCorrupt(f"{path}: the labels in column y do not follow its class offsets. {FIX}")
    if opened.x.dtype == np.float32 and not np.isfinite(opened.x).all():
        raise DataError(f"{path} holds NaN or infinite numbers; expected finite ones. Build the dataset again.")
    return opened.x
