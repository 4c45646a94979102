"""Autograd on the stacked tensors behind one level of ``vmap``, without the machinery for any number of levels.

``torch.func`` calls a Python function of autograd once per level and takes apart all arguments each time; with a
``grad`` in a ``vmap`` a small layer spends more time there than in its kernels. Where exactly one ``vmap`` is active,
as in a chunk of tasks, the tensors behind it are plain, ``[T, ...]``: functions and gradients are computed on these. In
any other case nothing here applies, and ``torch.func`` does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

_functorch: Any = getattr(torch._C, "_functorch", None)

AVAILABLE = hasattr(torch._C, "_are_functorch_transforms_active") and all(
    hasattr(_functorch, name)
    for name in (
        "CVmapInterpreterPtr",
        "TransformType",
        "_add_batch_dim",
        "get_interpreter_stack",
        "get_unwrapped",
        "is_batchedtensor",
        "maybe_get_bdim",
        "pop_dynamic_layer_stack",
        "push_dynamic_layer_stack",
        "unwrap_if_dead",
    )
)
"""Whether this torch has what this module uses, none of which is public. Where not, ``torch.func`` does everything."""


class Level(NamedTuple):
    """The one active level of ``vmap``, and the number of its members."""

    number: int
    members: int
    randomness: str

    @property
    def batch_size(self) -> int:
        """The members, under the name that rules of ``vmap`` read."""
        return self.members

    def behind(self, x: Any) -> tuple[Any, int | None]:
        """The plain tensor behind ``x`` and its mapped axis; ``x`` itself and ``None`` where it is not mapped."""
        if isinstance(x, torch.Tensor) and _functorch.is_batchedtensor(x):
            return _functorch.get_unwrapped(x), _functorch.maybe_get_bdim(x)
        return x, None

    def is_mapped(self, x: torch.Tensor | None) -> bool:
        """Whether ``x`` differs between the members."""
        return x is not None and bool(_functorch.is_batchedtensor(x))

    def stacked(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, ...]`` of ``x``, expanded where it is the same for all members."""
        plain, axis = self.behind(x)
        found: torch.Tensor = plain.expand(self.members, *plain.shape) if axis is None else plain.movedim(axis, 0)
        return found

    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        """``x [T, ...]`` as a tensor of the map."""
        found: torch.Tensor = _functorch._add_batch_dim(x, 0, self.number)
        return found

    def front(self, x: torch.Tensor) -> torch.Tensor:
        """:meth:`stacked`, without the node of a view for autograd where there is nothing to do."""
        inner, axis = self.behind(x)
        found: torch.Tensor = inner if axis == 0 else self.stacked(x)
        return found

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """As if no map were active, for plain tensors."""
        layer = _functorch.pop_dynamic_layer_stack()
        try:
            yield
        finally:
            _functorch.push_dynamic_layer_stack(layer)


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, or may be."""
    return not AVAILABLE or bool(torch._C._are_functorch_transforms_active())


def one_level() -> Level | None:
    """The level of ``vmap`` that is active, if it is the only transform of ``torch.func`` that is."""
    if not AVAILABLE:
        return None
    stack = _functorch.get_interpreter_stack()
    if stack is None or len(stack) != 1 or stack[0].key() != _functorch.TransformType.Vmap:
        return None
    interpreter = _functorch.CVmapInterpreterPtr(stack[0])
    return Level(interpreter.level(), interpreter.batchSize(), "different")


def _alive(x: Any) -> Any:
    """``x`` without the wrapper of a transform that has ended, which a tensor kept for a derivative may have."""
    return _functorch.unwrap_if_dead(x) if isinstance(x, torch.Tensor) else x


def call(function: type[Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, by the function's own rule for ``vmap``, on plain tensors where that is enough.

    Args:
        function: its ``vmap`` returns results that are mapped along their first axis.
        inputs: all of ``forward``'s; defaults are not filled in.
    """
    if not transformed():
        # Function.apply looks at the signature of forward first, in every call, for as long as a small layer takes.
        return super(Function, function).apply(*map(_alive, inputs))  # type: ignore[misc]
    level = one_level()
    if level is None:
        return function.apply(*inputs)  # type: ignore[no-untyped-call]
    plain, axes = zip(*(level.behind(x) for x in inputs), strict=True)
    with level.outside():
        if all(axis is None for axis in axes):
            return call(function, *plain)
        found, _ = function.vmap(level, axes, *plain)  # type: ignore[no-untyped-call]
    return tuple(map(level.mapped, found)) if isinstance(found, tuple) else level.mapped(found)


def per_channel(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``function`` of ``[N, C, H, W]``, which treats channels apart from each other, with those of all tasks as one.

    Its tensors stay in the layout of :mod:`distmeta.learners.fast_conv`, which ``vmap`` would copy into another.
    """

    def wrapped(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        level = one_level()
        plain, axis = (input, None) if level is None else level.behind(input)
        if level is None or axis is None or plain.dim() != 5 or kwargs.get("return_indices") or len(args) > 5:
            return function(input, *args, **kwargs)
        with level.outside():
            found = parted(function(joined(plain.movedim(axis, 0)), *args, **kwargs), level.members)
        return level.mapped(found)

    return wrapped


def joined(x: torch.Tensor) -> torch.Tensor:
    """``[G, N, C, H, W]`` as ``[N, G C, H, W]`` in channels-last memory; a view where it lies there already."""
    tasks, n, channels, height, width = x.shape
    flat = x.permute(1, 3, 4, 0, 2).reshape(n, height, width, tasks * channels).permute(0, 3, 1, 2)
    return flat.contiguous(memory_format=torch.channels_last)


def parted(x: torch.Tensor, tasks: int) -> torch.Tensor:
    """The inverse of :func:`joined`, a view."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, height, width, tasks, channels // tasks).permute(3, 0, 4, 1, 2)
