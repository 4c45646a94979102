"""A trained learner as a registered model of MLflow: a pyfunc model whose request carries a task.

Nothing is pickled: the model's code is a few lines of text, its weights are the export folder, and the package's own
source goes with it, so that an environment that is made from the logged requirements answers without an index that has
distmeta.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError, DistmetaError
from distmeta.files import without_bytecode
from distmeta.serving.exported import Exported
from distmeta.serving.exported import requirements as needed
from distmeta.serving.finished_learner import FinishedLearner
from distmeta.serving.mlflow_request import KEYS, answered, example
from distmeta.serving.mlflow_store import EXPORT_FOLDER, client_of, failed
from distmeta.serving.sealed import write_sealed
from distmeta.tracking.mlflow_link import dataset_entity, quiet
from distmeta.tracking.tracking_record import TrackingRecord
from distmeta.tracking.tracking_uri import artifact_location, continued_uri, resolve_uri, without_password

_SCRIPT = """import mlflow

from distmeta.serving.mlflow_model import task_model

mlflow.models.set_model(task_model())
"""


@dataclass(frozen=True)
class Registered:
    """A registered model.

    Args:
        name: of the model.
        version: in the registry.
        alias: that the version was given; ``None`` without.
        store: tracking URI.
        run_id: the run in MLflow that it belongs to.
        model_id: MLflow's id of the logged model.
    """

    name: str
    version: str
    alias: str | None
    store: str
    run_id: str
    model_id: str

    @property
    def uri(self) -> str:
        """What :func:`distmeta.load` and MLflow take."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.uri,
            "version": self.version,
            "store": without_password(self.store),
            "run": self.run_id,
            "model_id": self.model_id,
        }


def register(
    run_dir: Path | str,
    name: str,
    *,
    alias: str | None = None,
    tracking_uri: str | None = None,
    requirements: Sequence[str] = (),
) -> Registered:
    """Log a finished run as a pyfunc model and register it.

    The model belongs to the run of the training, where the store has it; else to a new run with tags that name it. Its
    requirements are pinned to the versions of this process.

    Args:
        run_dir: a run that was started from a job file.
        name: of the registered model; a new version of it where it exists.
        alias: for the new version, such as ``"champion"``; taken from the version that has it.
        tracking_uri: the store; by default the one that the run is in, else MLflow's.
        requirements: lines of a requirements file, added to the pinned ones. One that names distmeta replaces the copy
            of the package that goes with the model.

    Raises:
        ConfigError: MLflow is not installed, does not answer, or refuses; the run has no job file.
        CheckpointError: there is no whole checkpoint, or the model is not the one that was trained.
    """
    for what, value in (("--register", name), ("--alias", alias)):
        if value is not None and (not value or set(value) & set("/:@ %")):
            raise ConfigError(f"{what} {value!r} is no name for MLflow; expected letters, digits, - and _.")
    finished = FinishedLearner.open(run_dir)
    exported = finished.exported()
    predictor = finished.predictor()
    request = example(predictor)
    answered(predictor, request)  # raises where the model could not answer
    record = TrackingRecord.load(finished.directory.path)
    recorded = record is not None and record.run_id is not None
    uri = continued_uri(tracking_uri, record) if record and recorded else resolve_uri(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="distmeta-register-") as folder, quiet():
        write_sealed(Path(folder) / EXPORT_FOLDER, exported.files())
        (Path(folder) / "model.py").write_text(_SCRIPT, encoding="utf-8")
        packed = not any(line.replace(" ", "").lower().startswith("distmeta") for line in requirements)
        if packed:
            shutil.copytree(
                Path(__file__).parents[1],
                Path(folder) / "distmeta",
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "_jobs"),
            )
        client = client_of(uri)
        try:
            run_id, experiment_id = _run_of(client, finished, record, uri)
            with _quietly(uri), without_bytecode():  # MLflow runs the model before it copies its folder
                logged = _log(client, Path(folder), exported, request, run_id, experiment_id, packed, requirements)
                version = _version(client, name, alias, logged.model_id, run_id, finished)
        except DistmetaError:
            raise
        except Exception as error:  # noqa: BLE001 (MLflow raises its own, those of requests and of the database)
            raise failed(f"MLflow at {without_password(uri)} did not register {name}", error) from None
    return Registered(name, str(version), alias, uri, run_id, logged.model_id)


def task_model() -> Any:
    """The pyfunc model: each row of its input is a task, see :func:`distmeta.serving.mlflow_request.answered`."""
    from mlflow import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
    from mlflow.pyfunc import PythonModel

    with warnings.catch_warnings(record=True):  # MLflow shows, whatever the filters, that there are no hints

        class TaskModel(PythonModel):  # type: ignore[misc]  # no types there
            """Learns the task of a request, and answers about its queries."""

            def load_context(self, context: Any) -> None:
                from distmeta.serving.loading import load

                self.predictor = load(context.artifacts[EXPORT_FOLDER])

            # MLflow takes hints of types for a schema of its own.
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
                rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
                try:
                    return [answered(self.predictor, row) for row in rows]
                except DistmetaError as error:
                    raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None

    return TaskModel()


