"""Whether a run may go on from a checkpoint: only as what it began as."""

from __future__ import annotations

from distmeta.errors import CheckpointMismatch
from distmeta.experiment.experiment import Experiment
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.checkpoint import Checkpoint


def require_same_run(experiment: Experiment, checkpoint: Checkpoint, frozen: str | None, layout: ParamLayout) -> None:
    """Raise where the steps to come would be of another experiment than the steps done.

    Args:
        experiment: what is to go on.
        checkpoint: from where.
        frozen: digest of the weights that are not trained now.
        layout: of the meta-parameters now.

    Raises:
        CheckpointMismatch: a setting, the model, or the tasks that the best parameters are chosen by have changed, or
            more steps are done than the experiment has.
    """
    changed = experiment.changed(checkpoint.record["identity"], frozen)
    if changed:
        raise CheckpointMismatch(
            f"The run was started with {'; '.join(changed)}. Expected the same experiment. Resume with the old "
            "settings (only outer.iterations, runtime other than chunk_size and threads, and how often is judged may "
            "change), or `distmeta train` a new run."
        )
    if checkpoint.layout != layout:
        raise CheckpointMismatch(
            "The checkpoint's parameters have other names or shapes than the model's; expected the same model. "
            "Restore the model, or `distmeta train` a new run."
        )
    if experiment.outer.iterations < checkpoint.step:
        raise CheckpointMismatch(
            f"The run has done {checkpoint.step} steps; outer.iterations={experiment.outer.iterations} is fewer. Set "
            f"outer.iterations={checkpoint.step} or more, or `distmeta train` a new run."
        )
    best, now = checkpoint.record["best"] or {}, experiment.evaluation
    was = (best.get("tasks", now.validation_tasks), best.get("seed", now.seed))  # not noted by older versions
    if was != (now.validation_tasks, now.seed):
        raise CheckpointMismatch(
            f"The best parameters so far were chosen on {was[0]} validation tasks of seed {was[1]}; "
            f"evaluation.validation_tasks={now.validation_tasks} and evaluation.seed={now.seed} are others, whose "
            f"scores cannot be compared. Set evaluation.validation_tasks={was[0]} and evaluation.seed={was[1]}, or "
            "`distmeta train` a new run."
        )
