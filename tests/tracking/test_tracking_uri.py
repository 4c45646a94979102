"""A wrong tracking URI is refused without a connection; a locked database is found in seconds."""

import sqlite3
import time

import pytest

import distmeta
from distmeta.errors import ConfigError
from distmeta.tracking.tracking_uri import require_store, require_unlocked, resolve_uri


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "/data/mlruns",
        "file:///data/mlruns",
        "sqlite:///mlflow.db",
        "sqlite:///:memory:",
        "postgresql+psycopg2://me:secret@db/mlflow",
        "mysql://db/mlflow",
        "http://localhost:5000",
        "https://me:secret@mlflow.example.org/path",
        "databricks",
        "databricks://profile",
        "uc",
    ],
)
def test_kinds_of_stores_that_mlflow_has(uri):
    require_store(uri)
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    assert _tracking_store_registry.get_store_builder(resolve_uri(uri)) is not None


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("htp://localhost:5000", "Did you mean 'http:'?"),
        ("localhost:5000", r"no store 'localhost:\.\.\.'"),
        ("sqlit:///mlflow.db", "Did you mean 'sqlite:'?"),
        ("s3://bucket/mlflow", r"Expected a folder, sqlite:///FILE, http\(s\)://HOST:PORT"),
        ("http:/localhost:5000", "no store 'http:"),
        ("ftp://me:secret@host/x", "--tracking-uri ftp://host/x"),
    ],
)
def test_other_kinds_are_refused_before_anything_starts(uri, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        distmeta.Place(tracking=True, tracking_uri=uri)
    assert len(str(caught.value)) <= 400
    assert "secret" not in str(caught.value)
    distmeta.Place(tracking=False, tracking_uri=uri)


def test_the_environment_is_named_where_the_uri_comes_from_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://x")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI=htp://x"):
        require_store(None)


def test_a_locked_database_is_found_in_seconds(tmp_path):
    database = tmp_path / "mlflow.db"
    require_unlocked(f"sqlite:///{database}")  # a new one
    assert not database.exists()
    with sqlite3.connect(database, isolation_level=None) as holder:
        holder.execute("CREATE TABLE t (x)")
        require_unlocked(f"sqlite:///{database}")
        holder.execute("BEGIN EXCLUSIVE")
        before = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            require_unlocked(f"sqlite:///{database}")
        assert 3 < time.monotonic() - before < 15
        holder.execute("ROLLBACK")
    holder.close()
    require_unlocked(f"sqlite:///{database}")
