"""Progress events for people, and the interface of a metrics log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class Event:
    """Something that a watcher of the run may show.

    Args:
        kind: ``"message"``, ``"step"``, ``"validation"``, or ``"phase"``: a part of the work that begins now and
            may take seconds, without steps to count.
        step: outer steps done.
        text: for a person.
        values: numbers, by metric name.
        of: outer steps there will be, for ``"step"``.
    """

    kind: Literal["message", "phase", "step", "validation"]
    step: int
    text: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    of: int = 0


class Log(Protocol):
    """Where numbers go by step; :class:`distmeta.tracking.tracker.Tracker` is one."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers."""

    def truncate(self, step: int) -> None:
        """Forget what was recorded after ``step``."""


class NullLog:
    """A log that keeps nothing.

    Example:
        >>> NullLog().metrics(1, {"train/loss": 0.5})
    """

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Drop the numbers."""

    def truncate(self, step: int) -> None:
        """There is nothing to forget."""
