"""Where MLflow keeps a trained learner: runs and registered models, fetched as folders."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError, DistmetaError
from distmeta.run.uploaded import put_together
from distmeta.serving.exported import is_export
from distmeta.tracking.mlflow_errors import explain
from distmeta.tracking.mlflow_link import prepared_mlflow, quiet
from distmeta.tracking.tracking_uri import require_store, require_unlocked, resolve_uri, without_password

EXPORT_FOLDER = "export"
"""The artifact of a registered model that is the export."""

_EXPECTED = "runs:/RUN_ID, runs:/RUN_ID/PATH, models:/NAME@ALIAS or models:/NAME/VERSION"
_fetched: dict[tuple[str, ...], Path] = {}
"""What this process has: registered versions, which never change, and finished runs."""


def fetched(uri: str) -> Path:
    """Download what ``runs:/RUN_ID``, ``runs:/RUN_ID/PATH``, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` names.

    The store is that of ``MLFLOW_TRACKING_URI``, else MLflow's default.

    Returns:
        A folder of ``distmeta export``, or a run directory, in a temporary folder that is removed when the process
        ends. A version that was fetched before is not fetched again; an alias is looked up each time.

    Raises:
        ConfigError: MLflow is not installed, does not answer, or holds no learner of distmeta there.
    """
    found = re.fullmatch(r"runs:/([^/@]+)(?:/(.+))?|models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if found is None:
        raise ConfigError(f"{uri} names nothing in MLflow; expected {_EXPECTED}.")
    run_id, path, name, alias, version = found.groups()
    require_store(None)
    store = resolve_uri(None)
    with quiet():
        client = client_of(store)
        try:
            if run_id is not None:
                return _of_run(client, store, uri, run_id, path)
            if alias is not None:
                version = str(client.get_model_version_by_alias(name, alias).version)
            return _of_version(client, store, uri, name, version)
        except DistmetaError:
            raise
        except Exception as error:  # noqa: BLE001 (MLflow raises its own, those of requests and of the database)
            raise failed(f"{uri} is not to be had from MLflow at {without_password(store)}", error) from None


def client_of(uri: str) -> Any:
    """A client of a store.

    Raises:
        ConfigError: MLflow is not installed, or its database cannot be opened.
    """
    try:
        mlflow = prepared_mlflow()
    except ImportError as error:
        raise ConfigError(
            f"MLflow is not installed ({error}); expected it. Use pip install 'mlflow>=3.1,<4'."
        ) from None
    try:
        require_unlocked(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # noqa: BLE001 (as above)
        raise failed(f"MLflow at {without_password(uri)} cannot be opened", error) from None


def failed(what: str, error: Exception) -> ConfigError:
    """The error for what MLflow raised.

    Args:
        what: failed, without a full stop.
        error: of MLflow.
    """
    why = explain(error)
    fix = why.fix
    if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        fix = f"Expected {_EXPECTED} of a store that has it: give another name, or set MLFLOW_TRACKING_URI."
    return ConfigError(f"{what}: {why.seen}. {fix}", raw=why.raw)


def _of_run(client: Any, store: str, uri: str, run_id: str, path: str | None) -> Path:
    """An artifact of a run; the run itself, as a run directory, without ``path``."""
    if path is not None:
        return _export_in(Path(client.download_artifacts(run_id, path, str(_temporary()))), uri)
    info = client.get_run(run_id).info
    key = (store, run_id, str(info.status), str(info.end_time))  # a run that goes on has another end
    if key not in _fetched or not _fetched[key].is_dir():
        here = Path(client.download_artifacts(run_id, "", str(_temporary())))
        _fetched[key] = put_together(here, _temporary() / run_id, uri)
    return _fetched[key]


def _of_version(client: Any, store: str, uri: str, name: str, version: str) -> Path:
    key = (store, name, version)
    if key not in _fetched or not _fetched[key].is_dir():
        import mlflow

        source = client.get_model_version_download_uri(name, version)
        folder = _temporary()
        if source.startswith("models:/"):  # of a logged model
            source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
        here = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(folder), tracking_uri=store, registry_uri=store
            )
        )
        _fetched[key] = _export_in(here, uri)
    return _fetched[key]


def _export_in(folder: Path, uri: str) -> Path:
    """The export in what was downloaded: itself, or that of a model.

    Raises:
        ConfigError: there is none.
    """
    for place in (folder, folder / "artifacts" / EXPORT_FOLDER):
        if is_export(place):
            return place
    raise ConfigError(
        f"{uri} holds no learner of distmeta; expected a model that was registered by `distmeta export RUN --register "
        "NAME`, or an export among the artifacts. Register it so."
    )


def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="distmeta-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


__all__ = ["EXPORT_FOLDER", "client_of", "failed", "fetched"]
