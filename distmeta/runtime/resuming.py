"""Whether a checkpoint may be used: only by the experiment that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distmeta.errors import CheckpointMismatch
from distmeta.experiment.experiment import Experiment
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.checkpoint import Checkpoint


def require_same_experiment(
    experiment: Experiment,
    identity: Mapping[str, Any],
    was: ParamLayout,
    *,
    frozen: str | None,
    layout: ParamLayout,
    fix: str,
) -> None:
    """Raise where a checkpoint belongs to another experiment.

    Args:
        experiment: what wants to use it.
        identity: of the experiment that wrote it, as the checkpoint records it.
        was: names and shapes of the checkpoint's parameters.
        frozen: digest of the weights that are not trained, now.
        layout: names and shapes of the meta-parameters, now.
        fix: what the user can do, a sentence.

    Raises:
        CheckpointMismatch: a setting, the data or the model has changed.
    """
    changed = experiment.changed(identity, frozen)
    if changed:
        raise CheckpointMismatch(f"The run was started with {'; '.join(changed)}. Expected the same experiment. {fix}")
    if was != layout:
        raise CheckpointMismatch(
            "The checkpoint's parameters have other names or shapes than the learner's; expected those of the "
            f"training. {fix}"
        )


def as_begun(experiment: Experiment, identity: Mapping[str, Any]) -> Experiment:
    """``experiment`` with the number of tasks per call that ``runtime.chunk_size="auto"`` was when its run began.

    Args:
        experiment: of the run.
        identity: of the run, as its checkpoints record it.
    """
    if experiment.runtime.chunk_size != "auto":
        return experiment
    return experiment.with_overrides({"runtime.chunk_size": identity["runtime"]["chunk_size"]})


def require_same_run(experiment: Experiment, checkpoint: Checkpoint, frozen: str | None, layout: ParamLayout) -> None:
    """Raise where the steps to come would be of another experiment than the steps done.

    Args:
        experiment: what is to go on.
        checkpoint: from where.
        frozen: digest of the weights that are not trained now.
        layout: names and shapes of the meta-parameters now.

    Raises:
        CheckpointMismatch: a setting, the model, or the tasks that the best parameters are chosen by have changed, or
            more steps are done than the experiment has.
    """
    require_same_experiment(
        experiment,
        checkpoint.record["identity"],
        checkpoint.layout,
        frozen=frozen,
        layout=layout,
        fix="Resume with the old model and settings (only outer.iterations, runtime other than chunk_size and threads, "
        "and how often is evaluated may change), or `distmeta train` a new run.",
    )
    if experiment.outer.iterations < checkpoint.step:
        raise CheckpointMismatch(
            f"The run has done {checkpoint.step} steps; outer.iterations={experiment.outer.iterations} is fewer. Set "
            f"outer.iterations={checkpoint.step} or more, or `distmeta train` a new run."
        )
    best, now = checkpoint.record["best"] or {}, experiment.evaluation
    was = (best.get("tasks", now.validation_tasks), best.get("seed", now.seed))  # not recorded by older versions
    if was != (now.validation_tasks, now.seed):
        raise CheckpointMismatch(
            f"The best parameters so far were chosen on {was[0]} validation tasks of seed {was[1]}; "
            f"evaluation.validation_tasks={now.validation_tasks} and evaluation.seed={now.seed} are others, whose "
            f"scores cannot be compared. Set evaluation.validation_tasks={was[0]} and evaluation.seed={was[1]}, or "
            "`distmeta train` a new run."
        )
