"""What MLflow, its databases and its HTTP client raise, in a few words and with the change that fixes it."""

from __future__ import annotations

import contextlib
import re
import traceback
from dataclasses import dataclass
from pathlib import Path

from distmeta.errors import first_sentence

ERROR_FOLDER = "errors"
"""Where a run directory keeps the full text of what libraries raise; of the tracking store, the last failure."""


@dataclass(frozen=True)
class Refusal:
    """Why MLflow did not take something.

    Args:
        seen: the cause in a few words.
        fix: the change that fixes it, a sentence.
        raw: the full text, without credentials.
    """

    seen: str
    fix: str
    raw: str

    def keep(self, run_dir: Path) -> str:
        """Write the full text into the run directory; returns a sentence that names the file, if the disk takes it."""
        path = run_dir / ERROR_FOLDER / "tracking.txt"
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.raw, encoding="utf-8", errors="backslashreplace")
            return f" Full text: {path}"
        return ""


# What the text contains, what is said of it, and the fix.
_KNOWN = (
    (r"database is locked", "the database is locked", "End the program that holds it, or use an MLflow server."),
    (
        r"unable to open database file|readonly database",
        r"unable to open the database file for writing",
        "Give a --tracking-uri in a folder that can be written.",
    ),
    (r"database disk image is malformed|file is not a database", None, "Restore the file, or give another one."),
    (r"out-of-date database schema", "the database is of another MLflow version", "Run `mlflow db upgrade URI`."),
    (r"No module named '(psycopg2|pymysql|MySQLdb|pyodbc|pymssql)", None, "Install that database driver with pip."),
    (
        r"\b(401|403)\b|UNAUTHENTICATED|PERMISSION_DENIED|[Aa]uthenticat",
        None,
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    ),
    (r"[Nn]o space left|disk is full", "no space left on the disk", "Free the disk of the store."),
    (
        r"[Cc]onnection refused|timed out|[Nn]ame or service not known|NameResolutionError|Connection (aborted|reset)",
        None,
        "Start the server, or give another --tracking-uri.",
    ),
)


def explain(error: BaseException) -> Refusal:
    r"""Put an error of MLflow in a few words; its messages repeat the request and may show its credentials.

    Args:
        error: what was raised.

    Example:
        >>> refusal = explain(OSError("(sqlite3.OperationalError) database is locked\n[SQL: SELECT ...]"))
        >>> refusal.seen, refusal.fix
        ('the database is locked', 'End the program that holds it, or use an MLflow server.')
    """
    raw = _without_credentials("".join(traceback.format_exception(error)))
    text = _without_credentials(str(error))
    for pattern, seen, fix in _KNOWN:
        if re.search(pattern, text):
            return Refusal(seen or _in_a_few_words(error, text), fix, raw)
    return Refusal(_in_a_few_words(error, text), "Make it take the run, or give another --tracking-uri.", raw)


def _in_a_few_words(error: BaseException, text: str) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{(error.strerror or type(error).__name__).lower()}: {error.filename}"
    if known := re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|(timed out)", text):
        return next(group for group in known.groups() if group).strip().lower()
    return first_sentence(text.strip() or type(error).__name__)


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)
