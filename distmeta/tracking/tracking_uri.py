"""MLflow stores by their URI: the one that is meant, and whether MLflow has such a kind."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sqlite3
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from distmeta.errors import ConfigError
from distmeta.tracking.tracking_record import TrackingRecord

DEFAULT_STORE = "sqlite:///mlflow.db"

_LOCK_S = 5.0  # of other programs, which is waited for

# MLflow's own; asking MLflow would import it, which takes seconds.
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks", "databricks-uc", "uc")


def require_store(uri: str | None) -> None:
    """Raise if MLflow has no such kind of store; nothing is connected to.

    Args:
        uri: tracking URI; None is the one of the environment, or MLflow's default.

    Raises:
        ConfigError: naming the kinds.

    Example:
        >>> require_store("htp://localhost:5000")
        Traceback (most recent call last):
        distmeta.errors.ConfigError: MLflow has no store 'htp:...' (--tracking-uri htp://localhost:5000). Did you mean \
'http:'? Expected a folder, sqlite:///FILE, http(s)://HOST:PORT, or a database such as postgresql://HOST/NAME; or use \
--no-tracking.
    """
    resolved = resolve_uri(uri)
    scheme = resolved.partition(":")[0].partition("+")[0]
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    usable = scheme in _SCHEMES or scheme in plugins
    if usable and not (scheme in ("http", "https") and not urlsplit(resolved).hostname):
        return
    close = difflib.get_close_matches(scheme, _SCHEMES, 1)
    hint = f" Did you mean {close[0] + ':'!r}?" if close and close[0] != scheme else ""
    shown = without_password(resolved)
    source = f"--tracking-uri {shown}" if uri else f"MLFLOW_TRACKING_URI={shown}"
    raise ConfigError(
        f"MLflow has no store {scheme + ':...'!r} ({source}).{hint} Expected a folder, sqlite:///FILE, "
        "http(s)://HOST:PORT, or a database such as postgresql://HOST/NAME; or use --no-tracking."
    )


def require_unlocked(uri: str) -> None:
    """Raise if another program holds the SQLite database: MLflow would try for minutes before it does.

    Raises:
        sqlite3.OperationalError: the database is locked.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and database.is_file():
        with contextlib.closing(sqlite3.connect(database, timeout=_LOCK_S)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()


def resolve_uri(uri: str | None) -> str:
    """The store meant by ``uri``, independent of the current directory, so that sync finds it from elsewhere."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    if uri.startswith("sqlite:///"):
        database = uri.removeprefix("sqlite:///")
        return uri if database in {"", ":memory:"} else f"sqlite:///{Path(database).absolute()}"
    if ":" not in uri and not uri.startswith("databricks") and uri != "uc":
        return Path(uri).absolute().as_uri()
    return uri


def continued_uri(uri: str | None, record: TrackingRecord) -> str:
    """``uri`` if given, else the recorded one, with the credentials of the environment if it names the same store."""
    if uri is not None:
        return resolve_uri(uri)
    from_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    return from_environment if without_password(from_environment) == record.uri else record.uri


def without_password(uri: str) -> str:
    """``uri`` without user and password.

    Example:
        >>> without_password("http://me:secret@host:5000/path")
        'http://host:5000/path'
    """
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def artifact_location(uri: str, experiment: str) -> str | None:
    """Beside a SQLite store, where MLflow would take the current directory; any other store knows its own place."""
    if not uri.startswith("sqlite:///") or uri.endswith("memory:"):
        return None
    folder = re.sub(r"[^\w.-]+", "-", experiment).strip(".-") or "experiment"
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / folder).as_uri()
