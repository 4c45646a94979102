"""How much memory a chunk's meta-gradient will need, before any worker computes one.

The bytes of the tensors that are alive together are counted while the learner computes the meta-gradient of one or two
tasks, with two and three inner steps. Tensors of a chunk grow linearly in its tasks, and graphs linearly in the steps.
What a process holds is more: malloc keeps freed pieces between those in use. Small ones are many, in proportion to what
is alive; of large ones there are some, whatever is alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distmeta.errors import first_sentence
from distmeta.learners.base import MetaLearner
from distmeta.learners.mixed_gradient import DescentLearner
from distmeta.types import Episode, Params

HEAP_FACTOR = 1.6
"""Resident bytes over those of live tensors in glibc's heap, as :mod:`distmeta.malloc` sets it: 1.4 to 1.9 seen."""

AUTO_SHARE = 0.5
"""How much of a worker's memory a chunk may take where "auto" chooses; libraries and data need some too."""

_UNPREDICTED = 8  # tasks, where no memory can be predicted: as where nothing is asked for

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))

_BEGIN = 2  # inner steps; the first one may share what later ones have for each task

_LARGE = 32 * 2**20  # bytes of a large tensor

_HOLES = 4  # so many of the largest size there are beside what is alive: 2 to 5 seen with images of 84x84


def peak_bytes(learner: MetaLearner, params: Params, episodes: Episode, tasks: int) -> int:
    """The most bytes that the meta-gradient of a chunk will hold beyond parameters and episodes.

    Args:
        learner: bound to its model, its engine chosen.
        params: the meta-parameters.
        episodes: two or more tasks, stacked, in the shapes of the chunk's.
        tasks: the chunk's tasks.

    Example:
        >>> from torch import nn
        >>> from distmeta import MAML
        >>> x, y = torch.rand(2, 5, 64), torch.arange(5).expand(2, 5)
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))
        >>> params = {name: p.detach() for name, p in net.named_parameters()}
        >>> def peak(steps, tasks=8):
        ...     learner = MAML(net, inner_steps=steps, vectorise="vmap")
        ...     return peak_bytes(learner, params, Episode(x, y, x, y), tasks)
        >>> peak(1) < peak(5) < peak(10), round(peak(5, tasks=16) / peak(5), 3)
        (True, 2.0)
    """
    few = 1 if learner.loops else min(tasks, 2)
    scale = 1.0 if learner.loops else tasks / few
    some = episodes.map(lambda part: part[:few])
    first = learner.at_step(0)
    learner = first if first.exact_gradient else learner  # a loss after every step is of the first steps

    def measured(steps: int | None) -> float:
        shorter = learner if steps is None else learner.with_config(inner_steps=steps, test_inner_steps=None)
        live = _Live(scale)
        with torch.random.fork_rng(devices=[]), live:
            shorter.meta_gradient(params, some)
        largest = live.largest * scale
        return live.peak * scale + (_HOLES * largest if largest >= _LARGE else 0.0)

    steps = getattr(learner.config, "inner_steps", None)
    if steps is None or steps <= _BEGIN:
        return int(measured(steps))
    fewer, more = measured(_BEGIN), measured(_BEGIN + 1)
    # Walked back, the peak may lie where few fast parameters are kept, as long as the steps are few.
    per_step = max(more - fewer, HEAP_FACTOR * scale * few * _kept_per_step(learner, params))
    return int(more + (steps - _BEGIN - 1) * per_step)


def _kept_per_step(learner: MetaLearner, params: Params) -> int:
    """Bytes that walking one task back keeps of each step: its fast parameters."""
    if not isinstance(learner, DescentLearner) or learner.config.gradient != "mixed" or not learner.walks_back:
        return 0
    return sum(params[name].nbytes for name in learner.descent(params).moving)


