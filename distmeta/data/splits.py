"""Assign classes to splits, by percentages or by lists of names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from distmeta.data.manifest import check_disjoint, check_split
from distmeta.errors import DataError
from distmeta.seeding import rng
from distmeta.types import SPLITS, Split


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
    # Largest remainder: each split is within one class of its exact share, and rounding loses no class.
    exact = [len(names) * part / 100 for part in parts]
    sizes = [int(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda i: (sizes[i] - exact[i], i))
    for i in by_remainder[: len(names) - sum(sizes)]:
        sizes[i] += 1
    for split, part, size in zip(SPLITS, parts, sizes, strict=True):
        if part and not size:
            raise DataError(
                f"{len(names)} classes divided {percentages} leave none for {split}; expected at least one. "
                f"Give more classes, or other percentages."
            )
    shuffled = [str(name) for name in rng(seed, "class split").permutation(sorted(names))]
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    divided = zip(SPLITS, ends, sizes, strict=True)
    return {split: sorted(shuffled[end - size : end]) for split, end, size in divided if size}


def parse_percentages(percentages: str) -> list[int]:
    """The three numbers of ``"a/b/c"``.

    Raises:
        DataError: they are not three whole numbers that sum to 100.

    Example:
        >>> parse_percentages("64/16/20")
        [64, 16, 20]
    """
    parts = [int(part) for part in percentages.split("/")] if re.fullmatch(r"\d+/\d+/\d+", percentages) else []
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
