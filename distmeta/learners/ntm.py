"""The Neural Turing Machine (Graves, Wayne, Danihelka 2014) as a learner of sequence tasks.

A model with a memory, :func:`distmeta.ntm` (or :func:`distmeta.lstm` to compare it with), reads a sequence and answers
in bits, each with a logit z and a target b. The loss of a task is the cross-entropy in nats, *summed* over its scored
steps and channels::

    loss = -sum_t sum_k [ b log sigmoid(z) + (1 - b) log(1 - sigmoid(z)) ],        bits = loss / ln 2

as in the paper, whose cost is in bits per sequence. The sum, not the mean: a sequence of ten vectors weighs ten times
one of a single vector, and the paper's clipping of each gradient element at 10 (``outer.clip_value=10``) is meant for
gradients of this size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from distmeta.errors import LearnerContractError
from distmeta.learners.over_tasks import unstack
from distmeta.learners.pictures import Heatmaps, Picture
from distmeta.learners.sequence import SequenceLearner
from distmeta.types import Episode, Metrics, Params


class NTM(SequenceLearner):
    """Train a sequence model by its cost in bits; reports ``bits`` and ``bit_errors`` per sequence.

    The cost is the same for a model without a memory, such as :func:`distmeta.lstm`.

    Args:
        model: ``[B, L, ...]`` to logits ``[B, L, bits]``, such as ``ntm()`` or ``lstm()``.

    Example:
        >>> from distmeta.models.ntm import ntm
        >>> from distmeta.types import TaskSpec
        >>> learner = NTM(ntm(size=8, slots=4, width=3)).bind(TaskSpec((3,), 2, "sequence", 0, 5))
        >>> guess = torch.zeros(1, 5, 2)
        >>> targets = torch.tensor([[[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0], [0.0, 1.0], [1.0, 1.0]]])
        >>> learner.sequence_loss(guess, targets)[1]["bits"].tolist()  # one bit for each of four fair coins
        [4.0]
    """

    def sequence_loss(self, prediction: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Nats per sequence; ``bits``, the same in bits; ``bit_errors``, bits on the wrong side of one half.

        Raises:
            LearnerContractError: the targets are not bits.
        """
        if not targets.is_floating_point():
            raise LearnerContractError(
                f"NTM answers in bits; the tasks have targets of type {str(targets.dtype).removeprefix('torch.')} and "
                f"shape {list(targets.shape)}. Give float targets [L, bits], 0 or 1 and negative where nothing is "
                "scored, or use MANN for classes."
            )
        scored = targets >= 0
        cost = F.binary_cross_entropy_with_logits(prediction, targets.clamp_min(0), reduction="none") * scored
        losses = cost.flatten(1).sum(1)
        wrong = ((prediction > 0) != (targets > 0.5)) & scored
        return losses, {"bits": losses / math.log(2), "bit_errors": wrong.flatten(1).sum(1).to(losses.dtype)}

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``memory``: the first task, see :meth:`memory_panels`."""
        self.model.eval()
        return {"memory": Heatmaps("one task over time", "time step", self.memory_panels(params, unstack(episodes)[0]))}

    def memory_panels(self, params: Params, episode: Episode) -> dict[str, npt.NDArray[np.float32]]:
        """Inputs, outputs and memory weights of one task, as in the paper's figures 6, 9 and 12.

        Args:
            params: the meta-parameters.
            episode: one task, not stacked.

        Returns:
            Over the L time steps: ``inputs [in, L]``, ``outputs [out, L]`` (probabilities; NaN where nothing is
            scored), ``write weights [S, L]`` and ``read weights [S, L]`` (averaged over heads). No
            weights where the model has no memory.
        """
        output, weights = self.traced(params, episode)
        answer = output.sigmoid().masked_fill(episode.query_y < 0, torch.nan)
        panels = {"inputs": episode.query_x.flatten(1), "outputs": answer, **weights}
        return {name: part.T.float().cpu().numpy() for name, part in panels.items()}
