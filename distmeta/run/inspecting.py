"""Show what a run is and how far it got."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError, FileDamaged, RuntimeFailure
from distmeta.run.directory import RunDirectory
from distmeta.runtime.step_time import summary


def inspect_run(run_dir: Path | str) -> dict[str, Any]:
    """The facts of a run, JSON-ready: status, step, ``params_sha256``, settings, dataset fingerprint.

    What is damaged is listed under ``damaged``; step and digest are those of the newest whole checkpoint.

    Raises:
        ConfigError: the folder holds no run.
        FileDamaged, CheckpointDamaged: its record or every checkpoint is damaged.
    """
    directory = RunDirectory.open(run_dir)
    record, status, damaged = directory.record, directory.status(), damage(directory)
    settings: dict[str, Any] = {}
    with suppress(FileDamaged):  # it is among what is damaged
        settings = directory.settings
    run_id = None
    with suppress(RuntimeFailure):
        run_id = directory.mlflow_run_id
    store = directory.checkpoints()
    found = store.newest() if store.steps() else None
    last = found.checkpoint if found else None
    return {
        "run_dir": str(directory.path),
        "status": status,
        "step": last.step if last else 0,
        "iterations": record.iterations,
        "params_sha256": last.params_sha256 if last else None,
        "dataset_fingerprint": record.dataset_fingerprint,
        "best": last.record["best"] if last else None,
        "engine": last.record["engine"] if last else None,
        "gradient": last.record.get("gradient") if last else None,
        "precision": settings.get("learner", {}).get("precision"),
        "chunk_size": settings.get("runtime", {}).get("chunk_size"),
        "kernel": last.record["kernel"] if last else None,
        "batch_norm": settings.get("learner", {}).get("batch_norm"),
        "test": record.test,
        "time": _time(directory),
        "damaged": damaged,
        "error": record.error if status == "failed" else None,
        "mlflow_run_id": run_id,
        "experiment": settings,
    }


def _time(directory: RunDirectory) -> list[str]:
    """Where the time of the steps went, five lines; none for runs of older versions, which did not measure it."""
    with suppress(RuntimeFailure):  # the metrics are among what is damaged
        return summary(directory.metrics())
    return []


def damage(directory: RunDirectory) -> dict[str, str]:
    """Find what is damaged in a run directory besides ``run.json``, by file; empty where all is whole."""
    found = {f"checkpoint of step {step}": what for step, what in directory.checkpoints().damage().items()}
    for name, check in directory.checks().items():
        try:
            check()
        except (FileDamaged, ConfigError, RuntimeFailure) as error:
            found[name] = error.message
    return found
