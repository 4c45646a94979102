"""Show what a run is and how far it got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distmeta.errors import RuntimeFailure
from distmeta.run.directory import RunDirectory


def inspect_run(run_dir: Path | str) -> dict[str, Any]:
    """The facts of a run, JSON-ready: status, step, ``params_sha256``, settings, dataset fingerprint.

    What is damaged is listed under ``damaged``; step and digest are those of the newest whole checkpoint.

    Raises:
        ConfigError: the folder holds no run.
        FileDamaged, CheckpointDamaged: its record or every checkpoint is damaged.
    """
    directory = RunDirectory.open(run_dir)
    record, status, settings = directory.record, directory.status(), directory.settings
    store = directory.checkpoints()
    found = store.newest() if store.steps() else None
    last = found.checkpoint if found else None
    damaged = {f"step {step}": damage for step, damage in store.damage().items()}
    try:
        run_id = directory.mlflow_run_id
    except RuntimeFailure as error:
        run_id, damaged["tracking record"] = None, error.message
    return {
        "run_dir": str(directory.path),
        "status": status,
        "step": last.step if last else 0,
        "iterations": record.iterations,
        "params_sha256": last.params_sha256 if last else None,
        "dataset_fingerprint": record.dataset_fingerprint,
        "best": last.record["best"] if last else None,
        "engine": last.record["engine"] if last else None,
        "kernel": last.record["kernel"] if last else None,
        "batch_norm": settings["learner"].get("batch_norm"),
        "test": record.test,
        "damaged": damaged,
        "error": record.error if status == "failed" else None,
        "mlflow_run_id": run_id,
        "experiment": settings,
    }
