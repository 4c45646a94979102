"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016).

A query is classified by attention over the labelled support set (equation 1)::

    p(y | x, S) = sum_i a(x, x_i) y_i,     a(x, x_i) = softmax_i( c(f(x), g(x_i)) / temperature )

with c the cosine similarity (section 2.1.1), or minus the squared Euclidean distance. The paper has no temperature
(``temperature=1``): a cosine lies within [-1, 1], so its softmax is nearly flat and learns slowly; 0.1 does much
better.

Without context f = g = the encoder. With ``full_context=True`` both see the whole support set S (section 2.1.2). With
f' = g' = the encoder, appendix A.2 has a bidirectional LSTM over S with a skip connection, A.1 an LSTM that reads
g(S) by attention in K steps::

    g(x_i) = h_i (forwards) + h_i (backwards) + g'(x_i)
    r_k-1  = sum_i softmax_i( h_k-1 . g(x_i) ) g(x_i)
    h_k, c_k = LSTM( f'(x), [h_k-1, r_k-1], c_k-1 ),     h_k <- h_k + f'(x),     f(x) = h_K

from h_0 = c_0 = 0, so that r_0 is the mean of g(S). The paper gives S no order though g depends on one: here it is that
of the episode, class by class.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt

from distmeta.errors import ModelContractError
from distmeta.learners.functional import vectorised
from distmeta.learners.metric import MetricLearner, cosine, one_hot, squared_distance
from distmeta.learners.over_tasks import unstack
from distmeta.learners.pictures import Attention, Picture
from distmeta.models.lstm import LSTMWeights
from distmeta.types import Episode, Params


class MatchingNet(MetricLearner):
    """Learn an embedding in which the nearest labelled examples give the class. Any number of ways at test.

    Args:
        model: an encoder, ``[B, ...]`` to features ``[B, D]``, such as ``conv4(head=False)``; f' = g'.
        distance: ``"cosine"`` (as in the paper) or ``"euclidean"`` (squared).
        temperature: divides the similarities; towards 0 the attention becomes the nearest neighbour.
        full_context: full-context embeddings: LSTMs, meta-learned beside the encoder, through which f and g see S.
        features: D, the size of the LSTMs; what the encoder returns. Only for ``full_context``.
        steps: K, how often a query reads the support set. Only for ``full_context``.

    Example:
        >>> from torch import nn
        >>> learner = MatchingNet(nn.Linear(4, 8))
        >>> theta = {name: p.detach() for name, p in learner.model.named_parameters()}
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> learner.meta_gradient(theta, Episode(x, y, x, y)).tasks
        2
    """

    class Config(MetricLearner.Config):
        """The settings of :class:`MatchingNet`."""

        distance: Literal["cosine", "euclidean"] = "cosine"
        temperature: PositiveFloat = 0.1
        full_context: bool = False
        features: PositiveInt = 64
        steps: PositiveInt = 5

    config: Config

    def init_meta_params(self, rng: np.random.Generator) -> Params:
        """The encoder's parameters, and the weights of the LSTMs: ``lstm/g-forwards/x`` and so on."""
        encoder, width = super().init_meta_params(rng), self.config.features
        if not self.config.full_context:
            return encoder
        cells = {
            "g-forwards": LSTMWeights.draw(rng, width, width),
            "g-backwards": LSTMWeights.draw(rng, width, width),
            "f": LSTMWeights.draw(rng, width, width, hidden=2 * width),
        }
        like = next(iter(encoder.values()), next(self.model.parameters(), torch.zeros(())))  # all of it may be frozen
        own = {f"lstm/{cell}/{part}": w.to(like) for cell, of in cells.items() for part, w in of._asdict().items()}
        return {**encoder, **own}

    def query_logits(self, params: Params, episode: Episode) -> torch.Tensor:
        """``log p(y | query, S)``."""
        support, query = self.features(params, episode)
        attention = self.log_attention(query, support)
        # The sum over a class's examples, in logarithms: no probability underflows to log 0.
        outside = one_hot(episode, support).T == 0
        return attention[:, None, :].masked_fill(outside, -torch.inf).logsumexp(-1)

    def support_weights(self, params: Params, episode: Episode) -> torch.Tensor:
        """a(x, x_i), the attention itself."""
        support, query = self.features(params, episode)
        return self.log_attention(query, support).exp()

    def features(self, params: Params, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
        """g(x_i) ``[N*K, D]`` and f(x) ``[M, D]``, in context where the option is on."""
        support, query = self.embed(params, episode)
        if not self.config.full_context:
            return support, query
        self._require_width(support)
        support = self.support_in_context(params, support)
        return support, self.query_in_context(params, query, support)

    def log_attention(self, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """``log a(x, x_i)``, ``[M, N*K]``: attention of each query over the support set."""
        similarity = cosine if self.config.distance == "cosine" else lambda a, b: -squared_distance(a, b)
        return (similarity(query, support) / self.config.temperature).log_softmax(-1)

    def support_in_context(self, params: Params, support: torch.Tensor) -> torch.Tensor:
        """g(S): ``[N*K, D]`` from g'(x_i) ``[N*K, D]`` (appendix A.2)."""
        forwards = _cell(params, "g-forwards").unroll(support)
        backwards = _cell(params, "g-backwards").unroll(support.flip(0)).flip(0)
        return forwards + backwards + support

    def query_in_context(self, params: Params, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """f(x): ``[M, D]`` from f'(x) ``[M, D]`` and g(S) ``[N*K, D]`` (appendix A.1)."""
        weights = _cell(params, "f")
        h = c = torch.zeros_like(query)
        for _ in range(self.config.steps):
            read = (h @ support.T).softmax(-1) @ support
            h, c = weights.step(query, torch.cat([h, read], -1), c)
            h = h + query
        return h

    def pictures(self, params: Params, episodes: Episode) -> dict[str, Picture]:
        """``attention`` of one query per class, ten classes at most, over the support set of the first task."""
        episode = unstack(episodes)[0]
        if episode.support_x.dim() != 4 or episode.support_x.shape[1] not in (1, 3):
            return {}  # no images
        self.model.eval()
        with torch.no_grad(), vectorised(False):
            # All queries in one batch, as where the accuracy comes from, then those that are shown.
            support, query = self.features(params, episode)
            labels = episode.query_y.tolist()
            shown = [labels.index(label) for label in sorted(set(labels))[:10]]
            seen = slice(25)
            weights = self.log_attention(query, support).exp()[shown, seen]
        right = episode.query_y[shown][:, None] == episode.support_y[None, seen]
        title = "attention of queries over the support set"
        if len(support) > 25:
            title += f" (the first 25 of {len(support)})"
        images = (episode.query_x[shown].cpu(), episode.support_x[seen].cpu())
        return {"attention": Attention(title, *images, weights.cpu(), right.cpu())}

    def _require_width(self, features: torch.Tensor) -> None:
        if features.shape[-1] != self.config.features:
            raise ModelContractError(
                f"MatchingNet with full_context has LSTMs for {self.config.features} features, but the encoder returns "
                f"{features.shape[-1]} per input. Set learner.features={features.shape[-1]}."
            )


def _cell(params: Params, name: str) -> LSTMWeights:
    return LSTMWeights(*(params[f"lstm/{name}/{part}"] for part in LSTMWeights._fields))
