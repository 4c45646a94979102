"""What a run tells while it goes on: events for a person, numbers for a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class Event:
    """Something a watcher of the run may show.

    Args:
        kind: ``"message"``, ``"step"`` or ``"validation"``.
        step: outer steps done.
        text: for a person.
        values: numbers, by metric name.
        of: outer steps there will be, for ``"step"``.
    """

    kind: Literal["message", "step", "validation"]
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
