"""Autograd on the stacked tensors behind one level of ``vmap``, without the machinery for any number of levels.

``torch.func`` calls a Python function of autograd once per level and takes apart all arguments each time; with a
``grad`` in a ``vmap`` a small layer spends more time there than in its kernels. Where exactly one ``vmap`` is active, as
in a chunk of tasks, the tensors behind it are plain, ``[T, ...]``: functions and gradients are computed on these. In any
other case nothing here applies, and ``torch.func`` does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

_functorch = torch._C._functorch


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

    def stacked(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, ...]`` of ``x``, expanded where it is the same for all members."""
        plain, axis = self.behind(x)
        found: torch.Tensor = plain.expand(self.members, *plain.shape) if axis is None else plain.movedim(axis, 0)
        return found

    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        """``x [T, ...]`` as a tensor of the map."""
        found: torch.Tensor = _functorch._add_batch_dim(x, 0, self.number)
        return found

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """As if no map were active, for plain tensors."""
        layer = _functorch.pop_dynamic_layer_stack()
        try:
            yield
        finally:
            _functorch.push_dynamic_layer_stack(layer)


def one_level() -> Level | None:
    """The level of ``vmap`` that is active, if it is the only transform of ``torch.func`` that is."""
    stack = _functorch.get_interpreter_stack()
    if stack is None or len(stack) != 1 or stack[0].key() != _functorch.TransformType.Vmap:
        return None
    interpreter = _functorch.CVmapInterpreterPtr(stack[0])
    return Level(interpreter.level(), interpreter.batchSize(), "different")


def call(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply(*inputs)``, by the function's own rule for ``vmap`` and on plain tensors where that is enough."""
    level = one_level()
    if level is None:
        return function.apply(*inputs)  # type: ignore[no-untyped-call]
    plain, axes = zip(*(level.behind(x) for x in inputs), strict=True)
    with level.outside():
        if all(axis is None for axis in axes):
            return function.apply(*plain)  # type: ignore[no-untyped-call]
        found, _ = function.vmap(level, axes, *plain)
    return tuple(map(level.mapped, found)) if isinstance(found, tuple) else level.mapped(found)
