"""Remarks on the making of a dataset: files left out, identical pictures.

A manifest's provenance keeps these under ``"left out"`` and ``"identical"``; :func:`remarks` puts them into lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from distmeta.data.pictures import Pixels
from distmeta.errors import SplitLeak
from distmeta.types import Split

NAMED = 100
"""Names that are kept of each kind; all are counted."""

WITHIN, BETWEEN, ACROSS = "within a class", "in two classes", "across splits"


class Tally:
    """Count names, and keep the first of them.

    Example:
        >>> tally = Tally()
        >>> for name in "abcde":
        ...     tally.add(name)
        >>> tally.text()
        'a, b, c and 2 more'
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(name.encode(errors="backslashreplace").decode())  # a path may hold what is no text

    def text(self) -> str:
        """First 3 and N more."""
        return _text(self.count, self.first)


def record(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """JSON-ready counts and first names by kind, without kinds that did not occur."""
    return {kind: {"count": tally.count, "first": tally.first} for kind, tally in tallies.items() if tally.count}


class Identical:
    """Find pictures with equal pixels; 16 bytes are kept of each.

    Example:
        >>> import numpy as np
        >>> seen, blank = Identical(), np.zeros((1, 2, 2), np.uint8)
        >>> seen.add("meta_train", "cat", "cat/1.png", blank)
        >>> seen.add("meta_test", "dog", "dog/1.png", blank)
        >>> seen.check(allowed=False)
        Traceback (most recent call last):
        ...
        distmeta.errors.SplitLeak: 1 picture has the same pixels as one of another split: cat/1.png = dog/1.png. ...
    """

    def __init__(self) -> None:
        self.tallies = {WITHIN: Tally(), BETWEEN: Tally(), ACROSS: Tally()}
        self._first: dict[bytes, tuple[Split, str, str]] = {}

    def add(self, split: Split, member: str, name: str, pixels: Pixels) -> None:
        """Look a picture up among those before it, and keep it.

        Args:
            split: of the picture.
            member: the class of the picture.
            name: of the picture.
            pixels: as they are stored.
        """
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        first = self._first.get(digest)
        if first is None:
            self._first[digest] = split, member, name
            return
        kind = ACROSS if first[0] != split else BETWEEN if first[1] != member else WITHIN
        self.tallies[kind].add(f"{first[2]} = {name}")

    def check(self, *, allowed: bool) -> None:
        """Refuse pictures that are in two splits.

        Raises:
            SplitLeak: there are some, and they are not allowed.
        """
        across = self.tallies[ACROSS]
        if across.count and not allowed:
            have = "picture has" if across.count == 1 else "pictures have"
            raise SplitLeak(
                f"{across.count:,} {have} the same pixels as one of another split: {across.text()}. A test on pictures "
                "of the training shows nothing. Remove one of each pair, or allow them: --allow-duplicates "
                "(allow_duplicates=True)."
            )

    def record(self) -> dict[str, Any]:
        """JSON-ready counts and first pairs by kind."""
        return record(self.tallies)


def remarks(provenance: Mapping[str, Any]) -> list[str]:
    """Lines on what was left out of a dataset, and which of its pictures are identical.

    Args:
        provenance: of a manifest.

    Example:
        >>> remarks({"left out": {"corrupt": {"count": 5, "first": ["a", "b", "c", "d", "e"]}}})
        ['left out, corrupt: 5 (a, b, c and 2 more)']
    """
    lines = []
    for key, text in (("left out", "left out, {}"), ("identical", "warning: identical pictures {}")):
        kinds = provenance.get(key)
        for kind, found in kinds.items() if isinstance(kinds, Mapping) else ():
            if isinstance(found, Mapping):
                count, first = int(found.get("count", 0)), [str(name) for name in found.get("first", ())]
                lines.append(f"{text.format(kind)}: {count:,} ({_text(count, first)})")
    return lines


def _text(count: int, first: list[str]) -> str:
    shown = ", ".join(first[:3])
    return f"{shown} and {count - 3:,} more" if count > 3 else shown
