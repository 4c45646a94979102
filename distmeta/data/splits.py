"""Assign classes to splits, by percentages or by lists of names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from distmeta.data.manifest import check_disjoint, check_split
from distmeta.errors import DataError
from distmeta.seeding import rng
from distmeta.types import SPLITS, Split

_PERCENTAGES = re.compile(r"\d+/\d+/\d+")
_USUAL = ("64/16/20", "60/20/20", "50/25/25", "40/30/30", "34/33/33")
"""Divisions to advise, the larger training splits first."""


def split_by_percent(names: Sequence[str], percentages: str, seed: int) -> dict[Split, list[str]]:
    """Divide classes at random; the result depends on the names and the seed, not on the order of the names.

    Args:
        names: class names, each once.
        percentages: ``"a/b/c"`` for meta_train, meta_validation and meta_test; whole numbers that sum to 100.
        seed: seed of the division.

    Returns:
        Split to sorted names; a split of 0 percent is left out.

    Raises:
        DataError: the percentages are malformed, or a split that should have classes would get none.

    Example:
        >>> split_by_percent(["a", "b", "c", "d", "e"], "60/20/20", seed=0)
        {'meta_train': ['b', 'c', 'd'], 'meta_validation': ['a'], 'meta_test': ['e']}
    """
    parts = parse_percentages(percentages)
    sizes = _sizes(len(names), parts)
    for split, part, size in zip(SPLITS, parts, sizes, strict=True):
        if part and not size:
            other = advised_percentages(len(names), 2)
            raise DataError(
                f"{len(names)} classes divided {percentages} leave none for {split}; expected at least one. "
                f"Give more classes, or other percentages{f', such as {other}' if other else ''}."
            )
    shuffled = [str(name) for name in rng(seed, "class split").permutation(sorted(names))]
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    divided = zip(SPLITS, ends, sizes, strict=True)
    return {split: sorted(shuffled[end - size : end]) for split, end, size in divided if size}


def advised_percentages(classes: int, fewest: int) -> str | None:
    """Percentages that leave every split enough classes; ``None`` where none do.

    Args:
        classes: number of classes in all.
        fewest: classes that each split needs.

    Example:
        >>> advised_percentages(8, 2), advised_percentages(8, 5)
        ('50/25/25', None)
    """
    for percentages in _USUAL:
        if min(_sizes(classes, parse_percentages(percentages))) >= fewest:
            return percentages
    return None


def too_small(splits: Mapping[Split, int], provenance: Mapping[str, Any]) -> str:
    """A warning where a split has a single class: no task can be drawn from it. Empty otherwise.

    Args:
        splits: number of classes of each split.
        provenance: of the dataset.

    Example:
        >>> too_small({"meta_train": 5, "meta_validation": 1, "meta_test": 2}, {"split": "64/16/20"})[:58]
        'warning: meta_validation has 1 class, of which no task can'
    """
    single = [split for split, classes in splits.items() if classes == 1]
    if not single:
        return ""
    have = "has 1 class" if len(single) == 1 else "have 1 class each"
    return (
        f"warning: {' and '.join(single)} {have}, of which no task can be drawn: each split needs at least as many "
        f"classes as a task has ways, 2 or more. {divide_again(splits, 2, provenance)}"
    )


def divide_again(splits: Mapping[Split, int], fewest: int, provenance: Mapping[str, Any]) -> str:
    """A sentence on how to build a dataset whose splits all have enough classes.

    Args:
        splits: number of classes of each split, as it is now.
        fewest: classes that each split needs.
        provenance: of the dataset.

    Example:
        >>> divide_again({"meta_train": 5, "meta_validation": 1, "meta_test": 2}, 2, {"split": "64/16/20"})
        'Building the data again with --split 50/25/25 gives each split at least 2 of the 8 classes.'
    """
    classes = sum(splits.values())
    advised = advised_percentages(classes, fewest)
    if advised is None:
        return f"Add classes: {classes} are too few for {fewest} in each of three splits."
    given = next((str(provenance[key]) for key in ("split", "splits") if key in provenance), "")
    if not _PERCENTAGES.fullmatch(given):  # lists, or split folders
        return f"Moving classes between the splits helps too: {classes} are enough for {fewest} in each."
    option = "--split " if "split" in provenance else "splits="
    return (
        f"Building the data again with {option}{advised} gives each split at least {fewest} of the {classes} classes."
    )


def parse_percentages(percentages: str) -> list[int]:
    """The three numbers of ``"a/b/c"``.

    Raises:
        DataError: they are not three whole numbers that sum to 100.

    Example:
        >>> parse_percentages("64/16/20")
        [64, 16, 20]
    """
    parts = [int(part) for part in percentages.split("/")] if _PERCENTAGES.fullmatch(percentages) else []
    if sum(parts) != 100:
        raise DataError(
            f"split {percentages!r} is not three whole percentages that sum to 100; expected "
            f"meta_train/meta_validation/meta_test, for example 64/16/20."
        )
    return parts


def split_by_lists(names: Sequence[str], lists: Mapping[str, Sequence[str]], source: object) -> dict[Split, list[str]]:
    """Check lists of class names against the classes of the data.

    Args:
        names: the classes of the data.
        lists: split to class names; every class must be in exactly one.
        source: origin of the lists, for error messages.

    Returns:
        Split to names in the order given; empty lists are left out.

    Raises:
        SplitLeak: a class is in two splits.
        DataError: an unknown split, a class that does not exist, or one that is in no list.

    Example:
        >>> split_by_lists(["a", "b"], {"meta_train": ["a"], "meta_test": ["b"]}, "lists")
        {'meta_train': ['a'], 'meta_test': ['b']}
    """
    chosen = {check_split(split): list(members) for split, members in lists.items() if members}
    check_disjoint(chosen, source)
    listed = {name for members in chosen.values() for name in members}
    absent = sorted(listed - set(names))
    if absent:
        raise DataError(f"{source} lists class {absent[0]!r}, which is not in the data. Correct the name or remove it.")
    unlisted = sorted(set(names) - listed)
    if unlisted:
        raise DataError(
            f"{source} leaves out {len(unlisted)} of {len(names)} classes, for example {unlisted[0]!r}; expected each "
            f"class in one split. Add them to a split, or take them out of the data."
        )
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _sizes(classes: int, parts: Sequence[int]) -> list[int]:
    """Classes of each split; largest remainder: each is within one class of its exact share, and none is lost."""
    exact = [classes * part / 100 for part in parts]
    sizes = [int(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda i: (sizes[i] - exact[i], i))
    for i in by_remainder[: classes - sum(sizes)]:
        sizes[i] += 1
    return sizes
