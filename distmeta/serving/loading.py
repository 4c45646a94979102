"""``distmeta.load``: a trained learner from wherever it is."""

from __future__ import annotations

from pathlib import Path

from distmeta.errors import ConfigError
from distmeta.learners.base import MetaLearner
from distmeta.serving.exported import Exported, is_export
from distmeta.serving.finished_learner import FinishedLearner
from distmeta.serving.kept_task import holds_task
from distmeta.serving.predictor import Predictor


def load(source: Path | str, *, learner: MetaLearner | None = None) -> Predictor:
    """A trained learner, ready for new tasks: it gives the logits that its evaluation computed.

    The job file of the run (or of the export) is run, so that the model can be built: load what you trust. Neither the
    training data nor the job's own folder are needed, nor Ray; MLflow only for what is there.

    Args:
        source: a run directory, a folder written by ``distmeta export``, ``runs:/RUN_ID`` or ``models:/NAME@ALIAS``.
        learner: for a run that was started from Python, without a job file: the learner, as it was given then.

    Raises:
        ConfigError: ``source`` is neither, or its job file does not run; or it is of :meth:`AdaptedModel.save`, which
            :meth:`AdaptedModel.load` takes.
        CheckpointError: there is no whole checkpoint, or the model is not the one that was trained.
    """
    folder = place_of(source)
    if is_export(folder):
        exported = Exported.read(folder)
        if holds_task(folder):
            raise ConfigError(
                f"{source} holds a learned task, which a learner for new tasks would leave out; expected a run or an "
                f'export. Write distmeta.AdaptedModel.load("{source}"): it answers about that task, and its .predictor '
                "learns other ones."
            )
        return Predictor.of(exported)
    return FinishedLearner.open(folder, learner).predictor()


def place_of(source: Path | str) -> Path:
    """The folder that a source names; what MLflow has is fetched.

    Raises:
        ConfigError: there is none.
    """
    text = str(source)
    if text.startswith(("runs:/", "models:/")):
        from distmeta.serving.mlflow_store import fetched

        return fetched(text)
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {folder}; expected a run directory, a folder of `distmeta export`, runs:/RUN_ID or "
            "models:/NAME@ALIAS."
        )
    return folder