def _signature() -> Any:
    """Columns of any JSON; a row is a task. The one that is an object makes MLflow take a dictionary as one row."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Object, Property

    options = Object([Property("transductive", DataType.boolean, required=False)])
    inputs = [ColSpec(options if key == "options" else AnyType(), key, required=False) for key in KEYS]
    outputs = [
        ColSpec(AnyType(), key, required=False) for key in ("labels", "classes", "probabilities", "values", "intervals")
    ]
    return ModelSignature(Schema(inputs), Schema([*outputs, ColSpec(AnyType(), "outputs", required=False)]))


def _log(
    client: Any,
    folder: Path,
    exported: Exported,
    request: dict[str, Any],
    run_id: str,
    experiment_id: str,
    packed: bool,
    requirements: Sequence[str],
) -> Any:
    """Log the model under a run; returns MLflow's info about it."""
    import mlflow
    from mlflow.models import Model

    pinned = [line for line in needed(exported.code) if not line.startswith("distmeta==")]
    card = exported.card
    logged = client.create_logged_model(
        experiment_id,
        name="model",
        source_run_id=run_id,
        model_type="few-shot",
        tags={"distmeta.params_sha256": str(card["params_sha256"]), "distmeta.step": str(card["step"])},
        params={f"learner.{key}": str(value) for key, value in (card.get("learner") or {}).items()},
    )
    return Model.log(
        artifact_path=None,
        name="model",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        model_id=logged.model_id,
        step=int(card["step"]),
        python_model=str(folder / "model.py"),
        artifacts={EXPORT_FOLDER: str(folder / EXPORT_FOLDER)},
        code_paths=[str(folder / "distmeta")] if packed else None,
        signature=_signature(),
        input_example=request,
        pip_requirements=[f"mlflow=={mlflow.__version__}", *pinned, *requirements],
    )


def _run_of(client: Any, finished: FinishedLearner, record: TrackingRecord | None, uri: str) -> tuple[str, str]:
    """Ids of the run that the model belongs to and of its experiment: that of the training, else a new one."""
    import mlflow

    if record is not None and record.run_id is not None:
        try:
            run = client.get_run(record.run_id)
            if run.info.lifecycle_stage == "active":
                return record.run_id, str(run.info.experiment_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    title = finished.directory.record.name
    experiment = client.get_experiment_by_name(title)
    where = (
        str(experiment.experiment_id)
        if experiment is not None
        else str(client.create_experiment(title, artifact_location=artifact_location(uri, title)))
    )
    facts = finished.card()
    tags = {
        "distmeta.run_dir": str(finished.directory.path.absolute()),
        "distmeta.params_sha256": str(facts["params_sha256"]),
        "distmeta.dataset_fingerprint": str(facts["dataset"]["fingerprint"]),
        "distmeta.trained_as": str(facts["mlflow_run_id"] or ""),
    }
    run = client.create_run(where, tags=tags, run_name=f"export of {finished.directory.path.name}")
    run_id = str(run.info.run_id)
    client.log_inputs(run_id, [dataset_entity(_dataset_of(finished, record))])
    for key, value in (facts["test"] or {}).items():
        client.log_metric(run_id, f"test/{key}", value, step=int(facts["step"]))
    client.set_terminated(run_id)
    return run_id, where


def _dataset_of(finished: FinishedLearner, record: TrackingRecord | None) -> dict[str, Any]:
    if record is not None and record.dataset is not None:
        return record.dataset
    facts = finished.card()["dataset"]
    return {
        "name": facts["name"] or "tasks",
        "digest": facts["fingerprint"],
        "source": facts["origin"] or facts["name"],
        "input_shape": finished.learned_from.spec.input_shape,
        "contexts": ["meta_train"],
    }


def _version(client: Any, name: str, alias: str | None, model_id: str, run_id: str, finished: FinishedLearner) -> str:
    """Register the logged model; returns the version."""
    import mlflow

    try:
        client.create_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"distmeta.params_sha256": finished.best.params_sha256}
    found = client.create_model_version(name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)
    if alias is not None:
        client.set_registered_model_alias(name, alias, found.version)
    return str(found.version)


@contextmanager
def _quietly(uri: str) -> Iterator[None]:
    """MLflow with this store, for functions that know no other way, without warnings and looks at package indexes."""
    import mlflow

    values = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",
        "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    }
    # A store that was chosen in this process is in the environment too, and only there once this is over.
    before = {key: os.environ.get(key) for key in (*values, "MLFLOW_TRACKING_URI")}
    os.environ.update(values)
    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        mlflow.set_tracking_uri(None)
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


__all__ = ["Registered", "register", "task_model"]
