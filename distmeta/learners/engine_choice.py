"""For which models the kernels of engine 2 are the faster ones: by the layers that a model calls, not by a clock.

A timing would make the numbers of a run depend on what else the machine did when it began. Measured on one core against
engine 1, interleaved, medians of ratios of CPU time; AVX-512, and in brackets AVX2 (emulated):

=============================================  =============================  ===========
conv net, 64 channels, 28x28 images            what                           ratio
=============================================  =============================  ===========
batch norm, max-pooling                        MAML, 1 step, chunks of 8      1.3 (1.2)
batch norm, max-pooling                        Reptile, ProtoNet              1.4
batch norm, max-pooling                        evaluation of MAML             1.9
batch norm, max-pooling, 84x84x3, 32 channels  MAML, 5 steps, 5 shots         2.7 (before the last change)
batch norm, stride 2                           MAML, 1 step, chunks of 8      1.05 (1.05)
batch norm, stride 2                           MAML, 1 step, chunks of 32     1.1 (1.05)
batch norm, stride 2                           MAML, 5 steps, chunks of 8     1.2 (1.2)
batch norm, stride 2                           Reptile, ProtoNet, evaluation  1.1
no norm                                        MAML, 1 step                   1.0
group norm, layer norm                         MAML, 1 step                   0.7 to 0.8
=============================================  =============================  ===========

Metric learners differentiate once, see :mod:`distmeta.learners.first_order_kernels`: 1.5 to 1.7 times as fast as in a
loop with torch's kernels with max-pooling, 1.1 times with strides.

So the choice falls on dense 2-d convolutions with batch norm by the statistics of the batch. Grouped convolutions and
other norms of images have not been found faster, or not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from distmeta.learners import one_level
from distmeta.types import Episode, Params

if TYPE_CHECKING:
    from distmeta.learners.base import MetaLearner

_OTHER_NORMS = (
    F.group_norm,
    F.instance_norm,
    F.layer_norm,
    torch.group_norm,
    torch.instance_norm,
    torch.layer_norm,
)


def suits_engine_2(learner: MetaLearner, params: Params, episode: Episode) -> bool:
    """Whether engine 2 is the faster one for a model, on CPUs.

    Args:
        learner: bound to its model, which is in training mode.
        params: the meta-parameters.
        episode: one task, not stacked.

    Example:
        >>> from torch import nn
        >>> from distmeta import MAML
        >>> norm = nn.BatchNorm2d(4, track_running_stats=False)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(16, 2))
        >>> learner, x, y = MAML(net), torch.rand(2, 1, 4, 4), torch.arange(2)
        >>> suits_engine_2(learner, dict(net.named_parameters()), Episode(x, y, x, y))
        True
    """
    if learner.model_kind not in ("classifier", "encoder") or not one_level.AVAILABLE:
        return False
    if any(not p.is_cpu for p in params.values()):
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Calls() as calls:
        learner.forward(params, episode.support_x)
    return calls.batch_norms > 0 and calls.convolutions > 0 and not calls.others


def fills_caches(learner: MetaLearner, params: Params, episode: Episode) -> bool:
    """Whether the images of one task are as much as a processor's caches keep, so that tasks had better take turns.

    The limit is a compromise of few measurements: one core of a busy machine, 5 ways, once each, how many times as fast
    task by task is as engine 2 on chunks of 8. Max-pooling: .99 at 2**18.9 numbers, 1.2 at 2**19.9, 1.7 at 2**20.5.
    Strides: .83 at 2**18.5, .97 at 2**19.3, .96 at 2**19.9, so that strided nets lose a few percent above the limit.

    Args:
        learner: bound to its model.
        params: the meta-parameters.
        episode: one task, not stacked.

    Returns:
        Whether the largest result of a convolution has more than 2**19 numbers: of support set and queries together.
    """
    model, count = learner.model, len(episode.support_x)
    sizes = _LARGEST.setdefault(model, {})
    key = (*episode.support_x.shape, model.training)
    if key not in sizes:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _Calls() as calls:
            learner.forward(params, episode.support_x)
        sizes[key] = calls.largest
    return sizes[key] * (count + len(episode.query_x)) > 2**19 * count


_LARGEST: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = WeakKeyDictionary()


class _Calls(TorchFunctionMode):
    """What a model calls of images: dense convolutions, batch norms by the statistics of the batch, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.batch_norms = self.others = self.largest = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.conv2d:
            grouped = given.get("groups", args[6] if len(args) > 6 else 1) != 1
            self.others += grouped
            self.convolutions += not grouped
        elif func is F.batch_norm and _input(args, given).dim() == 4:
            training = given.get("training", args[5] if len(args) > 5 else False)
            self.batch_norms += bool(training)
        elif func in _OTHER_NORMS and _input(args, given).dim() == 4:
            self.others += 1
        found = func(*args, **given)
        if func is F.conv2d:
            self.largest = max(self.largest, found.numel())
        return found


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = args[0] if args else kwargs["input"]
    return found
