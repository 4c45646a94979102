"""Standard output for results, standard error for people: ``console.out`` and ``console.err``.

Both are made when they are first used: ``distmeta --help`` and completion print without rich.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    out: Console
    err: Console

_stdout: TextIO | None = None


def results_go_to(stream: TextIO) -> None:
    """Write results to ``stream``, also while ``--json`` redirects the standard output of all other writers."""
    global _stdout  # noqa: PLW0603 (one process has one standard output)
    _stdout = stream
    globals().pop("out", None)


def print_json(values: Any) -> None:
    """Write one JSON object to standard output."""
    (_stdout or sys.stdout).write(json.dumps(values, indent=1) + "\n")


def rows(cells: Sequence[Sequence[str]]) -> None:
    """Write aligned columns that are never cut: a log or a pipe has 80 columns for rich, numbers need them all."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.modules[__name__].out.print(f"  {text}".rstrip())


def note(text: str) -> None:
    """Write a note to standard error, where there is one."""
    if text:
        sys.modules[__name__].err.print(f"note: {text}")


def flush() -> None:
    """Show what was written: a command that goes on for hours is read through a pipe, too."""
    (_stdout or sys.stdout).flush()


def __getattr__(name: str) -> Any:
    if name not in ("out", "err"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rich.console import Console

    where = {"stderr": True} if name == "err" else {"file": _stdout}
    made = Console(highlight=False, soft_wrap=True, markup=False, **where)
    globals()[name] = made
    return made