def planned(
    learner: MetaLearner, params: Params, episodes: Episode, *, tasks: int, memory: int
) -> tuple[MetaLearner, str | None]:
    """The learner with ``gradient="auto"`` replaced by what its memory allows, once, before a run begins.

    Unrolled is faster and takes the graphs of all steps; it is chosen where these take :data:`AUTO_SHARE` of the memory
    at most, and where walking back is no other way or needs as much.

    Args:
        learner: bound to its model, its engine chosen.
        params: the meta-parameters.
        episodes: two or more tasks, stacked, in the shapes of the chunk's.
        tasks: of a chunk.
        memory: bytes that a worker may use.

    Returns:
        The learner, and a line for the user: what was chosen by which numbers, or that a chunk will not fit.
    """
    if not isinstance(learner, DescentLearner):
        return learner, None
    chunk = f"a chunk of {tasks} task{'s' * (tasks != 1)} (runtime.chunk_size={tasks})"
    asked = learner.config.gradient
    unrolled = learner.with_config(gradient="unroll") if asked == "auto" else learner
    try:
        need = peak_bytes(unrolled, params, episodes, tasks)
        if asked != "auto":
            return learner, _warning(learner, chunk, need, memory)
        mixed = learner.with_config(gradient="mixed")
        others = f"{_size(memory)} per worker"
        line = f"learner.gradient=auto is unroll: {chunk} is predicted to need {_size(need)}, of {others}."
        if need <= AUTO_SHARE * memory or not mixed.walks_back:
            return unrolled, _warning(unrolled, chunk, need, memory) or line
        less = peak_bytes(mixed, params, episodes, tasks)
        if less >= need:  # fast parameters are more than graphs
            return unrolled, _warning(unrolled, chunk, need, memory) or line
        line = (
            f"learner.gradient=auto is mixed: {chunk} is predicted to need {_size(less)}; unrolled {_size(need)}, more "
            f"than {AUTO_SHARE:.0%} of {others}."
        )
        return mixed, _warning(mixed, chunk, less, memory) or line
    except Exception as error:  # noqa: BLE001 (a user's model may raise anything where its operations are counted)
        why = f"the memory of {chunk} could not be predicted ({type(error).__name__}: {first_sentence(str(error))})"
        return unrolled, f"learner.gradient=auto is unroll: {why}." if asked == "auto" else None


def largest_chunk(
    learner: MetaLearner, params: Params, episodes: Episode, *, most: int, memory: int
) -> tuple[int, str]:
    """``most`` tasks, or the half of them, and so on, that :data:`AUTO_SHARE` of the memory is enough for.

    Args:
        learner: bound to its model, its engine and its way to the gradient chosen.
        params: the meta-parameters.
        episodes: two or more tasks, stacked, in the shapes of the chunk's.
        most: tasks.
        memory: bytes that a worker may use.

    Returns:
        The number of tasks, 1 at least, and by which numbers it was chosen, for the user.
    """
    tasks = most
    try:
        need = peak_bytes(learner, params, episodes, tasks)
        while tasks > 1 and need > AUTO_SHARE * memory:
            tasks = -(-tasks // 2)
            need = peak_bytes(learner, params, episodes, tasks)
    except Exception as error:  # noqa: BLE001 (a user's model may raise anything where its operations are counted)
        tasks = min(most, _UNPREDICTED)
        return tasks, f"of memory that cannot be predicted: {type(error).__name__}: {first_sentence(str(error))}"
    return tasks, f"predicted to need {_size(need)}, of {_size(memory)} per worker"


def _warning(learner: DescentLearner, chunk: str, need: int, memory: int) -> str | None:
    if need <= memory:
        return None
    could_walk = learner.config.gradient != "mixed" and learner.with_config(gradient="mixed").walks_back
    return (
        f"This run may end for want of memory: with learner.gradient={learner.config.gradient}, {chunk} is predicted "
        f"to need {_size(need)}, and a worker has {_size(memory)}. Set {'learner.gradient=mixed, or ' * could_walk}a "
        "smaller runtime.chunk_size."
    )


def _size(count: int) -> str:
    unit, name = next((unit, name) for unit, name in _UNITS if count >= unit or unit == 1024)
    return f"{count / unit:.{0 if count >= 100 * unit else 1}f} {name}"


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside, and alive together."""

    def __init__(self, scale: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0.0
        self.largest = 0
        self._scale = scale
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if forward_ad._current_level >= 0:  # torch crashes there; mixed gradients go twice in reverse instead
            raise RuntimeError("Memory cannot be counted in torch's forward mode.")
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage._cdata not in self._seen:
                given = {other._cdata for other in _storages((args, kwargs))}
                self._count(storage, 0.0 if storage._cdata in given else self._weight(storage.nbytes()))
        return found

    def _weight(self, size: int) -> float:
        self.largest = max(self.largest, size)
        return size * (1.0 if size * self._scale >= _LARGE else HEAP_FACTOR)

    def _count(self, storage: torch.UntypedStorage, size: float) -> None:
        key = storage._cdata

        def gone(_: Any) -> None:
            del self._seen[key]
            self._now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and not leaf._is_zerotensor()
    ]
