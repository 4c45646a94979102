"""How far the meta-gradients of an engine are from those of a plain loop, in float64 where the model allows it."""

from __future__ import annotations

import copy

import torch

from distmeta.learners.base import MetaLearner
from distmeta.learners.inner_loop import GradientLearner
from distmeta.learners.param_layout import ParamLayout
from distmeta.seeding import rng
from distmeta.types import Episode


def in_float64(learner: MetaLearner) -> MetaLearner:
    """A copy in float64 and without dropout, for comparisons: rounding hides small errors, and noise hides all."""
    model = copy.deepcopy(learner.model).double()
    for layer in model.modules():
        for name in ("p", "dropout"):  # of dropout layers; of attention and recurrent layers
            if isinstance(getattr(layer, name, None), float) and (
                name == "dropout" or "Dropout" in type(layer).__name__
            ):
                setattr(layer, name, 0.0)
    return learner.with_model(model)


def shortened(learner: MetaLearner) -> MetaLearner:
    """``learner`` with two inner steps at most: later ones are computed as the second is, and each takes as long."""
    if not isinstance(learner, GradientLearner) or learner.config.inner_steps <= 2:
        return learner
    return learner.with_config(inner_steps=2, test_inner_steps=None)


class EngineErrors:
    """How far the meta-gradients of engines are from a plain loop's, which is computed once; see :func:`shortened`.

    Args:
        learner: on any engine.
        episodes: tasks, stacked.
    """

    def __init__(self, learner: MetaLearner, episodes: Episode) -> None:
        self.in_float64 = True
        self._learner, self._episodes = shortened(learner), episodes
        self._reference: torch.Tensor | None = None

    def of(self, engine: str) -> str | None:
        """Why the meta-gradient of ``engine`` is not that of a plain loop, if it is not."""
        error = self._error(engine)
        # Errors of torch's own batching rules are 0.03 to 3 %; float64 tells them from rounding.
        tolerance = (1e-10 if engine == "vmap-2" else 1e-8) if self.in_float64 else 1e-3
        return None if error <= tolerance else f"its gradient differs from a plain loop's by {error:.1e}, relative"

    def _error(self, engine: str) -> float:
        if self._reference is None:
            try:
                return self._relative(in_float64(self._learner), engine)
            except Exception:  # noqa: BLE001 (a model that makes float32 tensors of its own cannot be run in float64)
                self.in_float64, self._reference = False, None
        return self._relative(in_float64(self._learner) if self.in_float64 else self._learner, engine)

    def _relative(self, learner: MetaLearner, engine: str) -> float:
        params = learner.init_meta_params(rng(0, "init"))
        layout = ParamLayout.of(params)
        episodes = self._episodes.to(next(iter(params.values())).device, layout.torch_dtype)

        def gradient(engine: str) -> torch.Tensor:
            found = learner.with_config(vectorise=engine).meta_gradient(params, episodes)
            return torch.from_numpy(layout.flatten(found.gradient))

        fast = gradient(engine)
        if self._reference is None:
            self._reference = gradient("loop")
        return float((fast - self._reference).norm() / self._reference.norm().clamp_min(1e-300))
