"""A learner that its job file has built again, given what it had learned: only if it is the one that was trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distmeta.errors import CheckpointMismatch
from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import frozen_digest
from distmeta.learners.param_layout import ParamLayout
from distmeta.seeding import rng
from distmeta.types import Params, TaskSpec


def rebuilt(
    learner: MetaLearner,
    spec: TaskSpec,
    seed: int,
    engine: str,
    params: Params,
    frozen: str | None,
    *,
    whose: str,
    versions: str,
    source: str,
    fixed: Mapping[str, torch.Tensor] | None = None,
) -> MetaLearner:
    """The learner with its model built for ``spec`` and the learned parameters in it.

    Args:
        learner: as the job file makes it.
        spec: shapes of the training tasks.
        seed: of the run, which a factory builds its model from.
        engine: ``"vmap"``, ``"vmap-2"`` or ``"loop"``, as the run chose.
        params: the learned meta-parameters, by name.
        frozen: digest of the weights that are not trained, as the run recorded it.
        whose: the run or the export, for messages.
        versions: what to do where the model has other parameters, a sentence.
        source: what to do where the weights that are not trained are others, a sentence.
        fixed: these weights, where they are known; otherwise those that the job file loads.

    Raises:
        CheckpointMismatch: the model is not the one that was trained.
    """
    bound = learner.bind(spec, seed).with_config(vectorise=engine)
    if ParamLayout.of(bound.init_meta_params(rng(seed, "init"))) != ParamLayout.of(params):
        raise CheckpointMismatch(
            f"The parameters of {whose} have other names or shapes than the model that its job file builds; expected "
            f"those of the training. {versions}"
        )
    if fixed:
        bound.model.load_state_dict(dict(fixed), strict=False)
    if (now := frozen_digest(bound.model)) != frozen:
        raise CheckpointMismatch(
            f"The weights of {whose} that are not trained are others (sha256 {str(now)[:12]}, were "
            f"{str(frozen)[:12]}); expected those of the training. {source}"
        )
    bound.load(params)
    return bound
