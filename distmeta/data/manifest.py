"""``manifest.json``: what a dataset holds, written last, so that a dataset exists if and only if its manifest does.

It has the sha256 of every shard and, as its last value, that of itself (:func:`distmeta.files.write_record`); manifests
of earlier versions have none and are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import pydantic

from distmeta.config import digest
from distmeta.errors import DataError, FileDamaged, ManifestError, SplitLeak
from distmeta.files import MANIFEST, read_record, write_record
from distmeta.types import SPLITS, Split

FORMAT = "distmeta-shards"
VERSION = 1
REBUILD = "Restore the file from a copy, or build the dataset again."


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class ClassEntry(_Record):
    """One class inside a shard.

    Args:
        id: global class id, unique across the splits; the value of column ``y``.
        name: unique across the splits.
        rows: number of images.
    """

    id: pydantic.NonNegativeInt
    name: str
    rows: pydantic.PositiveInt


class ShardEntry(_Record):
    """One Arrow file.

    Args:
        path: relative to the dataset's directory, with ``/``.
        bytes: size of the file.
        sha256: of the file, 64 hex digits.
        classes: in row order; class i starts where class i-1 ends.
    """

    path: str
    bytes: pydantic.PositiveInt
    sha256: str
    classes: tuple[ClassEntry, ...]

    @property
    def rows(self) -> int:
        """Number of images in the file."""
        return sum(entry.rows for entry in self.classes)


class SplitEntry(_Record):
    """The classes of one split.

    Args:
        content_sha256: sha256 over the pixels of the split, class after class.
        shards: in class order.
    """

    content_sha256: str
    shards: tuple[ShardEntry, ...]

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """All classes of the split, in order."""
        return tuple(entry for shard in self.shards for entry in shard.classes)


class Manifest(_Record):
    """The whole of ``manifest.json``; only splits that have classes are listed.

    Args:
        name: of the dataset.
        licence: of the images, in words.
        provenance: where they come from and how they were made; anything that JSON can say.
        dtype: of one number, ``"uint8"`` (0..255) or ``"float32"``.
        input_shape: of one image, for example ``(1, 28, 28)``.
        fingerprint: :func:`fingerprint_of` the content, 64 hex digits.
        splits: split name to its classes and shards.
    """

    format: Literal["distmeta-shards"] = "distmeta-shards"
    version: Literal[1] = 1
    name: str
    licence: str
    provenance: dict[str, Any]
    dtype: Literal["uint8", "float32"]
    input_shape: tuple[pydantic.PositiveInt, ...]
    fingerprint: str
    splits: dict[Split, SplitEntry]


def fingerprint_of(dtype: str, input_shape: tuple[int, ...], splits: Mapping[Split, SplitEntry]) -> str:
    """The identity of a dataset: pixels, class names, row counts and splits, and nothing else.

    File hashes are left out on purpose: the bytes of an Arrow file may depend on the version of pyarrow and on where
    one shard ends and the next begins. Two people who build the same images get the same fingerprint.

    Example:
        >>> fingerprint_of("uint8", (1, 28, 28), {})[:16]
        '08d59e9518add545'
    """
    return digest(
        {
            "format": VERSION,
            "dtype": dtype,
            "input_shape": list(input_shape),
            "splits": {
                split: {"content": entry.content_sha256, "classes": [[c.name, c.rows] for c in entry.classes]}
                for split, entry in splits.items()
            },
        }
    )


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``directory/manifest.json``; the shards are not touched.

    Raises:
        ManifestError: absent, unreadable, damaged, of another version, or not matching its own fingerprint.
        SplitLeak: a class name is in two splits.
    """
    path = directory / MANIFEST
    try:
        values = read_record(path, undigested=True, fix=REBUILD)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(
            f"{directory} holds no finished dataset: there is no {MANIFEST}. "
            f"Build one with: distmeta data build glyphs|omniglot|image-folder --out {directory}"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error}. Restore the file or build the dataset again.") from None
    except FileDamaged as error:
        raise ManifestError(error.message) from None
    manifest = _parse(path, values)
    check_disjoint({split: [c.name for c in entry.classes] for split, entry in manifest.splits.items()}, path)
    expected = fingerprint_of(manifest.dtype, manifest.input_shape, manifest.splits)
    if manifest.fingerprint != expected:
        raise ManifestError(
            f"{path} says fingerprint {manifest.fingerprint[:12]}..., its own content gives {expected[:12]}...: it was "
            f"edited after the build. Build the dataset again; to change classes or splits, change them at the source."
        )
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Commit the dataset: write, fsync, rename. Before the rename there is no dataset, after it a whole one."""
    write_record(directory / MANIFEST, manifest.model_dump(mode="json"))


def check_disjoint(names: Mapping[Split, list[str]], source: object) -> None:
    """Refuse a class name that occurs twice.

    Args:
        names: split to class names.
        source: named in the message.

    Raises:
        SplitLeak: a class is in two splits.
        DataError: a class is twice in one split.

    Example:
        >>> check_disjoint({"meta_train": ["cat"], "meta_test": ["cat"]}, "splits.json")
        Traceback (most recent call last):
        ...
        distmeta.errors.SplitLeak: splits.json: class 'cat' is in meta_train and in meta_test; ...
    """
    seen: dict[str, Split] = {}
    for split, split_names in names.items():
        for name in split_names:
            if name in seen:
                refuse_twice(name, seen[name], split, source)
            seen[name] = split


def refuse_twice(name: str, first: Split, second: Split, source: object) -> NoReturn:
    """Raise the error for a class that is in ``first`` and again in ``second``."""
    if first == second:
        raise DataError(f"{source}: class {name!r} is twice in {first}; expected once. Merge the two, or rename one.")
    raise SplitLeak(
        f"{source}: class {name!r} is in {first} and in {second}; splits must not share a class. "
        f"Keep it in one of them, or rename one if they are different classes."
    )


def check_split(split: str) -> Split:
    """``split`` itself, if it is one of the three names.

    Raises:
        DataError: it is not.

    Example:
        >>> check_split("meta_test")
        'meta_test'
    """
    for known in SPLITS:
        if split == known:
            return known
    raise DataError(f"there is no split {split!r}; expected one of {', '.join(SPLITS)}.")


def _parse(path: Path, values: dict[str, Any]) -> Manifest:
    if values.get("format") != FORMAT:
        raise ManifestError(f"{path} is not a dataset manifest: expected format {FORMAT!r}. Give the dataset's folder.")
    if values.get("version") != VERSION:
        raise ManifestError(
            f"{path} has format version {values.get('version')!r}; this distmeta reads version {VERSION}. "
            f"Build the dataset again with this distmeta, or install the one that wrote it."
        )
    try:
        return Manifest.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {where}: {first['msg']}, found {first['input']!r:.80}. {REBUILD}") from None
