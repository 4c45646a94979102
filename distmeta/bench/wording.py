"""Words for people: numbers of things, and settings in a title."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 32


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural except for 1.

    Example:
        >>> counted(1, "thread"), counted(2, "thread"), counted(0, "inner step")
        ('1 thread', '2 threads', '0 inner steps')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings on one line; only the end of a long value is kept, which is the name of a file or folder.

    Example:
        >>> settings_text({"learner.gradient": "mixed", "tasks.ways": 20})
        'learner.gradient=mixed, tasks.ways=20'
    """
    return ", ".join(f"{key}={_short(str(value))}" for key, value in settings.items())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"...{text[3 - _LONGEST :]}"
