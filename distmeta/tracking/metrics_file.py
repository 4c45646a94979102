"""``metrics.jsonl``: the numbers of a run, one row per outer step, written before they go anywhere else."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distmeta.errors import RuntimeFailure

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, oldest first; a last line that a killed process left torn is dropped.

    Args:
        run_dir: directory of the run; one without the file has no rows.

    Raises:
        RuntimeFailure: a line before the last is not a JSON object.
    """
    path = Path(run_dir) / METRICS_FILE
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        row = parse_row(line)
        if row is None:
            raise RuntimeFailure(f"{path}, line {number}, is not a row of metrics: {line[:60]!r}. Remove that line.")
        rows.append(row)
    return rows


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of one line: ``step``, ``time`` and the numbers by name; None when it is not one."""
    try:
        row = json.loads(line)
        values = {key: float(value) for key, value in row.items() if key != "step"}
        return {"step": int(row["step"]), "time": values.pop("time"), **values}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def to_json(value: float) -> float | str:
    """The value, or its name where it is not finite."""
    # JSON has no NaN: Python's spelling of it would make the file unreadable for others.
    return value if math.isfinite(value) else str(value)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that end; none of a file that is not there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def open_for_append(path: Path) -> BinaryIO:
    """Opened after cutting off a torn last line: the next row must not be glued to it."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(sum(len(line) for line in whole_lines(path)))
    return path.open("ab")
