"""Whatever MLflow raises is a few words and a fix; the full text is kept, without credentials."""

import pytest

from distmeta.tracking.mlflow_errors import explain

SQL = (
    "(sqlite3.OperationalError) {}\n[SQL: SELECT experiments.experiment_id AS experiments_experiment_id, "
    "experiments.name AS experiments_name]\n(Background on this error at: https://sqlalche.me/e/20/e3q8)"
)


@pytest.mark.parametrize(
    ("error", "seen", "fix"),
    [
        (RuntimeError(SQL.format("database is locked")), "the database is locked", "End the program that holds it"),
        (
            RuntimeError(SQL.format("unable to open database file")),
            "unable to open the database file for writing",
            "in a folder that can be written",
        ),
        (
            RuntimeError(SQL.format("attempt to write a readonly database")),
            "unable to open the database file for writing",
            "in a folder that can be written",
        ),
        (ConnectionError("[Errno 111] Connection refused'))"), "connection refused", "Start the server"),
        (
            RuntimeError("HTTPConnectionPool(host='x', port=1): Read timed out. (read timeout=10)"),
            "timed out",
            "Start the server",
        ),
        (RuntimeError("API request failed with error code 403 != 200. Response body: 'no'"), "error code 403", "Set "),
        (
            RuntimeError("Detected out-of-date database schema (found version x)"),
            "another MLflow version",
            "db upgrade",
        ),
        (ModuleNotFoundError("No module named 'psycopg2'"), "No module named 'psycopg2'", "Install that"),
        (
            PermissionError(13, "Permission denied", "/data/mlruns"),
            "permission denied: /data/mlruns",
            "another --track",
        ),
        (RuntimeError("x" * 900), "x" * 157 + "...", "another --tracking-uri"),
        (RuntimeError(), "RuntimeError", "another --tracking-uri"),
    ],
)
def test_what_mlflow_raises_is_short_and_has_a_fix(error, seen, fix):
    why = explain(error)
    assert seen in why.seen
    assert len(why.seen) <= 160
    assert "\n" not in why.seen
    assert fix in why.fix
    assert str(error) in why.raw


def test_credentials_are_shown_nowhere(tmp_path):
    why = explain(RuntimeError("could not reach http://me:secret@host:5000/api"))
    assert why.seen == "could not reach http://host:5000/api"
    note = why.keep(tmp_path)
    assert note == f" Full text: {tmp_path}/errors/tracking.txt"
    text = (tmp_path / "errors" / "tracking.txt").read_text()
    assert "http://host:5000/api" in text
    assert "secret" not in text + why.seen


def test_a_disk_that_takes_no_text_is_no_error(tmp_path):
    (tmp_path / "errors").write_text("a file")
    assert explain(RuntimeError("x")).keep(tmp_path) == ""
