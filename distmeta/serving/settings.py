"""The settings of a service: its limits, how it batches, how long it keeps a task."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from distmeta.config import Config


class ServiceSettings(Config):
    """What one service accepts, and how it computes.

    Args:
        max_body: MiB of a request's body, at most.
        max_pixels: pixels of all pictures of one request together, at most. A small file can claim any size; its
            pictures are counted before one is decoded.
        max_classes: classes of one task, at most.
        max_examples: examples of one support set, and queries of one request, at most.
        max_tasks: learned tasks that are kept, at most; the one that was not used for longest goes first.
        max_kept: MiB of the learned tasks that are kept, at most.
        keep_minutes: how long a learned task is kept after its last use.
        batch: whether tasks that arrive together are learned in one vectorised call.
        max_batch: tasks in one call, at most.
        batch_wait_ms: how long a task waits for others, once tasks arrive together; a lone client never waits.
        body_seconds: how long the body of a request may take to arrive.
        token: if given, a request needs the header ``Authorization: Bearer TOKEN``.

    Example:
        >>> ServiceSettings(max_tasks=10).max_body_bytes
        33554432
    """

    max_body: PositiveFloat = 32
    max_pixels: PositiveInt = 50_000_000
    max_classes: int = Field(100, ge=2)
    max_examples: PositiveInt = 500
    max_tasks: PositiveInt = 1000
    max_kept: PositiveFloat = 1024
    keep_minutes: PositiveFloat = 60
    batch: bool = True
    max_batch: PositiveInt = 32
    batch_wait_ms: NonNegativeFloat = 10
    body_seconds: PositiveFloat = 30
    token: str | None = Field(None, repr=False)

    @property
    def max_body_bytes(self) -> int:
        """:attr:`max_body` in bytes."""
        return int(self.max_body * 2**20)


__all__ = ["ServiceSettings"]
