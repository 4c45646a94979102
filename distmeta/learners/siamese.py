"""Siamese networks: one encoder for both images of a pair, trained to tell whether they are of one class.

``form="contrastive"``: with ``d(x1, x2) = |f(x1) - f(x2)|_2``, the contrastive loss (Hadsell, Chopra, LeCun 2006,
equation 4, without its factors 1/2)::

    L = d^2                    for a pair of one class
    L = max(0, margin - d)^2   for a pair of two classes

``form="koch"`` (Koch, Zemel, Salakhutdinov 2015, sections 3.1 and 3.2): the probability of one class, with the binary
cross-entropy::

    p = sigmoid(sum_j alpha_j |f(x1)_j - f(x2)_j| + b)

alpha and b are meta-parameters of the algorithm itself. They start at ``alpha_j = -4 / sqrt(D)`` and ``b = 6``: nearer
is likelier from the first step, and p is decided enough to learn from; the paper draws them from normal distributions.

The pairs of a task are made of its queries and its support examples, half of them of one class. N-way classification
takes the class with the best pairs; the paper's one-shot trials are the case of one shot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat

from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.functional import evaluating, vectorised
from distmeta.learners.losses import prediction_metrics
from distmeta.learners.metric import MetricLearner, one_hot, squared_distance
from distmeta.learners.over_tasks import unstack
from distmeta.learners.pictures import Gallery, Picture
from distmeta.learners.user_model import require_tensor
from distmeta.types import Episode, Metrics, Params, TaskSpec


@dataclass(frozen=True)
class Pairs:
    """Weights of all pairs of M queries with the N*K support examples; each kind's sum to 1.

    Args:
        same: ``[M, N*K]``, of pairs of one class.
        different: ``[M, N*K]``, of pairs of two classes.
    """

    same: torch.Tensor
    different: torch.Tensor

    def mean(self, of_same: torch.Tensor, of_different: torch.Tensor) -> torch.Tensor:
        """Mean over balanced pairs of one value ``[M, N*K]`` for pairs of one class and another for the rest."""
        return ((self.same * of_same).sum() + (self.different * of_different).sum()) / 2


class Siamese(MetricLearner):
    """Learn from pairs which images are of one class. Any number of ways at test.

    Metrics: ``loss`` of the pairs and ``accuracy_verification``, the fraction of pairs classified
    correctly (``d < margin / 2``, or ``p > 1/2``), in training and in evaluation; ``accuracy`` of N-way classification.

    Args:
        model: an encoder, ``[B, ...]`` to features ``[B, D]``, such as ``conv4(head=False)``.
        form: ``"contrastive"`` or ``"koch"``, see above.
        margin: distance beyond which a pair of two classes costs nothing, in the contrastive loss.
        pairs: ``"all"``: every query with every support example, weighted so that both kinds count the same;
            ``"one"``: every query with one example of its own class and one of another.

    Example:
        >>> from torch import nn
        >>> learner = Siamese(nn.Linear(4, 8))
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> sorted(learner.meta_gradient(theta, Episode(x, y, x, y)).metrics)
        ['accuracy', 'accuracy_verification', 'loss']
    """

    class Config(MetricLearner.Config):
        """The settings of :class:`Siamese`."""

        form: Literal["contrastive", "koch"] = "contrastive"
        margin: PositiveFloat = 1.0
        pairs: Literal["all", "one"] = "all"

    config: Config
    _features: int | None = None  # D, read off the model when the tasks are known

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """Minus the distance to each class, or the log-odds of p.

        The mean over the examples of a class is taken: a single pair is noisy evidence, and the mean's error falls
        with the number of shots, where the nearest example's is that of the luckiest pair.
        """
        return self._logits(self._scores(params, episode), episode)

    def support_weights(self, params: Params, episode: Episode) -> torch.Tensor:
        """Softmax over the pairs of a query: of minus the distance, or of the log-odds of p."""
        return self._scores(params, episode).softmax(-1)

    def meta_loss(self, params: Params, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        """The loss of the pairs, see the head of this file."""
        scores, pairs = self._scores(params, episode), self.pairs_of(episode, next(iter(params.values())))
        if self.config.form == "koch":
            loss, boundary = pairs.mean(F.softplus(-scores), F.softplus(scores)), 0.0
        else:
            margin = self.config.margin
            loss, boundary = pairs.mean(scores.square(), F.relu(margin + scores).square()), -margin / 2
        right = pairs.mean((scores > boundary).to(scores.dtype), (scores <= boundary).to(scores.dtype))
        metrics = prediction_metrics(self._logits(scores, episode), episode.query_y)
        return loss, metrics | {"accuracy_verification": right}

    def pairs_of(self, episode: Episode, like: torch.Tensor) -> Pairs:
        """Which pairs count, in the type of ``like``.

        With ``pairs="one"``, query m takes example ``m mod K`` of its class, and the same of the class ``1 + m mod (N -
        1)`` places further on: classes come in random order in a task, so that is a random other class.

        Raises:
            LearnerContractError: the task has one class only.
        """
        ways = episode.ways
        if ways is None or ways < 2:
            raise LearnerContractError(
                f"Siamese needs pairs of two classes: the task has {ways or 'no'} class{'' if ways else 'es'}; "
                "expected at least 2. Set tasks.ways=2 or more."
            )
        own = episode.query_y[:, None] == episode.support_y
        other = ~own
        if self.config.pairs == "one":
            query = torch.arange(len(episode.query_y), device=episode.query_y.device)
            members = one_hot(episode, like)
            place = (members.cumsum(0) * members).sum(-1) - 1  # of an example among those of its class
            chosen = place == (query % (len(episode.support_y) // ways))[:, None]
            further = (episode.query_y + 1 + query % (ways - 1)) % ways
            own, other = own & chosen, (further[:, None] == episode.support_y) & chosen
        same, different = own.to(like.dtype), other.to(like.dtype)
        return Pairs(same / same.sum(), different / different.sum())

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """The model's weights and, for ``form="koch"``, alpha ``[D]`` and b: ``pair/alpha`` and ``pair/b``.

        Raises:
            LearnerContractError: D is not known before the learner has seen its tasks.
        """
        params = super().init_meta_params(rng)
        if self.config.form == "contrastive":
            return params
        like = next(iter(params.values()), next(self.model.parameters(), torch.zeros(())))  # all of it may be frozen
        learned = self.own_params.get("pair/alpha")
        features = self._features if learned is None else len(learned)
        if features is None:
            raise LearnerContractError(
                "Siamese with form='koch' has one weight per feature and has not seen its tasks yet. Call "
                "train(tasks) or bind(tasks.spec) first."
            )
        return params | {
            "pair/alpha": like.new_full((features,), -4 * features**-0.5),
            "pair/b": like.new_full((), 6.0),
        }

    def bound_to(self, spec: TaskSpec) -> None:
        """Read D off the model, with a batch of zeros."""
        if self.config.form == "koch":
            self._features = _features(self, spec)

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``nearest``: queries of the first tasks, each beside the support image that it is nearest to."""
        if episodes.support_x.dim() != 5 or episodes.support_x.shape[2] not in (1, 3):
            return {}  # no images
        self.model.eval()
        pairs, captions, right = [], [], []
        for episode in unstack(episodes)[:4]:
            with torch.no_grad(), vectorised(False):
                scores = self._scores(params, episode)
            for query in range(min(5, len(scores))):
                nearest = int(scores[query].argmax())
                pairs.append(torch.stack([episode.query_x[query], episode.support_x[nearest]]).cpu())
                score = float(scores[query, nearest])
                word = f"p = {1 / (1 + math.exp(-score)):.2f}" if self.config.form == "koch" else f"d = {-score:.2f}"
                captions.append(("", word))
                right.append(bool(episode.query_y[query] == episode.support_y[nearest]))
        title = "queries and their nearest support images; red: of another class"
        return {"nearest": Gallery(title, torch.stack(pairs), captions, right, ("query", "nearest"))}

    def _scores(self, params: Params, episode: Episode) -> torch.Tensor:
        """``[M, N*K]``, higher for the likelier pair: minus the distance, or the log-odds of p."""
        support, query = self.embed(params, episode)
        if self.config.form == "koch":
            return (query[:, None] - support).abs() @ params["pair/alpha"] + params["pair/b"]
        squared = squared_distance(query, support)
        # The root has no finite slope at 0, where its subgradient 0 will do: equal inputs cannot get nearer.
        equal = squared == 0
        return -squared.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0)

    @staticmethod
    def _logits(scores: torch.Tensor, episode: Episode) -> torch.Tensor:
        members = one_hot(episode, scores)
        return scores @ (members / members.sum(0))


def _features(learner: MetricLearner, spec: TaskSpec) -> int:
    model = learner.model
    like = next(model.parameters(), torch.zeros(()))
    try:
        # In evaluation mode: a norm layer that keeps running statistics would average these zeros into them.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model):
            output = require_tensor(model(like.new_zeros((2, *spec.input_shape))), "Siamese")
        _, features = output.shape
    except ModelContractError:
        raise
    except Exception as error:
        raise ModelContractError(
            f"Siamese could not read the number of features off the model: {type(error).__name__}: {error}. Give an "
            f"encoder that maps inputs {[2, *spec.input_shape]} to features [2, D], such as conv4(head=False)."
        ) from error
    return int(features)
