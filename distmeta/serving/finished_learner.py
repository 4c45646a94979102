"""The learner of a finished run with its best parameters, independent of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmeta.errors import ConfigError
from distmeta.learners.base import MetaLearner
from distmeta.run.directory import RunDirectory
from distmeta.run.finished_run import trained_checkpoints, unfinished
from distmeta.run.record import LearnedFrom
from distmeta.runtime.checkpoint import Checkpoint
from distmeta.serving.exported import Exported, fixed_tensors
from distmeta.serving.predictor import Predictor
from distmeta.serving.rebuilt import rebuilt


class FinishedLearner:
    """The learner of a run with its best parameters, independent of the training data.

    Args:
        directory: of the run.
        learner: its model built.
        learned_from: shapes and preprocessing of the training tasks.
        last: the last checkpoint.
        best: the checkpoint that the run was evaluated by.
    """

    def __init__(
        self,
        directory: RunDirectory,
        learner: MetaLearner,
        learned_from: LearnedFrom,
        last: Checkpoint,
        best: Checkpoint,
    ) -> None:
        self.directory = directory
        self.learner = learner
        self.learned_from = learned_from
        self.last = last
        self.best = best

    @classmethod
    def open(cls, run_dir: Path | str, learner: MetaLearner | None = None) -> FinishedLearner:
        """Open a run; its job file is run, unless its learner is given.

        Raises:
            ConfigError: the folder holds no run, or one that was started from Python and no learner is given.
            CheckpointNotFound, CheckpointDamaged: there is no whole checkpoint, or the best one is lost.
            CheckpointMismatch: the model is not the one that was trained.
        """
        directory = RunDirectory.open(run_dir)
        last, best = trained_checkpoints(directory)
        learned_from, seed = directory.record.learned_from, int(last.record["identity"]["seed"])
        if learner is None:
            if directory.record.job is None:
                raise ConfigError(
                    f"{run_dir} was started from Python, without a job file that builds its model; expected the "
                    "learner, made as it was for the training. Write distmeta.load(RUN_DIR, learner=LEARNER); for the "
                    "command line, train it from a job file."
                )
            experiment = directory.own_job().experiment
            learner = experiment.learner
            learned_from = learned_from or LearnedFrom.of(experiment)
        if learned_from is None:
            raise ConfigError(
                f"{run_dir} is a run of an earlier version, started from Python: the shapes of its tasks were not "
                "kept. Train it again, from a job file."
            )
        learner = rebuilt(
            learner,
            learned_from.spec,
            seed,
            last.record["engine"],
            best.layout.unflatten(best.learned),
            last.record["identity"].get("frozen"),
            whose=str(run_dir),
            versions="Install the versions that it was trained with, or give the learner.",
            source="Restore the file that the model reads them from.",
        )
        return cls(directory, learner, learned_from, last, best)

    def predictor(self) -> Predictor:
        """The learner for use."""
        params = self.best.layout.unflatten(self.best.learned)
        facts = self.learned_from
        return Predictor(self.learner, params, facts.spec, facts.preprocessing, self.card(), self.exported)

    def exported(self) -> Exported:
        """All that the learner is made of, with its code.

        Raises:
            ConfigError: the run was started from Python, or its code was changed or damaged.
        """
        code, job, last = self.directory.code_files(), self.directory.record.job, self.last.record
        return Exported(
            self.learned_from,
            int(last["identity"]["seed"]),
            str(last["engine"]),
            self.best.layout.unflatten(self.best.learned),
            fixed_tensors(self.learner),
            last["identity"].get("frozen"),
            dict(job.overrides) if job else {},
            {name: path.read_bytes() for name, path in code.items()},
            self.card(),
        )

    def card(self) -> Mapping[str, Any]:
        """JSON-ready facts about the run: what it is, what it was trained on, how well it did."""
        record, directory = self.directory.record, self.directory
        settings, text = directory.settings, unfinished(directory, self.last)
        return {
            "name": record.name,
            "created": record.created,
            "learner": settings.get("learner", {}),
            "tasks": settings.get("tasks", {}),
            "dataset": {
                "name": record.dataset.name if record.dataset else "",
                "fingerprint": record.dataset_fingerprint,
                "licence": record.dataset.licence if record.dataset else "",
                "origin": record.dataset.origin if record.dataset else "",
            },
            "step": self.best.step,
            "params_sha256": self.best.params_sha256,
            "test": dict(record.test) if record.test else None,
            "mlflow_run_id": directory.mlflow_run_id,
            **({"unfinished": text} if text else {}),
        }
