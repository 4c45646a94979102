"""Second derivatives of one task's loss, vectorised or not: its Hessian times a direction."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable

import torch

from distmeta.learners.fast_conv import unread_weight_gradients
from distmeta.learners.functional import (
    is_vectorised,
    named_gradient,
    own_kernels,
    same_noise_after,
    stacking,
    task_gradient,
)
from distmeta.types import Params

Loss = Callable[[Params], torch.Tensor]
Product = Callable[[Params], Params]
"""From a direction, by the names that move, to the Hessian times it, by the names of all parameters."""


def gradient_and_output(
    loss: Callable[[Params], tuple[torch.Tensor, torch.Tensor]], params: Params
) -> tuple[Params, torch.Tensor, torch.Tensor]:
    """Gradient of one task's loss, taken as a constant, the loss, and what else ``loss`` returns.

    Args:
        loss: scalar loss, and a tensor, as functions of the parameters.
        params: the point at which to differentiate.

    Example:
        >>> gradient, value, output = gradient_and_output(lambda p: (p["w"] ** 2, 2 * p["w"]), {"w": torch.tensor(3.0)})
        >>> gradient["w"].item(), value.item(), output.item()
        (6.0, 9.0, 6.0)
    """
    if is_vectorised() and stacking() is None:
        gradient, (value, output) = torch.func.grad_and_value(loss, has_aux=True)(params)
        return gradient, value, output
    outputs: list[torch.Tensor] = []

    def alone(point: Params) -> torch.Tensor:
        value, output = loss(point)
        outputs.append(output.detach())
        return value

    gradient, value = task_gradient(alone, params, create_graph=False)
    return gradient, value, outputs[0]


def curvature(
    loss: Loss, fixed: Params, moving: Params, direction: Params, *, needs_gradient: bool = True
) -> tuple[Params, Params]:
    """Gradient of one task's loss, and the product of its Hessian with a direction, both taken as constants.

    Args:
        loss: scalar loss as a function of all parameters.
        fixed: parameters that the direction does not touch.
        moving: the others.
        direction: tensors by the names of ``moving``.
        needs_gradient: whether the gradient is read; without, its numbers may be wrong, and the product comes sooner.

    Returns:
        The gradient by name of ``moving``, and the product by the names of all.

    Example:
        >>> p = {"w": torch.tensor([1.0, 2.0])}
        >>> g, h = curvature(lambda p: (p["w"] ** 3).sum(), {}, p, {"w": torch.tensor([1.0, 0.5])})
        >>> g["w"].tolist(), h["w"].tolist()
        ([3.0, 12.0], [6.0, 6.0])
    """
    if not is_vectorised() or stacking() is not None:
        with contextlib.nullcontext() if needs_gradient else unread_weight_gradients():
            gradient, product = held_curvature(loss, fixed, moving)
        return gradient, product(direction)

    def gradient_at(moving: Params) -> Params:
        found: Params = torch.func.grad(loss)({**fixed, **moving})
        return found

    try:
        # What the model draws in a try that fails must not be missing from the next.
        with warnings.catch_warnings(), same_noise_after(next(iter(moving.values())).device):
            # torch's own derivative formulas are compiled at the first call, by what torch calls deprecated.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            # Forward over reverse: no graph of the gradient is kept.
            found, along = torch.func.jvp(gradient_at, (moving,), (direction,))  # type: ignore[misc]
    except torch.OutOfMemoryError:
        raise  # the other way needs more
    except (NotImplementedError, RuntimeError):  # an operation has no forward derivative: squared errors, say
        gradient, product = held_curvature(loss, fixed, moving)
        return gradient, product(direction)
    return {name: found[name] for name in moving}, along


def held_curvature(loss: Loss, fixed: Params, moving: Params) -> tuple[Params, Product]:
    """:func:`curvature` whose direction comes later: the graph of the gradient is held until then.

    Args:
        loss: scalar loss as a function of all parameters.
        fixed: parameters that the direction does not touch.
        moving: the others.

    Returns:
        The gradient by name of ``moving``, and the function from a direction to the product, to be called once.

    Example:
        >>> g, product = held_curvature(lambda p: (p["w"] ** 3).sum(), {}, {"w": torch.tensor([1.0, 2.0])})
        >>> g["w"].tolist(), product({"w": torch.tensor([1.0, 0.5])})["w"].tolist()
        ([3.0, 12.0], [6.0, 6.0])
    """
    if not is_vectorised():
        with torch.enable_grad():
            point = {name: p.detach().requires_grad_() for name, p in {**fixed, **moving}.items()}
            gradient = _of_leaves(loss(point), point, moving)
        return {name: part.detach() for name, part in gradient.items()}, lambda way: _pulled(gradient, point, way)
    level = stacking()
    if level is None:

        def gradient_at(point: Params) -> Params:
            found = torch.func.grad(loss)(point)
            return {name: found[name] for name in moving}

        gradient, pull = torch.func.vjp(gradient_at, {**fixed, **moving})  # type: ignore[misc]
        return gradient, lambda way: pull(way)[0]

    # All tasks of the chunk, twice in reverse: the kernels of engine 2 have no forward mode.
    with torch.enable_grad():
        point = {name: level.stacked(p) for name, p in {**fixed, **moving}.items()}
        with level.outside():
            point = {name: own_kernels(p).detach().requires_grad_() for name, p in point.items()}
        losses = level.stacked(loss({name: level.mapped(p) for name, p in point.items()}))
        with level.outside():
            gradient = _of_leaves(losses.sum(), point, moving)

    def product(direction: Params) -> Params:
        along = {name: level.stacked(part) for name, part in direction.items()}
        with level.outside():
            found = _pulled(gradient, point, along)
        return {name: level.mapped(part) for name, part in found.items()}

    return {name: level.mapped(part.detach()) for name, part in gradient.items()}, product


def _of_leaves(value: torch.Tensor, point: Params, names: Iterable[str]) -> Params:
    return named_gradient(value, {name: point[name] for name in names}, create_graph=True)


def _pulled(gradient: Params, point: Params, direction: Params) -> Params:
    """The derivative of ``sum gradient . direction`` for every tensor of ``point``, zeros where there is none."""
    names = [name for name, part in gradient.items() if part.requires_grad]
    parts: tuple[torch.Tensor | None, ...] = (None,) * len(point)
    if names:  # not so where the loss is linear
        parts = torch.autograd.grad(
            [gradient[name] for name in names],
            list(point.values()),
            [direction[name].expand_as(gradient[name]) for name in names],
            allow_unused=True,
        )
    return {
        name: torch.zeros_like(p) if part is None else part
        for (name, p), part in zip(point.items(), parts, strict=True)
    }
