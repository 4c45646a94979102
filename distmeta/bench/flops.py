"""How many operations one task's meta-gradient needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from distmeta.learners.base import MetaLearner
from distmeta.types import Episode, Params

FLOPS = (
    "The operations of a task are those of the matrix products and convolutions in the plain loop over tasks, two for "
    "a multiplication with its addition; norms, activations and losses are not counted, nor what another engine adds "
    "or saves. Products with the zeros of a padded image count."
)
"""Definition of :func:`flops_per_task` for people."""


def flops_per_task(learner: MetaLearner, params: Params, episodes: Episode) -> int:
    """Operations in the matrix products and convolutions of one task's meta-gradient, by the plain loop over tasks.

    Args:
        learner: with its model built.
        params: theta, by name.
        episodes: stacked tasks; the first one is computed.

    Example:
        One inner step of a linear model: products of 2 x 5 x 4 x 3 operations, four for the support set (forward,
        gradient, and the derivatives of both) and two for the queries:

        >>> from distmeta.learners.maml import MAML
        >>> x, y = torch.rand(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64)
        >>> learner = MAML(torch.nn.Linear(4, 3))
        >>> flops_per_task(learner, dict(learner.model.named_parameters()), Episode(x, y, x, y)) / (2 * 5 * 4 * 3)
        6.0
    """
    first = episodes.map(lambda part: part[:1])
    mapping = {torch.ops.aten.convolution: _convolution([tuple(p.shape) for p in params.values() if p.dim() > 2])}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        learner.with_config(vectorise="loop").meta_gradient(params, first)
    return int(counter.get_total_flops())


def _convolution(kernels: list[tuple[int, ...]]) -> Callable[..., int]:
    """The formula for ``aten.convolution``.

    torch takes the second derivative to a kernel by a convolution of activations with gradients. With a stride its
    result may be larger than the kernel and is cut: the part that is thrown away is no work that the task needs.

    Args:
        kernels: shapes ``[out, in / groups, ...]`` of the convolutions' weights.
    """

    def formula(
        x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any, *rest: Any, out_shape: Any
    ) -> int:
        found = int(conv_flop_count(list(x), list(w), list(out_shape), transposed=transposed))
        if max(dilation) == 1 or tuple(w) in kernels:
            return found
        made = tuple(out_shape)
        for kernel in kernels:
            if made[1::-1] == kernel[:2] and made[2:] != kernel[2:] and _covers(made[2:], kernel[2:]):
                return int(found * math.prod(kernel[2:]) // math.prod(made[2:]))
        return found

    return formula


def _covers(large: tuple[int, ...], small: tuple[int, ...]) -> bool:
    return len(large) == len(small) and all(a >= b for a, b in zip(large, small, strict=True))
