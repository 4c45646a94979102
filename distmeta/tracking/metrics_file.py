"""``metrics.jsonl``: the numbers of a run, one row per outer step, written before they go anywhere else.

Each row ends with a checksum of itself, so that damage is found row by row. Rows of earlier versions have none.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from distmeta.errors import RuntimeFailure
from distmeta.files import write_whole

METRICS_FILE = "metrics.jsonl"

_CHECK = b', "crc32": "'
_ROW = re.compile(rb'(.*?, "crc32": "[0-9a-f]{8}"}).?', re.DOTALL)
_NOT_FINITE = ("nan", "inf", "-inf")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, oldest first; a last line that a killed process left torn is dropped.

    Args:
        run_dir: directory of the run; one without the file has no rows.

    Raises:
        RuntimeFailure: a line before the last is damaged.
    """
    path = Path(run_dir) / METRICS_FILE
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        row = parse_row(line)
        if row is None:
            raise RuntimeFailure(f"{path}, line {number}, is damaged: {line[:60]!r}. Remove that line.")
        rows.append(row)
    return rows


def format_row(step: int, time: float, values: Mapping[str, float]) -> bytes:
    r"""One line of the file.

    Args:
        step: the outer step.
        time: seconds since 1970.
        values: numbers by name; those that are not finite are written by their names, since JSON has none.

    Example:
        >>> line = format_row(3, 0.0, {"train/loss": math.inf})
        >>> line
        b'{"step": 3, "time": 0.0, "train/loss": "inf", "crc32": "96b7706a"}\n'
        >>> parse_row(line)
        {'step': 3, 'time': 0.0, 'train/loss': inf}
    """
    numbers = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}
    text = json.dumps({"step": step, "time": time, **numbers}).encode()[:-1]
    return text + _CHECK + b'%08x"}\n' % zlib.crc32(text)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of one line: ``step``, ``time`` and the numbers by name; None where the line is damaged."""
    text, check, digits = line.rpartition(_CHECK)
    if check and digits != b'%08x"}\n' % zlib.crc32(text):
        return None
    try:
        row = json.loads(text + b"}" if check else line)
        values = {key: _number(value) for key, value in row.items() if key != "step"}
        return {"step": int(row["step"]), "time": values.pop("time"), **values}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _number(value: Any) -> float:
    # A checksum whose key is damaged is a string too, and may look like a number.
    if isinstance(value, str) and value not in _NOT_FINITE:
        raise ValueError(value)
    return float(value)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines that end, and what of the last one is whole though its end is lost; none of a file that is not there.

    A row whose checksum fits is whole: only the newline after it was damaged, or not written any more.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
                continue
            at = 0
            while (match := _ROW.match(line, at)) and parse_row(row := match[1] + b"\n") is not None:
                yield row
                at = match.end()


def open_for_append(path: Path) -> BinaryIO:
    """Opened after cutting off a torn last line, or ending a whole one: the next row must not be glued to it."""
    if path.exists() and (content := b"".join(whole_lines(path))) != path.read_bytes():
        write_whole(path, content)
    return path.open("ab")
